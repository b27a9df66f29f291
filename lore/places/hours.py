"""Whether a place is open at a time of the town's wall clock, from OpenStreetMap's `opening_hours`.

Overnight hours, public holidays and sunrise are those of opening-hours-py (extra nearby). Its "open" for an interval under a
comment ("by appointment", even "permanently closed") is unknown here, because only a person can read a comment. Left out: school
holidays, of which the library has no calendar.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal
from zoneinfo import ZoneInfo

from lore.places.place import Place
from lore.support.errors import LoreError

MAX_CHARACTERS = 255
"""Of OpenStreetMap's values."""
MAX_INTERVAL_DAYS = 366
"""The library looks this far for the next change. Without a limit, hours that never come again take a second to read."""
YEARS = range(1901, 9999)
SUN = ("sun", "dawn", "dusk")


@dataclass(frozen=True)
class Opening:
    """state: unknown for a place without hours, or with unreadable ones. until: when the state ends; None: never, or unknown."""

    state: Literal["open", "closed", "unknown"]
    until: datetime | None = None


UNKNOWN = Opening("unknown")


def opening(
    place_hours: str | None, lat: float, lon: float, when: datetime, country: str | None = None, timezone: str | None = None
) -> Opening:
    """Never raises an error for the hours of a place. when: the town's wall clock. country: two letters, for public holidays;
    without one they are days like others. timezone: the name of the wall clock, for hours that follow the sun, which are unknown
    without one."""
    if not place_hours or len(place_hours) > MAX_CHARACTERS or when.year not in YEARS:
        return UNKNOWN
    by_sun = any(word in place_hours for word in SUN)
    parsed = _parsed(place_hours, country, (round(lat, 2), round(lon, 2), timezone or "") if by_sun else None)
    if parsed is None:
        return UNKNOWN
    when = when.replace(tzinfo=None)
    state, comment = parsed.state(when)
    if str(state) == "unknown" or (comment and str(state) == "open"):
        return UNKNOWN
    until = parsed.next_change(when)
    return Opening(str(state), until and until.replace(tzinfo=None))


@lru_cache(maxsize=20_000)
def _parsed(place_hours: str, country: str | None, sun: tuple[float, float, str] | None) -> Any:
    """None for hours that cannot be read."""
    errors, OpeningHours = _library()
    options: dict[str, Any] = {"country": country, "max_interval_days": MAX_INTERVAL_DAYS}
    try:
        if sun is not None:
            options |= {"coords": sun[:2], "timezone": ZoneInfo(sun[2]), "auto_country": False}
        return OpeningHours(place_hours.rstrip(" ;"), **options)  # the library refuses a semicolon at the end
    except errors:
        return None


def opening_of(place: Place, when: datetime, country: str | None = None, timezone: str | None = None) -> Opening:
    """Of a place by its hours, of an event by its start and end."""
    if place.starts is not None and when < place.starts:
        return Opening("closed", place.starts)
    if place.ends is not None or place.starts is not None:
        over = place.ends is not None and when >= place.ends
        return Opening("closed") if over else Opening("open", place.ends)
    return opening(place.hours, place.lat, place.lon, when, country, timezone)


def check_country(country: str | None) -> None:
    """Raises LoreError for a country whose holidays the library does not know."""
    errors, OpeningHours = _library()
    try:
        OpeningHours("24/7", country=country)
    except errors as error:
        raise LoreError(f"Country {country!r} has no known public holidays; expected two letters such as US or CN.") from error


def _library() -> tuple[tuple[type[Exception], ...], Any]:
    try:
        import opening_hours  # the extra nearby
    except ImportError as error:
        raise LoreError("Opening hours need opening-hours-py, which is missing. pip install 'lore-relevance[nearby]'") from error
    names = ("ParserError", "UnknownCountryError", "InvalidCoordinatesError")
    return (*(getattr(opening_hours, name) for name in names), ValueError, KeyError, OSError), opening_hours.OpeningHours
