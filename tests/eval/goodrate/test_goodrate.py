"""GoodRate of a log: what is read, what is refused, and what is estimated from it."""

import csv
import json
import math
from pathlib import Path

import goodrate_for_tests as shop
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_python

from lore.data.pair import make_pair_id
from lore.eval.goodrate.estimate import GoodRate, goodrate
from lore.eval.goodrate.log import read_log
from lore.eval.goodrate.output import save, to_json
from lore.eval.goodrate.rated_sample import capped_shares, draw, write_draw
from lore.support.errors import LoreError

LOG = ["query", "item_id", "page_id", "system", "position", "impressions"]
ROWS = [
    ("red mug", "1", "p1", "A", 1, 10),
    ("red mug", "2", "p1", "A", 2, 10),
    ("Red  mug", "3", "p2", "A", 1, 10),
    ("lamp", "9", "p3", "A", 1, 70),
    ("red mug", "1", "q1", "B", 1, 10),
    ("red mug", "3", "q1", "B", 2, 10),
    ("lamp", "8", "q2", "B", 1, 80),
]
VERDICTS = {("red mug", "1"): "L4", ("red mug", "2"): "L2", ("red mug", "3"): "L3", ("lamp", "9"): "L1", ("lamp", "8"): "L4"}


def table(path: Path, names: list[str], rows) -> Path:
    rows = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    return path


def verdicts(folder: Path, given=None, name: str = "verdicts.csv") -> Path:
    rows = [(make_pair_id(*key), tier) for key, tier in (VERDICTS if given is None else given).items()]
    return table(folder / name, ["pair_id", "tier"], rows)


def rate(found: GoodRate, of: str, system: str):
    (one,) = [rate for rate in found.rates if (rate.of, rate.system) == (of, system)]
    return one.estimate


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_shares_of_items_and_pages_by_system_and_their_difference(tmp_path, suffix):
    log = table(tmp_path / f"log{suffix}", LOG, ROWS)
    found = goodrate(log, verdicts(tmp_path), "shop")
    values = {f"{each.of} {each.system}": each.estimate.judge.value for each in found.rates}
    assert values == pytest.approx(
        {"items A": 0.2, "items B": 1.0, "items B - A": 0.8, "pages A": 10 / 90, "pages B": 1.0, "pages B - A": 80 / 90}
    )
    assert (found.summary["log"]["pages"], found.summary["log"]["queries"]) == (5, 2)
    assert all(math.isnan(each.estimate.powered.value) for each in found.rates)


def test_a_page_is_all_that_a_system_shows_for_a_query_unless_pages_are_named(tmp_path):
    columns = ["query", "item_id", "system"]
    log = table(tmp_path / "log.csv", columns, [(row[0], row[1], row[3]) for row in ROWS])
    shown = read_log(log)
    assert shown.pages.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert shown.impressions.tolist() == [1.0] * 7
    one = read_log(table(tmp_path / "one.csv", ["query", "item_id"], [row[:2] for row in ROWS[:4]]))
    assert set(one.systems) == {"all"} and one.pages.tolist() == [0, 0, 0, 1]


def test_only_the_first_positions_of_a_page_count_wherever_positions_start(tmp_path):
    for first in (0, 1, 11):
        rows = [(*row[:4], row[4] - 1 + first, row[5]) for row in ROWS]
        found = goodrate(table(tmp_path / "log.csv", LOG, rows), verdicts(tmp_path), "shop", top=1)
        assert found.summary["log"]["rows_below_top"] == 2
        assert rate(found, "pages", "A").judge.value == pytest.approx(20 / 90)
    rows = [(*row[:4], "" if row[1] == "9" else row[4], row[5]) for row in ROWS]
    with pytest.raises(LoreError, match="1 of 7 rows have no position"):
        goodrate(table(tmp_path / "log.csv", LOG, rows), verdicts(tmp_path), "shop", top=1)


