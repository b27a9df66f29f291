"""What settings of transformers, TRL, PEFT and vLLM are called in a recipe. The table is library_names.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Counterpart:
    """keys: dotted keys of a recipe that mean the same, or a part of it; NAME stands for any name. note: what else to know."""

    keys: tuple[str, ...] = ()
    note: str = ""

    def among(self, paths: Sequence[str]) -> list[str]:
        """The paths that are one of the keys, also inside another section, such as teacher.vllm.gpu_memory."""
        return [path for key in self.keys for path in paths if path == key or ("." in key and path.endswith(f".{key}"))]


def counterpart(name: str) -> Counterpart | None:
    """The counterpart of a name as a library or another trainer spells it, with - or _; None for an unknown name."""
    name = name.strip().lstrip("-").replace("-", "_").lower()
    table = names()
    if name in table:
        return table[name]
    return next((found for pattern, found in table.items() if "*" in pattern and fnmatchcase(name, pattern)), None)


@cache
def names() -> dict[str, Counterpart]:
    """The table: names and patterns with * -> counterpart."""
    groups = yaml.safe_load(Path(__file__).with_name("library_names.yaml").read_text(encoding="utf-8"))
    return {name: _counterpart(entry) for group in ("libraries", "others") for name, entry in groups[group].items()}


def _counterpart(entry: str | list[str] | dict) -> Counterpart:
    if isinstance(entry, str):
        return Counterpart(note=entry)
    if isinstance(entry, list):
        return Counterpart(tuple(entry))
    return Counterpart(tuple(entry["keys"]), entry["note"])
