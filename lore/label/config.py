"""Recipe of the label stage. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from lore.codec.section import PromptSection
from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel
from lore.engines.config import HOW_ASKED, EndpointSection, ModelSection, UnansweredSection, VllmSection
from lore.support.bounds import MAX_COUNT, MAX_MEASURE
from lore.support.input_files import InputFiles, model_files

MODES = ("verdict", "rationale", "cascade")


class UbiSection(StrictModel):
    """User Behavior Insights: the two indexes of a search engine, exported as jsonl or Parquet."""

    queries: str = Field(min_length=1)
    """File, folder or glob of ubi_queries."""
    events: str | None = Field(None, min_length=1)
    """File, folder or glob of ubi_events. null: only the items of query_response_hit_ids."""


class InputSection(StrictModel):
    """The pairs to label: pairs files, any table, or a search log (or User Behavior Insights) with a catalogue."""

    path: str | None = Field(None, min_length=1)
    """Parquet, csv or jsonl: a file, a folder or a glob; or hub:NAME for a data set of the Hugging Face hub. With a catalogue: the
    search log, with the columns query and item_id."""
    map: dict[str, str] = {}
    """Columns of the fields of a pair, such as {query: search_term}, as in `lore data import table`. {}: the columns have the names
    of the fields."""
    catalogue: str | None = Field(None, min_length=1)
    """Table of the items, with the columns item_id and title. null: the rows of path hold their items."""
    catalogue_map: dict[str, str] = {}
    """The same as map, for the catalogue."""
    ubi: UbiSection | None = None
    """User Behavior Insights in place of path. Needs a catalogue."""
    encoding: str | None = Field(None, min_length=1)
    """Text encoding of csv and jsonl files. null: detected."""
    delimiter: str | None = Field(None, min_length=1)
    """Column delimiter of csv files. null: told by the header."""
    image_root: str | None = Field(None, min_length=1)
    """Folder below which photos may lie, besides the folder of their table. null: none."""
    hub_config: str | None = Field(None, min_length=1)
    """Configuration of a data set of the hub. null: its default."""
    hub_split: str = Field("train", min_length=1)
    """Split of a data set of the hub."""


class RaySection(StrictModel):
    """A Ray cluster."""

    address: str = "auto"
    """Address of the Ray cluster; auto: the cluster that this machine belongs to, else a new one on this machine."""


class LabelJudgeSection(StrictModel):
    """The judge: the folder of a trained one, or a model or server with the prompt and rubric to ask it with."""

    path: str | None = None
    """Run folder of a trained judge, such as runs/grpo, its model folder, or the folder of `lore export`. Prompt and rubric are
    those of its training. null: `model` or `endpoint`, with `prompt` and `rubric`."""
    base: str | None = None
    """Folder or hub id of the base model of an adapter, if it is not where it was at the training. null: as in the training."""
    rubric: str | None = None
    """Name or path of the rubric. null: the one of the training."""
    prompt: PromptSection | None = None
    """How a model or server without a folder of a trained judge is asked."""
    model: ModelSection | None = None
    """A checkpoint that is no trained judge, such as an instruction-tuned model."""
    endpoint: EndpointSection | None = None
    """An OpenAI-compatible server that answers, for a model of this recipe or, with `path`, for that judge (`lore serve judge`)."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What runs a model in this process. auto: vLLM where it is installed and a GPU is there, else transformers."""
    vllm: VllmSection = VllmSection()
    """Settings of vLLM, for engine: vllm."""
    scores: bool = True
    """Read tier probabilities. Set false for a server that returns none: the verdict is then generated."""
    max_tokens: int = Field(256, ge=1, le=MAX_COUNT)
    """Maximum tokens per answer, for mode: rationale."""
    guided: bool = False
    """An answer without a readable verdict gets one from the tier tokens after its reason. The reason is generated freely."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.path is not None:
            for key in ("prompt", "model"):
                if getattr(self, key) is not None:
                    yield Conflict((key, "path"), f"a value for both {key} and path", "one of them: a trained judge brings its own")
            return
        if (self.model is None) == (self.endpoint is None):
            found = "neither path, model nor endpoint" if self.model is None else "both model and endpoint"
            yield Conflict(("path", "model", "endpoint"), found, "path, the folder of a trained judge, or model, or endpoint")
        for key in ("prompt", "rubric"):
            if getattr(self, key) is None:
                yield Conflict((key,), "nothing", f"a {key}: without the folder of a trained judge it is not known")
        if self.base is not None:
            yield Conflict(("base", "path"), "base without path", "path: only an adapter of a trained judge has a base")

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        return {"path": model_files(str(self.folder))} if self.path and self.folder.is_dir() else {}

    @property
    def folder(self) -> Path:
        """The folder with the weights of `path`."""
        inner = Path(self.path or "") / "model"
        return inner if inner.is_dir() else Path(self.path or "")

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if self.path is not None and not self.folder.is_dir():
            yield "path", f"{self.path} is not a folder. Name the run folder of a trained judge, such as runs/grpo."


class CascadeSection(StrictModel):
    """A student answers first; the judge is asked where the student is unsure."""

    student: str = Field(min_length=1)
    """The student: the folder of a trained judge, or a file of labeled pairs that the lexical student learns from."""
    agreement: float = Field(0.98, gt=0.5, le=1)
    """Share of pairs that must get the judge's tier. The threshold on the student's confidence is chosen for it."""
    pairs: int = Field(2000, ge=100, le=1_000_000)
    """Pairs of the input that both answer to choose the threshold: half to choose it, half to check it. Queries stay whole."""


class CostSection(StrictModel):
    """Prices, for the plan and the progress line."""

    usd_per_hour: float | None = Field(None, ge=0, le=MAX_MEASURE)
    """Price of one worker's machine or GPU per hour."""
    usd_per_million_prompt_tokens: float | None = Field(None, ge=0, le=MAX_MEASURE)
    """Price of prompt tokens of a server."""
    usd_per_million_completion_tokens: float | None = Field(None, ge=0, le=MAX_MEASURE)
    """Price of generated tokens of a server."""


