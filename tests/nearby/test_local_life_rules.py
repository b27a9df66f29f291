"""Guards lore/places/local_life.py and lore/nearby/rules.py: computed rules, their ceiling, and grades that contradict them."""

from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nearby_town_for_tests import HERE, MONDAY, ORDER

from lore.codec.pair_text import PairTextFormat, pair_text_hash
from lore.data.pair import Pair
from lore.engines.engine import EngineUsage
from lore.judge.verdict import Verdict
from lore.nearby.rules import grade, open_scorer, ordered
from lore.places.hours import Opening
from lore.places.local_life import ceiling, computed, local_life, opening_text
from lore.places.place import Place
from lore.places.question import Candidate, Intent, Need
from lore.support.errors import LoreError

INTENT = Intent("coffee open now", *HERE, minutes=10, when=MONDAY, open_then=True, needs=(Need("coffee", "coffee"),))
OPEN, CLOSED, UNKNOWN = Opening("open", datetime(2026, 11, 30, 18)), Opening("closed", datetime(2026, 12, 1, 9)), Opening("unknown")
TIERS = ["L1", "L2", "L3", "L4"]


def place(row=0, minutes=5.0, opening=OPEN, score=1.0, **fields):
    return Candidate(
        row, Place(f"p{row}", fields.pop("name", "Blue Door"), *HERE, **fields), minutes * 80, minutes, opening, score, {}
    )


class Judge:
    """A judge that is told what to say."""

    judge_id, usage, tier_ids = "judge", EngineUsage(), TIERS

    def __init__(self, *said, tier_ids=TIERS, **fields):
        self.said, self.fields, self.tier_ids, self.pairs = said, fields, tier_ids, []

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        self.pairs += pairs
        return [Verdict(pair.pair_id, tier, **self.fields) for pair, tier in zip(pairs, self.said, strict=True)]


@pytest.mark.parametrize(
    ("candidate", "rules", "best"),
    [
        (place(), ["circle-within", "hours-open"], "L4"),
        (place(minutes=10.5), ["circle-beyond", "hours-open"], "L2"),
        (place(opening=UNKNOWN), ["circle-within", "hours-unknown"], "L3"),
        (place(opening=CLOSED), ["circle-within", "hours-closed"], "L2"),
    ],
)
def test_the_circle_and_the_hours_are_computed(candidate, rules, best):
    assert [one.rule for one in computed(candidate, INTENT)] == rules and ceiling(candidate, INTENT) == best


def test_hours_count_only_where_they_are_asked_for():
    assert ceiling(place(opening=CLOSED), replace(INTENT, open_then=False)) == "L4"


def test_what_is_excluded_and_who_comes_along():
    without = replace(INTENT, needs=(Need("coffee", "coffee"), Need("starbucks", None, True)), companions=("dog", "kids"))
    assert ceiling(place(name="Starbucks Reserve"), without) == "L2" and ceiling(place(name="Starbuckster"), without) == "L4"
    assert ceiling(place(tags={"dog": "no"}), without) == "L2"
    assert "company-welcome" in [one.rule for one in computed(place(tags={"dog": "leashed"}), without)]


def test_a_grade_above_the_ceiling_is_capped_and_counted():
    found, refused = grade([place(opening=CLOSED), place(1), place(2, opening=UNKNOWN)], INTENT, Judge("L4", "L3", "L4"))
    assert [one.tier for one in found] == ["L2", "L3", "L3"] and refused == 2


@pytest.mark.parametrize("fields", [{"mismatch": "hours"}, {"mismatch": "circle"}, {"rules": ["hours-closed"]}])
def test_a_grade_that_rests_on_a_contradicted_rule_is_dropped_and_counted(fields):
    found, refused = grade([place()], INTENT, Judge("L2", **fields))
    assert found[0].tier is None and refused == 1
    found, refused = grade([place(opening=CLOSED)], INTENT, Judge("L2", mismatch="hours", rules=["hours-closed", "need-met"]))
    assert found[0].tier == "L2" and refused == 0


def test_a_missing_grade_and_a_judge_of_another_scale():
    assert grade([place()], INTENT, Judge(None, failure="no_answer"))[0][0].tier is None
    with pytest.raises(LoreError, match="E, S, and rubric local_life has L1, L2, L3, L4"):
        grade([place()], INTENT, Judge("E", tier_ids=["E", "S"]))


def test_an_order_in_a_post_lifts_nothing():
    evil = place(opening=CLOSED, name=ORDER, text=ORDER, tags={"note": ORDER})
    found, refused = grade([evil], INTENT, judge := Judge("L4"))
    assert found[0].tier == "L2" and refused == 1 and judge.pairs[0].attributes["opening"].endswith("closed until Tue 09:00")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*TIERS, None]), st.sampled_from([OPEN, CLOSED, UNKNOWN]), st.floats(0, 20), st.floats(-9, 9)),
        max_size=8,
    )
)
def test_personal_order_never_lets_a_lower_tier_overtake(rows):
    candidates = [place(row, minutes, opening) for row, (_, opening, minutes, _) in enumerate(rows)]
    graded, _ = grade(candidates, INTENT, Judge(*(tier for tier, *_ in rows)))
    shown = ordered(graded, INTENT, {row: liked for row, (*_, liked) in enumerate(rows)})
    keys = [(-TIERS.index(one.tier or ceiling(one, INTENT)), -rows[one.row][3]) for one in shown]
    assert keys == sorted(keys) and {one.row for one in shown} == set(range(len(rows)))
    assert all(TIERS.index(one.tier) <= TIERS.index(ceiling(one, INTENT)) for one in graded if one.tier)


@pytest.mark.slow  # loads torch and transformers
def test_a_student_of_this_rubric_orders_places(tmp_path):
    from students_for_tests import write_student

    rubric, fmt = local_life(), PairTextFormat(max_tokens=48)
    card = {"rubric": "local_life", "rubric_hash": rubric.hash, "renderer_hash": pair_text_hash(rubric, fmt)}
    write_student(tmp_path / "student", fmt=fmt, card=card)
    found, _ = grade([place(), place(1, name="Red lamp")], INTENT, open_scorer(tmp_path / "student"))
    assert all(one.tier in TIERS for one in found)
    write_student(tmp_path / "other")
    with pytest.raises(LoreError, match="rubric shop .* and rubric local_life is now"):
        open_scorer(tmp_path / "other")


@pytest.mark.parametrize(
    ("opening", "english", "chinese"),
    [
        (OPEN, "open until 18:00", "营业至18:00"),
        (CLOSED, "closed until Tue 09:00", "已打烊，周二09:00开门"),
        (UNKNOWN, "hours unknown", "营业时间未知"),
        (Opening("open"), "open all the time", "一直营业"),
        (Opening("open", datetime(2026, 12, 1, 2)), "open until 02:00", "营业至02:00"),
        (Opening("open", datetime(2026, 12, 2, 18)), "open until Wed 18:00", "营业至周三18:00"),
        (Opening("closed", datetime(2026, 11, 30, 17)), "closed until 17:00", "已打烊，17:00开门"),
    ],
)
def test_opening_in_words(opening, english, chinese):
    assert opening_text(opening, INTENT) == english and opening_text(opening, replace(INTENT, language="zh")) == chinese
