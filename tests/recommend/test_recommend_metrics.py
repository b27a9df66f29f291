"""Rank metrics of next items, compared with the ranks of a plain sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.recommend.baselines import cooccurrence, item_knn, popularity
from lore.recommend.codes import make_codes
from lore.recommend.histories import Histories, Targets
from lore.recommend.metrics import METRICS, best, gini, measure
from lore.support.errors import LoreError


def histories_of(sequences: list[list[int]], items: int) -> Histories:
    """Leave-one-out: the last event of each sequence is the test, the one before it validation."""
    starts = np.cumsum([0, *map(len, sequences)])
    users = np.arange(len(sequences))
    return Histories(
        user_ids=[f"u{user}" for user in users],
        item_ids=[f"i{item}" for item in range(items)],
        items=np.concatenate(sequences).astype(np.int32),
        starts=starts.astype(np.int64),
        train_ends=starts[1:] - 2,
        times=np.arange(starts[-1], dtype=np.float64),
        valid=Targets(users, starts[1:] - 2),
        test=Targets(users, starts[1:] - 1),
        fingerprint="made here",
    )


class Fixed:
    """Gives every history the scores of its own row."""

    name = "fixed"

    def __init__(self, scores):
        self.table, self.at = np.asarray(scores, dtype=np.float32), 0

    def scores(self, histories):
        found = self.table[self.at : self.at + len(histories)]
        self.at += len(histories)
        return found


def by_shuffling(scores, history, target, rule, orders=1500):
    """Metrics of one target, with its tied items in random orders."""
    rng, found = np.random.default_rng(0), []
    allowed = [item for item in range(len(scores)) if rule == "kept" or item not in history]
    for _ in range(orders):
        ranking = sorted(rng.permutation(allowed), key=lambda item: -scores[item])
        rank = ranking.index(target) + 1 if target in ranking else np.inf
        hits = [float(rank <= cut) for cut in (1, 5, 10)]
        found.append([*hits, *(hit / np.log2(rank + 1) if hit else 0.0 for hit in hits[1:]), 1 / rank])
    return np.mean(found, axis=0)


@given(st.integers(0, 10_000))
@settings(max_examples=3, deadline=None)
def test_metrics_are_the_means_over_all_orders_of_tied_items(seed):
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, 12, size=length).tolist() for length in (3, 6)]  # with repeated items
    scores = rng.integers(0, 4, size=(2, 12))
    values = measure(Fixed(scores), histories_of(sequences, 12), "test").values
    for user, sequence in enumerate(sequences):
        for at, rule in enumerate(("removed", "kept")):
            truth = by_shuffling(scores[user], sequence[:-1], sequence[-1], rule)
            assert values[at, user] == pytest.approx(truth, abs=0.06), (sequence, rule)


def test_the_same_score_for_all_items_is_no_better_than_chance():
    """A model that broke ties in favor of the target would have HR@1 of 1 here."""
    flat = measure(Fixed(np.zeros((1, 100))), histories_of([[0, 1, 2]], 100), "test")
    assert flat.values[1, 0, METRICS.index("HR@10")] == pytest.approx(0.1)
    assert flat.values[0, 0, METRICS.index("HR@10")] == pytest.approx(10 / 98)


def test_scores_that_are_no_numbers_and_scores_of_another_catalogue_are_refused():
    histories = histories_of([[0, 1, 2]], 4)
    with pytest.raises(LoreError, match="not numbers"):
        measure(Fixed([[0, 1, np.nan, 1]]), histories, "test")
    with pytest.raises(LoreError, match="another catalogue"):
        measure(Fixed([[0, 1, 2]]), histories, "test")


def test_scores_of_the_recommender_stay_as_they_are():
    table = Fixed(np.ones((1, 4)))
    measure(table, histories_of([[0, 1, 2]], 4), "test")
    assert (table.table == 1).all()


def test_best_items_come_in_the_order_of_score_then_catalogue():
    assert best(np.array([1.0, 3, 2, 3, -np.inf]), 3).tolist() == [1, 3, 2]
    assert best(np.array([1.0, -np.inf]), 5).tolist() == [0]


def test_gini_of_even_and_of_single_sales():
    assert gini(np.full(10, 3)) == pytest.approx(0)
    assert gini(np.eye(1, 10)[0]) == pytest.approx(0.9)


SHOP = [[0, 1, 2, 9, 9], [0, 1, 3, 9, 9], [4, 0, 1, 9, 9], [5, 6, 7, 9, 9]]
"""Item 9 is only ever held out."""


def test_held_out_events_reach_no_baseline():
    """The counts of a shop are those of the same shop with other held-out events."""
    other = [[*sequence[:-2], 8, 8] for sequence in SHOP]
    for make in (popularity, cooccurrence, item_knn):
        one, two = (make(histories_of(shop, 10)).scores([np.array([0, 1]), np.array([5])]) for shop in (SHOP, other))
        assert (one == two).all()
        assert (one[:, 9] <= one.min(axis=1)).all()


def test_cooccurrence_counts_what_came_next_within_the_window():
    near = cooccurrence(histories_of(SHOP, 10), window=1, damping=0).to.toarray()
    assert near[0, 1] == 3 and near[1, 0] == 0 and near[0, 2] == 0
    far = cooccurrence(histories_of(SHOP, 10), window=2, decay=0.5, damping=0, backward=0.5).to.toarray()
    assert far[0, 2] == 0.5 and far[2, 0] == 0.25 and far[0, 1] == 3


def test_the_newest_event_counts_most():
    counted = cooccurrence(histories_of(SHOP, 10), window=1, damping=1, fade=0.5)
    assert counted.scores([np.array([0, 5])])[0, 1] == pytest.approx(0.5 * counted.scores([np.array([5, 0])])[0, 1], rel=1e-4)
    assert counted.scores([np.array([5, 5])])[0, 6] > counted.scores([np.array([5])])[0, 6]


def test_prefixes_give_an_item_without_events_the_score_of_its_shelf():
    codes = make_codes(np.array([[row // 5, row % 5] for row in range(10)]), 5)
    plain = cooccurrence(histories_of(SHOP, 10)).scores([np.array([5])])[0]
    shelved = cooccurrence(histories_of(SHOP, 10), codes=codes, prefixes=[0.5]).scores([np.array([5])])[0]
    assert plain[9] == 0 and shelved[9] == pytest.approx(0.1 * plain[5:].sum(), rel=1e-4)
    assert shelved[4] < shelved[9]


def test_item_knn_is_the_cosine_of_the_items_users():
    near = item_knn(histories_of(SHOP, 10), shrinkage=0).to.toarray()
    assert near[0, 1] == pytest.approx(1) and near[0, 2] == pytest.approx(1 / 3**0.5) and near[0, 0] == 0
    assert (item_knn(histories_of(SHOP, 10), neighbors=1).to.toarray() > 0).sum(axis=1).max() == 1
