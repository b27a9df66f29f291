"""A cited answer: every place that is named stands with its place_id, how far it is on foot, whether it is open, and why.

Without a language model a template writes it. A language model's text is checked sentence by sentence, and a sentence is struck if it

- cites an id that is no candidate's, names a candidate without its citation, or cites one that it does not name;
- holds a number of minutes, metres or a time that is not true of all places it cites, or any other number without evidence;
- says open or closed against the evidence, or of a place whose hours are unknown;
- holds a capitalized word, a quoted name or the name of another place of the town that is not in the evidence.

What cannot be found so: an invented name in lower case, or an unquoted Chinese one, of no place of the town, beside a cited one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from lore.codec.lexical_match import function_words
from lore.codec.sanitize import neutralize
from lore.engines.engine import Engine, Sampling
from lore.nearby.gazetteer import MAX_WORDS, Gazetteer, plain_name
from lore.nearby.intent import Intent
from lore.nearby.retrieval import Candidate, Hit
from lore.nearby.rules import computed, opening_text
from lore.nearby.times import NUMBER, number
from lore.support.text import printable, shortened

NAME_CHARACTERS, WHY_CHARACTERS, MAX_ANSWER = 80, 160, 4000
_MARKS = str.maketrans(
    {"[": "(", "]": ")", "<": "‹", ">": "›", "`": "'", "*": " ", "_": " ", "~": " ", "|": "/", "\\": "/", "#": " "}
)
_LINK = re.compile(r"(?i)\b(?:https?|ftp|javascript|data|mailto):/*|\bwww\.")
_NAMED, _CITED = 0xE000, 0xEC00  # private characters that stand for names and citations while a text is checked
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_MEASURE = re.compile(
    rf"(?i)(?<![\w.])(?P<value>{NUMBER})[ -]?(?P<unit>min(?:ute)?s?\b|分钟|met(?:er|re)s?\b|m\b|米|km\b|kilomet(?:er|re)s?\b|公里|千米)"
)
_CLOCK = re.compile(
    r"(?i)(?<![\d.:])(?P<hour>\d{1,2})(?:[:：](?P<minute>\d{2})|点(?P<half>半)?| ?(?=[ap]\.?m))(?: ?(?P<of>[ap])\.?m\b\.?)?"
)
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_CAPITAL = re.compile(r"(?<![\w'’])[^\W\d_a-z\u3400-\u9fff][\w'’]*")
_QUOTED = re.compile(r"[「“《\"]([^」”》\"]{1,80})[」”》\"]")
_OPEN = re.compile(r"(?i)\bopen\b|营业|开门|开着")
_CLOSED = re.compile(r"(?i)\bclosed\b|\bnot open\b|打烊|关门|停业|不营业|未营业")
_UNKNOWN = re.compile(r"(?i)\bunknown\b|\bnot known\b|未知|不详|不清楚")
_STARTS = frozenset("try visit head both another also nothing none nearest closest you're it's here's there's monday tuesday wednesday "
                    "thursday friday saturday sunday mon tue wed thu fri sat sun am pm wi-fi wifi ok".split())  # fmt: skip
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


def facts_text(candidate: Candidate, language: str = "en") -> str:
    """Walk, opening state and reasons of a candidate."""
    minutes, metres = _whole_minutes(candidate), metres_text(candidate.metres, language)
    opening = opening_text(candidate.opening, language)
    why = "; ".join(dict.fromkeys(shown(hit.why, WHY_CHARACTERS) for hit in candidate.hits.values() if hit.why))
    if language == "zh":
        return f"步行{minutes}分钟（约{metres}），{opening}。" + (f"理由：{why}。" if why else "")
    return f"{minutes} min on foot (about {metres}), {opening}." + (f" Why: {why}." if why else "")


def template_answer(intent: Intent, candidates: Sequence[Candidate], beyond: Candidate | None) -> str:
    """The answer without a language model."""
    zh, walk = intent.language == "zh", f"{intent.minutes:.3g}"
    lines = said_about_places(intent)
    if not candidates:
        lines.append(
            f"步行{walk}分钟内没有符合要求的地方。" if zh else f"Nothing that meets this is within {walk} minutes on foot."
        )
        if beyond is not None:
            lines.append(("范围之外最近的是：" if zh else "The nearest beyond that circle: ") + _line(beyond, intent.language))
        return "\n".join(lines)
    count = len(candidates)
    around = "" if intent.around is None else shown(intent.around)
    if zh:
        lines.append(f"{around + '周边' if around else ''}步行{walk}分钟内，{'推荐' if count > 1 else '有'}{count}处：")
    else:
        from_there = f" of {around}" if around else ""
        lines.append(f"{count} place{'s' * (count > 1)} within {walk} minutes on foot{from_there}:")
    return "\n".join(lines + [f"{at}. {_line(one, intent.language)}" for at, one in enumerate(candidates, 1)])


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


def model_answer(
    intent: Intent, candidates: Sequence[Candidate], engine: Engine, names: Gazetteer | None = None
) -> tuple[str, int]:
    """(a language model's answer without what its check strikes, how many sentences were struck); "" if no cited place is left."""
    places = [
        {
            "name": neutralize(shown(one.place.name)),
            "id": shown(one.place.place_id),
            "facts": neutralize(facts_text(one, intent.language)),
        }
        for one in candidates
    ]
    prompt = jinja2.Template(_PROMPT.read_text(encoding="utf-8"), trim_blocks=True).render(
        places=places, question=neutralize(intent.text), language=intent.language
    )
    answer = engine.generate([[{"role": "user", "content": prompt}]], Sampling(max_tokens=512))[0][0].text
    return check_answer(answer, intent, candidates, names)


def check_answer(text: str, intent: Intent, candidates: Sequence[Candidate], names: Gazetteer | None = None) -> tuple[str, int]:
    """(the text without the sentences that are struck, their number). See the module; "" if no cited place is left."""
    text = _PRIVATE.sub("", text[:MAX_ANSWER])
    order = sorted(range(len(candidates)), key=lambda at: -len(candidates[at].place.name))
    for at, one in enumerate(candidates):
        text = text.replace(f"[{shown(one.place.place_id)}]", chr(_CITED + at))
    for at in order:
        if name := shown(candidates[at].place.name):
            text = re.sub(
                rf"(?<!\w){re.escape(name)}(?!\w)" if name.isascii() else re.escape(name), chr(_NAMED + at), text, flags=re.I
            )
    kept, struck = [], 0
    for sentence in filter(None, map(str.strip, _SENTENCE.split(text))):
        if _is_grounded(sentence, intent, candidates, names):
            kept.append(sentence)
        else:
            struck += 1
    if not any(chr(_CITED + at) in sentence for sentence in kept for at in range(len(candidates))):
        return "", struck
    clean = " ".join(" ".join(sentence.translate(_MARKS).split()) for sentence in kept)
    for at, one in enumerate(candidates):
        clean = clean.replace(chr(_NAMED + at), shown(one.place.name)).replace(chr(_CITED + at), f"[{shown(one.place.place_id)}]")
    return printable(clean), struck


def _is_grounded(sentence: str, intent: Intent, candidates: Sequence[Candidate], names: Gazetteer | None) -> bool:
    named = {at for at in range(len(candidates)) if chr(_NAMED + at) in sentence}
    citations = {at for at in range(len(candidates)) if chr(_CITED + at) in sentence}
    same = {shown(candidates[at].place.name) for at in named} == {shown(candidates[at].place.name) for at in citations}
    if not same or "[" in sentence or _LINK.search(sentence):
        return False
    about = [candidates[at] for at in sorted(citations)]
    words = _PRIVATE.sub(" ; ", sentence)
    return (
        _numbers_hold(words, intent, about, len(candidates))
        and _hours_hold(words, about)
        and _words_hold(words, intent, about, names)
    )


def _numbers_hold(text: str, intent: Intent, about: list[Candidate], count: int) -> bool:
    def check(found: re.Match[str]) -> str:
        unit = found["unit"].casefold()
        value = number(found["value"])
        if unit.startswith("min") or unit == "分钟":
            true = [value == _whole_minutes(one) for one in about]
            asked = value == intent.minutes
        else:
            metres = value * (1000 if unit.startswith("k") or unit in ("公里", "千米") else 1)
            true = [abs(metres - _shown_metres(one)) < 0.5 for one in about]
            asked = False
        return " " if asked or (true and all(true)) else "\0"

    def check_clock(found: re.Match[str]) -> str:
        hour, minute = int(found["hour"]), int(found["minute"] or (30 if found["half"] else 0))
        hour = hour % 12 + 12 * (found["of"] in "pP") if found["of"] else hour
        times = [(one.opening.until.hour, one.opening.until.minute) if one.opening.until else None for one in about]
        asked = intent.when is not None and (intent.when.hour, intent.when.minute) == (hour, minute)
        return " " if asked or (times and all(time == (hour % 24, minute) for time in times)) else "\0"

    left = _CLOCK.sub(check_clock, _MEASURE.sub(check, text))
    said = set(_DIGITS.findall(_evidence(intent, about))) | {str(count)}
    return "\0" not in left and all(digits in said for digits in _DIGITS.findall(left))


def _hours_hold(text: str, about: list[Candidate]) -> bool:
    says_closed, unknown = _CLOSED.search(text), _UNKNOWN.search(text)
    says_open = _OPEN.search(_CLOSED.sub(" ", text))
    for state in {one.opening.state for one in about}:
        if state == "unknown" and (says_open or says_closed) and not unknown:
            return False
        if state == "open" and says_closed or state == "closed" and says_open and not says_closed:
            return False
    return True


def _words_hold(text: str, intent: Intent, about: list[Candidate], names: Gazetteer | None) -> bool:
    evidence = f" {plain_name_of(_evidence(intent, about))} "
    known = set(evidence.split()) | _STARTS
    for found in _CAPITAL.finditer(text):
        word = found[0].casefold()
        if word not in known and plain_name(word) not in known and not (word in function_words("en") and not found.start()):
            return False
    quoted = [plain_name(one[1]) for one in _QUOTED.finditer(text)]
    if any(one and f" {one} " not in evidence for one in quoted):
        return False
    for part in text.split(";") if names is not None else ():
        words = plain_name_of(part).split()
        for at in range(len(words)):
            for end in range(at + 2, min(at + MAX_WORDS, len(words)) + 1):
                run = " ".join(words[at:end])
                if (run.isascii() or end - at > 2) and f" {run} " not in evidence and names.find(run, intent.lat, intent.lon):
                    return False
    return True


def plain_name_of(text: str) -> str:
    """plain_name of a text that is longer than a name."""
    return " ".join(plain_name(text[at : at + 200]) for at in range(0, len(text), 200))


def _evidence(intent: Intent, about: list[Candidate]) -> str:
    known = [intent.text, *(need.text for need in intent.needs)]
    for one in about:
        tags = [f"{key} {value}" for key, value in one.place.tags.items()]
        known += [one.place.name, *one.place.classes, *tags, one.place.text, *(hit.why for hit in one.hits.values())]
    return " ; ".join(known).replace("_", " ").replace("=", " ")[:20_000]


def _line(candidate: Candidate, language: str) -> str:
    return f"{cited(candidate)}{'：' if language == 'zh' else ': '}{facts_text(candidate, language)}"


def _kind(candidate: Candidate) -> str:
    return candidate.place.classes[0].partition("=")[2].replace("_", " ") if candidate.place.classes else candidate.place.kind


def _whole_minutes(candidate: Candidate) -> int:
    return max(1, round(candidate.minutes))


def _shown_metres(candidate: Candidate) -> float:
    value, _, unit = metres_text(candidate.metres).partition(" ")
    return float(value) * (1000 if unit == "km" else 1)


def as_json(answer: Answer, place_ids: Sequence[str]) -> dict[str, Any]:
    """Everything with the evidence per layer. place_ids: of the town, by row."""
    intent = answer.intent
    return {
        "question": intent.text,
        "understood": {
            "line": answer.understood,
            "language": intent.language,
            "needs": [{"text": need.text, "key": need.key, "excluded": need.excluded} for need in intent.needs],
            "lat": intent.lat,
            "lon": intent.lon,
            "around": intent.around,
            "around_id": intent.around_id,
            "around_others": intent.around_others,
            "unknown_places": list(intent.unknown_places),
            "similar_places": list(intent.similar_places),
            "minutes": intent.minutes,
            "when": intent.when and intent.when.isoformat(),
            "open_then": intent.open_then,
            "companions": list(intent.companions),
        },
        "answer": answer.text,
        "places": [_place_json(one, intent) for one in answer.candidates],
        "beyond": None if answer.beyond is None else _place_json(answer.beyond, intent),
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
    place, opening = candidate.place, candidate.opening
    return {
        "place_id": place.place_id,
        "name": place.name,
        "lat": place.lat,
        "lon": place.lon,
        "classes": place.classes,
        "metres": round(candidate.metres, 1),
        "minutes": round(candidate.minutes, 2),
        "opening": {"state": opening.state, "until": opening.until and opening.until.isoformat()},
        "tier": candidate.tier,
        "rules": [one.rule for one in computed(candidate, intent)],
        "score": candidate.score,
        "why": {name: {"score": hit.score, "why": hit.why} for name, hit in candidate.hits.items()},
    }
