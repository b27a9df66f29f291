"""What a question asks for: needs, where, when, how far, with whom.

A grammar reads questions in English and Chinese; names of places are looked up in the town, and a name that it lacks is said, never
guessed. A language model, where one is given, fills in the same fields (Corrections) and has no other way in: its names of places
and its times are read as those of an option. Not read: several middles ("between A and B"), and distances other than on foot.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import jinja2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lore.codec.lexical_match import NEGATIONS, function_words, stem
from lore.codec.sanitize import neutralize
from lore.engines.engine import Engine, Sampling
from lore.nearby.gazetteer import MAX_WORDS, Named, find, similar
from lore.nearby.times import NUMBER, find_time, number, read_time
from lore.nearby.town import Town, check_point
from lore.places.place import plain_name
from lore.places.question import WALK_MINUTES, Intent, Need
from lore.places.walk import METRES_PER_MINUTE
from lore.support.errors import LoreError, reason
from lore.support.text import compatible, printable, shortened
from lore.support.untrusted_json import parse_json

MINUTES = 1.0, 120.0
"""Shortest and longest walk."""
MAX_QUESTION = 2000
"""Characters."""


class NeedWords(Protocol):
    """A need of the relations. en, zh: phrases that mean it, its name first."""

    key: str
    en: Sequence[str]
    zh: Sequence[str]


class Corrections(BaseModel):
    """What replaces the grammar's reading, from options or from a language model. None: the grammar's reading stays. needs: keys of
    the relations, phrases of them or any words."""

    model_config = ConfigDict(extra="forbid")

    needs: list[str] | None = Field(None, max_length=20)
    excluded: list[str] | None = Field(None, max_length=20)
    time: str | None = Field(None, max_length=100)
    minutes: float | None = Field(None, ge=MINUTES[0], le=MINUTES[1])
    around: str | None = Field(None, max_length=200)
    """"": the position of the person."""


COMPANIONS = {
    "kids": r"\bwith (?:(?:my|our|the|two|small|young|little) )?(?:kids?|child(?:ren)?|toddlers?|family)\b|带着?(?:孩子|小孩|娃)",
    "stroller": r"\bwith (?:(?:my|our|a|the) )?(?:baby|stroller|pram)\b|带着?(?:宝宝|婴儿)|推着?婴儿车",
    "dog": r"\bwith (?:(?:my|our|a|the) )?(?:dogs?|puppy|pets?)\b|带着?(?:我的)?(?:狗狗?|宠物)",
    "wheelchair": r"\b(?:in|with) (?:(?:my|a|the) )?wheelchair\b(?! access)|坐轮椅",
    "parents": r"\bwith (?:(?:my|our) )?(?:parents|grandparents|mother|father|mom|dad)\b|带着?(?:父母|爸妈|老人)",
    "friends": r"\bwith (?:(?:my|some|a few) )?friends\b|[和跟]朋友们?",
    "partner": r"\bwith (?:my )?(?:wife|husband|partner|girlfriend|boyfriend)\b|[和跟](?:老婆|老公|女朋友|男朋友)",
}
_COMPANIONS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in COMPANIONS.items()}
METRES = {"m": 1.0, "km": 1000.0, "k": 1000.0, "mi": 1609.344, "f": 0.3048, "米": 1.0, "公": 1000.0, "千": 1000.0, "里": 500.0}
_RADIUS = re.compile(
    rf"(?i)(?:\b(?:within|in|under|up to) )?(?:\b(?:about |the next |an? ))?(?<![\w.:])(?P<en>{NUMBER})[ -]?"
    r"(?P<unit>min(?:ute)?s?|m|met(?:er|re)s?|km|kilomet(?:er|re)s?|mi|miles?|ft|feet)\b(?! ?(?:drive|by|bike|ride|bus))"
    r"(?: (?:walk(?:ing)?|on foot|away|distance|of me))*"
    rf"|\bwithin (?P<hours>{NUMBER}) hours?\b|\b(?P<half>half an hour)\b(?:'s walk)?"
    rf"|(?:走路|步行|走)?(?:大约|约)?(?P<zh>{NUMBER})个?(?P<han>分钟|(?<!24)(?<!24个)(?<!二十四)(?<!二十四个)小时(?!营业)|公里|千米|米|里路)(?:的?路程?|步行|以内|之内|内|左右|远|可达)*"
)
_BEFORE = re.compile(r"(?i)\b(?:(?P<strong>near(?: to)?|around|close to|next to|not far from|靠近)|in|at|by|on)\s|靠近|离|在")
_AFTER = re.compile("附近|旁边|周围|周边|边上|一带")
_POSITION = frozenset("me here us my our you a an any some the this that 我 我们 这 这里 这儿 家".split())
_END_OF_NAME = frozenset("for with that open and within which where to but not no without 的 有 找 喝 吃 近 不".split())
HAN = r"\u3400-\u9fff\uf900-\ufaff"
_HAN_WORDS = (
    "有没有 不想要 不喜欢 不要 不想 不去 不吃 不喝 没有 除了 一点 一些 附近 旁边 地方 非常 可以 帮我 哪里 哪儿 哪个 哪些 什么 请问 "
    "想要 一个 一家 推荐"
)
_TOKEN = re.compile(rf"{'|'.join(_HAN_WORDS.split())}|[{HAN}]|[^\W_{HAN}]+(?:['’][a-z]+)?|[,.;:!?()，。；：！？、（）]")
_NOT = NEGATIONS | set("except avoid excluding dont 不想要 不喜欢 不要 不想 不去 不吃 不喝 没有 除了 非 别".split())
_OR = frozenset({"or", "nor", "或", "和", "、"})
_FILLERS = (function_words("en") | function_words("zh")) - _NOT
_FILLERS |= frozenset(
    "somewhere place spot near nearby close around best great nice where is there find walk away far too very really bit anywhere "
    "go within also grab recommend suggest right 一点 一些 附近 旁边 地方 非常 可以 帮我 哪里 哪儿 哪个 请问 推荐 家 能 去 里 离 "
    "近 远 请 走 店".split()
)
_ARTICLES = frozenset("a an the some something somewhere place".split())
_NO_NAME = _FILLERS | _POSITION
_PROMPT = Path(__file__).parent / "prompts" / "intent.md"


class _Token(NamedTuple):
    word: str
    start: int
    end: int


def understand(
    text: str,
    town: Town,
    lat: float,
    lon: float,
    now: datetime,
    relations: Iterable[NeedWords],
    *corrections: Corrections,
) -> Intent:
    """The intent of a question. lat, lon: the person's position, in degrees. now: wall clock of the town. corrections: the later
    ones win. Raises LoreError for a text, position, walk or time out of bounds."""
    check_point(lat, lon)
    said = " ".join(printable(compatible(text[: MAX_QUESTION + 1])).split())
    if not said or len(text) > MAX_QUESTION:
        raise LoreError(
            f"The question has {len(text):,} characters; expected 1 to {MAX_QUESTION:,}. Say what you need in a sentence."
        )
    fixed = {name: value for one in corrections for name, value in one.model_dump(exclude_none=True).items()}
    han, latin = len(re.findall(f"[{HAN}]", said)), len(re.findall("[A-Za-z]+", said))
    language: Literal["en", "zh"] = "zh" if han > latin else "en"
    by_phrase = _phrases(tuple((need.key, tuple(need.en), tuple(need.zh)) for need in relations))

    rest, around = _known_place(said, town, lat, lon)
    radius = _RADIUS.search(rest)
    rest = _without(rest, [radius.span()] if radius else [])
    when, open_then, spans = find_time(rest, now)
    rest = _without(rest, spans)
    companions = [name for name, pattern in _COMPANIONS.items() if pattern.search(rest)]
    rest = _without(rest, [found.span() for name in companions for found in _COMPANIONS[name].finditer(rest)])
    unknown: list[str] = []
    if around is None:
        rest, unknown = _unknown_places(rest, by_phrase)
    needs = _needs(rest, by_phrase)

    if (name := fixed.get("around")) is not None:
        around = find(town, plain_name(name), lat, lon)
        unknown = [] if around or not name.strip() else [shortened(printable(name), 100)]
    if "time" in fixed:
        when, open_then = read_time(fixed["time"], now), True
    for field, excluded in (("needs", False), ("excluded", True)):
        if field in fixed:
            given = [_named_need(words, by_phrase, excluded) for words in fixed[field]]
            needs = [need for need in needs if need.excluded != excluded] + given
    intent = Intent(
        text=said,
        lat=lat,
        lon=lon,
        language=language,
        needs=tuple(dict.fromkeys(needs)),
        unknown_places=tuple(unknown),
        similar_places=tuple(dict.fromkeys(other for name in unknown for other in similar(town, name))),
        minutes=fixed.get("minutes") or (_minutes(radius) if radius else WALK_MINUTES),
        when=when or now,
        open_then=open_then,
        companions=tuple(companions),
    )
    if around is None:
        return intent
    return replace(
        intent,
        lat=float(town.lats[around.row]),
        lon=float(town.lons[around.row]),
        around=town.names[around.row],
        around_id=town.place_ids[around.row],
        around_others=around.others,
    )


def read_position(text: str) -> tuple[float, float]:
    """(latitude, longitude) of `41.88,-87.63`. Raises LoreError for anything else."""
    try:
        lat, lon = map(float, text.split(","))
    except ValueError as error:
        raise LoreError(
            f"{printable(text[:60])!r} is no position. Write latitude and longitude in degrees: 41.88,-87.63."
        ) from error
    check_point(lat, lon)
    return lat, lon


def understood(intent: Intent) -> str:
    """What was understood, on one line."""
    zh = intent.language == "zh"
    wanted = [need.text if need.key else f"“{need.text}”" for need in intent.needs if not need.excluded]
    parts = ["、".join(wanted) if zh else ", ".join(wanted)] if wanted else ["任何地方" if zh else "any place"]
    if refused := [need.text for need in intent.needs if need.excluded]:
        parts.append(("不要：" if zh else "not: ") + ", ".join(refused))
    if intent.around is not None:
        others = f"（最近的一处，另有{intent.around_others}处同名）" if zh else f" (the nearest of {intent.around_others + 1})"
        parts.append(("在" if zh else "around ") + intent.around + (others if intent.around_others else ""))
    parts.append(f"步行{intent.minutes:.3g}分钟内" if zh else f"within {intent.minutes:.3g} min on foot")
    if intent.when is not None:
        day = "周" + "一二三四五六日"[intent.when.weekday()] if zh else f"{intent.when:%a}"
        only = ("，要营业" if zh else ", open then") if intent.open_then else ""
        parts.append(f"{day} {intent.when:%Y-%m-%d %H:%M}{only}")
    if intent.companions:
        parts.append(("同行：" if zh else "with: ") + ", ".join(intent.companions))
    return printable(" · ".join(parts))


def model_corrections(text: str, engine: Engine, relations: Iterable[NeedWords]) -> Corrections:
    """What a language model reads in the question. Raises LoreError if its answer is no object of these fields."""
    prompt = jinja2.Template(_PROMPT.read_text(encoding="utf-8")).render(
        keys=[need.key for need in relations], question=neutralize(text[:MAX_QUESTION])
    )
    answer = engine.generate([[{"role": "user", "content": prompt}]], Sampling(max_tokens=300))[0][0].text
    try:
        start, end = answer.index("{"), answer.rindex("}") + 1
        return Corrections.model_validate(parse_json(answer[start:end], constants=False, depth=3))
    except (ValueError, ValidationError) as error:
        raise LoreError(
            f"The language model's reading of the question is not usable ({reason(error)}); the grammar's stands."
        ) from error


def _minutes(found: re.Match[str]) -> float:
    said = found.groupdict()
    if said["half"]:
        return 30.0
    value = number(next(value for name in ("en", "hours", "zh") if (value := said[name])))
    unit = (said["unit"] or said["han"] or "hours").casefold()
    if unit.startswith("min") or unit == "分钟":
        minutes = value
    elif unit in ("hours", "小时"):
        minutes = 60 * value
    else:
        minutes = value * next(METRES[start] for start in (unit[:2], unit[:1]) if start in METRES) / METRES_PER_MINUTE
    if not MINUTES[0] <= minutes <= MINUTES[1]:
        raise LoreError(
            f"{found[0].strip()!r} is a walk of {minutes:,.4g} minutes; expected {MINUTES[0]:g} to {MINUTES[1]:g} "
            f"({METRES_PER_MINUTE:g} m a minute). Ask for a circle of that size."
        )
    return minutes


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text, of the same length, with semicolons for what has been read."""
    signs = list(text)
    for start, end in spans:
        signs[start:end] = ";" * (end - start)
    return "".join(signs)


