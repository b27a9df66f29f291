"""What every section of a recipe is made of: strict pydantic models and conflicts between their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lore.support.fingerprint import files_fingerprint


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
        """Files that this section reads, by key, whether they exist or not. Sections inside this one report their own files."""
        return {}

    def input_fingerprints(self) -> dict[str, Callable[[], str]]:
        """A function for each input of this section, by key, that computes the input's fingerprint. A finished run is compared
        with its inputs again at every start, so a fingerprint has to be cheap.

        By default the inputs are `input_files`; a key is left out where a file is missing: the stage reports that itself.
        """
        named = self.input_files().items()
        return {key: partial(files_fingerprint, files) for key, files in named if all(Path(file).is_file() for file in files)}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        """(key, what is missing) of the inputs of this section that do not exist."""
        for key, files in self.input_files().items():
            for file in files:
                if not Path(file).is_file():
                    yield key, f"{file} does not exist."
