"""Histories: who took which item when, and which events are held out. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Part = Literal["valid", "test"]


@dataclass(frozen=True)
class Targets:
    """Held-out events that are to be predicted. user [N]: row of the user; place [N]: of the event in `Histories.items`."""

    user: np.ndarray
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Histories:
    """Events of all users as one flat array, each user's in the order of time.

    user_ids [U]; item_ids [V]: ids of the catalogue, whose row is the number of the item everywhere in lore.recommend.
    items [E] int32: rows of the catalogue; starts [U + 1] int64: user u has items[starts[u]:starts[u + 1]];
    train_ends [U] int64: her training events end there, all later ones are held out. times [E] float64: seconds, or the order.
    valid, test: the held-out events that are predicted: all but a user's first event, which has nothing before it. fingerprint: of
    all of this.
    """

    user_ids: list[str]
    item_ids: list[str]
    items: np.ndarray
    starts: np.ndarray
    train_ends: np.ndarray
    times: np.ndarray
    valid: Targets
    test: Targets
    fingerprint: str

    def targets(self, part: Part) -> Targets:
        return self.valid if part == "valid" else self.test

    def training(self, user: int) -> np.ndarray:
        """Items of a user that training, counts and codes may see."""
        return self.items[self.starts[user] : self.train_ends[user]]

    def before(self, targets: Targets, at: int) -> np.ndarray:
        """The user's items before a held-out event, the oldest first."""
        return self.items[self.starts[targets.user[at]] : targets.place[at]]

    def training_counts(self) -> np.ndarray:
        """Training events per item [V]. Items with at most COLD of them are cold."""
        return np.bincount(self.items[self.in_training()], minlength=len(self.item_ids))

    def users(self) -> np.ndarray:
        """Row of the user per event [E]."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.starts))

    def in_training(self) -> np.ndarray:
        """Whether training, counts and codes may see an event [E]."""
        return np.arange(len(self.items)) < self.train_ends[self.users()]


COLD = 5
"""An item with at most this many training events is cold."""


class Recommender(Protocol):
    """Whatever ranks the catalogue for a history: counts, neighbors, or a trained model."""

    name: str

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Scores [B, V] of all items of the catalogue; higher is better. Items of the history are scored like the others.
        histories: rows of items, the oldest first, at least one each."""
        ...

    def shares(self, histories: list[np.ndarray]) -> np.ndarray:
        """The same order as shares [B, V] of one, so that recommenders with scores of other kinds can be added up."""
        ...
