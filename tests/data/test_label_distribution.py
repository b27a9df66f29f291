"""Distributions over tiers from means, medians with spreads, and columns; checked by hand."""

import csv
import json

import pytest
from source_files import crowdflower, load, write_csv

from lore.data.label_distribution import Spread, from_mean, from_median
from lore.rubric.rubric import load_rubric

CROWDFLOWER, HOMEDEPOT = load_rubric("crowdflower"), load_rubric("homedepot")


@pytest.mark.parametrize(
    "mean, expected",
    [(2.33, {"2": 0.67, "3": 0.33}), (1.5, {"1": 0.5, "2": 0.5}), (1.25, {"1": 0.75, "2": 0.25}), (2, None), (3.5, None)],
)
def test_a_mean_between_two_tiers_is_split_between_them(mean, expected):
    found = from_mean(mean, HOMEDEPOT)
    assert found == (expected and pytest.approx(expected))
    if found:
        assert sum(int(tier) * share for tier, share in found.items()) == pytest.approx(mean)


@pytest.mark.parametrize(
    "median, spread, expected",
    [
        ("4", "0.0", {"4": 1}),
        ("4", "0.471", {"3": 1 / 3, "4": 2 / 3}),  # 3 4 4
        ("4", "0.943", {"2": 1 / 3, "4": 2 / 3}),  # 2 4 4
        ("1", "1.414", {"1": 2 / 3, "4": 1 / 3}),  # 1 1 4
        ("4", "0.4", {"3": 0.2, "4": 0.8}),  # 3 4 4 4 4: 0.400 without its zeros, and not the 0.433 of 3 4 4 4
        ("4", "0.47", {"3": 1 / 3, "4": 2 / 3}),  # no twelve ratings have 0.470, so it is 0.471 with fewer decimals
        ("3", "0.5", {"2": 0.25, "3": 0.5, "4": 0.25}),  # 2 3 and 3 4: either may have the published median 3
        ("3", "0.748", {"2": 0.3, "3": 0.4, "4": 0.3}),  # 2 2 3 3 4 and 2 3 3 4 4
        ("3", "1.6", None),  # ratings from 1 to 4 differ by at most 1.5
        ("4", "9", None),
        ("1", "0.05", None),  # no twelve ratings agree so closely without being equal
    ],
)
def test_a_median_and_a_spread_give_the_ratings(median, spread, expected):
    assert from_median(median, Spread(spread), CROWDFLOWER) == (expected and pytest.approx(expected))


def test_crowdflower_keeps_its_labels_and_weights(tmp_path):
    rows = [["1", "q", "a", "", "4", "0.471"], ["2", "q", "b", "", "4", "3.0"], ["3", "q", "c", "", "2", ""]]
    pairs, report, _ = load("crowdflower", crowdflower(tmp_path, rows), tmp_path)
    assert [pair.label for pair in pairs] == ["4", "4", "2"]
    assert [pair.label_weight for pair in pairs] == [pytest.approx(1 / 1.471), 0.25, 1.0]
    assert [pair.label_distribution for pair in pairs] == [pytest.approx({"3": 1 / 3, "4": 2 / 3}), None, None]
    assert report.distributions == 1 and report.repairs == {"spread_that_no_ratings_have": 1}


def test_every_published_row_has_the_spread_of_some_ratings(public_data):
    with open(public_data / "crowdflower" / "train.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [from_median(row["median_relevance"], Spread(row["relevance_variance"]), CROWDFLOWER) for row in rows]
    assert len(found) == 6581 and None not in found


def test_a_table_with_means_gets_distributions_beside_its_tiers(tmp_path):
    write_csv(tmp_path / "a.csv", [["query", "title", "label"], ["q", "a", "2.33"], ["q", "b", "3"], ["q", "c", "2.5"]])
    pairs, report, _ = load("table", tmp_path / "a.csv", tmp_path, "homedepot")
    assert [pair.label for pair in pairs] == ["2", "3", "2"] and report.distributions == 2
    assert pairs[0].label_distribution == pytest.approx({"2": 0.67, "3": 0.33}) and pairs[1].label_distribution is None


GAINS = """
name: gains
version: "1"
tiers:
  - {id: L1, name: tier 1, aliases: ["1"], value: 0, relevant: false, meaning: other}
  - {id: L2, name: tier 2, aliases: ["2", "2.5"], value: 1, relevant: false, meaning: near}
  - {id: L3, name: tier 3, aliases: ["3"], value: 3, relevant: true, meaning: good}
  - {id: L4, name: tier 4, aliases: ["4"], value: 7, relevant: true, meaning: same}
"""


def test_a_number_that_names_a_tier_is_no_mean(tmp_path):
    (tmp_path / "gains.yaml").write_text(GAINS)
    labels = ["2", "2.0", "2.5", "4", "L2", "5", "1.5"]
    write_csv(tmp_path / "a.csv", [["query", "title", "label"], *(["q", f"t{at}", label] for at, label in enumerate(labels))])
    pairs, report, _ = load("table", tmp_path / "a.csv", tmp_path, str(tmp_path / "gains.yaml"))
    assert [pair.label for pair in pairs] == ["L2", "L2", "L2", "L4", "L2", "L3", "L2"]
    assert [pair.label_distribution for pair in pairs] == [None] * 5 + [{"L3": 0.5, "L4": 0.5}, {"L2": 0.75, "L3": 0.25}]


def test_a_mean_is_split_into_round_numbers():
    assert from_mean(2.33, HOMEDEPOT) == {"2": 0.67, "3": 0.33}


@pytest.mark.parametrize(
    "given, found",
    [
        ({"1": 0.25, "3": 0.75}, {"1": 0.25, "3": 0.75}),
        ([0.5, 0.5, 0], {"1": 0.5, "2": 0.5, "3": 0}),
        ('{"2": 1}', {"2": 1}),
        ([{"tier": "3", "probability": 1.0}], {"3": 1}),
        ([["1", 0.5], ["3", 0.5]], {"1": 0.5, "3": 0.5}),  # entries of a map of Parquet
        (None, None),
        ({"1": 0.5, "3": 0.6}, "sum to 1.1"),
        ({"L1": 1}, "'L1' is no tier"),
        ({"1": -0.5, "2": 1.5}, "below 0"),
        ([0.5, 0.5], "2 probabilities"),
        ("much", "much"),
        ('{"1": 0.4, "1": 1}', "'1' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"1": ' + "9" * 400 + "}", ""),
        ({"1": "x"}, "could not convert"),
        (5, "5"),
    ],
)
def test_a_column_may_hold_the_distribution(tmp_path, given, found):
    rows = [{"query": "q", "title": "t", "label": "3", "label_distribution": given}, {"query": "r", "title": "t"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, _, rejected = load("table", tmp_path / "a.jsonl", tmp_path, "homedepot")
    if isinstance(found, str):
        (line,) = rejected
        assert line["field"] == "label_distribution" and found in line["found"] and [pair.query for pair in pairs] == ["r"]
    else:
        assert pairs[0].label_distribution == found and pairs[0].label == "3" and rejected == []
