"""What a run was made from, in a few bytes: data files, checkpoints, rubric, chat template. Nothing here imports torch.

Files are sampled, so that a finished run can be compared with its inputs again at every start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lore.errors import LoreError
from lore.folder import RunFolder
from lore.recipe import BaseRecipe, DataSection, ModelSection, looks_local
from lore.sources import missing_data

SAMPLED_BYTES = 65536
SAMPLES = 16
MODEL_FILES = (".safetensors", ".json", ".bin", ".jinja", ".model", ".txt")


def files_fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits over the names, sizes and sampled bytes of files, not over where they lie."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(size // SAMPLES, SAMPLED_BYTES)):
                file.seek(start)
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def model_fingerprint(name: str, adapter: str | None = None) -> str:
    """Fingerprint of a local checkpoint and adapter, so that new weights under an old path are noticed. A hub model is
    known by its name alone.
    """
    digest = hashlib.blake2b(digest_size=8)
    for place in (name, adapter):
        if place:
            known = files_fingerprint(_model_files(Path(place))) if Path(place).is_dir() else place
            digest.update(f"{known}\n".encode())
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file())


def template_fingerprint(processor: Any) -> str:
    """Fingerprint of the chat template that a tokenizer or processor writes prompts with."""
    return hashlib.blake2b(str(processor.chat_template).encode(), digest_size=8).hexdigest()


def data_files(section: DataSection) -> list[Path]:
    """The files a data section reads. Raises LoreError where there are none."""
    from lore.pairs import pair_files
    from lore.sources import open_source

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
    from lore.rubric import load_rubric

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