def test_an_item_is_as_good_as_its_probability_of_the_relevant_tiers_and_a_page_as_their_product(tmp_path):
    rows = [(make_pair_id(*key), tier, *p) for (key, tier), p in zip(VERDICTS.items(), [(0.1, 0.1, 0.3, 0.5)] * 5, strict=True)]
    path = table(tmp_path / "verdicts.parquet", ["pair_id", "tier", "p_L1", "p_L2", "p_L3", "p_L4"], rows)
    found = goodrate(table(tmp_path / "log.csv", LOG, ROWS), path, "shop")
    assert rate(found, "items", "A").judge.value == pytest.approx(0.8)
    assert rate(found, "pages", "B").judge.value == pytest.approx((10 * 0.64 + 80 * 0.8) / 90)


def test_unreadable_rows_are_counted_and_kept_and_too_many_refused(tmp_path):
    many = [(*row[:2], f"{row[2]}-{i}", *row[3:]) for i in range(60) for row in ROWS]
    bad = [("", "1", 1, 1), ("lamp", "", 1, 1), ("lamp", "9", "first", 1), ("lamp", "9", 1, 0)]
    bad = [(*row[:2], "x", "A", *row[2:]) for row in bad]
    found = goodrate(table(tmp_path / "log.csv", LOG, many + bad), verdicts(tmp_path), "shop")
    assert [(each.row, each.field, each.found) for each in found.rejected] == [
        (421, "query", "''"),
        (422, "pair_id", "None"),
        (423, "position", "'first'"),
        (424, "impressions", "'0'"),
    ]
    assert "4 rows of the log cannot be read" in " ".join(found.remarks)
    save(found, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["log"]["rejected_rows"] == 4
    assert len((tmp_path / "out.rejected.jsonl").read_text().splitlines()) == 4
    with pytest.raises(LoreError, match=r"4 of 11 rows cannot be read(.|\n)*log.csv row 8, query(.|\n)*expected"):
        goodrate(table(tmp_path / "log.csv", LOG, ROWS + bad), verdicts(tmp_path), "shop")


def test_logs_that_leave_open_what_was_shown_are_refused(tmp_path):
    with pytest.raises(LoreError, match="neither pair_id nor item_id.*Nearest: 'item'"):
        read_log(table(tmp_path / "log.csv", ["query", "item"], [("lamp", "1")]))
    with pytest.raises(LoreError, match="'query' is missing"):
        read_log(table(tmp_path / "log.csv", ["keyword", "item_id"], [("lamp", "1")]))
    with pytest.raises(LoreError, match="1 of 7 rows have no system"):
        read_log(table(tmp_path / "log.csv", LOG, [*ROWS[:6], (*ROWS[6][:3], "", *ROWS[6][4:])]))
    with pytest.raises(LoreError, match="has no rows"):
        read_log(table(tmp_path / "log.csv", LOG, []))
    with pytest.raises(LoreError, match="File .* does not exist"):
        read_log(tmp_path / "none.csv")
    (tmp_path / "log.xlsx").touch()
    with pytest.raises(LoreError, match="ending in .xlsx"):
        read_log(tmp_path / "log.xlsx")


def test_every_shown_pair_needs_a_verdict_and_other_pairs_may_have_one(tmp_path):
    log = table(tmp_path / "log.csv", LOG, ROWS)
    missing = make_pair_id("lamp", "8")
    with pytest.raises(LoreError, match=f"1 pair id missing: {missing}"):
        goodrate(log, verdicts(tmp_path, {key: tier for key, tier in VERDICTS.items() if key[1] != "8"}), "shop")
    found = goodrate(log, verdicts(tmp_path, VERDICTS | {("sofa", "4"): "L4"}), "shop")
    assert found.summary["verdicts"]["of_pairs_not_shown"] == 1


def test_a_verdict_without_a_tier_is_not_good_and_is_reported(tmp_path):
    found = goodrate(table(tmp_path / "log.csv", LOG, ROWS), verdicts(tmp_path, VERDICTS | {("lamp", "8"): ""}), "shop")
    assert rate(found, "items", "B").judge.value == pytest.approx(0.2)
    assert found.summary["verdicts"]["format_failures"] == 1
    assert "1 of 5 shown pairs have no verdict" in " ".join(found.remarks)


def test_of_several_judges_one_is_chosen(tmp_path):
    log = table(tmp_path / "log.csv", LOG, ROWS)
    rows = [(make_pair_id(*key), tier, judge) for judge in ("strict", "kind") for key, tier in VERDICTS.items()]
    rows = [(pair_id, "L1" if judge == "strict" else tier, judge) for pair_id, tier, judge in rows]
    path = table(tmp_path / "verdicts.csv", ["pair_id", "tier", "judge"], rows)
    assert rate(goodrate(log, path, "shop", judge="strict"), "items", "B").judge.value == 0
    assert rate(goodrate(log, path, "shop", judge="kind"), "items", "B").judge.value == 1
    with pytest.raises(LoreError, match="2 judges.*--judge: kind, strict"):
        goodrate(log, path, "shop")
    with pytest.raises(LoreError, match="no verdicts of a judge 'fair'; found kind, strict"):
        goodrate(log, path, "shop", judge="fair")


def sample(folder: Path, rows, names=("query", "item_id", "label")) -> Path:
    return table(folder / "rated.csv", list(names), rows)


def test_labels_reach_every_row_that_shows_the_pair(tmp_path):
    log, judge = table(tmp_path / "log.csv", LOG, ROWS), verdicts(tmp_path)
    mugs = [("red mug", "1", "L4"), ("red mug", "2", "L1"), ("red mug", "3", "4")]
    rated = sample(tmp_path, [*mugs, ("lamp", "9", "L1"), ("lamp", "8", "")])
    found = goodrate(log, judge, "shop", rated_path=rated)
    assert rate(found, "items", "A").rated.value == rate(found, "items", "A").powered.value == pytest.approx(0.2)
    assert rate(found, "pages", "A").rated.value == pytest.approx(10 / 90)
    assert rate(found, "items", "B").rated.value == 1.0  # of the rated 20 impressions
    assert [each.rated for each in found.rates] == [4, 2, 6, 3, 1, 4]
    assert "1 of 5 sampled pairs have no label" in " ".join(found.remarks)


def test_pages_are_estimated_from_whole_pages_only(tmp_path):
    log, judge = table(tmp_path / "log.csv", LOG, ROWS), verdicts(tmp_path)
    found = goodrate(log, judge, "shop", rated_path=sample(tmp_path, [("red mug", "1", "L4"), ("red mug", "2", "L1")]))
    assert math.isnan(rate(found, "pages", "A").rated.value) and rate(found, "items", "A").rated.value == 0.5
    assert "of 2 pages in the sample 1 are there in part" in " ".join(found.remarks)
    named = [("red mug", "1", "A", "p1", "L4"), ("red mug", "2", "A", "p1", "L1"), ("lamp", "9", "A", "p3", "L4")]
    path = sample(tmp_path, named, ("query", "item_id", "system", "page_id", "label"))
    found = goodrate(log, judge, "shop", rated_path=path)
    assert rate(found, "pages", "A").rated.value == pytest.approx(70 / 80)
    assert [each.rated for each in found.rates] == [3, 0, 3, 2, 0, 2]  # system B shows item 1 too, on a page that was not drawn


def test_rows_that_were_less_likely_drawn_stand_for_more(tmp_path):
    log, judge = table(tmp_path / "log.csv", LOG, ROWS), verdicts(tmp_path)
    names = ("query", "item_id", "label", "probability")
    path = sample(tmp_path, [("red mug", "1", "L4", 0.1), ("lamp", "9", "L1", 0.7)], names)
    assert rate(goodrate(log, judge, "shop", rated_path=path), "items", "A").rated.value == pytest.approx(0.5)


def test_samples_that_are_no_part_of_the_log_are_refused(tmp_path):
    log, judge = table(tmp_path / "log.csv", LOG, ROWS), verdicts(tmp_path)
    drawn = ("query", "item_id", "label", "probability")
    for rows, names, message in (
        ([("sofa", "1", "L4")], None, f"1 entries are not in the log: {make_pair_id('sofa', '1')}"),
        ([("lamp", "9", "L4"), ("lamp", "9", "L1")], None, "row 2, label: value, found 'L1', expected the label"),
        ([("lamp", "9", "L7")], None, "row 1, label: value, found 'L7', expected Label 'L7' has no tier"),
        ([("lamp", "", "L4")], None, "row 1, pair_id"),
        ([("lamp", "9", "L4", 0.0)], drawn, "row 1, probability"),
        ([("lamp", "9", "L4", 1.5)], drawn, "row 1, probability"),
        ([("lamp", "9", "L4", 0.5), ("lamp", "8", "L4", "")], drawn, "1 of 2 entries have no prob"),
    ):
        with pytest.raises(LoreError, match="is not a sample of") as error:
            goodrate(log, judge, "shop", rated_path=sample(tmp_path, rows, names or ("query", "item_id", "label")))
        assert message in str(error.value)


def test_a_drawn_sample_has_the_size_asked_for_and_the_chances_it_says(tmp_path):
    assert capped_shares(np.array([1.0, 1.0, 2.0, 96.0]), 2) == pytest.approx([0.25, 0.25, 0.5, 1.0])
    shop.write_log(tmp_path, queries=60)
    log = read_log(tmp_path / "log.csv")
    picked = np.zeros(len(log))
    for seed in range(2000):
        drawn, chances = draw(log, 20, "query", seed)
        assert len(set(log.clusters[drawn])) == 20
        picked += drawn
    assert np.abs(picked / 2000 - chances).max() < 0.05
    assert chances.max() == 1.0 and np.isclose(sum(dict(zip(log.clusters, chances, strict=True)).values()), 20)
    with pytest.raises(LoreError, match="Ask for fewer"):
        draw(log, 10_000, "pair")


def lore(*arguments) -> str:
    done = run_python("-m", "lore", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_worked_example_of_the_docs(tmp_path):
    shop.write_log(tmp_path)
    log, rated, out = tmp_path / "log.csv", tmp_path / "rated.csv", tmp_path / "out" / "goodrate.json"
    assert "pairs to rate" in lore("goodrate", "sample", log, "--queries", 40, "-o", rated)
    again = run_python("-m", "lore", "goodrate", "sample", log, "--queries", 40, "-o", rated)
    assert again.returncode == 1 and "may contain labels" in again.stderr
    shop.rate(tmp_path)
    said = lore("goodrate", log, "--verdicts", tmp_path / "predictions.csv", "--rated", rated, "--rubric", "shop", "-o", out)
    assert "items B - A" in said and "pages B - A" in said
    found, truth = json.loads(out.read_text()), shop.true_rates(tmp_path)
    for of in ("items", "pages"):
        a, b, difference = found[of]
        truth[of, "B - A"] = truth[of, "B"] - truth[of, "A"]
        for each in (a, b, difference):
            both, alone, true = each["prediction_powered"], each["rated_alone"], truth[of, each["system"]]
            assert both["low"] <= true <= both["high"]
            assert both["high"] - both["low"] < alone["high"] - alone["low"]
    judge, both = found["pages"][2]["judge_alone"]["value"], found["pages"][2]["prediction_powered"]
    assert not both["low"] <= judge <= both["high"]  # the judge alone sees a third of the difference


def test_a_sample_that_is_not_random_is_noticed(tmp_path):
    shop.write_log(tmp_path)
    log, path = tmp_path / "log.csv", tmp_path / "rated.csv"
    write_draw(read_log(log), path, 200, "pair")
    shop.rate(tmp_path)
    found = goodrate(log, tmp_path / "predictions.csv", "shop", rated_path=path)
    assert "random part" not in " ".join(found.remarks)
    header, *rows = shop.read(path)
    shop.write(path, header, [row for row in rows if shop.good(row[-1])])  # raters handed back what was easy
    found = goodrate(log, tmp_path / "predictions.csv", "shop", rated_path=path)
    assert "does not look like a random part" in " ".join(found.remarks)
    assert json.loads(json.dumps(to_json(found), allow_nan=False))["remarks"] == found.remarks
