"""Masks of the sequence model's training: which places of a history are hidden and predicted (arXiv 2512.02474, section 3.3).

`random` and `last` are BERT4Rec's (arXiv 1904.06690). `span` hides one run of places, `tail` a run that ends at the last place,
`regions` two or three runs with visible places between them. A recipe mixes them by weight. Every mask hides at least one place and
leaves at least one visible. Imports no torch.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Mask = Literal["random", "last", "span", "tail", "regions"]
MASKS: tuple[Mask, ...] = get_args(Mask)
MOST_REGIONS = 3


def draw_mask(kind: Mask, length: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """The hidden places [length] as booleans. share: of the places that are hidden at most by span, tail and regions, and hidden on
    average by random. Histories too short for two regions get a span. Raises ValueError below two places."""
    if length < 2:
        raise ValueError(f"a mask needs a history of at least 2 places, got {length}")
    hidden = np.zeros(length, dtype=bool)
    if kind == "random":
        hidden = rng.random(length) < share
        if not hidden.any() or hidden.all():
            one = rng.integers(length)
            hidden[one] = not hidden[one]
        return hidden
    if kind == "last":
        hidden[-1] = True
        return hidden
    count = int(rng.integers(1, min(max(1, round(share * length)), length - 1) + 1))
    if kind == "tail":
        hidden[length - count :] = True
        return hidden
    most = min(MOST_REGIONS, count, length - count + 1)
    regions = int(rng.integers(2, most + 1)) if kind == "regions" and most >= 2 else 1
    sizes = _parts(count - regions, regions, rng) + 1
    gaps = _parts(length - count - (regions - 1), regions + 1, rng)
    gaps[1:-1] += 1  # regions do not touch
    at = 0
    for gap, size in zip(gaps, sizes, strict=False):
        hidden[at + gap : at + gap + size] = True
        at += gap + size
    return hidden


def _parts(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """A uniformly drawn way to write total as an ordered sum of `parts` numbers from 0 on."""
    bars = np.sort(rng.choice(total + parts - 1, parts - 1, replace=False))
    return np.diff(np.concatenate([[-1], bars, [total + parts - 1]])) - 1
