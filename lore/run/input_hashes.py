"""What a run was made from, in a few bytes: the fingerprints that the recipe's sections give of their inputs.

A section says what it reads (`input_fingerprints` and `missing_inputs` of lore.config.sections); nothing here knows what that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lore.config.recipe import BaseRecipe
from lore.config.sections import StrictModel
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError


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
    """(key, what is missing) of the data, checkpoints and other files that a recipe names and that do not exist."""
    try:
        for key, lack in section.missing_inputs():
            yield f"{at}{key}", lack
    except LoreError as error:  # a folder or pattern that holds none
        yield at.rstrip("."), " ".join(str(error).split())
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
