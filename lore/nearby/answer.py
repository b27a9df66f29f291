"""A cited answer: every place that is named stands with its place_id, how far it is on foot, whether it is open, and why.

Without a language model a template writes it. A language model's text is checked by sentences. A sentence is struck if it

- cites an id that is no candidate's, names a candidate without its citation, or cites one that it does not name;
- holds a number, with its unit, that is not in the question or in the facts of all places it cites;
- says open, closed or unknown where the facts do not;
- holds a capitalized word, a quoted name or the name of another place of the town that is not in the evidence.

What cannot be found so: an invented name in lower case, or an unquoted Chinese one, of no place of the town, beside a cited one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from lore.codec.lexical_match import function_words
from lore.codec.sanitize import neutralize
from lore.engines.engine import Engine, Sampling
from lore.nearby.gazetteer import MAX_WORDS
from lore.nearby.intent import understood
from lore.nearby.times import NUMBER, number
from lore.nearby.town import Town
from lore.places.local_life import computed, opening_text
from lore.places.place import MAX_NAME, plain_name
from lore.places.question import Candidate, Hit, Intent
from lore.support.text import printable, shortened

NAME_CHARACTERS, WHY_CHARACTERS, MAX_ANSWER = 80, 160, 4000
_MARKS = str.maketrans(
    {"[": "(", "]": ")", "<": "‹", ">": "›", "`": "'", "*": " ", "_": " ", "~": " ", "|": "/", "\\": "/", "#": " "}
)
_LINK = re.compile(r"(?i)\b(?:https?|ftp|javascript|data|mailto):/*|\bwww\.")
_NAMED, _CITED = 0xE000, 0xEC00  # private characters that stand for names and citations while a text is checked
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_FACT = re.compile(
    r"(?i)(\d+(?:[.:]\d+)*) ?-?"
    r"(min|m\b|met(?:er|re)s?\b|km\b|kilomet(?:er|re)s?\b|hours?\b|mi(?:les?)?\b|[ap]\.?m\b|分钟|米|公里|千米|小时|点)?"
)
_SPELLED = re.compile(
    rf"(?i)(?<![\w\u3400-\u9fff]){NUMBER}(?=[ -]?(?:min|met(?:er|re)|km|kilom|hours?|miles?|分钟|米|公里|千米|小时|点))"
)
_STATES = {
    "unknown": re.compile(r"(?i)\bunknown\b|营业时间未知|未知"),
    "closed": re.compile(r"(?i)\bclosed\b|不营业|打烊|关门|停业"),
    "open": re.compile(r"(?i)\bopen\b|营业|开着"),
}
_WORD = re.compile(r"[^\W\d_\u3400-\u9fff](?:[^\W\u3400-\u9fff]|['’])*")
_QUOTED = re.compile(r"[「“《\"]([^」”》\"]{1,80})[」”》\"]")
_STARTS = frozenset("try visit head both another also nothing none nearest closest you're it's here's there's".split())
_PROMPT = Path(__file__).parent / "prompts" / "answer.md"


@dataclass(frozen=True)
class Answer:
    """text: for people, safe to show as plain text. candidates: what is shown, the best first. beyond: the nearest place that meets
    the question outside the circle, if none is inside. struck: sentences of a language model that were taken out. refused: grades
    that contradicted a computed rule. notes: what did not work. hits: what each layer found."""

    intent: Intent
    understood: str
    text: str
    candidates: list[Candidate]
    beyond: Candidate | None = None
    struck: int = 0
    refused: int = 0
    notes: list[str] = field(default_factory=list)
    hits: dict[str, list[Hit]] = field(default_factory=dict)
    seconds: float = 0.0


def shown(text: str, limit: int = NAME_CHARACTERS) -> str:
    """Text of strangers on one line, with nothing that Markdown, HTML, a terminal or a citation would take for its own."""
    plain = printable(_PRIVATE.sub("", text[: 8 * limit])).translate(_MARKS)
    return shortened(" ".join(_LINK.sub("", plain).split()), limit)


def cited(candidate: Candidate) -> str:
    """The name of a place with its id."""
    return f"{shown(candidate.place.name) or shown(_kind(candidate))} [{shown(candidate.place.place_id)}]".strip()


def metres_text(metres: float, language: str = "en") -> str:
    """Rounded to 10 m, from 1 km on to 100 m."""
    if metres < 995:
        return f"{max(10, 10 * round(metres / 10))}{'米' if language == 'zh' else ' m'}"
    return f"{metres / 1000:.1f}{'公里' if language == 'zh' else ' km'}"


def facts_text(candidate: Candidate, intent: Intent) -> str:
    """Walk, opening state and reasons of a candidate."""
    language = intent.language
    minutes, metres = _whole_minutes(candidate), metres_text(candidate.metres, language)
    opening = opening_text(candidate.opening, intent)
    why = "; ".join(dict.fromkeys(shown(hit.why.replace("->", "→"), WHY_CHARACTERS) for hit in candidate.hits.values() if hit.why))
    if language == "zh":
        return f"步行{minutes}分钟（约{metres}），{opening}。" + (f"理由：{why}。" if why else "")
    return f"{minutes} min on foot (about {metres}), {opening}." + (f" Why: {why}." if why else "")


def template_answer(intent: Intent, candidates: Sequence[Candidate], beyond: Candidate | None) -> str:
    """The answer without a language model."""
    zh, walk = intent.language == "zh", f"{intent.minutes:.3g}"
    lines = said_about_places(intent)
    by_words = any(layer in one.hits for one in candidates for layer in ("name", "vector"))
    unknown = ", ".join(f"“{shown(need.text)}”" for need in intent.needs if need.key is None and not need.excluded)
    if unknown and not by_words:
        lines.append(unknown + ("不是已知的需求。" if zh else " is no need that LORE knows."))
    if not candidates:
        lines.append(f"步行{walk}分钟内没有符合要求的地方。" if zh else f"Nothing that meets this is within {walk} min on foot.")
        if beyond is not None:
            lines.append(("范围之外最近的是：" if zh else "The nearest beyond that circle: ") + _line(beyond, intent))
        return "\n".join(lines)
    count = len(candidates)
    around = "" if intent.around is None else shown(intent.around)
    if zh:
        lines.append(f"{around + '周边' if around else ''}步行{walk}分钟内，{'推荐' if count > 1 else '有'}{count}处：")
    else:
        from_there = f" of {around}" if around else ""
        lines.append(f"{count} place{'s' * (count > 1)} within {walk} min on foot{from_there}:")
    return "\n".join(lines + [f"{at}. {_line(one, intent)}" for at, one in enumerate(candidates, 1)])


def said_about_places(intent: Intent) -> list[str]:
    """Names that the town lacks, and a name that several places have."""
    zh, lines = intent.language == "zh", []
    for name in intent.unknown_places:
        similar = (", " if not zh else "、").join(map(shown, intent.similar_places))
        hint = (f"相近的名称：{similar}。" if zh else f" Similar names: {similar}.") if similar else ""
        here = "索引中没有“{}”，因此以你的位置为中心。" if zh else "{} is not in the index, so the circle is around your position."
        lines.append(here.format(shown(name)) + hint)
    if intent.around is not None and intent.around_others:
        name, number_of = shown(intent.around), intent.around_others + 1
        taken = (
            f"有{number_of}处名为“{name}”，取离你最近的一处"
            if zh
            else f"{number_of} places are called {name}; the nearest to you is meant"
        )
        lines.append(f"{taken} [{shown(intent.around_id or '')}]" + ("。" if zh else "."))
    return lines


def model_answer(intent: Intent, candidates: Sequence[Candidate], engine: Engine, town: Town | None = None) -> tuple[str, int]:
    """(a language model's answer without what its check strikes, how many sentences were struck); "" if no cited place is left."""
    places = [
        {
            "name": neutralize(shown(one.place.name)),
            "id": shown(one.place.place_id),
            "facts": neutralize(facts_text(one, intent)),
        }
        for one in candidates
    ]
    prompt = jinja2.Template(_PROMPT.read_text(encoding="utf-8"), trim_blocks=True).render(
        places=places, question=neutralize(intent.text), language=intent.language
    )
    answer = engine.generate([[{"role": "user", "content": prompt}]], Sampling(max_tokens=512))[0][0].text
    return check_answer(answer, intent, candidates, town)


def check_answer(text: str, intent: Intent, candidates: Sequence[Candidate], town: Town | None = None) -> tuple[str, int]:
    """(the text without the sentences that are struck, their number). See the module; "" if no cited place is left."""
    text = _PRIVATE.sub("", text[:MAX_ANSWER])
    order = sorted(range(len(candidates)), key=lambda at: -len(candidates[at].place.name))
    for at, one in enumerate(candidates):
        text = text.replace(f"[{shown(one.place.place_id)}]", chr(_CITED + at))
    for at in order:
        if name := shown(candidates[at].place.name):
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", chr(_NAMED + at), text, flags=re.I)
    kept, struck = [], 0
    for sentence in filter(None, map(str.strip, _SENTENCE.split(text))):
        if _is_grounded(sentence, intent, candidates, town):
            kept.append(sentence)
        else:
            struck += 1
    if not any(chr(_CITED + at) in sentence for sentence in kept for at in range(len(candidates))):
        return "", struck
    clean = " ".join(" ".join(sentence.translate(_MARKS).split()) for sentence in kept)
    for at, one in enumerate(candidates):
        clean = clean.replace(chr(_NAMED + at), shown(one.place.name)).replace(chr(_CITED + at), f"[{shown(one.place.place_id)}]")
    return printable(clean), struck


def _is_grounded(sentence: str, intent: Intent, candidates: Sequence[Candidate], town: Town | None) -> bool:
    named = {shown(one.place.name) for at, one in enumerate(candidates) if chr(_NAMED + at) in sentence}
    about = [one for at, one in enumerate(candidates) if chr(_CITED + at) in sentence]
    if named != {shown(one.place.name) for one in about} or "[" in sentence or _LINK.search(sentence):
        return False
    words = _PRIVATE.sub(" ; ", sentence)
    asked = _facts(intent.text) | _facts(understood(intent)) | {(str(len(candidates)), "")}
    facts = [facts_text(one, intent) for one in about]
    for read in (_facts, _states):
        said = read(words) - (asked if read is _facts else set())
        if said and not (facts and all(said <= read(one) for one in facts)):
            return False
    evidence = f" {_plain(_evidence(intent, about))} "
    for found in filter(lambda one: one[0][0].isupper(), _WORD.finditer(words)):
        word = found[0].casefold()
        starts = not found.start() and (word in function_words("en") or word in _STARTS)
        if not starts and f" {_plain(word)} " not in evidence:
            return False
    quoted = [_plain(one[1]) for one in _QUOTED.finditer(words)]
    named_here = [] if town is None else _names_in(words, town)
    return all(f" {one} " in evidence for one in (*quoted, *named_here))


def _facts(text: str) -> set[Any]:
    """(digits, unit) of the numbers in a text; number words before a unit count."""
    digits = _SPELLED.sub(lambda found: f" {number(found[0]):g}", text)
    short = {"met": "m", "kil": "km", "米": "m", "公里": "km", "千米": "km", "分钟": "min"}
    return {(found[1], short.get(unit[:3], unit)) for found in _FACT.finditer(digits) for unit in [(found[2] or "").casefold()]}


def _states(text: str) -> set[Any]:
    """Of open, closed and unknown, what a text says."""
    found = set()
    for name, pattern in _STATES.items():
        text, count = pattern.subn(" ", text)
        found |= {name} if count else set()
    return found


def _names_in(text: str, town: Town) -> list[str]:
    """Plain names of the town that a text holds."""
    runs = list(_runs(text))
    begun = town.begun_names(shortest for shortest, *_ in runs)
    return town.known_names(run for one in runs if one[0] in begun for run in one)


def _runs(text: str) -> Iterator[list[str]]:
    """Runs of words that may be the name of a place, the shortest first, by the word that they begin with: two words or more, or
    three Han characters."""
    for part in text.split(";"):
        words = _plain(part).split()
        for at, first in enumerate(words):
            ends = range(at + (2 if first.isascii() else 3), min(at + MAX_WORDS, len(words)) + 1)
            if ends:
                yield [" ".join(words[at:end]) for end in ends]


def _plain(text: str) -> str:
    """plain_name of a text that is longer than a name."""
    return " ".join(plain_name(text[at : at + MAX_NAME]) for at in range(0, len(text), MAX_NAME))


def _evidence(intent: Intent, about: list[Candidate]) -> str:
    known = [intent.text, *(need.text for need in intent.needs)]
    for one in about:
        tags = [f"{key} {value}" for key, value in one.place.tags.items()]
        known += [facts_text(one, intent), one.place.name, *one.place.classes, *tags, one.place.text]
    return " ; ".join(known).replace("_", " ").replace("=", " ")[:20_000]


def _line(candidate: Candidate, intent: Intent) -> str:
    return f"{cited(candidate)}{'：' if intent.language == 'zh' else ': '}{facts_text(candidate, intent)}"


def _kind(candidate: Candidate) -> str:
    return candidate.place.classes[0].partition("=")[2].replace("_", " ") if candidate.place.classes else candidate.place.kind


def _whole_minutes(candidate: Candidate) -> int:
    return max(1, round(candidate.minutes))


def as_json(answer: Answer, place_ids: Sequence[str]) -> dict[str, Any]:
    """Everything with the evidence per layer. place_ids: of the town, by row."""
    intent = answer.intent
    return {
        "understood": answer.understood,
        "intent": asdict(intent) | {"when": intent.when and intent.when.isoformat()},
        "answer": answer.text,
        "places": [_place_json(one, intent) for one in answer.candidates],
        "beyond": answer.beyond and _place_json(answer.beyond, intent),
        "layers": {
            name: [{"place_id": place_ids[hit.row], "score": hit.score, "why": hit.why} for hit in hits]
            for name, hits in answer.hits.items()
        },
        "struck": answer.struck,
        "refused": answer.refused,
        "notes": answer.notes,
        "seconds": answer.seconds,
    }


def _place_json(candidate: Candidate, intent: Intent) -> dict[str, Any]:
    place, until = candidate.place, candidate.opening.until
    return {
        **{key: getattr(place, key) for key in ("place_id", "name", "kind", "lat", "lon", "classes", "tags", "text")},
        "metres": round(candidate.metres, 1),
        "minutes": round(candidate.minutes, 2),
        "opening": {"state": candidate.opening.state, "until": until and until.isoformat()},
        "tier": candidate.tier,
        "rules": [one.rule for one in computed(candidate, intent)],
        "score": candidate.score,
        "why": {name: {"score": hit.score, "why": hit.why} for name, hit in candidate.hits.items()},
    }
