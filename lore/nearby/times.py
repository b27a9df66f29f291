"""Reads a time of day from a question in English or Chinese: "open now", "Tue 15:00", "tomorrow evening", "明天下午三点".

A time without a date is the next one from now. An hour without a.m. or p.m. is the next of the two, or, with a date, 1 to 6 in the
afternoon. A part of the day stands for a typical hour of it. Not read: dates other than YYYY-MM-DD, and spans of time.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from lore.support.errors import LoreError
from lore.support.text import printable

YEARS = 1970, 2100
HAN_DIGITS = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
HAN_TENS = {"十": 10, "百": 100, "千": 1000}
HAN_NUMBER = r"[零〇一二两三四五六七八九十百千]{1,7}"
WORDS = "one two three four five six seven eight nine ten eleven twelve".split()
NUMBER_WORDS = {word: value for value, word in enumerate(WORDS, 1)} | {
    "a": 1, "an": 1, "half a": 0.5, "half an": 0.5, "a quarter": 0.25, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40,
    "forty-five": 45, "fifty": 50, "sixty": 60, "半": 0.5, "半个": 0.5,
}  # fmt: skip
NUMBER = rf"(?:\d{{1,9}}(?:\.\d{{1,3}})?|{'|'.join(sorted(NUMBER_WORDS, key=len, reverse=True))}|{HAN_NUMBER})"

PARTS = {"morning": (5, 12, 9), "noon": (11, 14, 12), "afternoon": (12, 18, 15), "evening": (17, 22, 19), "night": (20, 28, 22)}
"""First hour, end and typical hour of each part of the day; 28 is 4 o'clock of the next day."""
HAN_PARTS = {"早上": "morning", "上午": "morning", "早晨": "morning", "中午": "noon", "下午": "afternoon", "傍晚": "evening"}
HAN_PARTS |= {"晚上": "evening", "晚": "evening", "夜里": "night", "深夜": "night", "凌晨": "early"}
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
HAN_WEEKDAYS = "一二三四五六日"
_PART = "morning|noon|afternoon|evening|night"
_DATE = re.compile(r"\b(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})(?:T(?=\d)|\b)")
_NOW = re.compile(r"(?i)\b(?:right |open )?now\b|\bcurrently(?: open)?\b|\bat the moment\b|现在|此刻|目前|正在(?=营业)|营业中")
_OPEN = re.compile(
    r"(?i)\b(?:still )?open(?:ed)?\b(?![- ](?:air|plan|mic))(?: (?:on|at|in|until|till|late)\b(?= |$))?"
    r"|还?(?:在营业|营业|开门|开着)的?|还开的?"
)
_LATER = re.compile(rf"(?i)\bin (?P<en>{NUMBER}) hours?\b|(?P<zh>{NUMBER})个?(?:小时|钟头)(?:以后|之后|后)")
_DAY = re.compile(
    rf"(?i)(?:\bon (?:the )?|\b(?P<next>next) |\bthis )?\b(?P<day>day after tomorrow|today|tomorrow|tonight|{'|'.join(WEEKDAYS)}"
    rf"|weekend|(?-i:(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)(?! [A-Z]))"
    rf"|(?:mon|tues?|wed|thu(?:rs?)?|fri|sat|sun)(?= (?:\d|{_PART})))\b"
    rf"(?: (?P<part>{_PART})\b)?"
)
_HAN_DAY = re.compile(
    rf"(?P<day>今天|今日|今(?=晚)|明天|明日|明(?=晚)|大?后天|(?P<next>下?)个?(?:这|本)?(?:周|星期|礼拜)(?P<weekday>[{HAN_WEEKDAYS}天末]))"
    rf"的?(?P<part>{'|'.join(HAN_PARTS)})?"
)
_PART_ALONE = re.compile(
    rf"(?i)(?:\b(?:this|in the|at|around|by|after) |\A(?=(?:noon|midnight)\Z))(?P<part>{_PART}|midnight)\b"
    rf"|(?P<han>{'|'.join(one for one in HAN_PARTS if len(one) > 1)})(?!茶)"
)
_CLOCK = re.compile(
    r"(?i)(?:\b(?:at|around|about|by|after|from) |@ ?)?(?<![\d.,:-])"
    r"(?:(?P<hour>\d{1,3})(?::(?P<minute>\d{1,2}))? ?(?P<half>[ap])(?:\.m\.|m\b)"
    r"|(?P<hour24>\d{1,3}):(?P<minute24>\d{2})(?::[0-5]\d(?:\.\d{1,6})?)?(?![\d:])|(?P<bare>\d{1,2}) o['’]clock)"
    r"|\b(?:at|around) (?P<at>\d{1,2})"
    r"(?= ?(?:$|[,;.?!]|(?:tomorrow|today|tonight|on|this|next|in the|at night|for|with|and|near|within)\b))"
)
_HAN_CLOCK = re.compile(
    rf"(?P<hour>\d{{1,2}}|{HAN_NUMBER})[点點](?:(?P<half>半)|(?P<quarter>[一三])刻|(?P<minute>\d{{1,2}}|{HAN_NUMBER})分?)?(?P<sure>钟|整)?"
)