def _tokens(text: str) -> list[_Token]:
    found = ((one[0].casefold().replace("'", "").replace("’", ""), *one.span()) for one in _TOKEN.finditer(text))
    return [_Token(stem(word) if word[0].isalnum() else word, start, end) for word, start, end in found]


@lru_cache(maxsize=8)
def _phrases(needs: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]) -> dict[tuple[str, ...], str]:
    """Keys of needs by the words of their phrases, with and without function words; also by the key itself."""
    found: dict[tuple[str, ...], str] = {}
    for key, en, zh in needs:
        for phrase in (*en, *zh, key.replace("_", " ")):
            words = tuple(token.word for token in _tokens(compatible(phrase)))
            found.setdefault(words, key)
            content = tuple(word for word in words if word not in _FILLERS)
            if len(content) > 1 or (content and _ARTICLES.issuperset(set(words) - set(content))):
                found.setdefault(content, key)
    found.pop((), None)
    return found


def _longest(tokens: list[_Token], at: int, by_phrase: dict[tuple[str, ...], str]) -> tuple[str, int] | None:
    """(key, end) of the longest phrase that begins with a token; function words may stand between its words."""
    best, words, content = None, (), ()
    filler = tokens[at].word in _FILLERS
    for end in range(at, min(at + MAX_WORDS, len(tokens))):
        word = tokens[end].word
        if not word[0].isalnum():
            break
        words += (word,)
        content += () if word in _FILLERS else (word,)
        key = by_phrase.get(words) or (None if filler or word in _FILLERS else by_phrase.get(content))
        best = (key, end + 1) if key else best
    return best


