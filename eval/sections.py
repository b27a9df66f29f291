"""Sections of the evaluation recipe. Nothing here imports torch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lore.config.sections import Conflict, SampledTemperature, StrictModel, Temperature, Weight
from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.support.bounds import MAX_COUNT, MAX_WEIGHT
from lore.support.input_files import InputFiles, model_files
from lore.support.nearest import nearest

NEEDS = {"model": "model", "endpoint": "endpoint", "predictions": "predictions", "path": "student"}
PROMPTED = {"order": None, "detail": None, "photo": None, "explain": False, "scores": True}
"""Keys about prompts, which a student has none of, and their defaults."""


class JudgeSection(StrictModel):
    """One judge, a row of the results table. order, detail and photo override the recipe's prompt for this judge."""

    kind: Literal["model", "endpoint", "student", "predictions", "lexical", "majority"] = "model"
    """model: a checkpoint, run in this process; endpoint: a model behind a server; student: a distilled encoder; predictions:
    verdicts from a file; lexical, majority: the baselines."""
    model: ModelSection | None = None
    """The checkpoint, for kind: model. Leave model.adapter out for a merged model."""
    vllm: VllmSection | None = None
    """Runs the model in vLLM, for kind: model. null: transformers."""
    endpoint: EndpointSection | None = None
    """The OpenAI-compatible server, for kind: endpoint."""
    order: Literal["reason_first", "answer_first", "answer_only"] | None = None
    """Answer order of this judge; null: prompt.order."""
    detail: Literal["full", "retrieved", "tiers", "name"] | None = None
    """How much of the rubric the prompt of this judge contains; null: prompt.detail."""
    photo: bool | None = None
    """Whether the prompt of this judge contains the photo; null: prompt.photo."""
    explain: bool = False
    """With order: answer_first, also generate the rationale. Slower; the verdict is then parsed from the generated text instead
    of read from the tier probabilities."""
    scores: bool = True
    """Read tier probabilities at the verdict. Set false for servers without log-probabilities or prefill: the verdict is then
    generated in every order, and no confidence is known."""
    path: str | None = Field(None, min_length=1)
    """Folder of the student, for kind: student: its run (runs/distill), or the folder of `lore export student`."""
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """Which weights of an exported student, for kind: student."""
    photo_embeddings: str | None = Field(None, min_length=1)
    """Vectors of the items' photos, for a student that reads them. null: the table of its training."""
    predictions: str | None = None
    """Parquet, jsonl or csv file with pair_id, tier and optionally p_<tier>, for kind: predictions."""
    predictions_judge: str | None = None
    """Which judge to read, if the file's `judge` column names several."""

    def input_files(self) -> dict[str, list[str]]:
        named = {"predictions": self.predictions, "photo_embeddings": self.photo_embeddings}
        return {key: [file] for key, file in named.items() if file}

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        folder = self.student_folder
        return super().input_fingerprints() | ({"path": model_files(str(folder))} if folder.is_dir() and self.path else {})

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        yield from super().missing_inputs()
        if self.path is not None and not self.student_folder.is_dir():
            yield "path", f"{self.path} is not a folder. Name the run folder of stage distill, such as runs/distill."

    @property
    def student_folder(self) -> Path:
        """The folder with the weights of `path`."""
        inner = Path(self.path or "") / "model"
        return inner if inner.is_dir() else Path(self.path or "")

    def conflicts(self) -> Iterator[Conflict]:
        for key, kind in NEEDS.items():
            value = getattr(self, key)
            if self.kind == kind and value is None:
                yield Conflict((key,), "nothing", f"a value: kind is {kind}")
            elif self.kind != kind and value is not None:
                yield Conflict((key, "kind"), f"a value for {key} and kind {self.kind}", f"kind: {kind}, or no {key}")
        if self.kind == "student":
            for key, default in PROMPTED.items():
                if getattr(self, key) != default:
                    expected = f"no {key}: a student reads a pair's texts and has no prompt"
                    yield Conflict((key, "kind"), f"{key} for kind student", expected)
        else:
            for key, default in (("precision", "auto"), ("photo_embeddings", None)):
                if getattr(self, key) != default:
                    yield Conflict((key, "kind"), f"{key} for kind {self.kind}", f"kind: student, or no {key}")
        if self.vllm is not None and self.kind != "model":
            yield Conflict(("vllm", "kind"), f"vllm for kind {self.kind}", "kind: model, or no vllm")
        if self.model is not None and self.model.lora is not None:
            yield Conflict(
                ("model.lora",),
                "a new LoRA to train",
                "nothing: evaluation trains no adapter; set a trained one in model.adapter",
            )


