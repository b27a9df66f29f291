"""Which pairs a run reasons about, and in which chunks: the same at every start."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lore.data_synth.synth_config import SynthesizeRecipe
from lore.pairs import Pair, read_pairs


def selected(recipe: SynthesizeRecipe, path: Path) -> Iterator[Pair]:
    """The labelled pairs of the data section, in file order."""
    wanted = set(recipe.data.slices or [])
    pairs = (
        pair
        for pair in read_pairs(path, split=recipe.data.split)
        if pair.label is not None and (not wanted or wanted & set(pair.slices))
    )
    return islice(pairs, recipe.data.limit)


def chunked(pairs: Iterator[Pair], size: int) -> Iterator[tuple[int, list[Pair]]]:
    number = 0
    while chunk := list(islice(pairs, size)):
        yield number, chunk
        number += 1
