"""Recipes of the synthesis stages. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lore.recipe import BaseRecipe, Conflict, DataSection
from lore.recipe_file import nearest

SEALED_SEEDS = frozenset(range(7000, 7100))
"""Seeds of benchmarks alone: no recipe makes training pairs of them."""


class WorldRecipe(BaseRecipe):
    """The embedded shop, written as pairs, search log, fact table and a corpus for a base model."""

    stage: Literal["world"] = "world"
    language: str = "en"
    """Lexicon in data_synth/lexicons."""
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
    data: DataSection
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


class HardenRecipe(BaseRecipe):
    """Training pairs, a share of them perturbed as sellers and shoppers would; labels and reasoning stay."""

    stage: Literal["harden"] = "harden"
    data: DataSection
    """Pairs with their reasoning, as the stage synthesize writes them. Only split train, and pairs without a split, are changed."""
    language: Literal["en", "zh"] = "en"
    """Language of what is written into texts; see data_synth/perturbations."""
    share: float = Field(0.5, gt=0, le=1)
    """Share of the training pairs that is perturbed, each in one way."""
    perturbations: list[str] | None = Field(None, min_length=1)
    """Names to draw from (see docs/robustness.md); none: every injection."""
    copies: bool = False
    """true keeps the pair as it is beside its perturbed copy, which gets a pair_id of its own; false puts the copy in its place."""

    def names(self) -> list[str]:
        """The perturbations to draw from."""
        from lore.data_synth.perturb import PERTURBATIONS

        injections = [name for name, perturbation in PERTURBATIONS.items() if perturbation.kind == "injection"]
        return injections if self.perturbations is None else list(dict.fromkeys(self.perturbations))

    def conflicts(self) -> Iterator[Conflict]:
        from lore.data_synth.perturb import PERTURBATIONS

        usable = [name for name, perturbation in PERTURBATIONS.items() if perturbation.keeps_reasoning]
        for name in self.perturbations or ():
            if name not in PERTURBATIONS:
                yield Conflict(("perturbations",), name, f"some of: {', '.join(usable)}", nearest(name, usable))
            elif name not in usable:
                expected = f"no {name}: a rationale that quotes the pair would no longer be true. Some of: {', '.join(usable)}"
                yield Conflict(("perturbations",), name, expected)

    def derived(self) -> dict[str, Any]:
        return {"drawn_from": self.names(), "wordings": "train"}
