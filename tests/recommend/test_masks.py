"""Masks of the sequence model's training, against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.recommend.masks import MASKS, draw_mask

lengths, shares, seeds = st.integers(2, 60), st.floats(0.01, 1), st.integers(0, 2**32 - 1)


def runs(hidden: np.ndarray) -> list[tuple[int, int]]:
    """(first, after the last) of each run of hidden places."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
    return list(zip(edges[::2], edges[1::2], strict=True))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MASKS), lengths, shares, seeds)
def test_every_mask_hides_a_place_and_leaves_one_visible(kind, length, share, seed):
    hidden = draw_mask(kind, length, share, np.random.default_rng(seed))
    assert hidden.shape == (length,) and hidden.any() and not hidden.all()
    if kind in ("span", "tail", "regions"):
        assert hidden.sum() <= max(1, round(share * length))
    found = runs(hidden)
    if kind == "last":
        assert found == [(length - 1, length)]
    if kind == "tail":
        assert len(found) == 1 and found[0][1] == length
    if kind == "span":
        assert len(found) == 1
    if kind == "regions":
        assert len(found) <= 3


def test_a_span_reaches_every_place_and_regions_are_two_or_three_disjoint_runs():
    rng = np.random.default_rng(0)
    spans = np.sum([draw_mask("span", 8, 0.5, rng) for _ in range(300)], axis=0)
    assert (spans > 20).all()
    counts = [len(runs(draw_mask("regions", 20, 0.5, rng))) for _ in range(300)]
    assert set(counts) == {1, 2, 3}  # a single hidden place is one run
    assert sum(count > 1 for count in counts) > 250


def test_random_hides_the_share_that_the_recipe_says():
    rng = np.random.default_rng(0)
    assert np.mean([draw_mask("random", 50, 0.3, rng).mean() for _ in range(300)]) == pytest.approx(0.3, abs=0.02)


def test_one_place_is_too_short_for_a_mask():
    with pytest.raises(ValueError, match="at least 2 places, got 1"):
        draw_mask("last", 1, 0.5, np.random.default_rng(0))
