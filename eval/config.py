"""Recipe of the evaluation stage. Nothing here imports torch."""

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from lore.recipe import BaseRecipe, Conflict, DataSection, ModelSection, PromptSection, StrictModel

JUDGE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,47}$")
NEEDS = {"model": "model", "predictions": "predictions"}


class JudgeSection(StrictModel):
    """One row of the table. order, detail and photo replace the recipe's prompt for this judge alone."""

    kind: Literal["model", "predictions", "lexical", "majority"] = "model"
    """model: asked now; predictions: verdicts read from a file; lexical, majority: the baselines."""
    model: ModelSection | None = None
    """The model to ask, for kind: model."""
    order: Literal["reason_first", "answer_first", "answer_only"] | None = None
    """Answer order of this judge."""
    detail: Literal["full", "tiers", "name"] | None = None
    """How much of the rubric this judge is shown."""
    photo: bool | None = None
    """false asks this judge without the photo."""
    explain: bool = False
    """answer_first: also write the reason (slower; the verdict is then read from the answer, not from the scores
    alone)."""
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


class MetricsSection(StrictModel):
    bootstrap_samples: int = Field(1000, ge=0)
    """Resamples of the queries behind every 95 % interval; 0 gives no intervals."""
    calibrate_on: str | None = "dev"
    """Split on which each judge's temperature is fitted; it is never the tested one. none: no calibration."""
    label_weights: bool = False
    """Count each pair by its label_weight instead of once."""
    prior: dict[str, float] | None = None
    """Shares of the tiers in real traffic; every metric is reported a second time under them."""

    @field_validator("prior")
    @classmethod
    def _shares(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and (any(share < 0 for share in value.values()) or sum(value.values()) <= 0):
            raise ValueError("weights of the tiers, none negative and not all zero")
        return value


class ReportSection(StrictModel):
    mistakes: int = Field(8, ge=0, le=50)
    """Most confident and most distant mistakes shown, of each kind, per judge."""
    thumbnail_pixels: int = Field(160, ge=32, le=320)
    """Longest side of a photo in the report."""


class RairRecipe(BaseRecipe):
    """Scores judges and baselines on the same pairs."""

    irrelevant_keys: ClassVar[frozenset[str]] = frozenset(
        {"batch_tokens", "chunk_pairs", "report.mistakes", "report.thumbnail_pixels"}
    )

    stage: Literal["rair"] = "rair"
    data: DataSection
    """The tested pairs; data.split defaults to test."""
    prompt: PromptSection
    judges: dict[str, JudgeSection] = {}
    """Rows of the table by name."""
    baselines: list[Literal["majority", "lexical"]] = ["majority", "lexical"]
    """Rows trained on the spot, on train_split."""
    train_split: str = "train"
    """Split the baselines are trained on."""
    slices: list[str] | None = None
    """Slices with a table of their own; none: every slice, the most frequent ones first."""
    metrics: MetricsSection = MetricsSection()
    sampling: SamplingSection = SamplingSection()
    report: ReportSection = ReportSection()
    batch_tokens: int = Field(16384, ge=64)
    """Tokens of one forward pass, padding included."""
    chunk_pairs: int = Field(256, ge=1)
    """Pairs between two saved parts of the predictions; a killed run repeats at most this many."""
    test_limit: int | None = Field(None, ge=1)
    """At most about this many test pairs, taken as whole queries in an order that the seed decides."""
    dev_limit: int | None = Field(2000, ge=1)
    """The same for the pairs that the temperature is fitted on."""
    train_limit: int | None = Field(50_000, ge=1)
    """The same for the pairs that the baselines are trained on."""

    @property
    def test_split(self) -> str:
        return self.data.split or "test"

    def rows(self) -> dict[str, JudgeSection]:
        """Every judge of the table: the recipe's, then the baselines that it does not name itself."""
        named = {judge.kind for judge in self.judges.values()}
        return self.judges | {
            kind: JudgeSection(kind=kind)
            for kind in ("lexical", "majority")
            if kind in self.baselines and kind not in named
        }

    def conflicts(self) -> Iterator[Conflict]:
        for name, judge in self.judges.items():
            if not JUDGE_NAME.match(name):
                yield Conflict(
                    (f"judges.{name}",),
                    "that name",
                    "letters, digits, spaces, . _ + - and at most 48 of them: it names a folder",
                )
            if judge.kind in ("model", "predictions") and name in self.baselines:
                yield Conflict(
                    (f"judges.{name}", "baselines"), f"a judge and a baseline both called {name}", "two names"
                )
            order = judge.order or self.prompt.order
            if judge.explain and order != "answer_first":
                yield Conflict(
                    (f"judges.{name}.explain",),
                    f"explain with {order}",
                    "order: answer_first, the only one that can do without its reason",
                )
        if self.data.limit is not None:
            yield Conflict(
                ("data.limit",), str(self.data.limit), "test_limit, dev_limit or train_limit, which keep queries whole"
            )
        if not self.judges and not self.baselines:
            yield Conflict(("judges", "baselines"), "nothing to score", "at least one judge or baseline")
        for key, split in (("metrics.calibrate_on", self.metrics.calibrate_on), ("train_split", self.train_split)):
            if split == self.test_split:
                yield Conflict(
                    (key, "data.split"),
                    f"{split} for both",
                    "another split: what is fitted on the tested pairs says nothing about new ones",
                )

    def derived(self) -> dict[str, Any]:
        splits = {
            "tested on": self.test_split,
            "baselines trained on": self.train_split,
            "temperature fitted on": self.metrics.calibrate_on or "nothing",
        }
        return {"rows of the table": list(self.rows()), **splits}
