"""Guards lore/nearby/times.py: what times of day questions mean."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.nearby.times import find_time, number, read_time
from lore.support.errors import LoreError

MONDAY = datetime(2026, 11, 30, 14, 50)
DAYS = "Mon Tue Wed Thu Fri Sat Sun".split()
NOWS = st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("open now", "11-30 14:50"),
        ("Tue 15:00", "12-01 15:00"),
        ("Mon 14:00", "12-07 14:00"),
        ("tomorrow evening", "12-01 19:00"),
        ("at 9pm", "11-30 21:00"),
        ("at 9", "11-30 21:00"),
        ("at 9 tomorrow", "12-01 09:00"),
        ("tomorrow at 4", "12-01 16:00"),
        ("lunch at noon", "12-01 12:00"),
        ("12 at night", "11-30 22:00"),
        ("at midnight", "12-01 00:00"),
        ("open after midnight on Saturday", "12-06 00:00"),
        ("noon", "12-01 12:00"),
        ("midnight", "12-01 00:00"),
        ("2026-12-24T18:05:00", "12-24 18:05"),
        ("2026-12-24 18:05:59.25", "12-24 18:05"),
        ("周六晚上十点还开的酒吧", "12-05 22:00"),
        ("on the weekend", "12-05 12:00"),
        ("in 2 hours", "11-30 16:50"),
        ("2026-12-24 18:00", "12-24 18:00"),
        ("现在营业", "11-30 14:50"),
        ("明天下午三点", "12-01 15:00"),
        ("今晚九点半", "11-30 21:30"),
        ("下周一上午10点", "12-07 10:00"),
        ("晚上十二点", "12-01 00:00"),
        ("凌晨两点", "12-01 02:00"),
        ("两小时后", "11-30 16:50"),
    ],
)
def test_times_that_people_say(text, expected):
    found, open_then, spans = find_time(text, MONDAY)
    assert f"{found:%m-%d %H:%M}" == expected and open_then and spans


@pytest.mark.parametrize(
    "text",
    [
        "安静一点的地方",
        "下午茶",
        "afternoon tea",
        "open air bar",
        "mon ami",
        "in the sun",
        "Sun Wah BBQ",
        "7 cafes",
        "midnight snack",
    ],
)
def test_words_that_only_look_like_times(text):
    assert find_time(text, MONDAY) == (None, False, [])


def test_words_for_open_are_no_need():
    _, _, spans = find_time("还开的酒吧", MONDAY)
    assert spans == [(0, 3)]


@pytest.mark.parametrize("text", ["2026-12-24T10:00:00Z", "2026-12-24 10:00+05:00"])
def test_a_time_with_an_offset_is_refused_and_not_read_as_another_time(text):
    with pytest.raises(LoreError, match="offset from UTC"):
        read_time(text, MONDAY)


@pytest.mark.parametrize("text", ["25:00", "15:75", "13pm", "0 pm", "2026-13-01", "1800-01-01 10:00", "soon", "", "三十点"])
def test_an_option_that_is_no_time_is_an_error(text):
    with pytest.raises(LoreError, match="expected|Write|outside|calendar|clock"):
        read_time(text, MONDAY)


@settings(max_examples=40, deadline=None)
@given(NOWS, st.integers(0, 6), st.integers(0, 23), st.integers(0, 59))
def test_a_weekday_with_a_time_is_the_next_one(now, day, hour, minute):
    for text in (f"{DAYS[day]} {hour}:{minute:02}", f"周{'一二三四五六日'[day]} {hour}:{minute:02}"):
        found = read_time(text, now)
        assert (found.weekday(), found.hour, found.minute) == (day, hour, minute)
        assert now <= found < now + timedelta(days=7)


@settings(max_examples=40, deadline=None)
@given(NOWS, st.integers(1, 12), st.sampled_from("ap"), st.integers(0, 59))
def test_a_time_without_a_day_comes_within_a_day(now, hour, half, minute):
    found = read_time(f"at {hour}:{minute:02} {half}m", now)
    assert found.hour == hour % 12 + 12 * (half == "p") and now <= found < now + timedelta(days=1)


@settings(max_examples=40, deadline=None)
@given(
    NOWS,
    st.lists(
        st.sampled_from(
            "tomorrow today Tue next at in 9 12 25 : pm evening night 明天 下午 三 点 半 小时 后 周 now 2026-02-30".split()
        )
    ),
)
def test_any_words_give_a_time_or_a_clear_error(now, words):
    try:
        found, _, spans = find_time(" ".join(words), now)
    except LoreError:
        return
    assert (found is None) == (not spans) and (found is None or abs(found - now) < timedelta(days=366 * 200))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9999))
def test_chinese_numerals(value):
    text = ""
    for unit, sign in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // unit % 10
        text += "零一二三四五六七八九"[digit] + sign if digit else "零" if text and not text.endswith("零") else ""
    assert number(text.rstrip("零")) == value
