"""Guards lore/rubric/computed_rules.py: the ceiling of computed rules, and verdicts that contradict one."""

import pytest

from lore.rubric.computed_rules import ceiling, computed_of, contradicts
from lore.rubric.rubric import load_rubric

RUBRIC = load_rubric("local_life")
CLOSED = ["circle-within", "hours-closed"]


def test_rules_of_computed_dimensions_and_their_ceiling():
    assert computed_of(RUBRIC, ["need-met", "hours-closed", "nonsense", "circle-within"]) == ["hours-closed", "circle-within"]
    assert [ceiling(RUBRIC, rules) for rules in (CLOSED, ["circle-within"], ["hours-unknown"], [])] == ["L2", "L4", "L3", None]
    shop = load_rubric("shop")
    assert computed_of(shop, [rule.id for rule in shop.rules]) == []


@pytest.mark.parametrize(
    ("cited", "rationale", "mismatch", "against"),
    [
        (["hours-closed", "need-met"], "", "hours", False),
        (["hours-open"], "", None, True),
        (["company-refused", "made-up"], "", "need", False),
        ([], "hours: open Tue 15:00 | open until 18:00 (attributes) | hours-open L4", None, True),
        ([], "hours: open Tue 15:00 | closed (attributes) | hours-closed L2", "hours", False),
        ([], "the hours-open sign; hours-open L4", None, False),
        ([], "", "circle", True),
    ],
)
def test_a_verdict_that_denies_a_computed_rule(cited, rationale, mismatch, against):
    assert contradicts(RUBRIC, CLOSED, cited, rationale, mismatch) is against
