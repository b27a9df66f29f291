"""What the three layers of retrieval share: the set within reach, and the contract of a layer.

The geographic layer comes first: the other two rank what lies within reach, so that a place beyond the circle is never retrieved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lore.places.question import Hit, Intent


@dataclass(frozen=True)
class Reach:
    """rows (n,): of the town, the nearest first. metres, minutes (n,): on foot, by the street graph where the town has one
    (by_streets), else estimated from the straight distance."""

    rows: np.ndarray
    metres: np.ndarray
    minutes: np.ndarray
    by_streets: bool = False


class Layer(Protocol):
    name: str

    def retrieve(self, intent: Intent, reach: Reach, k: int) -> list[Hit]:
        """At most k hits among reach.rows, the best first; [] if the layer has nothing to say about the question."""
