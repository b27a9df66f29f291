"""Sections of the label recipe. Nothing here imports torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from lore.codec.section import PromptSection
from lore.config.sections import Conflict, StrictModel
from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.support.bounds import MAX_COUNT, MAX_MEASURE
from lore.support.errors import LoreError
from lore.support.input_files import InputFiles, model_files


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
    limit: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Use only this many pairs, from the start of the input. null: all."""

    def conflicts(self) -> Iterator[Conflict]:
        if (self.path is None) == (self.ubi is None):
            found = "neither path nor ubi" if self.path is None else "both path and ubi"
            yield Conflict(("path", "ubi"), found, "path (pairs, or a search log) or ubi (User Behavior Insights)")
        if self.catalogue is None:
            for key in ("ubi", "catalogue_map"):
                if getattr(self, key):
                    yield Conflict((key, "catalogue"), f"{key} without a catalogue", "a catalogue, which has the titles")
        if self.ubi is not None and self.map:
            yield Conflict(("map", "ubi"), "a map for User Behavior Insights", "no map: their fields have fixed names")

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        named = {"path": self.path, "catalogue": self.catalogue}
        if self.ubi is not None:
            named |= {"ubi.queries": self.ubi.queries, "ubi.events": self.ubi.events}
        for key, path in named.items():
            place = None if path is None or path.startswith("hub:") else os.path.expanduser(path)
            if place is not None and not os.path.exists(place) and not glob.glob(place, recursive=True):
                yield key, f"{path} does not exist."
        if self.image_root is not None and not Path(self.image_root).expanduser().is_dir():
            yield "image_root", f"{self.image_root} is no folder."


class LabelJudgeSection(StrictModel):
    """The judge: the folder of a trained one, or a model or server with the prompt and rubric to ask it with."""

    path: str | None = None
    """Run folder of a trained judge or student (runs/grpo, runs/distill), its model folder, or the folder of `lore export`. Prompt
    and rubric are those of its training. null: `model` or `endpoint`, with `prompt` and `rubric`."""
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
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """Which weights of an exported student, for the path of a student. auto: int8 where it has them."""
    photo_embeddings: str | None = Field(None, min_length=1)
    """Vectors of the items' photos, for a student that reads them. null: the table of its training."""
    scores: bool = True
    """Read tier probabilities. Set false for a server that returns none: the verdict is then generated."""
    max_tokens: int = Field(256, ge=1, le=MAX_COUNT)
    """Maximum tokens per answer, for mode: rationale."""
    guided: bool = False
    """An answer without a readable verdict gets one from the tier tokens after its reason. The reason is generated freely."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.guided and not self.scores:
            yield Conflict(("guided", "scores"), "guided without scores", "scores: true: guided reads the tier tokens")
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
        found: dict[str, InputFiles | Callable[[], str]] = {"rubric": self._rubric_hash}
        if self.path and self.folder.is_dir():
            found["path"] = model_files(str(self.folder))
        return found

    def _rubric_hash(self) -> str:
        # Loads the rubric's models: only where inputs are compared.
        from lore.judge.card import read_card
        from lore.rubric.rubric import load_rubric

        if self.path is not None and not self.folder.is_dir():
            raise LoreError(self._no_folder)
        name = self.rubric or (read_card(self.folder) or {}).get("rubric")
        if name is None:
            raise LoreError(f"{self.path} has no card, so its rubric is not known. Name the folder of a trained judge.")
        return load_rubric(name).hash

    @property
    def folder(self) -> Path:
        """The folder with the weights of `path`."""
        inner = Path(self.path or "") / "model"
        return inner if inner.is_dir() else Path(self.path or "")

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if self.path is not None and not self.folder.is_dir():
            yield "path", self._no_folder

    @property
    def _no_folder(self) -> str:
        return f"{self.path} is not a folder. Name the run folder of a trained judge, such as runs/grpo."


class CascadeSection(StrictModel):
    """A student answers first; the judge is asked where the student is unsure."""

    student: str = Field(min_length=1)
    """The student: the folder of a student (runs/distill) or of a trained judge, or a file of labeled pairs that the lexical
    student learns from."""
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
