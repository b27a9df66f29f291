"""Guards lore/nearby/intent.py and gazetteer.py: questions in English and Chinese to an Intent."""

import time

import pytest
from nearby_town_for_tests import HERE, MONDAY, small_relations, small_town

from lore.nearby.intent import Corrections, read_position, understand, understood
from lore.places.question import Need
from lore.support.errors import LoreError


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("town")
    relations = small_relations(folder)
    with small_town(folder) as town:
        yield lambda text, *corrections, at=HERE: understand(text, town, *at, MONDAY, relations.needs, *corrections)


def test_an_english_question(reads):
    intent = reads("a coffee shop with wifi near Union Station within 10 minutes, no chains, with my dog on Tue 15:00")
    assert intent.needs == (Need("coffee shop", "coffee"), Need("wifi"), Need("chains", "chain", excluded=True))
    assert (intent.around, intent.around_id, intent.minutes, intent.language) == ("Union Station", "station", 10, "en")
    assert (intent.lat, intent.lon) == (41.8787, -87.6403)
    assert f"{intent.when:%a %H:%M}" == "Tue 15:00" and intent.open_then and intent.companions == ("dog",)
    assert understood(intent) == (
        "coffee shop, “wifi” · not: chains · around Union Station · within 10 min on foot · "
        "Tue 2026-12-01 15:00, open then · with: dog"
    )


def test_a_chinese_question(reads):
    intent = reads("明天下午三点，人民广场附近有没有安静的地方，走路十分钟，不要连锁店，带孩子")
    assert intent.needs == (Need("安静的地方", "quiet_work"), Need("连锁店", "chain", excluded=True))
    assert (intent.around_id, intent.minutes, intent.language, intent.companions) == ("square", 10, "zh", ("kids",))
    assert f"{intent.when:%a %H:%M}" == "Tue 15:00"
    assert (
        understood(intent) == "安静的地方 · 不要：连锁店 · 在人民广场 · 步行10分钟内 · 周二 2026-12-01 15:00，要营业 · 同行：kids"
    )


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("somewhere quiet where I can work", ("quiet_work",)),
        ("a quiet place to study", ("quiet_work",)),
        ("where can I go for coffee", ("coffee",)),
        ("coffee to go", ("coffee", "takeaway")),
        ("no smoking bar", ("smoke_free", "drinks")),
        ("想找个安静一点的地方喝咖啡", ("quiet_work", "coffee")),
        ("附近有公园吗", ("park",)),
    ],
)
def test_needs_by_their_phrases(reads, text, needs):
    assert tuple(need.key for need in reads(text).needs if need.key) == needs


def test_what_is_excluded(reads):
    wanted = {need.text: need.excluded for need in reads("a bar, no loud music or smoking places, but not Starbucks").needs}
    assert wanted == {"a bar": False, "loud music": True, "smoking": True, "Starbucks": True}
    assert [need for need in reads("咖啡，不要星巴克").needs if need.excluded] == [Need("星巴克", None, True)]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("coffee, 5 min walk", 5),
        ("coffee within half an hour", 30),
        ("coffee 800 m away", 10),
        ("coffee within half a mile", 1609.344 / 2 / 80),
        ("五百米内的咖啡", 6.25),
        ("步行一公里内的咖啡", 12.5),
        ("半小时内的咖啡", 30),
        ("coffee within a 10 minute drive", 15),
        ("两小时以内的咖啡", 120),
        ("24小时咖啡", 15),
        ("二十四个小时的咖啡", 15),
        ("coffee", 15),
    ],
)
def test_the_longest_walk(reads, text, minutes):
    assert reads(text).minutes == pytest.approx(minutes)


@pytest.mark.parametrize(
    "text", ["coffee within 121 minutes", "coffee within 10 m", "二十公里内的咖啡", "coffee at 25:00", "", " ", "x" * 2001]
)
def test_out_of_bounds_is_a_clear_error(reads, text):
    with pytest.raises(LoreError, match="expected|Write"):
        reads(text)


def test_a_name_that_the_town_lacks_is_said_and_never_guessed(reads):
    intent = reads("coffee near Onion Station")
    assert intent.unknown_places == ("Onion Station",) and intent.similar_places == ("Union Station",)
    assert (intent.lat, intent.lon) == HERE and intent.around is None
    assert reads("人民公园附近的咖啡").unknown_places == ("人民公园",)
    assert reads("coffee in Springfield").unknown_places == ("Springfield",)
    for text in ("coffee near me", "coffee nearby", "coffee near a park", "附近的咖啡", "我附近的咖啡", "coffee around 9pm"):
        assert reads(text).unknown_places == (), text


def test_of_places_with_one_name_the_nearest_is_meant_and_it_is_said(reads):
    intent = reads("a bar near starbucks")
    assert (intent.around_id, intent.around_others) == ("cafe2", 1) and "the nearest of 2" in understood(intent)
    assert reads("a bar near starbucks", at=(41.93, -87.63)).around_id == "cafe4"


def test_a_name_is_found_whatever_its_marks_and_before_its_words_are_read_as_a_time(reads):
    assert reads("coffee near HAROLDS library").around_id == "lib"
    intent = reads("coffee near Ruby Noon")
    assert intent.around_id == "sunday" and not intent.open_then


def test_options_correct_what_was_understood(reads):
    fixed = Corrections(needs=["quiet_work", "jazz"], time="tomorrow 9pm", minutes=5, around="grant park")
    intent = reads("coffee near Nowhere Hall within 10 minutes, no chains", fixed)
    assert intent.needs == (Need("chains", "chain", True), Need("quiet_work", "quiet_work"), Need("jazz"))
    assert (intent.around_id, intent.minutes, intent.unknown_places) == ("park", 5, ())
    assert f"{intent.when:%a %H:%M}" == "Tue 21:00"
    assert reads("coffee", Corrections(around="Nowhere")).unknown_places == ("Nowhere",)
    with pytest.raises(LoreError, match="no time"):
        reads("coffee", Corrections(time="soonish"))


@pytest.mark.parametrize("text", ["41.88", "91,0", "0,181", "nan,0", "a,b", "1,2,3", ""])
def test_a_position_out_of_range_is_an_error(text):
    with pytest.raises(LoreError, match="41.88,-87.63|latitude"):
        read_position(text)


def test_a_hostile_question_is_read_in_linear_time(reads):
    for piece in (
        "near ",
        "no ",
        "不要",
        "附近",
        "10 min ",
        "at 9 ",
        "一点",
        "coffee or ",
        "a ",
        "(",
        "Union ",
        "\u0301",
        "带孩子",
        "half an ",
    ):
        began = time.process_time()
        try:
            reads((piece * 2000)[:2000])
        except LoreError:
            pass
        assert time.process_time() - began < 0.5, piece
    assert "\x1b" not in understood(reads("coffee \x1b near \u202eevil"))
