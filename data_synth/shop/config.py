"""Recipes of the synthesis stages. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict
from lore.data.section import JudgedDataSection

SEALED_SEEDS = frozenset(range(7000, 7100))
"""Seeds of benchmarks alone: no recipe makes training pairs of them."""


class WorldRecipe(BaseRecipe):
    """The embedded shop, written as pairs, search log, fact table and a corpus for a base model."""

    stage: Literal["world"] = "world"
    language: str = "en"
    """Lexicon in data_synth/shop/lexicons."""
    rubric: str = "shop"
    """Rule book that labels the pairs; a changed copy changes the labels."""
    prior: Literal["balanced", "natural"] = "balanced"
    """Tiers in equal shares, or as in search traffic (60 % perfect)."""
    test_prior: Literal["balanced", "natural"] = "balanced"
    """The same for the test split."""
    pairs: dict[str, int] = {"train": 20000, "dev": 500, "test": 1500}
    """Pairs per split."""
    subsets: dict[str, float] = {"general": 0.5, "hard": 0.25, "visual": 0.25}
    """Shares of general, hard and visual queries in the training and dev splits; the test split has a third each."""
    photos: float = Field(0.4, ge=0, le=1)
    """Share of the pairs outside the visual subset that have a photo."""
    label_noise: float = Field(0.0, ge=0, lt=1)
    """Share of the training pairs with a wrong label, marked by the slice noise:label; gold demands and reasoning stay true."""
    corpus: int = Field(20000, ge=0)
    """Texts for a base model: catalogue entries and captions, search log, rule book."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.seed in SEALED_SEEDS:
            expected = f"another seed: {min(SEALED_SEEDS)} to {max(SEALED_SEEDS)} are sealed for benchmarks, which must stay unseen"
            yield Conflict(("seed",), str(self.seed), expected)

    def derived(self) -> dict[str, Any]:
        return {"pairs": sum(self.pairs.values()), "files": [f"{split}.parquet" for split in self.pairs]}


class WordsRecipe(BaseRecipe):
    """Generated texts over the words of real pairs: pseudo queries against real items, labelled by the words found."""

    stage: Literal["words"] = "words"
    data: JudgedDataSection
    """The real pairs; words, queries and items come from data.split alone, labels are not read."""
    reasons: float = Field(0.3, ge=0, le=1)
    """Share of the generated pairs that name each query word as found or missing before the verdict."""
    texts: int = Field(20000, ge=1)
    """Texts of the corpus: marked words first, then generated pairs as conversations."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.data.split is None:
            yield Conflict(("data.split",), "every split", "data.split: train, so that no word of a held-out query is read")

    def derived(self) -> dict[str, Any]:
        return {"texts": self.texts, "files": ["corpus.parquet"]}