def _needs(text: str, by_phrase: dict[tuple[str, ...], str]) -> list[Need]:
    tokens = _tokens(text)
    needs: list[Need] = []
    loose: list[_Token] = []
    negated = False

    def close() -> None:
        if loose:
            words = text[loose[0].start : loose[-1].end]
            if len(words) > 1:
                needs.append(Need(words, None, negated))
            loose.clear()

    at = 0
    while at < len(tokens):
        word = tokens[at].word
        if found := _longest(tokens, at, by_phrase):
            close()
            key, end = found
            needs.append(Need(text[tokens[at].start : tokens[end - 1].end], key, negated))
            at = end
            negated = negated and at < len(tokens) and tokens[at].word in _OR
            continue
        if word in _NOT or not word[0].isalnum() and word not in _OR:
            close()
            negated = word in _NOT
        elif word in _OR:
            close()
        elif word not in _FILLERS:
            loose.append(tokens[at])
        at += 1
    close()
    return needs


def _named_need(words: str, by_phrase: dict[tuple[str, ...], str], excluded: bool) -> Need:
    said = shortened(printable(compatible(words[:100])).strip(), 100)
    tokens = _tokens(said.replace("_", " "))
    found = _longest(tokens, 0, by_phrase) if tokens else None
    return Need(said, found[0] if found and found[1] == len(tokens) else None, excluded)


