"""Recipe of stage distill. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from lore.config.sections import Conflict, Share, StrictModel, Weight, each_once
from lore.data.section import JudgedDataSection
from lore.label.config import InputSection
from lore.student.section import PairTextSection, StudentSection, VerdictRule
from lore.support.bounds import MAX_COUNT
from lore.support.input_files import InputFiles, input_files
from lore.train.common.config import TRAINED_FILES, TrackedRecipe, TrainSection, padded_rows, whole_rows

Baseline = Literal["human", "hard", "lexical"]


class LabelsSection(StrictModel):
    """The judge's labels. Pairs of queries that are in the dev or test split of the human pairs are never trained on."""

    path: str = Field(min_length=1)
    """Label folder: runs/label, or the folder of `lore label`."""
    pairs: InputSection | None = None
    """The labelled pairs, whose texts are not in the label folder. null: the input that the label folder's recipe names."""
    held_out: str | None = Field(None, min_length=1)
    """Label folder of the same judge with the dev and test pairs, for the targets' temperature and the judge's row of the table.
    null: path."""
    second: str | None = Field(None, min_length=1)
    """Label folder of the same pairs by the same judge, asked with another prompt order. Pairs on which the two disagree count
    less. null: one reading."""
    least_weight: Share = 0.2
    """Smallest weight of a pair on which the two readings disagree."""
    limit: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Train on only this many labelled pairs, chosen by a hash. null: all."""

    def folders(self) -> dict[str, str]:
        named = {"path": self.path, "held_out": self.held_out, "second": self.second}
        return {key: folder for key, folder in named.items() if folder is not None}

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        def files(folder: str) -> Callable[[], list[Path]]:
            from lore.label.read import label_files  # loads pyarrow: only where the inputs are compared

            return lambda: label_files(Path(folder))

        return {key: input_files(files(folder), list) for key, folder in self.folders().items() if Path(folder).is_dir()}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        for key, folder in self.folders().items():
            if not Path(folder).is_dir():
                yield key, f"{folder} is not a folder. `lore label` writes label folders."


class TargetsSection(StrictModel):
    """What the student learns from each label, and how often it sees the pair."""

    temperature: float | None = Field(None, ge=0.05, le=20)
    """Divides the judge's log-probabilities. null: fitted on human labels of the dev split by likelihood."""
    border: float = Field(0.1, ge=0, lt=0.5)
    """Mass that goes over each border to the neighboring tier where the judge gave only a tier and no probabilities."""
    sampling: Literal["even", "rows"] = "even"
    """even: pairs are visited so that the judge's expected grade is uniform over its range; rows: every pair once per epoch."""
    bins: int = Field(10, ge=2, le=1000)
    """Bins of the expected grade, for sampling: even."""
    most_repeats: float = Field(4.0, ge=1, le=1000)
    """Visits of a pair in a nearly empty bin, at most this many times the average."""
    traffic: Share = 0.0
    """Weights that lead back from the sampled pairs to the shop's traffic (query_frequency): 1 in full, 0 not at all."""
    most_weight: float = Field(10.0, ge=1, le=1e6)
    """Largest traffic weight of a pair; the mean is 1."""


