"""Recipes: one YAML is one job. Typed sections, all problems reported at once, nothing here imports torch.

A stage declares its recipe as a BaseRecipe with StrictModel sections; users read the text under a field.
Values are checked without guessing: "3" is not a number and an unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from lore.config.sections import StrictModel
from lore.support.errors import LoreError

FORMAT = 1
VARIABLES = {"LORE_DATA": "data", "LORE_RUNS": "runs"}
RUN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")
















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

    def prepared_inputs(self) -> dict[str, str]:
        """Files that `prepare` writes where they are missing, by the key that names them."""
        return {}

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
        if candidate.is_file() or Path(re.sub(r":[^/:]+$", "", str(candidate))).is_file():  # x.yaml:run is a run of a grid
            return candidate
    raise LoreError(
        f"{recipe_path} needs {need}, which is neither {beside} nor {Path(need).absolute()}.\n"
        "It has to be run first; correct the path under needs."
    )
