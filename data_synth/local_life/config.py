"""Recipe of stage town. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, Share
from lore.data_synth.shop.config import SEALED, SEALED_SEEDS
from lore.support.bounds import MAX_COUNT

Split = Literal["train", "dev", "test"]


class TownRecipe(BaseRecipe):
    """Generates the made-up town: its places, labeled pairs of questions and places, and a corpus for a base model."""

    result_files = frozenset({"pairs", "places.jsonl", "corpus.parquet"})

    stage: Literal["town"] = "town"
    places: int = Field(480, ge=160, le=100_000)
    """Number of places and events. A quarter lies in areas that no training pair is in."""
    pairs: dict[Split, Annotated[int, Field(ge=0, le=MAX_COUNT)]] = {"train": 20000, "dev": 300, "test": 1500}
    """Number of pairs per split."""
    chinese: Share = 0.25
    """Share of Chinese questions."""
    corpus: int = Field(12000, ge=0, le=MAX_COUNT)
    """Number of texts for a base model: places, rules with worked examples, questions. 0 writes none."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.seed in SEALED_SEEDS:
            yield Conflict(("seed",), str(self.seed), SEALED)

    def derived(self) -> dict[str, Any]:
        return {"pairs": sum(self.pairs.values()), "files": [f"{split}.parquet" for split in self.pairs]}
