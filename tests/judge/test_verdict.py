"""The Verdict row: whatever a judge said comes back from a table as it was, and rows with fewer columns are read."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore.judge.verdict import Verdict, from_row, to_columns, to_row, verdict_schema

TIERS = ["bad", "fair", "good"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VERDICTS = st.builds(
    Verdict,
    pair_id=TEXT,
    tier=st.sampled_from([None, *TIERS]),
    probabilities=st.none() | st.lists(st.floats(0, 1), min_size=3, max_size=3),
    rationale=TEXT,
    mismatch=st.none() | TEXT,
    rules=st.lists(TEXT),
    failure=st.none() | TEXT,
    text=st.none() | TEXT,
    photo=st.sampled_from(["seen", "hidden", "failed", "none"]),
    judge_id=st.none() | TEXT,
    tokens=st.none() | st.integers(0, 10**9),
    source=st.sampled_from(["judge", "student", "cache"]),
    seconds=st.none() | st.floats(0, 1e6),
)


@given(st.lists(VERDICTS, max_size=4))
def test_a_table_of_verdicts_loses_nothing(verdicts):
    table = pa.Table.from_pylist([to_row(verdict, TIERS) for verdict in verdicts], schema=verdict_schema(TIERS))
    assert [from_row(row, TIERS) for row in table.to_pylist()] == verdicts
    columns = to_columns(verdicts, TIERS)
    assert pa.table([columns[name] for name in table.schema.names], schema=table.schema).equals(table)


def test_probabilities_of_any_number_type_are_written_as_floats():
    given = [[0, 1, 0], [np.float32(0.5), np.float64(0.25), 0.25], None]
    columns = to_columns([Verdict("a", "bad", one) for one in given], TIERS)
    assert [columns[f"p_{tier}"].to_pylist() for tier in TIERS] == [[0.0, 0.5, None], [1.0, 0.25, None], [0.0, 0.25, None]]


def test_the_columns_of_the_contract_are_there_in_this_order():
    own = ["failure", "rationale", "mismatch", "rules", "text", "photo", "judge_id", "tokens", "source", "seconds", "detail"]
    assert verdict_schema(TIERS).names == ["pair_id", "tier", "p_bad", "p_fair", "p_good", *own]


@pytest.mark.parametrize(
    "strange", [{"tokens": [1, 2]}, {"tokens": "many"}, {"source": "my_dataset"}, {"seconds": "soon"}, {"photo": ""}, {}]
    + [{"tokens": number} for number in (10**400, -1, True, 1.5)]
    + [{"seconds": number} for number in (float("nan"), float("inf"), -1.0, True, 10**400)]
    + [{"source": ["judge"]}]
)
def test_columns_of_others_that_only_share_a_name_are_passed_over(strange):
    assert from_row({"pair_id": "a", "tier": "bad"} | strange, TIERS) == Verdict("a", "bad")
