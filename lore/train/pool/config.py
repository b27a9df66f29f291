"""Recipe of stage pool, and the section with which later stages choose rows from a pool. Does not import torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from lore.codec.section import PromptSection
from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, SampledTemperature, StrictModel
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection, UnansweredSection, VllmSection
from lore.support.bounds import MAX_COUNT

TIERS, RENDERER, JUDGE = "lore.tiers", "lore.renderer_hash", "lore.judge"  # metadata of pool.parquet


class PoolRecipe(BaseRecipe):
    """Samples a judge several times on labeled pairs, to find pairs that it judges correctly always, sometimes or never."""

    irrelevant_keys = frozenset({"batch_tokens", "unanswered.max_in_a_row", "unanswered.max_share"})
    result_files = frozenset({"chunks", "pool.parquet", "pool.md"})

    stage: Literal["pool"] = "pool"
    model: ModelSection
    """The judge, with its adapter."""
    vllm: VllmSection | None = None
    """Run the judge in vLLM; null: in transformers."""
    data: JudgedDataSection
    prompt: PromptSection
    samples: int = Field(8, ge=1, le=64)
    """Sampled answers per pair, in addition to the greedy answer."""
    temperature: SampledTemperature = 1.0
    """Sampling temperature. Use that of the later rollouts; 1 samples from the model's own distribution."""
    max_tokens: int = Field(256, ge=1, le=MAX_COUNT)
    """Maximum tokens of an answer. A truncated answer counts as a format failure."""
    batch_tokens: int = Field(16384, ge=64, le=MAX_COUNT)
    """Maximum tokens of a forward pass in transformers, including padding."""
    chunk_pairs: int = Field(512, ge=1, le=1_000_000)
    """Pairs per saved chunk. A killed run repeats at most this many."""
    unanswered: UnansweredSection = UnansweredSection()
    """When pairs that the judge cannot be asked about stop the run."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.model.lora is not None:
            yield Conflict(("model.lora",), "a new LoRA to train", "no model.lora: a trained LoRA is model.adapter")

    def derived(self) -> dict[str, Any]:
        return {"answers per pair": f"{self.samples} at temperature {self.temperature:g}, and the most probable one"}


class PoolSection(StrictModel):
    """Which rows of a pool to train on, and in which order. See lore.train.pool.curriculum."""

    path: str = Field(min_length=1)
    """pool.parquet of a finished run of stage pool."""
    confidence: tuple[float, float] | None = None
    """Only pairs whose largest tier probability is in this window, inclusive. null: no limit. A set window excludes pairs without a
    readable greedy answer, because they have no confidence."""
    pass_rate: tuple[float, float] | None = None
    """Only pairs whose share of correct samples is in this window, inclusive. null: no limit."""
    balance: Literal["none", "tier", "slice"] = "none"
    """tier, slice: the same number of rows from each tier or slice, as many as the smallest one has. With `limit`, an equal share
    of it; a smaller tier or slice contributes all of its rows. none: no balancing."""
    order: Literal["random", "easy_to_hard", "hard_to_easy", "slice"] = "random"
    """random: shuffled. easy_to_hard: by pass rate, then by confidence, largest first. hard_to_easy: the reverse. slice: in the
    order of `slices`."""
    slices: list[str] = []
    """Slices in the order of the curriculum. A row belongs to the first one that it has. Rows without any come last."""
    limit: int | None = Field(None, ge=1, le=MAX_COUNT)
    """At most this many rows, sampled at random. null: all rows."""
    weighted: bool = False
    """Resamples the rows in proportion to label_weight. Pairs on which raters disagree appear less often or not at all; other pairs
    may repeat."""

    @field_validator("confidence", "pass_rate")
    @classmethod
    def _window(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("a window [low, high] with 0 <= low <= high <= 1")
        return value

    def input_files(self) -> dict[str, list[str]]:
        return {"path": [self.path]}

    def conflicts(self) -> Iterator[Conflict]:
        for key in ("balance", "order"):
            if getattr(self, key) == "slice" and not self.slices:
                yield Conflict((key, "slices"), f"{key}: slice without any slices", "slices, in the order of the curriculum")
        if len(set(self.slices)) < len(self.slices):
            yield Conflict(("slices",), "a slice twice", "each slice once")