def _known_place(text: str, town: Town, lat: float, lon: float) -> tuple[str, Named | None]:
    """The text without the first name after "near" or before "附近" that the town has, and the place. After a word that says
    less, such as "in", the name is that of an area, or is written with a capital."""
    tokens = [(plain_name(one[0]), one.start(), one.end()) for one in re.finditer(rf"[{HAN}]|[^\W_{HAN}]+(?:['’][a-z]+)?", text)]
    words = [word for word, _, _ in tokens]

    def spans() -> Iterator[tuple[re.Match[str], int, int, str]]:
        """(marker, first token, end, name) of what may be a name. Drawn twice: keeping them would take most of the time."""
        for marker in _BEFORE.finditer(text):
            first = bisect_left(tokens, marker.end(), key=itemgetter(1))
            first += first < len(tokens) and words[first] == "the"
            for end in range(min(first + MAX_WORDS, len(tokens)), first, -1):
                yield marker, first, end, " ".join(words[first:end])
        for marker in _AFTER.finditer(text):
            last = bisect_right(tokens, marker.start(), key=itemgetter(2))
            for first in range(max(0, last - MAX_WORDS), last):
                yield marker, first, last, " ".join(words[first:last])

    known = set(town.known_names({name for *_, name in spans()}))
    for marker, first, end, name in spans() if known else ():
        found, start = find(town, name, lat, lon) if name in known else None, tokens[first][1]
        if found is None:
            continue
        if marker.re is _AFTER:
            return _without(text, [(start, marker.end())]), found
        sure = marker["strong"] or text[start].isupper() or town.kinds[found.row] == "area"
        if sure or (end - first > 1 and not text[start].isascii()):
            return _without(text, [(marker.start(), tokens[end - 1][2])]), found
    return text, None


def _unknown_places(text: str, by_phrase: dict[tuple[str, ...], str]) -> tuple[str, list[str]]:
    """The text without names that the town lacks, and the names."""
    tokens = _tokens(text)
    for marker in _BEFORE.finditer(text):
        first = bisect_left(tokens, marker.end(), key=itemgetter(1))
        first += first < len(tokens) and tokens[first].word == "the"
        if first == len(tokens) or tokens[first].word in _POSITION or not (marker["strong"] or text[tokens[first].start].isupper()):
            continue
        end = first
        while end < min(first + MAX_WORDS, len(tokens)) and tokens[end].word not in _END_OF_NAME and tokens[end].word[0].isalnum():
            if not marker["strong"] and not text[tokens[end].start].isupper():
                break
            end += 1
        start = tokens[first].start
        if end > first and (text[start].isupper() or not _longest(tokens, first, by_phrase)):
            return _without(text, [(marker.start(), tokens[end - 1].end)]), [text[start : tokens[end - 1].end]]
    for marker in _AFTER.finditer(text):
        first = last = bisect_right(tokens, marker.start(), key=itemgetter(2))
        while first and last - first < MAX_WORDS and tokens[first - 1].word[0].isalnum() and tokens[first - 1].word not in _NO_NAME:
            first -= 1
        if last - first > 1 and not _longest(tokens[first:last], 0, by_phrase):
            start = tokens[first].start
            return _without(text, [(start, marker.end())]), [text[start : marker.start()].strip()]
    return text, []
