"""Fingerprints of a run's inputs, stored in its manifest and compared when the run starts again.

Each recipe section defines the inputs that it reads: see `input_fingerprints` and `missing_inputs` of lore.config.sections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lore.config.recipe import BaseRecipe
from lore.config.sections import StrictModel
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError


def input_fingerprints(recipe: BaseRecipe, *, only_what_is_there: bool = False) -> dict[str, str]:
    """Fingerprint of every input that a recipe names, by recipe key.

    Raises LoreError for missing data; with only_what_is_there, omits it. A model's folder is checked when the model is loaded.
    """
    found = {}
    for key, fingerprint in _inputs(recipe, ""):
        try:
            found[key] = fingerprint()
        except (LoreError, OSError):
            if not only_what_is_there:
                raise
    return found


def _inputs(section: StrictModel, at: str) -> Iterator[tuple[str, Callable[[], str]]]:
    for key, fingerprint in section.input_fingerprints().items():
        yield f"{at}{key}", fingerprint
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
    if folder.fingerprints:
        folder.compare_fingerprints({f"input {k}": v for k, v in input_fingerprints(recipe, only_what_is_there=True).items()})


def note_inputs(recipe: BaseRecipe, folder: RunFolder) -> None:
    """Stores the fingerprints of the inputs in the manifest. A run that already has results must find the same inputs."""
    found = {f"input {key}": value for key, value in input_fingerprints(recipe).items()}
    if folder.is_unused(recipe) and folder.changed_fingerprints(found):
        folder.begin(recipe)
    folder.note(**found)
