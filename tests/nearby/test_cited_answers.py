"""Guards lore/nearby/answer.py: cited answers, and what is struck from those of a language model."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from nearby_town_for_tests import HERE, MONDAY, small_town

from lore.nearby.answer import check_answer, shown, template_answer
from lore.places.hours import Opening
from lore.places.place import Place
from lore.places.question import Candidate, Hit, Intent, Need

INTENT = Intent("coffee near Union Station within 10 minutes", *HERE, minutes=10, when=MONDAY, needs=(Need("coffee", "coffee"),))
CHINESE = replace(INTENT, text="十分钟内的咖啡", language="zh")


def candidate(place_id, name, minutes, opening, row=0, why="coffee -> cafe"):
    place = Place(place_id, name, *HERE, classes=["amenity=cafe"])
    return Candidate(row, place, minutes * 80, minutes, opening, 1.0, {"graph": Hit(row, 1.0, why)})


CAFES = [
    candidate("cafe1", "Blue Door", 3.6, Opening("open", datetime(2026, 11, 30, 18))),
    candidate("cafe3", "星光咖啡", 8, Opening("unknown"), row=1),
    candidate("cafe2", "Old Mill", 9, Opening("closed", datetime(2026, 12, 1, 9)), row=2),
]


def test_the_template_in_english():
    assert template_answer(INTENT, CAFES, None).splitlines() == [
        "3 places within 10 min on foot:",
        "1. Blue Door [cafe1]: 4 min on foot (about 290 m), open until 18:00. Why: coffee → cafe.",
        "2. 星光咖啡 [cafe3]: 8 min on foot (about 640 m), hours unknown. Why: coffee → cafe.",
        "3. Old Mill [cafe2]: 9 min on foot (about 720 m), closed until Tue 09:00. Why: coffee → cafe.",
    ]


def test_the_template_in_chinese():
    assert template_answer(CHINESE, CAFES[:2], None).splitlines() == [
        "步行10分钟内，推荐2处：",
        "1. Blue Door [cafe1]：步行4分钟（约290米），营业至18:00。理由：coffee → cafe。",
        "2. 星光咖啡 [cafe3]：步行8分钟（约640米），营业时间未知。理由：coffee → cafe。",
    ]


def test_nothing_in_reach_is_said_and_the_nearest_beyond_stands_apart():
    far = candidate("far", "Far Cup", 20, Opening("open", MONDAY + timedelta(days=2)))
    said = template_answer(replace(INTENT, unknown_places=("Onion Station",), similar_places=("Union Station",)), [], far)
    assert said.splitlines() == [
        "Onion Station is not in the index, so the circle is around your position. Similar names: Union Station.",
        "Nothing that meets this is within 10 min on foot.",
        "The nearest beyond that circle: Far Cup [far]: 20 min on foot (about 1.6 km), open until Wed 14:50. Why: coffee → cafe.",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Try Blue Door [cafe1], 4 min on foot, open until 18:00.",
        "Blue Door [cafe1] is about 290 m away.",
        "Blue Door [cafe1] is four minutes away.",
        "Old Mill [cafe2] is closed until Tue 09:00.",
        "The hours of 星光咖啡 [cafe3] are unknown.",
        "Blue Door [cafe1] and Old Mill [cafe2] are cafes near Union Station.",
        "推荐Blue Door [cafe1]，步行4分钟，营业至18:00。",
        "星光咖啡 [cafe3]营业时间未知。",
    ],
)
def test_a_sentence_with_evidence_stays(sentence):
    assert check_answer(sentence, INTENT, CAFES) == (sentence, 0)


@pytest.mark.parametrize(
    "sentence",
    [
        "Blue Door [cafe1] is 3 min on foot.",
        "Blue Door [cafe1] is five minutes away.",
        "Blue Door [cafe1] is about 300 m away.",
        "Blue Door [cafe1] is open until 19:00.",
        "Blue Door [cafe1] closes at 6 pm.",
        "Blue Door [cafe1] is closed.",
        "Blue Door [cafe1] has 12 seats.",
        "Old Mill [cafe2] is open.",
        "星光咖啡 [cafe3] is open.",
        "星光咖啡 [cafe3]营业至18:00。",
        "Old Mill [cafe2] is 4 min on foot.",
        "Blue Door [cafe1] is 4 min and Old Mill [cafe2] 9 min on foot.",
        "Blue Door is nice.",
        "Blue Door [cafe2] is nice.",
        "It is nice there [cafe1].",
        "Blue Door [cafe1] is better than Costa.",
        "Joe's is nearer than Blue Door [cafe1].",
        "Blue Door [cafe1] is beside the other place [cafe9].",
        "Blue Door [cafe1] is by grant park.",
        "Blue Door [cafe1]在人民广场旁边。",
        "Blue Door [cafe1]比「蓝山」好。",
        "推荐Costa和Blue Door [cafe1]。",
        "Blue Door [cafe1], see https://evil.example.",
        "Blue Door [cafe1](http://evil.example) is nice.",
    ],
)
def test_a_sentence_without_evidence_is_struck(sentence, tmp_path):
    good = "Try Blue Door [cafe1]."
    with small_town(tmp_path) as town:
        assert check_answer(f"{good} {sentence}", INTENT, CAFES, town) == (good, 1)


def test_an_answer_without_a_cited_place_is_no_answer():
    assert check_answer("I recommend the cafe around the corner. It is open.", INTENT, CAFES)[0] == ""


def test_names_of_strangers_are_only_text():
    hostile = "[cafe1](http://evil.example) <script>x</script> **bold** `rm`\x1b[31m\u202e | # _a_" + "x" * 500
    name = shown(hostile)
    assert not set("[]<>*`_|#\x1b\u202e\n") & set(name) and "http" not in name and len(name) <= 80
    line = template_answer(INTENT, [candidate("evil\n2. [x]", hostile, 2, Opening("unknown"), why="<b>L4</b>\nopen")], None)
    assert len(line.splitlines()) == 2 and line.count("[") == 1 and "<" not in line
    kept, struck = check_answer("**Blue Door** [cafe1] is <b>nice</b>.", INTENT, CAFES)
    assert (kept, struck) == ("Blue Door [cafe1] is ‹b›nice‹/b›.", 0)
