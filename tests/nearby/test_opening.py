"""Opening hours: overnight, holidays, the sun, comments, hostile and unreadable texts."""

import csv
import time
from collections import Counter
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lore.nearby.sources import hstore
from lore.places.hours import MAX_CHARACTERS, UNKNOWN, Opening, check_country, opening
from lore.support.errors import LoreError

FRIDAY = datetime(2026, 11, 27, 15)
CHICAGO = 41.88, -87.63


def at(hours, when=FRIDAY, country="US", timezone="America/Chicago"):
    return opening(hours, *CHICAGO, when, country, timezone)


@pytest.mark.parametrize(
    ("hours", "when", "expected"),
    [
        ("Mo-Fr 08:00-18:00", FRIDAY, Opening("open", datetime(2026, 11, 27, 18))),
        ("Mo-Fr 08:00-18:00", datetime(2026, 11, 27, 18), Opening("closed", datetime(2026, 11, 30, 8))),
        ("Fr 20:00-02:00", datetime(2026, 11, 28, 1, 59), Opening("open", datetime(2026, 11, 28, 2))),
        ("Fr 20:00-02:00", datetime(2026, 11, 28, 2), Opening("closed", datetime(2026, 12, 4, 20))),
        ("Mo-Su 08:00-18:00; PH off", datetime(2026, 12, 25, 12), Opening("closed", datetime(2026, 12, 26, 8))),
        ("24/7", FRIDAY, Opening("open")),
        ("Mo-Fr 08:00-18:00; ", FRIDAY, Opening("open", datetime(2026, 11, 27, 18))),
        ("off", FRIDAY, Opening("closed")),
        ("sunrise-sunset", FRIDAY, Opening("open", datetime(2026, 11, 27, 16, 22))),
        ('"Permanently closed"', FRIDAY, UNKNOWN),
        ('Mo-Fr 10:00-18:00 "by appointment"', FRIDAY, UNKNOWN),
        ("Mo-Fr 08:00-18:00 unknown", FRIDAY, UNKNOWN),
        ("Monday to Friday, 8am-6pm", FRIDAY, UNKNOWN),
        ("", FRIDAY, UNKNOWN),
        (None, FRIDAY, UNKNOWN),
        ("24/7", datetime(1, 1, 1), UNKNOWN),
        ("24/7", datetime(9999, 12, 31, 23, 59), UNKNOWN),
    ],
)
def test_the_state_and_when_it_ends(hours, when, expected):
    assert at(hours, when) == expected


def test_a_country_has_its_own_holidays_and_without_one_there_are_none():
    hours, independence, national = "Mo-Su 08:00-18:00; PH off", datetime(2026, 7, 4, 12), datetime(2026, 10, 1, 12)
    states = {
        country: [at(hours, day, country).state for day in (datetime(2026, 7, 3, 12), national, independence)]
        for country in ("US", "CN", None)
    }
    assert states["US"][0] == "closed" and states["US"][1] == "open"  # the 4th is a Saturday: observed on Friday
    assert states["CN"] == ["open", "closed", "open"] and states[None] == ["open"] * 3
    check_country("CN")
    assert at(hours, country="XX") == UNKNOWN
    with pytest.raises(LoreError, match="'XX' has no known public holidays"):
        check_country("XX")


def test_hours_by_the_sun_are_unknown_without_the_wall_clock():
    assert at("sunrise-sunset", timezone=None) == UNKNOWN == at("sunrise-sunset", timezone="../etc/passwd")
    assert at("sunrise-sunset", timezone="No/Such") == UNKNOWN == opening("sunrise-sunset", 91.0, 0.0, FRIDAY, "US", "UTC")


HOSTILE = [
    "2020 Mo-Fr 08:00-10:00",
    "00:00-24:00/00:01",
    "2026 Feb 30 10:00-12:00",
    "Feb 29 Mo[5] 10:00-12:00",
    "1901-9998/97 Feb 29 10:00-10:01",
    "9998 10:00-12:00",
    "(" * 255,
    "Mo 10:00-11:00;" * 17,
    "10:00-10:01," * 20 + "10:02-10:03",
    "week 53 Feb 29 10:00-10:01; " * 9,
    "easter -1 day 10:00-12:00 || " * 8 + "off",
    "PH,SH,Mo-Su,PH,SH 00:00-24:00; " * 8,
    '"' + "a" * 253 + '"',
    "24/7\0",
    "\ud800",
]


@pytest.mark.parametrize("hours", HOSTILE)
def test_hostile_hours_are_read_in_no_time(hours):
    at("24/7")
    start = time.thread_time()
    assert at(hours[:MAX_CHARACTERS]).state in ("open", "closed", "unknown")
    assert time.thread_time() - start < 0.05
    assert at("24/7; " + hours.ljust(MAX_CHARACTERS)) == UNKNOWN  # too long


DAYS = st.sampled_from(["Mo", "Tu-Fr", "Sa,Su", "PH", "SH", "Feb 29", "week 53", "easter", "2031", "Mo[5]", ""])
TIMES = st.integers(0, 47)
ENDS = st.sampled_from(["", "+", " off", ' "x"', "/01:00"])
RULES = st.builds(lambda day, a, b, end: f"{day} {a // 2:02}:{a % 2 * 3}0-{b // 2:02}:{b % 2 * 3}0{end}", DAYS, TIMES, TIMES, ENDS)
LETTERS = st.text('Mo-Fr 0123456789:;,+|/"PHoffSuweek', max_size=60)
TEXTS = st.one_of(st.lists(RULES, min_size=1, max_size=6).map("; ".join), st.text(max_size=60), LETTERS)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)))
def test_no_text_is_an_error_and_the_state_lasts_until_it_ends(hours, when):
    found = at(hours, when)
    if found.until is not None:
        assert found.state != "unknown" and when < found.until
        assert at(hours, found.until - timedelta(seconds=1)).state == found.state


def test_real_hours_of_chicago(public_data):
    with open(public_data / "osm_poi" / "Chicago-2020.csv", newline="") as file:
        tags = [hstore(row["other_tags"])[0] for row in csv.DictReader(file)]
    hours = [one["opening_hours"] for one in tags if "opening_hours" in one]
    weeks = [{at(one, FRIDAY + timedelta(hours=hour)).state for hour in range(0, 168, 12)} for one in dict.fromkeys(hours)]
    read = [one for one, states in zip(dict.fromkeys(hours), weeks, strict=True) if states != {"unknown"}]
    read = [one for one in hours if one in set(read)]
    states = Counter(at(one).state for one in hours)
    print(f"{len(read)} of {len(hours)} hours are read ({len(read) / len(hours):.1%}); on a Friday at 15:00: {dict(states)}")
    assert len(hours) >= 470 and len(read) / len(hours) > 0.88
    assert states["open"] > 300  # most places are open on a Friday afternoon