def number(text: str) -> float:
    """The value of a text that NUMBER matches."""
    folded = text.casefold()
    if folded in NUMBER_WORDS:
        return NUMBER_WORDS[folded]
    if folded[0].isdigit():
        return float(folded)
    total = digit = 0
    for sign in folded:
        if sign in HAN_TENS:
            total, digit = total + (digit or 1) * HAN_TENS[sign], 0
        else:
            digit = HAN_DIGITS[sign]
    return total + digit


def find_time(text: str, now: datetime) -> tuple[datetime | None, bool, list[tuple[int, int]]]:
    """(time or None, whether places are wanted that are open then, spans of the text that say so). now: wall clock of the town.
    Raises LoreError for a time that no clock shows, and for a year outside YEARS."""
    spans = []

    def first(*patterns: re.Pattern[str]) -> re.Match[str] | None:
        for pattern in patterns:
            for found in pattern.finditer(text):
                # 安静一点 is "a bit quieter", and no time, unless a day or a part of one stands before it.
                if pattern is not _HAN_CLOCK or found[0] != "一点" or any(end == found.start() for _, end in spans):
                    spans.append(found.span())
                    return found
        return None

    date, later, at_once = first(_DATE), first(_LATER), first(_NOW)
    day = None if date else first(_DAY, _HAN_DAY)
    part = _part(day) or _part(first(_PART_ALONE))
    clock = first(_CLOCK, _HAN_CLOCK)
    is_open = first(_OPEN) is not None
    if later:
        return now + timedelta(hours=min(number(later["en"] or later["zh"]), 24 * 365)), True, spans
    if date or day or part or clock:
        return _moment(text, date, day, part, clock, now), True, spans
    return (now if at_once or is_open else None), bool(at_once or is_open), spans


def read_time(text: str, now: datetime) -> datetime:
    """The time that an option gives: what a question can say, and YYYY-MM-DD HH:MM. Raises LoreError for anything else."""
    said = " ".join(text.split())[:100]
    if _has_offset(said):
        raise LoreError(f"{printable(said)!r} has an offset from UTC. Write the town's wall clock without it: 2026-12-01 15:00.")
    found, _, _ = find_time(said, now)
    if found is None:
        raise LoreError(
            f"{printable(text[:100])!r} is no time that LORE reads, so opening hours could not be checked. Write it as "
            "'Tue 15:00', 'tomorrow evening', '9pm', '明天下午三点' or '2026-12-01 15:00'."
        )
    return found


