"""Base classes of recipe sections: strict pydantic models, and conflicts between their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lore.support.bounds import MAX_SEED, MAX_WEIGHT, MIN_TEMPERATURE
from lore.support.input_files import InputFiles, input_files

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT)]


def each_once(what: str) -> AfterValidator:
    """Of a list: refuses repeated values. what: one value is called."""

    def check(value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError(f"each {what} once")
        return value

    return AfterValidator(check)


def _greedy_or_sampled(value: float) -> float:
    if 0 < value < MIN_TEMPERATURE:
        raise ValueError(f"0 for greedy decoding, or at least {MIN_TEMPERATURE:g}")
    return value


Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_greedy_or_sampled)]
SampledTemperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=100)]


@dataclass(frozen=True)
class Conflict:
    """Values that are valid on their own but not in combination. Keys are dotted and relative to the section that reports them."""

    keys: tuple[str, ...]
    found: str
    expected: str
    nearest: str = ""


class StrictModel(BaseModel):
    """A section of a recipe. Unknown keys and wrong types are errors; values are frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def conflicts(self) -> Iterator[Conflict]:
        """Invalid combinations of this section's values. They are reported together with all other problems."""
        return iter(())

    def input_files(self) -> dict[str, list[str]]:
        """Files that this section reads, by key, including missing ones. Nested sections report their own files."""
        return {}

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        """For each input of this section, by key, its files, or a function that computes its fingerprint. Every start of a finished
        run compares them.

        By default the inputs are `input_files`. Keys with missing files are left out; the stage reports them.
        """
        named = self.input_files().items()
        return {
            key: input_files(lambda files=files: files) for key, files in named if all(Path(file).is_file() for file in files)
        }

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        """(key, message) for each input of this section that does not exist."""
        for key, files in self.input_files().items():
            for file in files:
                if not Path(file).is_file():
                    yield key, f"{file} does not exist."
