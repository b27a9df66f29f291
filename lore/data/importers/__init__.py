"""Importers of public formats, and of any table by column map.

An importer is a module with RUBRIC (the rubric of its labels), WHERE (how a user gets the data), `files(path)` (the files that it
reads; raises LoreError if a file is missing) and `read(path, encoding, **options)`, a generator of SourceRow and Rejection.
Importing this package is cheap; `open_source` imports the module of one source.
"""

import importlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any

from lore.data.source import Source
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

SOURCES = ("crowdflower", "homedepot", "wands", "esci", "rair", "table")
IMPORT_VERSION = "3"
"""Part of the hash of an imported file. Increase it when an importer changes the pairs that it makes from the same files."""


def open_source(name: str, path: str | Path, *, encoding: str | None = None, options: dict[str, Any] | None = None) -> Source:
    """Opens a source. Raises LoreError for an unknown source, an unknown option or a missing file, with where to get the file."""
    if name not in SOURCES:
        raise LoreError(
            f"There is no source {name!r}. Sources: {', '.join(SOURCES)}; pairs for a file that is already "
            f"imported.{nearest_hint(name, SOURCES)}"
        )
    module, known = importlib.import_module(f"lore.data.importers.{name}"), source_options(name)
    for option in options or {}:
        if option not in known:
            takes = f"its options are {', '.join(known)}" if known else "it has no options"
            raise LoreError(f"Source {name} has no option {option!r}; {takes}.{nearest_hint(option, known)}")
    path, files = _located(name, path)
    rows = module.read(path, encoding, **(options or {}))
    folder = files[0].parent if files else None
    total = module.count(files) if hasattr(module, "count") else None
    extra = partial(module.unmapped, path, encoding, **(options or {})) if hasattr(module, "unmapped") else list
    return Source(name, module.RUBRIC, rows, files, total, folder, extra)


def source_files(name: str, path: str | Path) -> list[Path]:
    """The files of a source, none for the hub. Opens no file. Raises LoreError for a missing file, with where to get it."""
    return _located(name, path)[1]


def _located(name: str, path: str | Path) -> tuple[str | Path, list[Path]]:
    module = importlib.import_module(f"lore.data.importers.{name}")
    if not str(path).startswith("hub:"):
        path = Path(path).expanduser()
    elif name != "rair":
        raise LoreError(f"{path}: only source rair reads from the hub; {name} reads local files. {module.WHERE}")
    return path, module.files(path)


def source_options(name: str) -> list[str]:
    """Option names of a source in SOURCES."""
    parameters = inspect.signature(importlib.import_module(f"lore.data.importers.{name}").read).parameters
    return [option for option, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


