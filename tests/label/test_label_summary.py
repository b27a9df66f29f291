"""The summary of a label folder, on real label files."""

import json
from collections import Counter

import numpy as np
import pytest
from label_folders import TIERS, label_row, write_labels

from lore.eval.derived_slices import frequency_parts
from lore.label import tally
from lore.label.summary import RunTotals, Summary, print_summary, remarks, summarize
from lore.rubric.rubric import load_rubric
from lore.support.console import Console
from lore.support.errors import LoreError

RAIR = load_rubric("rair")


def some_rows(pairs: int = 400, seed: int = 0, shares=(0.1, 0.2, 0.3, 0.4)) -> list[dict]:
    """Four pairs a query; few queries are searched often, and every tenth query is of unknown frequency."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(pairs):
        query = number // 4
        frequency = None if query % 10 == 9 else float(int(2000 / (query + 1)) + 1)
        tier = TIERS[rng.choice(4, p=shares)]
        slices = ["hard"] if query % 2 else ["hard", "visual"]
        rows.append(label_row(f"query {query}", f"item {number}", tier, query_frequency=frequency, slices=slices))
    return rows


def test_tiers_by_band_are_those_of_a_count_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(tally, "BATCH_ROWS", 37)
    rows = some_rows()
    found = summarize(write_labels(tmp_path, rows, files=3), RAIR)
    parts = frequency_parts([row["query"] for row in rows], [row["query_frequency"] for row in rows])
    named = {"frequency:head": "head", "frequency:middle": "torso", "frequency:tail": "tail", None: "unknown"}
    by_band = Counter((named[part], row["tier"]) for part, row in zip(parts, rows, strict=True))
    assert set(found.bands) == {"all", "head", "torso", "tail", "unknown"}
    for band in ("head", "torso", "tail", "unknown"):
        assert found.bands[band].tiers == {tier: by_band[band, tier] for tier in TIERS}
    assert found.bands["all"].tiers == {tier: sum(row["tier"] == tier for row in rows) for tier in TIERS}
    assert (found.pairs, found.queries, found.generated_tokens, found.seconds) == (400, 100, 2000, 200.0)
    assert found.bands["all"].confidence == pytest.approx(0.7)
    assert found.bands["all"].entropy == pytest.approx(-0.7 * np.log2(0.7) - 0.3 * np.log2(0.1), abs=1e-6)
    visual = [row for row in rows if "visual" in row["slices"]]
    assert list(found.slices) == ["hard", "visual"]
    assert found.slices["visual"] == {tier: sum(row["tier"] == tier for row in visual) for tier in TIERS}
    assert json.loads((tmp_path / "summary.json").read_text())["pairs"] == 400
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_order_of_the_files_does_not_matter(tmp_path):
    rows = some_rows()
    first = summarize(write_labels(tmp_path / "a", rows, files=3), RAIR)
    second = summarize(write_labels(tmp_path / "b", rows[::-1], files=2), RAIR)
    assert first.model_dump(exclude={"drift"}) == second.model_dump(exclude={"drift"})
    assert len({one.pair_id for one in first.examples}) == 20


def test_markets_make_different_queries(tmp_path):
    rows = [label_row("Bol", "a", "L4", slices=["locale:nl"]), label_row("bol", "a2", "L4", slices=["locale:de"])]
    assert summarize(write_labels(tmp_path / "two", rows), RAIR).queries == 2
    rows = [label_row("Bol", "a", "L4"), label_row("bol ", "a2", "L4")]
    assert summarize(write_labels(tmp_path / "one", rows), RAIR).queries == 1


def test_equal_frequencies_make_no_bands(tmp_path):
    rows = [label_row(f"q{n}", "a", "L4", query_frequency=3.0) for n in range(5)]
    found = summarize(write_labels(tmp_path, rows), RAIR)
    assert set(found.bands) == {"all", "unknown"} and found.head_from is None


def test_failures_are_pending_or_final(tmp_path):
    write_labels(tmp_path, [label_row("q", "a", "L4"), label_row("q", "b", None, failure="no verdict tag")])
    failed = [
        label_row("q", "c", None, failure="refused", detail="busy", attempts=1),
        label_row("q", "d", None, failure="refused", detail="busy", attempts=3),
        label_row("q", "e", None, failure="prompt_too_long", attempts=1),
    ]
    write_labels(tmp_path, failed, kind="failures")
    found = summarize(tmp_path, RAIR, max_attempts=3)
    counts = {one.reason: (one.pending, one.final) for one in found.failures}
    assert counts == {"refused": (1, 1), "prompt_too_long": (0, 1), "no verdict tag": (0, 1)}
    assert (found.pairs, found.pending, found.final, found.bands["all"].failed) == (1, 1, 3, 4)
    refused = found.failures[0]
    assert refused.examples[0] == {"pair_id": failed[0]["pair_id"], "query": "q", "item_id": "c", "detail": "busy"}
    assert "no verdict, refused: 1 asked again at the next start, 1 final" in remarks(found)


def test_drift_against_another_folder_and_changed_tiers(tmp_path):
    before = some_rows()
    now = [dict(row) for row in before] + some_rows(440, seed=1)[400:]
    for row in now[:20]:
        row["tier"] = "L1" if row["tier"] != "L1" else "L4"
    found = summarize(write_labels(tmp_path / "now", now), RAIR, compare=write_labels(tmp_path / "old", before, files=2))
    drift = found.drift
    assert drift.against == str(tmp_path / "old") and found.no_drift == ""
    assert (drift.changed.both, drift.changed.changed) == (400, 20)
    moves = Counter((old["tier"], new["tier"]) for old, new in zip(before, now, strict=False) if old["tier"] != new["tier"])
    assert {(a, b): n for a, to in drift.changed.moves.items() for b, n in to.items()} == dict(moves)
    whole = drift.bands["all"]
    assert (whole.before, whole.now) == (400, 440) and whole.tiers > 0 and whole.tiers_reading == "stable"
    assert set(drift.bands) == {"all", "head", "torso", "tail", "unknown"}


def test_drift_against_the_own_earlier_summary(tmp_path):
    folder = write_labels(tmp_path, some_rows())
    first = summarize(folder, RAIR)
    assert first.drift is None and first.no_drift == "there is no earlier run"
    assert summarize(folder, RAIR).drift is None  # the same labels are no other run
    write_labels(folder, some_rows(4000, seed=3, shares=(0.7, 0.1, 0.1, 0.1)))
    second = summarize(folder, RAIR)
    assert second.drift.bands["all"].tiers_reading == "large drift"
    assert second.drift.before == first.bands and second.drift.changed is None
    assert summarize(folder, RAIR).drift == second.drift  # started again: the same drift


DAMAGED = ["", "[]", '{"tiers": 3}', '{"tiers": ["L1"], "bands": {}}', '{"tiers": [], "bands": {"all": {}}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_earlier_summary_is_told_and_replaced(tmp_path, text):
    write_labels(tmp_path, some_rows(40))
    (tmp_path / "summary.json").write_text(text)
    found = summarize(tmp_path, RAIR)
    assert found.drift is None and "earlier" in found.no_drift
    assert json.loads((tmp_path / "summary.json").read_text())["pairs"] == 40


def test_what_cannot_be_compared(tmp_path):
    folder = write_labels(tmp_path / "now", some_rows(40))
    with pytest.raises(LoreError, match="no labels to compare with"):
        summarize(folder, RAIR, compare=tmp_path)
    odd = write_labels(tmp_path / "odd", [label_row("q", "a", "L9", p_L1=0.5, p_L2=0.5, p_L3=0.0, p_L4=0.0)])
    found = summarize(folder, RAIR, compare=odd)
    assert found.drift is None and "'L9'" in found.no_drift
    with pytest.raises(LoreError, match="'L9', and rubric"):
        summarize(odd, RAIR)
    (folder / "verdicts" / "00-0000-00000000000000000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(LoreError, match="not a readable Parquet file"):
        summarize(folder, RAIR)


def test_an_empty_folder(tmp_path):
    found = summarize(tmp_path, RAIR)
    assert (found.pairs, found.queries, found.examples, found.no_drift) == (0, 0, [], "there is no earlier run")
    print_summary(found)


def test_it_prints_and_reads_back(tmp_path, capsys):
    folder = write_labels(tmp_path / "now", some_rows())
    totals = RunTotals(pairs=400, seconds=2.0, prompt_tokens=1000, cached_tokens=900, generated_tokens=50, usd=0.5)
    found = summarize(folder, RAIR, compare=write_labels(tmp_path / "old", some_rows(seed=9)), totals=totals)
    assert Summary.model_validate_json((folder / "summary.json").read_text()) == found
    print_summary(found, Console(width=200))
    printed = capsys.readouterr().out
    assert "400 pairs of 100 queries labelled" in printed and "torso (from" in printed and "sources: judge 400" in printed
    assert "of 400 pairs in both runs changed their tier" in printed
