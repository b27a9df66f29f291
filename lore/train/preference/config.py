"""Recipes of the preference stages, dpo and kto. Imports no torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from lore.codec.section import PromptSection
from lore.config.sections import Conflict, StrictModel, Weight
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection
from lore.support.bounds import MAX_COUNT, MAX_WEIGHT
from lore.train.common.config import TRAINED_FILES, TrackedRecipe, TrainSection, padded_rows, trainable_weights
from lore.train.pool.config import PoolSection
from lore.train.watch.config import WATCH_FILES, WatchSection

LossType = Literal["sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "apo_zero", "apo_down", "sft"]


class PreferencesSection(StrictModel):
    """Sources of preferences: samples of a pool compared with the labels, tables from raters, or both."""

    pool: PoolSection | None = None
    """Pool of sampled answers. Samples that agree with the label are preferred over samples that do not."""
    tables: list[str] = []
    """Files (.parquet, .jsonl, .csv, .tsv) with columns pair_id, chosen, rejected (dpo) or pair_id, completion, good (kto), and
    optionally source. Answers have to be complete, in the judge's answer format."""
    per_prompt: int = Field(2, ge=1, le=1_000_000)
    """Largest number of preferences per pair from the pool (kto: of good answers, and of bad answers)."""
    wrong: Literal["sampled", "farthest"] = "sampled"
    """Which wrong samples of a pair are used first. sampled: in random order, so frequent answers tend to come first; farthest: the
    most expensive mistakes first, which teaches the judge to avoid the extreme tiers even if they are correct."""
    failures: bool = True
    """Also use samples with format failures as rejected answers. Chosen answers always have a valid format."""
    gold: bool = False
    """If all samples of a pair are wrong, use the pair's own rationale and label as the chosen answer."""
    limit: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Largest number of preferences from the pool; keeps those with the lowest pass rates. null keeps all."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.pool is None and not self.tables:
            yield Conflict(("pool", "tables"), "neither", "a pool, tables of preferences, or both")
        if self.limit is not None and self.pool is not None and self.pool.order != "random":
            yield Conflict(("limit", "pool.order"), "a limit and a curriculum order", "pool.limit, or pool.order: random")

    def input_files(self) -> dict[str, list[str]]:
        return {"tables": self.tables} if self.tables else {}


class PreferenceRecipe(TrackedRecipe):
    """Shared by dpo and kto."""

    result_files = TRAINED_FILES | WATCH_FILES

    model: ModelSection
    """The initial judge, which is also the reference model. model.adapter: continue training that adapter; model.lora: train a
    new adapter on a merged judge; neither: train all weights."""
    data: JudgedDataSection
    """The pairs that the preferences refer to."""
    prompt: PromptSection
    preferences: PreferencesSection
    train: TrainSection
    """batch_size counts preferences (kto: answers)."""
    watch: WatchSection = WatchSection()
    """Periodic evaluation during training. Without watch.max_tokens, answers have at most 256 tokens."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from padded_rows(self.train, f"packed or flattened rows in stage {self.stage}, which pads its rows")
        yield from trainable_weights(self.model, self.train)

    def derived(self) -> dict[str, Any]:
        length = f"{self.train.steps} steps" if self.train.steps else f"{self.train.epochs:g} epochs"
        return {"preferences per step": self.train.batch_size, "run length": length}


class DPORecipe(PreferenceRecipe):
    """Direct preference optimization: raises the probability of the chosen answer relative to the rejected one."""

    stage: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, le=MAX_WEIGHT)
    """Strength of the KL penalty toward the reference model; larger values stay closer to it."""
    loss: dict[LossType, Weight] = {"sigmoid": 1.0}
    """TRL loss types and their weights. sft adds the negative log-likelihood of the chosen answer, so that its probability does not
    fall along with that of the rejected answer."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """For loss robust: expected fraction of swapped preferences; 0 assumes none."""

    @field_validator("loss")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(weight <= 0 for weight in value.values()):
            raise ValueError("at least one loss, each with a weight above 0")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if set(self.loss) == {"sft"}:
            yield Conflict(("loss",), "sft alone, which is no preference loss", "sigmoid or another preference loss in addition")
        if self.label_smoothing and "robust" not in self.loss:
            yield Conflict(("label_smoothing", "loss"), f"{self.label_smoothing:g} without loss robust", "loss: {robust: 1.0}")


class KTORecipe(PreferenceRecipe):
    """Kahneman-Tversky optimization: trains on single answers that are good or bad (unpaired preferences)."""

    stage: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, le=MAX_WEIGHT)
    """Strength of the KL penalty toward the reference model; larger values stay closer to it."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """TRL loss type. kto estimates the KL divergence with a second forward pass; apo_zero_unpaired does not need it."""
    desirable_weight: float | None = Field(None, gt=0, le=MAX_WEIGHT)
    """Weight of good answers; null balances the total weights of good and bad answers (KTO, arXiv 2402.01306, equation 8)."""
    undesirable_weight: float | None = Field(None, gt=0, le=MAX_WEIGHT)
    """Weight of bad answers; null balances the total weights of good and bad answers."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.loss == "kto" and 1 in (self.train.micro_batch_size, self.train.batch_size):
            yield Conflict(
                ("train.micro_batch_size", "train.batch_size", "loss"),
                "one answer per forward pass",
                "at least 2: KTO estimates the KL divergence by pairing each prompt with the answer to another prompt of the pass",
            )
