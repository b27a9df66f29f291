"""Recipes of the preference stages, dpo and kto. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from lore.codec.section import PromptSection
from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection
from lore.train.common.config import MAY_CHANGE, TrainSection, padded_rows, trainable_weights
from lore.train.pool.config import PoolSection
from lore.train.watch.config import WatchSection

LossType = Literal["sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "apo_zero", "apo_down", "sft"]


class PreferencesSection(StrictModel):
    """What is preferred to what: by comparing a pool's samples with the labels, by tables that raters wrote, or both."""

    pool: PoolSection | None = None
    """Samples that agree with the label are preferred to samples that do not."""
    tables: list[str] = []
    """Files (.parquet, .jsonl, .csv, .tsv) with columns pair_id, chosen, rejected (dpo) or pair_id, completion, good (kto), and
    where known source. Answers are whole ones, as the judge writes them."""
    per_prompt: int = Field(2, ge=1)
    """At most so many preferences (kto: so many good and so many bad answers) of a pair, from the pool."""
    wrong: Literal["sampled", "farthest"] = "sampled"
    """Which wrong samples of a pair come first: sampled takes them as often as the judge gives them; farthest the tiers farthest
    from the label, which makes the judge shy of the extreme tiers where they are right."""
    failures: bool = True
    """Samples that cannot be read as an answer may be rejected; a chosen one always can be read."""
    gold: bool = False
    """Where every sample is wrong, the pair's own rationale and label are the chosen answer."""
    limit: int | None = Field(None, ge=1)
    """At most so many preferences from the pool: those of the smallest pass rates, where something can be learnt."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.pool is None and not self.tables:
            yield Conflict(("pool", "tables"), "neither", "a pool, tables of preferences, or both")
        if self.limit is not None and self.pool is not None and self.pool.order != "random":
            yield Conflict(("limit", "pool.order"), "hardest first and another order", "pool.limit, or pool.order: random")

    def input_files(self) -> dict[str, list[str]]:
        return {"tables": self.tables} if self.tables else {}


class PreferenceRecipe(BaseRecipe):
    """What dpo and kto have in common."""

    irrelevant_keys = MAY_CHANGE

    model: ModelSection
    """The judge that training starts from, which is also the reference. With model.adapter that adapter is trained on; with
    model.lora a new one, on a merged judge; with neither every weight."""
    data: JudgedDataSection
    """The pairs that the preferences are about."""
    prompt: PromptSection
    preferences: PreferencesSection
    train: TrainSection
    """batch_size counts preferences."""
    watch: WatchSection = WatchSection()
    """Probe of the judge while it trains; an answer has at most watch.max_tokens, or 256."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from padded_rows(self.train, f"flattened rows in stage {self.stage}, which pads them")
        yield from trainable_weights(self.model, self.train)

    def derived(self) -> dict[str, Any]:
        length = f"{self.train.steps} steps" if self.train.steps else f"{self.train.epochs:g} epochs"
        return {"preferences per step": self.train.batch_size, "run length": length}


class DPORecipe(PreferenceRecipe):
    """Direct preference optimisation: the chosen answer becomes more probable against the rejected one."""

    stage: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """How dear it is to move away from the start; larger stays closer."""
    loss: dict[LossType, float] = {"sigmoid": 1.0}
    """Losses and their weights. sft adds the chosen answer's own likelihood, which keeps it from falling along with the
    rejected one's."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """For loss robust: the share of preferences that may be the wrong way round."""

    @field_validator("loss")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(weight <= 0 for weight in value.values()):
            raise ValueError("at least one loss, each with a weight above 0")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if set(self.loss) == {"sft"}:
            yield Conflict(("loss",), "sft alone, which prefers nothing", "sigmoid or another preference loss beside it")
        if self.label_smoothing and "robust" not in self.loss:
            yield Conflict(("label_smoothing", "loss"), f"{self.label_smoothing:g} without loss robust", "loss: {robust: 1.0}")


class KTORecipe(PreferenceRecipe):
    """Kahneman-Tversky optimisation: single answers, good or bad, without their counterpart."""

    stage: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0)
    """How dear it is to move away from the start; larger stays closer."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """apo_zero_unpaired needs no estimate of the divergence, and so no second pass."""
    desirable_weight: float | None = Field(None, gt=0)
    """Weight of good answers; none makes good and bad ones weigh the same in all (KTO, equation 8)."""
    undesirable_weight: float | None = Field(None, gt=0)
    """Weight of bad answers; none as above."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.loss == "kto" and 1 in (self.train.micro_batch_size, self.train.batch_size):
            yield Conflict(
                ("train.micro_batch_size", "train.batch_size", "loss"),
                "one answer in a forward pass",
                "at least 2: the divergence is estimated by pairing the prompts of a pass with each other's answers",
            )
