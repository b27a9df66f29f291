"""Recallers that count: popularity, co-occurrence, co-occurrence smoothed by prefixes of semantic ids, and item-kNN.

Each reads the training events of the histories alone, is deterministic, and scores the whole catalogue. A trained model that does
not beat them has learned nothing that a count does not know. Left out of the textbook methods: learned weights (EASE, SLIM), which
cost the cube of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from lore.recommend.codes import Codes
from lore.recommend.histories import Histories

MOST_EVENTS = 500
"""Item-kNN reads the last training events of a longer history: pairs grow with the square."""
TIE_BREAK = 1e-6
"""Of the most popular item: orders the items that no event of the history occurs with."""


@dataclass(frozen=True)
class Popularity:
    """The same order for everybody. counts [V]: training events of each item."""

    counts: np.ndarray
    name: str = "popularity"

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return np.repeat(self.counts.astype(np.float32)[None], len(histories), axis=0)

    def shares(self, histories: list[np.ndarray]) -> np.ndarray:
        return _shares(self.scores(histories))


@dataclass(frozen=True)
class Shelf:
    """Items by the prefix of their codes. prefix [V]: number of the item's prefix; members [V, G]: 1 / size of the prefix; weight:
    of the mean score of the items on the same shelf."""

    prefix: np.ndarray
    members: sparse.csr_matrix
    weight: float


@dataclass(frozen=True)
class Neighbors:
    """Adds up rows of a sparse matrix: the score of item j is the sum over the last events i of the history of weight(i) * to[i,
    j].

    to: [V, V]. last: events of the history that count; fade: weight of an event over that of the one after it. popularity [V]:
    breaks ties. shelves: what an item gets from the items that share a prefix with it, so that an item without events has a score.
    """

    name: str
    to: sparse.csr_matrix
    popularity: np.ndarray
    last: int
    fade: float
    shelves: tuple[Shelf, ...] = ()

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        near = _weighted(histories, self.to.shape[0], self.last, self.fade) @ self.to
        found = near.toarray()
        for shelf in self.shelves:
            found += shelf.weight * (near @ shelf.members).toarray()[:, shelf.prefix]
        found += self.popularity
        return found

    def shares(self, histories: list[np.ndarray]) -> np.ndarray:
        return _shares(self.scores(histories))


def popularity(histories: Histories) -> Popularity:
    return Popularity(histories.training_counts())


def cooccurrence(
    histories: Histories,
    *,
    window: int = 5,
    decay: float = 0.8,
    backward: float = 0.0,
    damping: float = 0.5,
    last: int = 10,
    fade: float = 0.7,
    codes: Codes | None = None,
    prefixes: Sequence[float] = (),
    name: str = "co-occurrence",
) -> Neighbors:
    """Items that came next: j counts decay ** (d - 1) where it came d <= window events after i in a training history, and
    `backward` times as much where it came before. The row of i is divided by its sum to the power of damping: 0 for counts, 1 for
    shares.

    codes, prefixes: see `shelves`.
    """
    after = followers(histories, window, decay)
    pairs = (after + backward * after.T).tocsr() if backward else after
    sums = np.asarray(pairs.sum(axis=1)).reshape(-1)
    to = (sparse.diags_array(np.maximum(sums, 1e-12) ** -damping) @ pairs).astype(np.float32).tocsr()
    return Neighbors(name, to, _tie_break(histories), last, fade, shelves(codes, prefixes))


def item_knn(
    histories: Histories,
    *,
    neighbors: int = 200,
    shrinkage: float = 5.0,
    last: int = 10,
    fade: float = 0.7,
    codes: Codes | None = None,
    prefixes: Sequence[float] = (),
    name: str = "item-kNN",
) -> Neighbors:
    """Items that the same users took, in any order: cosine of the items' users, with `shrinkage` added to the denominator (Sarwar
    et al. 2001), of the nearest `neighbors` of each item. codes, prefixes: see `shelves`."""
    there = np.flatnonzero(histories.in_training())
    users = histories.users()[there]
    ends = histories.train_ends[users]
    recent = there >= ends - MOST_EVENTS
    taken = sparse.csr_array(
        (np.ones(int(recent.sum()), dtype=np.float32), (users[recent], histories.items[there[recent]])),
        shape=(len(histories.user_ids), len(histories.item_ids)),
    )
    taken.data[:] = 1
    both = (taken.T @ taken).tocoo()
    norm = np.sqrt(taken.sum(axis=0))
    apart = both.coords[0] != both.coords[1]
    row, column = (one[apart] for one in both.coords)
    cosine = both.data[apart] / (norm[row] * norm[column] + shrinkage)
    order = np.lexsort((column, -cosine, row))
    row, column, cosine = row[order], column[order], cosine[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < neighbors
    size = len(histories.item_ids)
    to = sparse.csr_matrix((cosine[kept].astype(np.float32), (row[kept], column[kept])), shape=(size, size))
    return Neighbors(name, to, _tie_break(histories), last, fade, shelves(codes, prefixes))


def shelves(codes: Codes | None, prefixes: Sequence[float]) -> tuple[Shelf, ...]:
    """What an item gets from the items that share a prefix of 1, 2, ... codes with it: their mean score, times prefixes[0],
    prefixes[1], ... The item itself is one of them: left out, an item alone on its shelf would fall behind for no reason."""
    return () if codes is None else tuple(_shelf(codes, level, weight) for level, weight in enumerate(prefixes, 1) if weight)


def followers(histories: Histories, window: int, decay: float) -> sparse.csr_matrix:
    """[V, V] float64: how often, decayed by the distance, j came after i in a training history."""
    there = np.flatnonzero(histories.in_training())
    items, users = histories.items[there], histories.users()[there]
    size = len(histories.item_ids)
    total = sparse.csr_matrix((size, size))
    for distance in range(1, window + 1):
        same = users[distance:] == users[:-distance]
        first, second = items[:-distance][same], items[distance:][same]
        if not len(first):
            break
        weight = np.full(len(first), decay ** (distance - 1))
        total = total + sparse.csr_matrix((weight, (first, second)), shape=(size, size))
    return total


def _shares(scores: np.ndarray) -> np.ndarray:
    return scores / np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _weighted(histories: list[np.ndarray], items: int, last: int, fade: float) -> sparse.csr_matrix:
    """[B, V] float32: weight of the last events of each history; an item that came twice has the sum."""
    recent = [history[-last:] for history in histories]
    lengths = np.fromiter(map(len, recent), dtype=np.int64, count=len(recent))
    age = np.concatenate([np.arange(length)[::-1] for length in lengths]) if len(recent) else np.zeros(0)
    rows = np.repeat(np.arange(len(recent)), lengths)
    columns = np.concatenate(recent) if len(recent) else np.zeros(0, dtype=np.int64)
    return sparse.csr_matrix(((fade**age).astype(np.float32), (rows, columns)), shape=(len(recent), items))


def _shelf(codes: Codes, level: int, weight: float) -> Shelf:
    prefix = codes.prefixes(level)
    size = np.bincount(prefix)
    members = sparse.csr_matrix(
        ((1 / size[prefix]).astype(np.float32), (np.arange(len(prefix)), prefix)), shape=(len(prefix), len(size))
    )
    return Shelf(prefix, members, weight)


def _tie_break(histories: Histories) -> np.ndarray:
    counts = histories.training_counts()
    return (TIE_BREAK * counts / max(1, counts.max())).astype(np.float32)
