"""Recipe of the pool, and the section by which later stages choose from one. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from lore.codec.section import PromptSection
from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection, VllmSection

TIERS, RENDERER, JUDGE = "lore.tiers", "lore.renderer_hash", "lore.judge"  # metadata of pool.parquet


class PoolRecipe(BaseRecipe):
    """Asks a judge about labelled pairs several times: what it knows, what it guesses, what it never gets right."""

    irrelevant_keys = frozenset({"batch_tokens"})

    stage: Literal["pool"] = "pool"
    model: ModelSection
    """The judge, with its adapter."""
    vllm: VllmSection | None = None
    """Run it in vLLM; none runs it in transformers."""
    data: JudgedDataSection
    prompt: PromptSection
    samples: int = Field(8, ge=1, le=64)
    """Answers drawn for each pair, beside the most probable one."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of those. 1 draws from the distribution that training changes."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer; a longer one is cut and counts as a format failure."""
    batch_tokens: int = Field(16384, ge=64)
    """Tokens of one forward pass in transformers, padding included."""
    chunk_pairs: int = Field(512, ge=1)
    """Pairs between two saved parts; a killed run repeats at most this many."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.model.lora is not None:
            yield Conflict(("model.lora",), "a new LoRA to train", "nothing: a trained one is model.adapter")

    def derived(self) -> dict[str, Any]:
        return {"answers per pair": f"{self.samples} at temperature {self.temperature:g}, and the most probable one"}


class PoolSection(StrictModel):
    """Which rows of a pool are trained on, and in which order. See lore.train.pool.curriculum."""

    path: str = Field(min_length=1)
    """pool.parquet of a finished run of stage pool."""
    confidence: tuple[float, float] | None = None
    """Only pairs whose largest tier probability lies in this window, both ends included; a pair without a readable greedy
    answer has none and is left out."""
    pass_rate: tuple[float, float] | None = None
    """Only pairs whose share of right samples lies in this window, both ends included."""
    balance: Literal["none", "tier", "slice"] = "none"
    """tier, slice: equally many rows of each; the smallest group decides how many, or `limit` shared out evenly, of which a group
    that is smaller gives all it has."""
    order: Literal["random", "easy_to_hard", "hard_to_easy", "slice"] = "random"
    """easy_to_hard: largest pass rate first, then largest confidence; hard_to_easy: the other way; slice: slice after slice as
    `slices` names them."""
    slices: list[str] = []
    """Slices in the order of the curriculum. A row belongs to the first of them that it has; rows with none come last."""
    limit: int | None = Field(None, ge=1)
    """At most this many rows, drawn at random."""
    weighted: bool = False
    """Draws rows in proportion to label_weight, as many as there were: pairs on which raters disagree come less often or
    not at all, others may come twice."""

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
                yield Conflict((key, "slices"), f"{key}: slice without any slice", "slices, in the order of the curriculum")
        if len(set(self.slices)) < len(self.slices):
            yield Conflict(("slices",), "a slice twice", "each slice once")
