"""Verdicts made elsewhere: what is read, and how a file that does not fit is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lore.judge.foreign_predictions import read_predictions
from lore.judge.verdict import Verdict, to_row, verdict_schema
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("homedepot")
TIERS = RUBRIC.tier_ids


def test_missing_doubled_and_foreign_ids_are_refused_with_the_ids(tmp_path):
    file = tmp_path / "p.jsonl"
    ids = ["a", "b", "c"]

    def given(*pair_ids, **more):
        file.write_text("".join(json.dumps({"pair_id": i, "tier": TIERS[0], **more}) + "\n" for i in pair_ids))
        return read_predictions(file, RUBRIC, ids)

    assert set(given("a", "b", "c")) == set(ids)
    with pytest.raises(LoreError, match="1 pair id missing: c"):
        given("a", "b")
    with pytest.raises(LoreError, match="1 pair id given more than once: b"):
        given("a", "b", "b", "c")
    with pytest.raises(LoreError, match="2 pair ids no pair of this test: x, y"):
        given("a", "b", "c", "x", "y")
    with pytest.raises(LoreError, match="tier that the rubric does not have"):
        given("a", "b", "c", tier="perfect?")
    with pytest.raises(LoreError, match="no distribution: a, b, c"):
        given("a", "b", "c", **{f"p_{tier}": 0.9 for tier in TIERS})
    with pytest.raises(LoreError, match="missing from the calibration split: e"):
        file.write_text("".join(json.dumps({"pair_id": i, "tier": TIERS[0]}) + "\n" for i in (*ids, "d")))
        read_predictions(file, RUBRIC, ids, ["d", "e"])


def test_unreadable_predictions_name_file_and_line(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"pair_id": "a", "tier": "1"}\n{broken\n')
    with pytest.raises(LoreError, match="p.jsonl, line 2"):
        read_predictions(file, RUBRIC, ["a"])
    file.write_text('{"pair_id": "a"}\n')
    with pytest.raises(LoreError, match="no column tier"):
        read_predictions(file, RUBRIC, ["a"])
    with pytest.raises(LoreError, match="does not exist"):
        read_predictions(tmp_path / "none.csv", RUBRIC, ["a"])
    table = tmp_path / "p.csv"
    table.write_text("pair_id,tier," + ",".join(f"p_{t}" for t in TIERS) + f"\na,{TIERS[1]},0.1,0.7,0.2\nb,,,,\n")
    verdicts = read_predictions(table, RUBRIC, ["a", "b"])
    assert verdicts["a"].probabilities == [0.1, 0.7, 0.2] and verdicts["b"].tier is None


def test_trouble_in_a_predictions_file_is_named_and_long_answers_are_read(tmp_path):
    columns = [f"p_{tier}" for tier in TIERS]
    file = tmp_path / "p.jsonl"
    row = {"pair_id": "a", "tier": TIERS[0], "rationale": 5, "rules": "r1 r2"}
    file.write_text(json.dumps(row))
    verdict = read_predictions(file, RUBRIC, ["a"])["a"]
    assert verdict.rationale == "5" and verdict.rules == ["r1", "r2"]
    file.write_text(json.dumps(row | dict.fromkeys(columns, "0.3")))
    with pytest.raises(LoreError, match="no distribution: a"):
        read_predictions(file, RUBRIC, ["a"])
    for names in (columns[:2], [name.upper() for name in columns]):
        file.write_text(json.dumps(row | dict.fromkeys(names, 0.5)))
        with pytest.raises(LoreError, match="has the columns p_|has the columns P_"):
            read_predictions(file, RUBRIC, ["a"])
    table = tmp_path / "p.csv"
    table.write_text(f"pair_id,tier,text\na,{TIERS[0]},{'x' * 200_000}\n")
    assert len(read_predictions(table, RUBRIC, ["a"])["a"].text) == 200_000
    table.write_text("pair_id,tier\n")
    with pytest.raises(LoreError, match="1 pair id missing: a"):
        read_predictions(table, RUBRIC, ["a"])
    table.write_text("pair_id,tier\n", encoding="utf-16")
    with pytest.raises(LoreError, match="1 pair id missing: a"):
        read_predictions(table, RUBRIC, ["a"])
    table.write_bytes("pair_id,tier\n".encode("utf-16")[:-1])
    (tmp_path / "p.parquet").write_bytes(b"")
    for path in (table, tmp_path / "p.parquet"):
        with pytest.raises(LoreError, match=f"{path.name} cannot be read"):
            read_predictions(path, RUBRIC, ["a"])


def test_predictions_of_an_older_version_are_read(tmp_path):
    """With the columns of version 0.1: before verdicts named their judge, tokens, source and seconds."""
    columns = {
        "judge": ["one", "one", "two"],
        "pair_id": ["a", "b", "a"],
        "query": ["q", "q", "q"],
        "label": [TIERS[0]] * 3,
        "slices": [["hard"], [], ["hard"]],
        "tier": [TIERS[1], None, TIERS[2]],
        **{f"p_{tier}": [p, None, p] for tier, p in zip(TIERS, (0.1, 0.7, 0.2), strict=True)},
        "failure": [None, "no_verdict", None],
        "rationale": ["why", "", ""],
        "mismatch": ["colour", None, None],
        "rules": [["r1"], [], []],
        "text": ["said", "L9", None],
        "photo": ["seen", "none", "none"],
    }
    path = tmp_path / "predictions.parquet"
    pq.write_table(pa.table(columns), path)
    expected = Verdict("a", TIERS[1], [0.1, 0.7, 0.2], "why", "colour", ["r1"], None, "said", "seen")
    failed = Verdict("b", None, failure="no_verdict", text="L9")
    assert read_predictions(path, RUBRIC, ["a", "b"], judge="one") == {"a": expected, "b": failed}
    with pytest.raises(LoreError, match=r"2 judges \(one, two\). Choose one with predictions_judge"):
        read_predictions(path, RUBRIC, ["a"])
    pq.write_table(pa.table(columns).select(["pair_id", "tier", *(f"p_{tier}" for tier in TIERS)]).slice(0, 1), path)
    assert read_predictions(path, RUBRIC, ["a"]) == {"a": Verdict("a", TIERS[1], [0.1, 0.7, 0.2])}


HALF = {"rationale": "warm \ud83d", "rules": ["\ud83d"], "failure": "\ude00", "photo": "\ud83d", "\ud83d": "x", "m": {"\ud83d": 1}}


def test_half_characters_are_replaced_where_they_enter(tmp_path):
    file = tmp_path / "p.jsonl"
    rows = [{"pair_id": "a \ud83d", "tier": TIERS[0], "judge": "one \ud83d", **HALF}]
    rows.append({"pair_id": "b", "tier": TIERS[0], "judge": 5})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_predictions(file, RUBRIC, ["a \ufffd"], judge="one \ufffd")["a \ufffd"]
    assert found.rationale == "warm \ufffd" and found.rules == ["\ufffd"]
    pa.Table.from_pylist([to_row(found, TIERS)], schema=verdict_schema(TIERS))
    assert read_predictions(file, RUBRIC, ["b"], judge="5")["b"].tier == TIERS[0]
    file.write_text(json.dumps({"pair_id": "a", "tier": "\ud83d"}))
    with pytest.raises(LoreError, match="tier that the rubric does not have") as refused:
        read_predictions(file, RUBRIC, ["a"])
    str(refused.value).encode()


@pytest.mark.parametrize("share", ["1" + "0" * 400, "NaN", "Infinity", "-Infinity", "true", "-0.5", '"0.3"', "[1]", "1e400"])
def test_a_probability_that_is_none_is_named(tmp_path, share):
    columns = "".join(f', "p_{tier}": {share if at == 0 else 0.5}' for at, tier in enumerate(TIERS))
    (tmp_path / "p.jsonl").write_text(f'{{"pair_id": "a", "tier": "{TIERS[0]}"{columns}}}\n')
    with pytest.raises(LoreError, match="no distribution: a"):
        read_predictions(tmp_path / "p.jsonl", RUBRIC, ["a"])


def test_bytes_that_are_no_text_and_rows_of_another_width_are_refused(tmp_path):
    file, table = tmp_path / "p.jsonl", tmp_path / "p.tsv"
    file.write_bytes(b'{"pair_id": "a", "tier": "%s", "rationale": "\xff"}\n' % TIERS[0].encode())
    with pytest.raises(LoreError, match="p.jsonl, line 1: .*surrogates not allowed"):
        read_predictions(file, RUBRIC, ["a"])
    table.write_text(f"pair_id\ttier\na\t{TIERS[0]}\nb\t{TIERS[0]}\tmore\n")
    with pytest.raises(LoreError, match="p.tsv, row 2: found 3 columns .*, expected 2 columns"):
        read_predictions(table, RUBRIC, ["a", "b"])
    table.write_text(f"pair_id\ttier\tp_{TIERS[0]}\na\t{TIERS[0]}\thalf\n")
    with pytest.raises(LoreError, match="p.tsv, row 1: could not convert string to float: 'half'"):
        read_predictions(table, RUBRIC, ["a"])
    table.write_text("pair_id\n")
    with pytest.raises(LoreError, match="p.tsv cannot be read, .* column 'tier' is missing"):
        read_predictions(table, RUBRIC, ["a"])
    with pytest.raises(LoreError, match="p.xlsx cannot be read, .* ending in .xlsx; expected .parquet"):
        (tmp_path / "p.xlsx").touch()
        read_predictions(tmp_path / "p.xlsx", RUBRIC, ["a"])
