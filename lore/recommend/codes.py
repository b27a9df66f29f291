"""Semantic ids: a few codes per item, coarse to fine; items that share a prefix are alike. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Codes:
    """Codes of a catalogue. values [V, L] int32, row of the item and level, each below `size`. fingerprint: of values and sizes."""

    values: np.ndarray
    size: int
    fingerprint: str

    @property
    def levels(self) -> int:
        return self.values.shape[1]

    def prefixes(self, length: int) -> np.ndarray:
        """Number of the prefix of this length per item [V]; equal numbers mean equal prefixes."""
        return np.unique(self.values[:, :length], axis=0, return_inverse=True)[1].reshape(-1)

    def shuffled(self, seed: int) -> Codes:
        """The control: the same codes, dealt to other items."""
        order = np.random.default_rng(seed).permutation(len(self.values))
        return Codes(self.values[order], self.size, f"{self.fingerprint}-shuffled-{seed}")
