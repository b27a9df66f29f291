"""Recipe of stage sft. Imports no torch."""

from collections.abc import Iterator
from typing import Any, Literal

from lore.codec.section import PromptSection
from lore.config.sections import Conflict
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection
from lore.train.common.config import TrackedRecipe, TrainSection, trainable_weights


class SFTRecipe(TrackedRecipe):
    """Supervised fine-tuning of a judge on rationale and verdict; on the verdict alone if a pair has no rationale."""

    stage: Literal["sft"] = "sft"
    model: ModelSection
    data: JudgedDataSection
    prompt: PromptSection
    train: TrainSection
    auxiliary: list[str] = []
    """Task files of stage synthesize (tasks/*.parquet) to train on in addition to the pairs, each row once per epoch."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced repeats pairs of rare tiers until every tier is about as frequent as the most frequent one; none repeats nothing."""

    def input_files(self) -> dict[str, list[str]]:
        return {"auxiliary": self.auxiliary} if self.auxiliary else {}

    def conflicts(self) -> Iterator[Conflict]:
        if (self.train.packing or self.train.padding_free) and self.prompt.photo:
            yield Conflict(
                ("train.packing", "train.padding_free", "prompt.photo"),
                "packed or flattened rows with photos",
                "prompt.photo: false, or neither packing nor padding_free",
            )
        if (self.train.packing or self.train.padding_free) and self.train.shared_prefix is True:
            yield Conflict(
                ("train.packing", "train.padding_free", "train.shared_prefix"),
                "shared_prefix with packed or flattened rows",
                "neither packing nor padding_free: rows that share a prefix have no padding either",
            )
        yield from trainable_weights(self.model, self.train)

    def derived(self) -> dict[str, Any]:
        micro = self.train.micro_batch_size or "batch_size / processes"
        return {
            "pairs per step": self.train.batch_size,
            "pairs per forward pass": micro,
            "run length": f"{self.train.steps} steps" if self.train.steps else f"{self.train.epochs:g} epochs",
        }
