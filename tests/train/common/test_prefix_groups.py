"""Rows of a step that begin alike share a micro-batch: every row stays in its step, and the layouts have few tokens."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import LlamaConfig, MistralConfig

from lore.train.common.batch_order import training_order
from lore.train.common.config import TrainSection
from lore.train.common.prefix_groups import group_by_prefix, in_groups
from lore.train.common.shared_prefix import lay_out

RUBRICS = [list(range(first, first + 200)) for first in (0, 300, 600, 900)]
LLAMA = LlamaConfig(attn_implementation="sdpa")


def as_bytes(rows: list[list[int]]) -> list[bytes]:
    return [np.array(row, dtype=np.int32).tobytes() for row in rows]


def tokens(rows: list[list[int]], order: list[int], size: int) -> int:
    """Tokens that the micro-batches compute."""
    batches = [[rows[row] for row in order[first : first + size]] for first in range(0, len(order), size)]
    return sum(len(layout.ids) if (layout := lay_out(batch)) else sum(map(len, batch)) for batch in batches)


def judged(rubrics: int, queries: int, items: int, seed: int = 0) -> list[list[int]]:
    """Shuffled rows of `queries` for each rubric, each query of 40 tokens with `items` of 30 to 50."""
    random = np.random.default_rng(seed)
    made = []
    for rubric in RUBRICS[:rubrics]:
        for _ in range(queries):
            query = rubric + random.integers(2000, 9000, 40).tolist()
            made += [query + random.integers(2000, 9000, random.integers(30, 50)).tolist() for _ in range(items)]
    return [made[row] for row in random.permutation(len(made))]


@pytest.mark.parametrize("rubrics, queries, items", [(1, 4, 4), (4, 1, 4), (4, 4, 4), (2, 4, 2)])
def test_each_prefix_is_computed_in_as_few_micro_batches_as_can_be(rubrics, queries, items):
    rows = judged(rubrics, queries, items)
    found = tokens(rows, in_groups(as_bytes(rows), [len(row) for row in rows], 4), 4)
    own = sum(len(row) - 240 for row in rows)
    assert found == own + len(rows) // 4 * 200 + rubrics * queries * 40
    assert tokens(rows, list(range(len(rows))), 4) > 1.1 * found


def test_rows_with_nothing_in_common_stay_sorted_by_length():
    random = np.random.default_rng(0)
    rows = [random.integers(0, 9000, random.integers(20, 90)).tolist() for _ in range(12)]
    lengths = [len(row) for row in rows]
    found = [lengths[row] for row in in_groups(as_bytes(rows), lengths, 4)]
    assert found == sorted(lengths, reverse=True)
    same = [RUBRICS[0] + row for row in rows]
    assert [lengths[row] for row in in_groups(as_bytes(same), [len(row) for row in same], 4)] == found


@given(st.lists(st.lists(st.integers(0, 1), max_size=4), min_size=1, max_size=6), st.sampled_from([1, 2, 3, 4]))
def test_every_row_comes_once_and_the_order_depends_on_the_rows_alone(paths, size):
    rows = [[token for bit in path for token in RUBRICS[bit][:40]] for path in paths] * size  # nested, equal and empty ones
    lengths = [len(row) for row in rows]
    found = in_groups(as_bytes(rows), lengths, size)
    assert sorted(found) == list(range(len(rows)))
    assert [rows[row] for row in found] == [rows[::-1][row] for row in in_groups(as_bytes(rows[::-1]), lengths[::-1], size)]


@pytest.mark.parametrize(
    "options, config, dropout, arranged",
    [
        ({}, LLAMA, {}, True),
        ({"shared_prefix": True}, LLAMA, {}, True),
        ({"shared_prefix": False}, LLAMA, {}, False),
        ({"padding_free": True}, LLAMA, {}, False),
        ({}, MistralConfig(sliding_window=64, attn_implementation="sdpa"), {}, False),
        ({}, LLAMA, {"new": 0.1}, False),
        ({}, LLAMA, {"loaded": 0.1}, False),
        ({"shared_prefix": True}, LLAMA, {"new": 0.1, "loaded": 0.1}, True),
    ],
    ids=["auto", "true", "false", "padding_free", "a model with a window", "new dropout", "dropout", "true with dropout"],
)
@pytest.mark.parametrize("column", ["input_ids", "prompt_ids", "prompt"])
def test_the_rows_of_a_step_stay_in_it(column, options, config, dropout, arranged):
    made = judged(4, 2, 5)
    lengths = [len(row) for row in made]
    begins = ["".join(map(chr, row)) for row in made] if column == "prompt" else pa.array(made, pa.list_(pa.int32()))
    rows = datasets.Dataset(pa.table({column: begins, "length": lengths}))
    train = TrainSection(steps=6, batch_size=16, micro_batch_size=4, **options)
    order = training_order(lengths, 16, 6, 0)
    model, lora = torch.nn.Sequential(torch.nn.Dropout(dropout.get("loaded", 0))), LoraConfig(lora_dropout=dropout.get("new", 0))
    model.config = config
    found = group_by_prefix(order, rows, train, 4, model, lora)
    assert (np.sort(found.reshape(6, 16)) == np.sort(order.reshape(6, 16))).all()
    assert (tokens(made, found.tolist(), 4) < 0.7 * tokens(made, order.tolist(), 4)) == arranged
    assert arranged or (found == order).all()
    assert (group_by_prefix(order, rows, train, 16, model, lora) == order).all()  # one micro-batch a step
