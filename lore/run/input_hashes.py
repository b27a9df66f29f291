"""Fingerprints of a run's inputs, stored in its manifest and compared when the run starts again.

Each recipe section defines the inputs that it reads: see `input_fingerprints` and `missing_inputs` of lore.config.sections. Files
are compared byte for byte. <run>/inputs.json holds the size, times and digest of each, so that a later start reads only files whose
size or times have changed. It can be deleted: then every file is read once. Photos that a table names by path are compared too,
under the key of the table with the suffix `photos`. Manifests of earlier versions hold sampled fingerprints, compared as before.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lore.config.recipe import BaseRecipe
from lore.config.sections import StrictModel
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.input_files import WHOLE, InputFiles, Known, Row, changed_names, rows_from, rows_of, whole_fingerprint
from lore.support.processes import is_main_process, say
from lore.support.untrusted_json import parse_object

PHOTOS = " photos"
SHOWN_FILES = 3


@dataclass
class Inputs:
    """What the inputs of a recipe are now, by recipe key."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[Row]] = field(default_factory=dict)


def input_fingerprints(recipe: BaseRecipe, *, only_what_is_there: bool = False) -> dict[str, str]:
    """Fingerprint of every input that a recipe names, by recipe key.

    Raises LoreError for missing data; with only_what_is_there, omits it. A model's folder is checked when the model is loaded.
    """
    return _found(recipe, {}, {}, only_what_is_there=only_what_is_there).fingerprints


def _found(recipe: BaseRecipe, noted: dict[str, str], before: dict[str, list[Row]], *, only_what_is_there: bool) -> Inputs:
    """noted: fingerprints in the manifest, which decide whether an input is compared by the rule of an earlier version. before: the
    rows of inputs.json."""
    found, known = Inputs(), _by_path(before)

    def add(key: str, rows: list[Row]) -> None:
        found.files[key], found.fingerprints[key] = rows, whole_fingerprint(rows)

    for key, source in _inputs(recipe, ""):
        try:
            if not isinstance(source, InputFiles):
                found.fingerprints[key] = source()
            elif key in noted and not str(noted[key]).startswith(WHOLE):
                found.fingerprints[key] = source.sampled()
            else:
                listed = source.listed()
                if only_what_is_there:
                    listed = _with_deleted(listed, before.get(key, []))
                add(key, rows_of(listed, known, keep_deleted=only_what_is_there))
                if photos := [(path.name, path) for path in source.photos()]:
                    add(key + PHOTOS, rows_of(photos, known, keep_deleted=only_what_is_there))
        except (LoreError, OSError):
            if not only_what_is_there:
                raise
    if only_what_is_there:  # of an input with a deleted file, the other files must still be the same
        for key in before.keys() & noted.keys() - found.fingerprints.keys():
            add(key, rows_of([(row.name, Path(row.path)) for row in before[key]], known, keep_deleted=True))
    return found


def _with_deleted(listed: list[tuple[str, Path]], before: list[Row]) -> list[tuple[str, Path]]:
    """The files of an input, with those that were read and are deleted now: a data set may do without some of its files."""
    now = {os.path.abspath(path) for _, path in listed}
    if all(row.path in now or os.path.lexists(row.path) for row in before):
        return listed
    if Counter(row.name for row in before) <= Counter(name for name, _ in listed):
        return listed  # the folder was moved, and all of its files are there
    then = {row.path for row in before}
    new = [(name, path) for name, path in listed if os.path.abspath(path) not in then]
    return [*((row.name, Path(row.path)) for row in before), *new]


def _by_path(before: dict[str, list[Row]]) -> Known:
    return {row.path: row for rows in before.values() for row in rows}


def _inputs(section: StrictModel, at: str) -> Iterator[tuple[str, InputFiles | Callable[[], str]]]:
    for key, source in section.input_fingerprints().items():
        yield f"{at}{key}", source
    for name, inner in _sections(section):
        yield from _inputs(inner, f"{at}{name}.")


def _sections(section: StrictModel) -> Iterator[tuple[str, StrictModel]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        for key, inner in value.items() if isinstance(value, dict) else [(None, value)]:
            if isinstance(inner, StrictModel):
                yield name if key is None else f"{name}.{key}", inner


def missing_inputs(section: StrictModel, at: str = "") -> Iterator[tuple[str, str]]:
    """(key, message) for each data set, checkpoint or other file that a recipe names and that does not exist."""
    try:
        for key, lack in section.missing_inputs():
            yield f"{at}{key}", lack
    except LoreError as error:  # an empty folder, or a pattern without matches
        yield at.rstrip("."), " ".join(str(error).split())
    for name, inner in _sections(section):
        yield from missing_inputs(inner, f"{at}{name}.")


def check_inputs(recipe: BaseRecipe, folder: RunFolder) -> None:
    """Raises LoreError when the inputs of a finished run have changed. Deleted inputs are not an error: the results stay valid."""
    noted = _noted(folder)
    if not folder.manifest_path.is_file():
        say(f"{folder.manifest_path} is missing: it is not known whether the inputs of this run have changed")
    if noted:
        before = _before(folder)
        found = _found(recipe, noted, before, only_what_is_there=True)
        folder.compare_fingerprints(_named(found.fingerprints), _changes(found, before))
        if is_main_process():
            with suppress(OSError):  # the folder of a finished run may be read-only
                _remember(folder, found, {key for key in found.files if key in noted})


def note_inputs(recipe: BaseRecipe, folder: RunFolder) -> None:
    """Stores the fingerprints of the inputs in the manifest. A run that already has results must find the same inputs."""
    before = _before(folder)
    found = _found(recipe, _noted(folder), before, only_what_is_there=False)
    named = _named(found.fingerprints)
    if folder.is_unused(recipe) and folder.changed_fingerprints(named):
        folder.begin(recipe)
        found = _found(recipe, {}, before, only_what_is_there=False)
        named = _named(found.fingerprints)
    folder.compare_fingerprints(named, _changes(found, before))
    folder.note(**named)
    _remember(folder, found, set(found.files))


def _noted(folder: RunFolder) -> dict[str, str]:
    return {key.removeprefix("input "): value for key, value in folder.fingerprints.items() if key.startswith("input ")}


def _named(fingerprints: dict[str, str]) -> dict[str, str]:
    return {f"input {key}": value for key, value in fingerprints.items()}


def _changes(found: Inputs, before: dict[str, list[Row]]) -> dict[str, str]:
    """For each input, which of its files hold other bytes."""
    told, known = {}, _by_path(before)
    for key, rows in found.files.items():
        if names := changed_names(rows, known):
            more = f" and {len(names) - SHOWN_FILES:,} more" if len(names) > SHOWN_FILES else ""
            told[f"input {key}"] = f"other bytes in {', '.join(names[:SHOWN_FILES])}{more}"
    return told


def _before(folder: RunFolder) -> dict[str, list[Row]]:
    """The rows of inputs.json. A file that cannot be read only costs time: the inputs are hashed again."""
    try:
        if not folder.inputs_path.is_file():  # opening a pipe would wait
            return {}
        return {key: rows_from(rows) for key, rows in parse_object(folder.inputs_path.read_bytes()).items()}
    except (OSError, ValueError, LoreError):
        return {}


def _remember(folder: RunFolder, found: Inputs, keys: set[str]) -> None:
    text = json.dumps({key: rows for key, rows in found.files.items() if key in keys}, ensure_ascii=True) + "\n"
    if keys and not (folder.inputs_path.is_file() and folder.inputs_path.read_bytes() == text.encode()):
        write_atomic(folder.inputs_path, text)
