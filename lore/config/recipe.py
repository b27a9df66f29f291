"""Recipes: one YAML file describes one run of a stage. Nothing here imports torch.

A stage declares its recipe as a BaseRecipe with StrictModel sections. The docstring of a field is shown to users.
Validation is strict and reports all problems at once: "3" is not a number, and an unknown key is an error that suggests the nearest
known key.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from lore.config.sections import Seed, StrictModel
from lore.support.errors import LoreError
from lore.support.text import named

FORMAT = 1
VARIABLES = {"LORE_DATA": "data", "LORE_RUNS": "runs"}
RUN_FILES = frozenset({".lock", "recipe.yaml", "manifest.json", "inputs.json", "metrics.jsonl", "done", "failed.json"})
"""Files of every run folder."""
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9_-])?"  # some file systems drop a dot at the end
RUN_NAME = re.compile(rf"^{_PART}(?:/{_PART})*\Z")
RUN_NAME_EXPECTED = "a folder name of letters, digits, . _ - (and / between parts, at most 200 characters each), not a path"


class BaseRecipe(StrictModel):
    """The keys that all recipes share.

    `irrelevant_keys`: keys whose values may change when a run resumes. `prepared_files`: files and folders that a run derives from
    its inputs before its first result. `result_files`: shell patterns of everything else that the stage writes in its run folder,
    besides RUN_FILES. Another run cannot have one of these names inside that folder.
    """

    command: ClassVar[str] = "lore run"
    """The command that runs recipes of this stage."""
    irrelevant_keys: ClassVar[frozenset[str]] = frozenset()
    prepared_files: ClassVar[frozenset[str]] = frozenset({"data", "rejected.jsonl"})
    result_files: ClassVar[frozenset[str]] = frozenset()

    lore: Literal[1] = FORMAT
    """Version of the recipe format; the header line supplies it."""
    stage: str
    """Stage that this recipe runs, such as sft or evaluate."""
    run: str
    """Name of the run folder under runs/ (or $LORE_RUNS)."""
    seed: Seed = 0
    """Seed of all random number generators."""
    needs: list[str] = []
    """Recipe files whose runs must finish first. Paths are relative to this file's folder or to the working directory."""

    @field_validator("run")
    @classmethod
    def _run_is_a_name(cls, value: str) -> str:
        if not RUN_NAME.match(value):
            raise ValueError(RUN_NAME_EXPECTED)
        return value

    @classmethod
    def writes(cls, name: str) -> bool:
        """Whether a run of this stage writes a file or folder of this name in its run folder. Case does not count, because some
        file systems ignore it."""
        patterns = RUN_FILES | cls.prepared_files | cls.result_files
        return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)

    @classmethod
    def may_change(cls, key: str) -> bool:
        """Whether the value of a dotted key may change when a run resumes. `needs` may change: the paths of other recipes do not
        affect the result, and the data and models that the run reads are compared by fingerprint. So may data.image_root, which
        allows photos that earlier versions read without it."""
        return key in ("needs", "data.image_root") or key in cls.irrelevant_keys

    def derived(self) -> dict[str, Any]:
        """Numbers computed from the recipe, shown by --dry-run."""
        return {}

    def reopened(self, folder: Any) -> str | None:
        """The reason to reopen a finished run, such as changed prompts, or None. A reopened run reuses its existing results."""
        return None

    def check_packages(self) -> None:
        """Raises LoreError when a value of the recipe needs an optional package that is not installed, with the command to install
        it. Called by --dry-run and before a run starts anything."""

    def prepare(self) -> None:
        """Creates inputs that the recipe can create by itself. The main process calls it before it checks the inputs."""

    def prepared_inputs(self) -> dict[str, str]:
        """Files that `prepare` writes if they are missing, by the recipe key that names them."""
        return {}

    def resolved(self) -> dict[str, Any]:
        """All values including defaults, as plain data."""
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """Hash of the resolved values."""
        return values_fingerprint(self.resolved())


def values_fingerprint(values: dict[str, Any]) -> str:
    """Hash of a recipe's values as plain data, such as those of a run's recipe.yaml."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def run_root() -> Path:
    return Path(variable("LORE_RUNS"))


def variable(name: str) -> str:
    """The value of one of VARIABLES in the environment, or its default."""
    return named(os.environ.get(name) or VARIABLES[name], f"The environment variable {name}")


def resolve_need(recipe_path: str | Path, need: str) -> Path:
    """Path of a recipe listed under needs: relative to the recipe that needs it, otherwise to the working directory."""
    local = Path(recipe_path).parent / need
    for candidate in (local, Path(need)):
        if candidate.is_file() or Path(re.sub(r":[^/:]+$", "", str(candidate))).is_file():  # x.yaml:run is one run of a grid
            return candidate
    raise LoreError(
        f"{recipe_path} needs {need}, but neither {local} nor {Path(need).absolute()} exists.\n"
        "That recipe must run first; correct the path under needs."
    )