def _has_offset(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _part(found: re.Match[str] | None) -> str | None:
    if found is None:
        return None
    said = found.groupdict()
    name = said.get("han") or said.get("part")
    if name is None:
        return "evening" if (said.get("day") or "").casefold() == "tonight" else None
    return HAN_PARTS.get(name) or name.casefold()


def _moment(
    text: str, date: re.Match | None, day: re.Match | None, part: str | None, clock: re.Match | None, now: datetime
) -> datetime:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    weekly = False
    if date:
        start = _date(date)
    else:
        ahead, weekly = _days_ahead(day, now) if day else (0, False)
        start = midnight + timedelta(days=ahead)
    today = start == midnight
    if clock is None:
        if part == "midnight":
            return start + timedelta(days=1)
        if part is None:
            return now if today else start + timedelta(hours=12)
        begins, ends, typical = PARTS.get(part, (0, 5, 2))
        if today and timedelta(hours=begins) <= now - midnight < timedelta(hours=ends):
            return now
        moment = start + timedelta(hours=typical)
    else:
        hour, minute, certain = _hour(clock, part)
        if not certain and (date or day) and 1 <= hour <= 6:
            hour += 12
        moment = start + timedelta(hours=hour, minutes=minute)
        if not certain and not date and today and hour < 12 and moment < now:
            moment += timedelta(hours=12)
    if moment < now and (weekly or not (date or day)):
        moment += timedelta(days=7 if weekly else 1)
    return moment


def _date(found: re.Match[str]) -> datetime:
    try:
        date = datetime(int(found["year"]), int(found["month"]), int(found["day"]))
    except ValueError as error:
        raise LoreError(f"{found[0]} is not in the calendar ({error}). Write a date as 2026-12-01.") from error
    if not YEARS[0] <= date.year <= YEARS[1]:
        raise LoreError(f"The year {date.year} is outside {YEARS[0]} to {YEARS[1]}. Opening hours say nothing about it.")
    return date


def _days_ahead(day: re.Match[str], now: datetime) -> tuple[int, bool]:
    """(days from today, whether it is a weekday, which comes again)."""
    name = day["day"].casefold()
    fixed = {"今": 0, "明": 1, "后": 2, "大": 3, "day": 2, "tod": 0, "ton": 0, "tom": 1}
    if (ahead := fixed.get(name[:1], fixed.get(name[:3]))) is not None:
        return ahead, False
    han = day.groupdict().get("weekday")
    if han is not None:
        weekday = HAN_WEEKDAYS.find({"天": "日", "末": "六"}.get(han, han))
        if day["next"]:
            return 7 - now.weekday() + weekday, False
        return (weekday - now.weekday()) % 7, True
    weekday = next(at for at, full in enumerate(WEEKDAYS) if full.startswith("sat" if name == "weekend" else name[:3]))
    ahead = (weekday - now.weekday()) % 7
    return (ahead or 7, False) if day["next"] else (ahead, True)


def _hour(clock: re.Match[str], part: str | None) -> tuple[int, int, bool]:
    """(hour, which may be that of the next day and then is 24 or more; minute; whether the half of the day is known)."""
    said = clock.groupdict()
    half = (said.get("half") or "").casefold()
    hour = int(number(next(value for name in ("hour", "hour24", "bare", "at") if (value := said.get(name)))))
    quarter = said.get("quarter")
    minute = int(number(said.get("minute") or said.get("minute24") or "0"))
    minute = 30 if half == "半" else 15 * int(number(quarter)) if quarter else minute
    of_twelve = half in ("a", "p")
    if minute > 59 or hour > (12 if of_twelve else 24) or (of_twelve and hour == 0) or (hour == 24 and minute):
        raise LoreError(f"{clock[0].strip()!r} is no time that a clock shows. Write it as 15:00 or 3pm, from 0:00 to 24:00.")
    if of_twelve:
        return hour % 12 + 12 * (half == "p"), minute, True
    if part in ("afternoon", "evening", "night") and hour <= 12 or part == "noon" and hour <= 2:
        small_hours = part != "afternoon" and (hour == 12 or (part == "night" and hour <= 4))
        return hour + (12 if hour < 12 or small_hours else 0) + (12 if small_hours and hour < 12 else 0), minute, True
    return hour, minute, bool(part or said.get("hour24") or hour > 12 or hour == 0)