class SamplingSection(StrictModel):
    max_tokens: int = Field(256, ge=1, le=MAX_COUNT)
    """Maximum tokens per answer. A truncated answer counts as a format failure."""
    temperature: Temperature = 0.0
    """Sampling temperature; 0 decodes greedily."""
    samples: int = Field(0, ge=0, le=64)
    """Extra answers sampled per pair, for pass@k and majority@k. 0 turns this off. They share one prefill."""
    sample_temperature: SampledTemperature = 1.0
    """Sampling temperature of the extra answers."""
    sample_pairs: int | None = Field(500, ge=1, le=MAX_COUNT)
    """Number of pairs that get extra answers, approximate because queries stay whole; null: every test pair."""


class MetricsSection(StrictModel):
    bootstrap_samples: int = Field(1000, ge=0, le=1_000_000)
    """Bootstrap resamples of the queries behind every 95 % interval. 0 reports no intervals."""
    calibrate_on: str | None = "dev"
    """Split on which each judge's temperature is fitted; it must not be the test split. null: no calibration."""
    label_weights: bool = False
    """Weight each pair by its label_weight instead of 1."""
    prior: dict[str, Weight] | None = None
    """Shares of the tiers in production traffic. Every metric is reported a second time under them."""
    shown: list[str] | None = None
    """Metrics in the tables, in this order; null: all that are defined. metrics.json always holds all."""
    gains: dict[str, Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]] | None = None
    """Gain of each tier, for nDCG over a query's items. null: no nDCG."""
    border_cost: Weight = 1.0
    """Extra ordinal cost of a verdict on the wrong side of the relevant/irrelevant border. Each tier of distance costs 1."""
    optimism_cost: float = Field(1.0, gt=0, le=MAX_WEIGHT)
    """Factor on the cost of a verdict above the label. Above 1, optimistic errors cost more."""
    ratings: str | None = None
    """File with columns pair_id, rater, label (.parquet, .jsonl, .csv) that holds single raters' labels, for agreement and
    the noise ceiling."""

    @field_validator("prior")
    @classmethod
    def _shares(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and (any(share < 0 for share in value.values()) or sum(value.values()) <= 0):
            raise ValueError("weights of the tiers, none negative and not all zero")
        return value

    def input_files(self) -> dict[str, list[str]]:
        return {"ratings": [self.ratings]} if self.ratings else {}


class RobustnessSection(StrictModel):
    """Verdicts under prompt injections, harmless rewrites and shuffled attributes."""

    pairs: int = Field(300, ge=1, le=MAX_COUNT)
    """Number of test pairs to perturb, approximate because queries stay whole."""
    perturbations: list[str] | None = None
    """Names of perturbations; null: all that the language has."""
    language: Literal["en", "zh"] | None = None
    """Language of the attack wordings; null: zh if most test titles contain Han characters, else en."""
    judges: list[str] | None = None
    """Judges to probe; null: every judge of kind model, endpoint or student."""
    translations: str | None = None
    """File with columns query and translation, for queries in another language. null: only the embedded shop's vocabulary."""

    def conflicts(self) -> Iterator[Conflict]:
        if not self.perturbations:
            return
        from lore.data_synth.perturb.perturb import PERTURBATIONS  # loads pyarrow: only where a recipe names some

        for name in self.perturbations:
            if name not in PERTURBATIONS:
                yield Conflict(("perturbations",), name, f"some of: {', '.join(PERTURBATIONS)}", nearest(name, PERTURBATIONS))

    def input_files(self) -> dict[str, list[str]]:
        return {"translations": [self.translations]} if self.translations else {}


class CapabilitySection(StrictModel):
    """Tests of knowledge, photo and rules, each by itself: with, without, swapped, changed."""

    pairs: int = Field(300, ge=1, le=MAX_COUNT)
    """Number of pairs per capability, approximate because queries stay whole."""
    judges: list[str] | None = None
    """Judges to probe; null: every judge of kind model or endpoint."""
    facts: str | None = None
    """Table of facts (phrase, value) that the prompt contains in the condition `with facts`; null skips this condition."""
    rule_edits: str | None = None
    """File of rule changes (see eval/probes/rule_edits.yaml); `shop`: the embedded shop's; null skips this test."""
    max_prompt_tokens: int | None = Field(None, ge=16, le=MAX_COUNT)
    """Prompt budget in tokens for prompts with facts or rules; null: the judge's own, which may be too small for the rules."""

    def input_files(self) -> dict[str, list[str]]:
        from lore.data_synth.synthesis.facts import fact_files  # loads numpy: only for this section

        facts = list(map(str, fact_files(self.facts))) if self.facts else []
        edits = [self.rule_edits] if self.rule_edits and self.rule_edits != "shop" else []
        return {key: files for key, files in (("facts", facts), ("rule_edits", edits)) if files}


class ReportSection(StrictModel):
    mistakes: int = Field(8, ge=0, le=50)
    """Number of mistakes shown per judge and kind: the most confident and the most distant ones."""
    thumbnail_pixels: int = Field(160, ge=32, le=320)
    """Longest side of a photo in the report, in pixels."""
