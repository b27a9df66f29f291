"""The order of the training rows: every row once an epoch, fixed by the seed, the same whatever the processes; their batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore.support.errors import LoreError
from lore.train.common.batch_order import balanced_repeats, training_order
from lore.train.common.config import TrainSection
from lore.train.common.trainer import micro_batch


@given(rows=st.integers(1, 60), batch=st.integers(1, 16), steps=st.integers(1, 12), seed=st.integers(0, 5))
def test_no_row_comes_again_before_all_have_come(rows, batch, steps, seed):
    lengths = list(np.random.default_rng(seed).integers(5, 90, rows))
    order = training_order(lengths, batch, steps, seed)
    assert len(order) == batch * steps
    counts = np.bincount(order, minlength=rows)
    # inside a batch rows are sorted, so only whole batches can be counted
    assert counts.max() - counts.min() <= 1
    assert (training_order(lengths, batch, steps, seed) == order).all()


def test_a_shorter_run_sees_the_beginning_of_a_longer_one_and_seeds_differ():
    lengths = list(range(100))
    short, long = (training_order(lengths, 10, steps, 1) for steps in (7, 10))
    assert (short == long[:70]).all()
    assert (training_order(lengths, 10, 10, 2) != long).any()


def test_rows_of_a_step_are_sorted_by_length_so_that_its_forward_passes_pad_little():
    lengths = np.random.default_rng(0).integers(10, 200, 640)
    order = training_order(list(lengths), 64, 10, 0).reshape(10, 64)
    assert (np.diff(lengths[order], axis=1) <= 0).all()

    def padded(rows, width):
        parts = lengths[rows].reshape(-1, width)
        return (parts.max(axis=1) * width).sum()

    shuffled = np.random.default_rng(1).permutation(640)
    assert padded(order.reshape(-1), 16) < 0.8 * padded(shuffled, 16)


def test_repeated_rows_stand_as_often_in_an_epoch_as_asked():
    order = training_order([5] * 4, 7, 2, 0, repeats=[1, 1, 2, 3])
    assert sorted(order) == sorted([0, 1, 2, 2, 3, 3, 3] * 2)


def test_balancing_makes_rare_labels_as_frequent_as_common_ones():
    labels = ["L4"] * 60 + ["L1"] * 20 + ["L2"] * 7
    repeats = balanced_repeats(labels)
    seen = {name: sum(r for r, label in zip(repeats, labels, strict=True) if label == name) for name in set(labels)}
    assert seen == {"L4": 60, "L1": 60, "L2": 63}


def test_a_corpus_in_its_own_order_begins_with_its_beginning():
    order = training_order([5] * 30, 10, 6, 0, shuffle=False).reshape(6, 10)
    assert [sorted(batch) for batch in order.tolist()] == 2 * [list(range(start, start + 10)) for start in (0, 10, 20)]


@pytest.mark.parametrize("values", [{"batch_size": 9}, {"batch_size": 12, "micro_batch_size": 4}], ids=str)
def test_a_batch_that_does_not_divide_is_reported_once(values, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LoreError, match="Use a") as caught:
        micro_batch(TrainSection(steps=1, **values))
    assert caught.value.same_on_every_rank


@given(
    groups=st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=8, max_size=70),
    run=st.integers(1, 6),
    steps=st.integers(1, 8),
)
def test_rows_of_a_group_come_in_runs_and_every_row_once_an_epoch(groups, run, steps):
    order = training_order([5] * len(groups), run, steps, 0, groups=groups, run=run)
    assert (training_order([5] * len(groups), run, steps, 0, groups=groups, run=run) == order).all()
    epoch = [groups[row] for row in order[: len(groups)]]
    assert len(set(order[: len(groups)].tolist())) == len(epoch)
    whole = sum(groups.count(name) // run for name in set(groups))
    for step in range(min(steps, whole)):
        assert len(set(epoch[step * run : (step + 1) * run])) == 1


def test_one_group_is_visited_as_no_group():
    lengths = list(np.random.default_rng(0).integers(5, 90, 60))
    plain = training_order(lengths, 8, 12, 3)
    assert (training_order(lengths, 8, 12, 3, groups=["a"] * 60, run=4) == plain).all()


def test_groups_that_fill_no_run_are_visited_in_another_order_each_epoch():
    groups = [name for name in "abcdefgh" for _ in range(4)]
    order = training_order([5] * 32, 4, 24, 0, groups=groups, run=16).reshape(3, 32)
    visited = ["".join(dict.fromkeys(groups[row] for row in epoch)) for epoch in order]
    assert len(set(visited)) == 3 and all(sorted(epoch) == list("abcdefgh") for epoch in visited)
