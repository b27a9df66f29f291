"""Recipes: one YAML is one job. Typed sections, all problems reported at once, nothing here imports torch.

A stage declares its recipe as a BaseRecipe with StrictModel sections; users read the text under a field.
Values are checked without guessing: "3" is not a number and an unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lore.errors import LoreError
from lore.recipe_file import nearest, to_yaml

__all__ = [
    "BaseRecipe",
    "Conflict",
    "DataSection",
    "LoraSection",
    "ModelSection",
    "PromptSection",
    "StrictModel",
    "resolve_need",
    "run_root",
    "to_yaml",
]

FORMAT = 1
VARIABLES = {"LORE_DATA": "data", "LORE_RUNS": "runs"}
RUN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")


@dataclass(frozen=True)
class Conflict:
    """Values that are valid one by one and impossible together. Keys are dotted, relative to the reporting section."""

    keys: tuple[str, ...]
    found: str
    expected: str
    nearest: str = ""


class StrictModel(BaseModel):
    """A section: unknown keys and wrong types are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def conflicts(self) -> Iterator[Conflict]:
        """Impossible combinations of this section's values, reported together with every other problem."""
        return iter(())

    def input_files(self) -> dict[str, list[str]]:
        """Files this section reads, by its key, beyond those of data and model sections, there or not: a finished run is
        compared with them again.
        """
        return {}


class LoraSection(StrictModel):
    rank: int = Field(16, ge=1)
    """Rank of the update matrices."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the update; none means 2 * rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: str | list[str] = "all-linear"
    """Module names the adapter goes to, or all-linear."""
    dora: bool = False
    """Weight-decomposed LoRA: slower, closer to full fine-tuning at low rank."""
    modules_to_save: list[str] = []
    """Modules trained in full and stored beside the adapter."""

    @property
    def scale_alpha(self) -> float:
        """alpha with its default filled in."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def conflicts(self) -> Iterator[Conflict]:
        if not self.targets:
            yield Conflict(("targets",), "no module, so no adapter", "all-linear, a pattern or module names")


def looks_local(name: str) -> bool:
    """True for a model's name that is meant as a path, whether it is there or not: no hub id looks like that."""
    return "/" in name and (name.startswith((".", "/", "~", "runs/")) or name.count("/") != 1)


class ModelSection(StrictModel):
    name: str = Field(min_length=1)
    """Hub id or local folder of the model."""
    adapter: str | None = None
    """Folder of a trained adapter that is put on the model first."""
    lora: LoraSection | None = None
    """Train a new adapter of this shape; none trains or runs the model as it is."""
    quantize: Literal["nf4"] | None = None
    """nf4 loads the frozen weights in 4 bits (QLoRA); needs bitsandbytes."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the device has it, else float32."""
    attn: str | None = None
    """Attention implementation passed to transformers; none leaves the choice to it."""
    trust_remote_code: bool = False
    """Runs Python code that comes with the model. Only for a repository you have read."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.adapter is not None and self.lora is not None:
            yield Conflict(
                ("adapter", "lora"),
                "both an adapter to load and a new LoRA to train",
                "one of the two: merge the adapter first (lore export --merge), or drop model.lora",
            )


class DataSection(StrictModel):
    path: str = Field(min_length=1)
    """File, folder or glob; ${LORE_DATA} is the folder of public data (default data/)."""
    source: str = "pairs"
    """Importer of a public format, or pairs for a file written by `lore data import`."""
    rubric: str
    """Name of a rubric in lore/rubrics or path of a rubric file."""
    split: str | None = None
    """Only the pairs of this split."""
    limit: int | None = Field(None, ge=1)
    """At most this many pairs, from the start."""
    encoding: str = "utf-8"
    """Text encoding of csv and jsonl sources."""
    split_fractions: dict[str, float] = {"train": 0.7, "dev": 0.1, "test": 0.2}
    """Shares of the queries per split, for sources that have none of their own."""
    slices: list[str] | None = None
    """Only the pairs of these slices."""
    options: dict[str, Any] = {}
    """Switches of the importer (column map, locale, ...)."""

    @field_validator("split_fractions")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(v < 0 for v in value.values()) or abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"shares that are not negative and sum to 1, these sum to {sum(value.values()):g}")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        from lore.rubric import load_rubric
        from lore.sources import SOURCES, source_options
        from lore.sources.reading import check_encoding

        sources = ("pairs", *SOURCES)
        if self.source not in sources:
            yield Conflict(("source",), self.source, f"one of: {', '.join(sources)}", nearest(self.source, sources))
        else:
            known = [] if self.source == "pairs" else [*source_options(self.source), "drop_duplicates", "keep_bad_photos"]
            for option in self.options:
                if option not in known:
                    expected = f"an option of source {self.source}: {', '.join(known) or 'it has none'}"
                    yield Conflict((f"options.{option}",), "unknown option", expected, nearest(option, known))
        for key, check in (("rubric", load_rubric), ("encoding", check_encoding)):
            try:
                check(getattr(self, key))
            except LoreError as error:
                yield Conflict((key,), getattr(self, key), str(error))


class PromptSection(StrictModel):
    order: Literal["reason_first", "answer_first", "answer_only"]
    """Where the verdict stands: after the reason, before it, or alone."""
    detail: Literal["full", "retrieved", "tiers", "name"]
    """How much of the rubric the prompt holds: every rule, the rules nearest to query and item text, the tiers, or its
    name."""
    retrieved_rules: int = Field(12, ge=1)
    """For detail: retrieved, about so many rules; a dimension's rules come together."""
    photo: bool = True
    """Show the item's photo where there is one."""
    max_photo_pixels: int | None = Field(None, ge=784)
    """Larger photos are made smaller, in training and in every engine; none shows them as they are, and the model's
    processor decides how many tokens they take."""
    max_prompt_tokens: int = Field(2048, ge=16)
    """Longer prompts lose the description's end, then attributes, then the title's tail."""
    language: Literal["en", "zh"] = "en"
    """Language of the instructions."""


