"""Sections of the evaluation's recipe. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from lore.config.sections import Conflict, StrictModel
from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.support.nearest import nearest

NEEDS = {"model": "model", "endpoint": "endpoint", "predictions": "predictions"}


class JudgeSection(StrictModel):
    """One row of the table. order, detail and photo replace the recipe's prompt for this judge alone."""

    kind: Literal["model", "endpoint", "predictions", "lexical", "majority"] = "model"
    """model: asked now, in this process; endpoint: asked now, through a server; predictions: verdicts read from a file;
    lexical, majority: the baselines."""
    model: ModelSection | None = None
    """The model to ask, for kind: model. A merged model has no adapter."""
    vllm: VllmSection | None = None
    """For kind: model, run it in vLLM; none runs it in transformers."""
    endpoint: EndpointSection | None = None
    """The OpenAI-compatible server to ask, for kind: endpoint."""
    order: Literal["reason_first", "answer_first", "answer_only"] | None = None
    """Answer order of this judge."""
    detail: Literal["full", "retrieved", "tiers", "name"] | None = None
    """How much of the rubric this judge is shown."""
    photo: bool | None = None
    """false asks this judge without the photo."""
    explain: bool = False
    """answer_first: also write the reason (slower; the verdict is then read from the answer, not from the scores
    alone)."""
    scores: bool = True
    """Read tier probabilities behind the verdict. false for servers that give none or do not go on with a begun answer: the
    verdict is then written in every order, and nothing is known of its confidence."""
    predictions: str | None = None
    """For kind: predictions, a parquet, jsonl or csv file with pair_id, tier and, where known, p_<tier>."""
    predictions_judge: str | None = None
    """Which judge of the file, where its column `judge` names several."""

    def input_files(self) -> dict[str, list[str]]:
        return {"predictions": [self.predictions]} if self.predictions else {}

    def conflicts(self) -> Iterator[Conflict]:
        for key, kind in NEEDS.items():
            value = getattr(self, key)
            if self.kind == kind and value is None:
                yield Conflict((key,), "nothing", f"a value: kind is {kind}")
            elif self.kind != kind and value is not None:
                yield Conflict((key, "kind"), f"a value for {key} and kind {self.kind}", f"kind: {kind}, or no {key}")
        if self.vllm is not None and self.kind != "model":
            yield Conflict(("vllm", "kind"), f"vllm for kind {self.kind}", "kind: model, or no vllm")
        if self.model is not None and self.model.lora is not None:
            yield Conflict(
                ("model.lora",),
                "a new LoRA to train",
                "nothing: evaluation trains no adapter; a trained one is model.adapter",
            )


class SamplingSection(StrictModel):
    max_tokens: int = Field(256, ge=1)
    """Longest answer; a longer one is cut and counts as a format failure."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the most probable token."""
    samples: int = Field(0, ge=0, le=64)
    """Further answers drawn for each pair, for pass@k and majority@k; 0 draws none. They share one prefill."""
    sample_temperature: float = Field(1.0, gt=0)
    """Temperature of those."""
    sample_pairs: int | None = Field(500, ge=1)
    """At most about this many pairs, as whole queries, get them; none: every tested pair."""


class MetricsSection(StrictModel):
    bootstrap_samples: int = Field(1000, ge=0)
    """Resamples of the queries behind every 95 % interval; 0 gives no intervals."""
    calibrate_on: str | None = "dev"
    """Split on which each judge's temperature is fitted; it is never the tested one. none: no calibration."""
    label_weights: bool = False
    """Count each pair by its label_weight instead of once."""
    prior: dict[str, float] | None = None
    """Shares of the tiers in real traffic; every metric is reported a second time under them."""
    shown: list[str] | None = None
    """Metrics of the tables, in this order; none: all that are defined. metrics.json always holds all."""
    gains: dict[str, float] | None = None
    """Gain of each tier for nDCG over a query's items; none: no nDCG."""
    border_cost: float = Field(1.0, ge=0)
    """Ordinal cost of a verdict on the wrong side of relevant, on top of one for each tier of distance."""
    optimism_cost: float = Field(1.0, gt=0)
    """Factor on the cost of a verdict above the label; over 1 makes optimistic errors dearer."""
    ratings: str | None = None
    """File with columns pair_id, rater, label (.parquet, .jsonl, .csv): single raters' labels, for agreement and the
    noise ceiling."""

    @field_validator("prior")
    @classmethod
    def _shares(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and (any(share < 0 for share in value.values()) or sum(value.values()) <= 0):
            raise ValueError("weights of the tiers, none negative and not all zero")
        return value

    def input_files(self) -> dict[str, list[str]]:
        return {"ratings": [self.ratings]} if self.ratings else {}


class RobustnessSection(StrictModel):
    """Asks again with injections, harmless rewrites and shuffled attributes."""

    pairs: int = Field(300, ge=1)
    """At most about this many tested pairs, as whole queries."""
    perturbations: list[str] | None = None
    """Names of perturbations; none: all of the language."""
    language: Literal["en", "zh"] | None = None
    """Language that attacks are worded in; none: by the script of most tested titles."""
    judges: list[str] | None = None
    """Judges asked; none: every judge that is asked now."""
    translations: str | None = None
    """File with columns query and translation, for queries in another language; none: the embedded shop's words only."""

    def conflicts(self) -> Iterator[Conflict]:
        if not self.perturbations:
            return
        from lore.data_synth.perturb.perturb import PERTURBATIONS

        for name in self.perturbations:
            if name not in PERTURBATIONS:
                yield Conflict(("perturbations",), name, f"some of: {', '.join(PERTURBATIONS)}", nearest(name, PERTURBATIONS))

    def input_files(self) -> dict[str, list[str]]:
        return {"translations": [self.translations]} if self.translations else {}


class CapabilitySection(StrictModel):
    """Knowledge, photo and rules by themselves: with, without, swapped, changed."""

    pairs: int = Field(300, ge=1)
    """At most about this many pairs for each capability, as whole queries."""
    judges: list[str] | None = None
    """Judges asked; none: every judge that is asked now."""
    facts: str | None = None
    """Table of facts (phrase, value) that is shown in the condition `with facts`; none: that part is left out."""
    rule_edits: str | None = None
    """File of rule changes (see eval/probes/rule_edits.yaml); `shop` is the embedded shop's; none: that part is left out."""
    max_prompt_tokens: int | None = Field(None, ge=16)
    """Budget of prompts that hold facts or rules; none: the judge's own, in which a rule book may have no room."""

    def input_files(self) -> dict[str, list[str]]:
        from lore.data_synth.synthesis.facts import fact_files

        facts = list(map(str, fact_files(self.facts))) if self.facts else []
        edits = [self.rule_edits] if self.rule_edits and self.rule_edits != "shop" else []
        return {key: files for key, files in (("facts", facts), ("rule_edits", edits)) if files}


class ReportSection(StrictModel):
    mistakes: int = Field(8, ge=0, le=50)
    """Most confident and most distant mistakes shown, of each kind, per judge."""
    thumbnail_pixels: int = Field(160, ge=32, le=320)
    """Longest side of a photo in the report."""