class HumanSection(StrictModel):
    """Share of the human labels in the loss, where there are labels of both kinds. It rises at the end: raters have the last
    word."""

    first: Share = 0.3
    """Share at the beginning."""
    last: Share = 0.9
    """Share at the end."""
    rises_from: Share = 0.6
    """Progress of the training from which the share rises."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.last < self.first:
            found = f"{self.first:g} and {self.last:g}"
            yield Conflict(("first", "last"), found, "a last share that is not below the first one")


class LossSection(StrictModel):
    """Weights of the loss terms, see lore.distill.losses; 0 leaves a term out."""

    tiers: Weight = 1.0
    """KL divergence from the target over the tiers."""
    margin: Weight = 1.0
    """Squared error of the margins in expected gain between the items of a query (MarginMSE)."""
    cumulative: Weight = 0.0
    """Ranked probability score, which counts how many tiers a verdict is off."""
    grade: Weight = 0.0
    """Squared error of the expected gain: a baseline of the studies."""
    rationale: Weight = 0.0
    """Cosine distance of an auxiliary head to an embedding of the pair's rationale: the judge's, or the one beside the human label
    where the judge has none. The head is dropped after the training. An encoder from scratch needs it (docs/lab/student.md)."""
    rationale_size: int = Field(64, ge=1, le=4096)
    """Dimensions of that embedding."""

    def conflicts(self) -> Iterator[Conflict]:
        if not (self.tiers or self.margin or self.cumulative or self.grade):
            yield Conflict(("tiers", "margin"), "no term of the loss", "a weight above 0 for at least one of them")


class CurveSection(StrictModel):
    """Students on a growing number of the judge's labels, to see when more of them stop helping."""

    sizes: list[Annotated[int, Field(ge=1, le=MAX_COUNT)]] = Field(min_length=2, max_length=50)
    """Numbers of labelled pairs, growing. The curve stops at the first size whose gain on dev is below its 95 % interval."""
    metric: Literal["macro_f1", "acc_2", "acc_k", "qwk", "auc"] = "macro_f1"
    """What the curve shows and is stopped by."""

    @field_validator("sizes")
    @classmethod
    def _growing(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError("growing numbers of pairs")
        return value


class UsesSection(StrictModel):
    """What the thresholds of P(relevant) in the student's card are for. They are fitted on dev."""

    filter_recall: float = Field(0.95, gt=0, le=1)
    """filter: the threshold that keeps this share of the relevant pairs."""
    page_precision: float = Field(0.9, gt=0, le=1)
    """page quality: the smallest threshold above which this share of the pairs is relevant."""


class DistillRecipe(TrackedRecipe):
    """Distills a judge's labels, human labels, or both into a student."""

    # The margin compares the pairs of a forward pass, so the micro-batch is part of the loss.
    irrelevant_keys = TrackedRecipe.irrelevant_keys - {"train.micro_batch_size"} | {"batch_tokens"}
    prepared_files: ClassVar[frozenset[str]] = TrackedRecipe.prepared_files | {"targets"}
    result_files: ClassVar[frozenset[str]] = TRAINED_FILES | {
        "baselines",
        "curve",
        "table.json",
        "predictions.parquet",
        "report.html",
    }

    stage: Literal["distill"] = "distill"
    data: JudgedDataSection
    """Pairs with human labels: train (may be empty), dev for calibration, test for the table."""
    labels: LabelsSection | None = None
    """Labels of the judge. null: human labels alone."""
    student: StudentSection = StudentSection()
    text: PairTextSection = PairTextSection()
    targets: TargetsSection = TargetsSection()
    human: HumanSection = HumanSection()
    loss: LossSection = LossSection()
    items: int = Field(4, ge=1, le=10_000)
    """Items of one query that come side by side in a batch, so that the margin has something to compare."""
    train: TrainSection
    calibration: Literal["auto", "none", "temperature", "isotonic"] = "auto"
    """Calibration on the human labels of dev. auto: temperature or isotonic, whichever has the better likelihood on a held-out half
    of dev."""
    verdict: VerdictRule = "most_probable"
    """Which tier is the verdict. most_probable: right most often; median: the best tier that is reached with a probability
    of one half or more, which is off by the fewest tiers and suits labels that are the median of several raters."""
    uses: UsesSection = UsesSection()
    baselines: Annotated[list[Baseline], each_once("baseline")] = ["human", "hard", "lexical"]
    """Rows of the table beside judge and student. human: the same student on human labels alone; hard: a plain cross-encoder with
    one tier per pair and cross-entropy; lexical: gradient boosting over word overlap. The first two train for as many steps as the
    student."""
    curve: CurveSection | None = None
    slices: list[str] | None = None
    """Slices of the test to report. null: the largest ones."""
    bootstrap_samples: int = Field(1000, ge=0, le=1_000_000)
    """Resamples of the queries behind every 95 % interval. 0: no intervals."""
    batch_tokens: int = Field(8192, ge=64, le=MAX_COUNT)
    """Tokens per forward pass when the students answer, padding included."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from padded_rows(self.train, "packed or flattened rows in stage distill, which pads its rows")
        yield from whole_rows(self.train, "distill")
        for key in ("split", "limit"):
            if (value := getattr(self.data, key)) is not None:
                yield Conflict((f"data.{key}",), str(value), f"no data.{key}: the stage reads train, dev and test in full")
        if self.curve is not None and self.labels is None:
            yield Conflict(("curve", "labels"), "a curve over the judge's labels without labels", "labels, or no curve")
        if self.loss.margin and self.items == 1:
            yield Conflict(("items", "loss.margin"), "a margin with one item per query", "items above 1, or loss.margin: 0")

    def derived(self) -> dict[str, Any]:
        length = f"{self.train.steps} steps" if self.train.steps else f"{self.train.epochs:g} epochs"
        students = ["student", *(name for name in self.baselines if name != "lexical")]
        students += [f"curve/{size}" for size in self.curve.sizes] if self.curve else []
        return {"pairs per step": self.train.batch_size, "run length": length, "students to train at most": students}
