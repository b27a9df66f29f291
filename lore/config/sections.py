"""What every section of a recipe is made of: strict pydantic models and conflicts between their values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


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