class LabelRecipe(BaseRecipe):
    """Labels every pair of an input with a judge, each exactly once."""

    irrelevant_keys: ClassVar[frozenset[str]] = frozenset(
        {"run", "batch_tokens", "shard_pairs", "max_attempts", "store", "compare", "judge.path", "judge.base", "judge.rubric"}
        | {"judge.engine", "unanswered.max_in_a_row", "unanswered.max_share", "ray"}
        | {f"judge.endpoint.{key}" for key in HOW_ASKED}
        | {f"cost.{key}" for key in CostSection.model_fields}
    )
    prepared_files: ClassVar[frozenset[str]] = frozenset({"work", "rejected.jsonl"})
    result_files: ClassVar[frozenset[str]] = frozenset(
        {"verdicts", "failures", "summary.json", "report.html", "cascade.json", "cascade"}
    )

    @classmethod
    def may_change(cls, key: str) -> bool:
        return key.startswith(("input.", "ray.", "judge.vllm.")) or super().may_change(key)

    stage: Literal["label"] = "label"
    input: InputSection
    judge: LabelJudgeSection
    mode: Literal["verdict", "rationale", "cascade"] = "verdict"
    """verdict: tier probabilities from one forward pass per pair, without decoding; for judges whose verdict comes first.
    rationale: the judge writes its reason too. cascade: a student first, the judge where the student is unsure."""
    cascade: CascadeSection | None = None
    """The student, for mode: cascade."""
    ray: RaySection | None = None
    """Labels on a Ray cluster. null: in this process."""
    shard_pairs: int = Field(2048, ge=1, le=1_000_000)
    """Pairs per shard, the unit that is asked and committed together. A killed run repeats at most one shard per worker."""
    max_attempts: int = Field(3, ge=1, le=1000)
    """How often a pair without an answer is asked, once per start. After that its failure is final."""
    store: str | None = None
    """File of the verdict store, which answers pairs that this judge has already labelled in any run on this machine. null:
    $LORE_CACHE/verdicts.sqlite; none: no store."""
    compare: str | None = None
    """Label folder of the last run, for the drift in the summary. null: this folder's own last summary."""
    unanswered: UnansweredSection = UnansweredSection()
    """When pairs without an answer stop the run."""
    cost: CostSection = CostSection()
    batch_tokens: int = Field(16384, ge=64, le=MAX_COUNT)
    """Tokens per forward pass of transformers, padding included."""

    def conflicts(self) -> Iterator[Conflict]:
        if (self.mode == "cascade") != (self.cascade is not None):
            yield Conflict(
                ("mode", "cascade"),
                f"mode {self.mode} and {'no ' if self.cascade is None else ''}cascade",
                "mode: cascade with a cascade section that names the student, or neither",
            )
        order = self.judge.prompt.order if self.judge.prompt else None
        if self.mode == "verdict" and order == "reason_first":
            yield Conflict(("mode", "judge.prompt.order"), "verdict with reason_first", "mode: rationale: " + REASON_FIRST)
        if self.mode == "verdict" and not self.judge.scores:
            yield Conflict(("mode", "judge.scores"), "verdict without scores", "mode: rationale, which generates the verdict")

    def check_packages(self) -> None:
        if self.ray is not None:
            pass

    def derived(self) -> dict[str, Any]:
        return {"pairs without an answer are asked": f"{self.max_attempts} times at most, once per start"}

    def reopened(self, folder: Any) -> str | None:
        from lore.label.label import unfinished  # loads pyarrow: only for a finished run

        return unfinished(self, folder)


REASON_FIRST = "this judge was trained to reason first, and its verdict without the reason is not the one that was evaluated"
