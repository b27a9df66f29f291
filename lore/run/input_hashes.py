"""What a run was made from, in a few bytes: data files, checkpoints, rubric, chat template. Nothing here imports torch.

Files are sampled, so that a finished run can be compared with its inputs again at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from lore.config.recipe import BaseRecipe
from lore.data.section import DataSection, missing_data
from lore.engines.config import ModelSection, looks_local
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.fingerprint import files_fingerprint, model_fingerprint


def data_files(section: DataSection) -> list[Path]:
    """The files a data section reads. Raises LoreError where there are none."""
    from lore.data.importers import open_source
    from lore.data.parquet import pair_files

    if section.source == "pairs":
        return pair_files(section.path)
    return open_source(section.source, section.path).files


def input_fingerprints(recipe: BaseRecipe, *, only_what_is_there: bool = False) -> dict[str, str]:
    """Fingerprint of every input a recipe names, by its key. Raises LoreError for data that is not there, unless told
    otherwise; a model's folder is checked when it is loaded.
    """
    found = {}
    for key, fingerprint in _inputs(recipe, ""):
        try:
            found[key] = fingerprint()
        except (LoreError, OSError):
            if not only_what_is_there:
                raise
    return found


def _inputs(section: BaseModel, at: str) -> Iterator[tuple[str, Callable[[], str]]]:
    from lore.rubric.rubric import load_rubric

    if isinstance(section, DataSection):
        yield f"{at}path", lambda: files_fingerprint(data_files(section))
        yield f"{at}rubric", lambda: load_rubric(section.rubric).hash
    elif isinstance(section, ModelSection):
        for key, folder in (("name", section.name), ("adapter", section.adapter)):
            if folder and Path(folder).is_dir():
                yield f"{at}{key}", lambda folder=folder: model_fingerprint(folder)
    else:
        for key, files in getattr(section, "input_files", dict)().items():
            if all(Path(file).is_file() for file in files):  # where one is not, the stage says so in its own words
                yield f"{at}{key}", lambda files=files: files_fingerprint(map(Path, files))
        for name, inner in _sections(section):
            yield from _inputs(inner, f"{at}{name}.")


def _sections(section: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        for key, inner in value.items() if isinstance(value, dict) else [(None, value)]:
            if isinstance(inner, BaseModel):
                yield name if key is None else f"{name}.{key}", inner


def missing_inputs(section: BaseModel, at: str = "") -> Iterator[tuple[str, str]]:
    """(key, path or what is amiss) of the data, checkpoints and other files that a recipe names and that are not there."""
    if isinstance(section, DataSection):
        if lack := missing_data(section):
            yield f"{at}path", lack
    elif isinstance(section, ModelSection):
        for key, folder in (("name", section.name), ("adapter", section.adapter)):
            if folder and looks_local(folder) and not Path(folder).is_dir():
                yield f"{at}{key}", f"{folder} is not a folder."
    else:
        try:
            named = getattr(section, "input_files", dict)()
        except LoreError as error:  # a folder or pattern that holds none
            yield at.rstrip("."), " ".join(str(error).split())
            named = {}
        for key, files in named.items():
            for file in files:
                if not Path(file).is_file():
                    yield f"{at}{key}", f"{file} does not exist."
        for name, inner in _sections(section):
            yield from missing_inputs(inner, f"{at}{name}.")


def check_inputs(recipe: BaseRecipe, folder: RunFolder) -> None:
    """Raises LoreError when a finished run was made from other inputs than the recipe's paths hold now. What has been
    deleted since is no reason: the results stand.
    """
    if folder.manifest.get("facts"):
        folder.compare_facts({f"input {k}": v for k, v in input_fingerprints(recipe, only_what_is_there=True).items()})


def note_inputs(recipe: BaseRecipe, folder: RunFolder) -> None:
    """Notes the inputs of a run that starts; one that goes on from a result has to find the same ones."""
    facts = {f"input {key}": value for key, value in input_fingerprints(recipe).items()}
    if folder.is_unused and folder.changed_facts(facts):
        folder.begin(recipe)
    folder.note(**facts)