class BaseRecipe(StrictModel):
    """What every recipe has. `irrelevant_keys` names keys that may change between a run and its resumption."""

    irrelevant_keys: ClassVar[frozenset[str]] = frozenset()

    lore: Literal[1] = FORMAT
    """Version of the recipe format; the header line supplies it."""
    stage: str
    """What this recipe runs."""
    run: str
    """Name of the run folder under runs/ (or $LORE_RUNS)."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    needs: list[str] = []
    """Recipes that must be done first, relative to this file's folder or to the working directory."""

    @field_validator("run")
    @classmethod
    def _run_is_a_name(cls, value: str) -> str:
        if not RUN_NAME.match(value):
            raise ValueError("a folder name of letters, digits, . _ - (and / between parts), not a path")
        return value

    @classmethod
    def may_change(cls, key: str) -> bool:
        """Whether a dotted key may have another value when the run goes on. `needs` may: where other recipes lie says nothing about
        this run, and the data and models that it reads have fingerprints."""
        return key == "needs" or key in cls.irrelevant_keys

    def derived(self) -> dict[str, Any]:
        """Numbers that follow from the recipe, shown by --dry-run."""
        return {}

    def reopened(self, folder: Any) -> str | None:
        """Why a finished run has to go on (its prompts have changed), or None. What it has stays and is used again."""
        return None

    def prepare(self) -> None:
        """Makes what the recipe reads and can make by itself. Called by the main process before inputs are looked at."""

    @property
    def makes_its_data(self) -> bool:
        """Whether `prepare` writes data.path where it is missing."""
        return False

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain data."""
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """Hash of the resolved values."""
        text = json.dumps(self.resolved(), sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def run_root() -> Path:
    return Path(os.environ.get("LORE_RUNS") or VARIABLES["LORE_RUNS"])


def resolve_need(recipe_path: str | Path, need: str) -> Path:
    """Where a needed recipe lies: in the folder of the recipe that needs it, else under the working directory."""
    beside = Path(recipe_path).parent / need
    for candidate in (beside, Path(need)):
        if candidate.is_file():
            return candidate
    raise LoreError(
        f"{recipe_path} needs {need}, which is neither {beside} nor {Path(need).absolute()}.\n"
        "It has to be run first; correct the path under needs."
    )
