"""Validates plain data against a recipe class. One error lists all problems, with the keys and lines of the recipe."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lore.config.library_names import Counterpart, counterpart, names
from lore.config.recipe import VARIABLES, variable
from lore.config.secrets import HIDDEN
from lore.config.sections import StrictModel
from lore.config.yaml_text import Key, Problem, RecipeError, RecipeText, dotted, short
from lore.support.nearest import nearest

Model = TypeVar("Model", bound=StrictModel)

MAX_SHOWN = 4
MAX_LISTED = 8
MAX_NESTED = 50
MAX_BEHIND = 0.1  # a key is shown beside the most similar one if its similarity is at most this much smaller
MAX_ERRORS = 500  # that are explained; each looks for the nearest of all keys
_VARIABLE = re.compile(r"\$\{([^}]{0,200})\}")  # bounded: a text of "${${${" has no end to find

MAY_HOLD_KEYS = (("key_variable",), ("keys_variable",), ("password_variable",), ("extra",))
"""Ends of dotted keys whose values no message shows."""


def validate(text: RecipeText, model: type[Model], stages: Callable[[], dict[str, type[BaseModel]]] = dict) -> Model:
    """The data of `text` as a typed recipe or another strict model. Raises RecipeError with all problems: syntax, types, unknown
    keys and invalid combinations.

    stages: the recipe classes of all stages, for errors that name a key of another stage.
    """
    problems = list(text.problems)
    data = expand(text.data, (), text, problems)
    problems.extend(_recorded_trust(text))
    recipe, bad = None, set()
    try:
        # JSON mode is strict about types but accepts a list for a tuple and text for a path.
        recipe = model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        by_key: dict[Key, Problem] = {}
        for item in error.errors(include_url=False)[:MAX_ERRORS]:
            for key, problem in _explain(item, data, text, model, stages):
                known = by_key.get(key)
                # A union reports one error per branch; the expected value is any of them.
                by_key[key] = problem if known is None else _either(known, problem)
        bad = set(by_key)
        problems.extend(by_key.values())
        recipe = _without(data, bad, model)
    if recipe is not None:
        problems.extend(_conflicts(recipe, (), bad, text))
    if problems:
        raise RecipeError(list(_listed_once(sorted(dict.fromkeys(problems), key=_line))), text.path)
    return recipe


def _listed_once(problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems; only the first unknown key of a section lists its keys."""
    seen: set[str] = set()
    for problem in problems:
        about, _, listed = problem.expected.partition(": ")
        known = about.startswith("a key of ") and listed and problem.expected in seen
        seen.add(problem.expected)
        yield replace(problem, expected=about) if known else problem


def _line(problem: Problem) -> int:
    line = problem.file.rpartition(":")[2]
    return int(line) if line.isdecimal() else 0


def _either(one: Problem, other: Problem) -> Problem:
    expected = one.expected if other.expected in one.expected else f"{one.expected}, or {other.expected}"
    return Problem(one.file, one.key, one.found, expected, one.nearest or other.nearest)


def _conflicts(value: Any, at: Key, bad: set[Key], text: RecipeText) -> Iterator[Problem]:
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _conflicts(inner, (*at, name), bad, text)
    if not isinstance(value, StrictModel):
        return
    for conflict in value.conflicts():
        keys = [(*at, *name.split(".")) for name in conflict.keys]
        if not any(key[: len(b)] == b for key in keys for b in bad):
            shown = ", ".join(dotted(key) for key in keys)
            yield Problem(text.where(keys[0]), shown, conflict.found, conflict.expected, conflict.nearest)
    for name in type(value).model_fields:
        yield from _conflicts(getattr(value, name), (*at, name), bad, text)


def _without(data: dict[str, Any], bad: set[Key], model: type[Model]) -> Model | None:
    """The recipe with invalid keys reset to their defaults, so that combinations of the other values can be checked too."""
    pruned = json.loads(json.dumps(data))
    for key in bad:
        target = pruned
        for part in key[:-1]:
            target = target[part] if isinstance(target, dict) and part in target else None
        if isinstance(target, dict) and key:
            target.pop(key[-1], None)
    try:
        return model.model_validate_json(json.dumps(pruned))
    except ValidationError:
        return None  # a required value is invalid, which is already reported


def _recorded_trust(text: RecipeText) -> Iterator[Problem]:
    """Problems of keys that allow remote code only because a run folder's recipe.yaml says so."""
    for key in text.recorded_trust:
        value: Any = text.data
        for part in key:
            value = value.get(part) if isinstance(value, dict) else value[part] if isinstance(value, list) else None
        stated = any(key[:end] in known for known in (text.overridden, text.grid_places) for end in range(1, len(key) + 1))
        if value is True and not stated:
            found = "true, in the record of a run folder, which may come from another machine"
            expected = f"false, or {dotted(key)}=true on the command line if you have read that code and trust it"
            yield Problem(text.where(key), dotted(key), found, expected)


def expand(value: Any, key: Key, text: RecipeText, problems: list[Problem]) -> Any:
    """Replaces ${LORE_DATA}, ${LORE_RUNS} and the text's own variables; adds every other ${NAME} to `problems`."""
    if isinstance(value, dict):
        return {k: expand(v, (*key, k), text, problems) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, (*key, i), text, problems) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replace(match: re.Match) -> str:
        name = match.group(1)
        if name in VARIABLES:
            return variable(name).rstrip("/")
        if name in text.variables:
            return text.variables[name]
        known = [*VARIABLES, *text.variables]
        expected = "one of: " + ", ".join(f"${{{v}}}" for v in known)
        problems.append(Problem(text.where(key), dotted(key), match.group(0), expected, nearest(name, known)))
        return match.group(0)

    return _VARIABLE.sub(replace, value)


def _branches(annotation: Any) -> list[Any]:
    """The branches of a union annotation, without Annotated and None."""
    if get_origin(annotation) in (Union, UnionType):
        return [b for arg in get_args(annotation) for b in _branches(arg)]
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    return [] if annotation is type(None) else [annotation]


def _section(annotation: Any) -> type[BaseModel] | None:
    return next((b for b in _branches(annotation) if isinstance(b, type) and issubclass(b, BaseModel)), None)


def _inside(annotation: Any, part: str | int) -> tuple[bool, Any]:
    """Whether `part` is a key of this annotation, and the annotation of its value."""
    for branch in _branches(annotation):
        arguments = get_args(branch)
        if isinstance(branch, type) and issubclass(branch, BaseModel) and part in branch.model_fields:
            return True, branch.model_fields[part].annotation
        if get_origin(branch) is dict and isinstance(part, str):
            return True, arguments[1]
        if get_origin(branch) in (list, tuple, set) and isinstance(part, int):
            return True, arguments[0]
    return False, None


def _all_keys(annotation: Any, at: Key = ()) -> Iterator[Key]:
    for branch in _branches(annotation):
        if isinstance(branch, type) and issubclass(branch, BaseModel):
            for name, info in branch.model_fields.items():
                yield (*at, name)
                yield from _all_keys(info.annotation, (*at, name))
        elif get_origin(branch) is dict and _section(get_args(branch)[1]):
            yield from _all_keys(get_args(branch)[1], (*at, "NAME"))


@cache
def _paths(model: type[BaseModel]) -> tuple[str, ...]:
    """The dotted keys of a recipe."""
    return tuple(dotted(key) for key in _all_keys(model))


def _unknown_key(
    key: Key, section: type[BaseModel] | None, model: type[BaseModel], stages: Callable[[], dict[str, type[BaseModel]]]
) -> tuple[str, str]:
    """(expected, nearest) of an unknown key: the key that a library's name has here, otherwise the most similar keys."""
    name, at = str(key[-1]), key[:-1]
    own = [dotted((*at, one)) for one in section.model_fields] if section else []
    paths = _paths(model)
    told = counterpart(name)
    if told is not None and (answer := _library_key(name, told, own, paths, stages)):
        return answer
    same = [path for path in paths if _last(path) == name]
    if same:
        shown = " or ".join(_few(same))
        return f"{shown}: {name} is no key of {dotted(at) or 'the recipe itself'}", shown
    likeness, near = _similar(name, own, 0.6)
    if not near:
        likeness, near = _similar(name, paths, 0.75)
    meant = nearest(name.replace("-", "_"), (one for one in names() if "*" not in one), cutoff=0.85)
    if meant and _likeness(meant, name) > likeness and (answer := _library_key(meant, names()[meant], own, paths, stages)):
        return answer
    of = f"a key of {dotted(at) or 'this recipe'}"
    if not near and own:
        more = f" and {len(own) - MAX_LISTED} more, which lore run --dry-run prints" if len(own) > MAX_LISTED else ""
        of += f": {', '.join(map(_last, own[:MAX_LISTED]))}{more}"
    return of, " or ".join(_few(near))


def known_as(
    name: str, model: type[BaseModel], stages: Callable[[], dict[str, type[BaseModel]]]
) -> tuple[str, list[str]] | None:
    """(what else to know, keys) of the name of an option, such as one of a library's script. None for an unknown name."""
    if name in _paths(model):
        return "", [name]
    key = tuple(name.split("."))
    told = counterpart(str(key[-1]))
    expected, near = _unknown_key(key, model if len(key) == 1 else None, model, stages)
    if near:
        return told.note if told else "", near.split(" or ")[:2]
    return (expected, []) if told else None


def _library_key(
    name: str, told: Counterpart, own: list[str], paths: tuple[str, ...], stages: Callable[[], dict[str, type[BaseModel]]]
) -> tuple[str, str] | None:
    """(expected, nearest) of a library's name. own: keys of the section in which it stands; paths: all keys of the recipe. None
    if no stage has such a key."""
    called = told.among(own) or told.among(paths)
    if not called:  # a section of a name of its own, such as extra.one of a stage
        called = [path for path in own if any(_last(path) == _last(one) for one in told.keys)]
    if called:
        shown = " or ".join(_few(called))
        return f"{name} is called {shown} here. {told.note}".strip(), shown
    if not told.keys:
        return told.note, ""
    having: dict[str, list[str]] = {}
    for stage, other in stages().items():
        if found := told.among(_paths(other)):
            having.setdefault(" or ".join(_few(found)), []).append(stage)
    if not having:
        return None
    has = "; ".join(f"{shown} in {', '.join(those)}" for shown, those in having.items())
    return f"a key of this stage; {name} is called {has}. {told.note}".strip(), ""


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _likeness(one: str, name: str) -> float:
    return difflib.SequenceMatcher(None, one, name.casefold()).ratio()


def _similar(name: str, paths: Iterable[str], cutoff: float) -> tuple[float, list[str]]:
    """The largest similarity of a path's last part to a name, and the paths that have it or are close behind."""
    by_last: dict[str, list[str]] = {}
    for path in paths:
        by_last.setdefault(_last(path), []).append(path)
    close = {one: _likeness(one, name) for one in difflib.get_close_matches(name.casefold(), by_last, n=MAX_SHOWN, cutoff=cutoff)}
    best = max(close.values(), default=0.0)
    return best, [path for one, likeness in close.items() if likeness >= best - MAX_BEHIND for path in by_last[one]]


def _few(paths: list[str]) -> list[str]:
    """The first few paths; those inside a section of any name only if there are no others."""
    return list(dict.fromkeys([path for path in paths if ".NAME." not in path] or paths))[:MAX_SHOWN]


def _foreign_names(value: Any, key: Key, paths: tuple[str, ...]) -> Iterator[Key]:
    """Keys inside an unknown section that are names of a library or of one key here: files of other trainers nest them in sections
    of their own."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if isinstance(inner, dict):
            yield from _foreign_names(inner, (*key, name), paths)
        elif counterpart(name) or sum(_last(path) == name for path in paths) == 1:
            yield (*key, name)


def _walk(location: tuple[str | int, ...], data: Any, model: type[BaseModel]) -> tuple[Key, Any, Any]:
    """Recipe key, annotation and parent annotation of a pydantic error location. Names of union branches are skipped."""
    key: list[str | int] = []
    parent, annotation, here = None, model, data
    for index, part in enumerate(location):
        known, inner = _inside(annotation, part)
        present = isinstance(here, dict) and part in here
        if isinstance(here, dict) and not present and not (known and index == len(location) - 1):
            continue
        if not isinstance(here, dict | list) or (isinstance(here, list) and not isinstance(part, int)):
            continue
        key.append(part)
        parent, annotation = annotation, inner
        here = here[part] if present or isinstance(here, list) else None
    return tuple(key), annotation, parent


def _misspelled(value: Any, near: str, paths: tuple[str, ...]) -> bool:
    """Whether an unknown section is one of `near`: it has at least one of its keys."""
    return isinstance(value, dict) and any(f"{section}.{name}" in paths for section in near.split(" or ") for name in value)


def _needed(section: type[BaseModel] | None) -> str:
    """What a required key takes: a value, or a section with the keys that it requires."""
    if section is None:
        return "a value"
    required = [name for name, field in section.model_fields.items() if field.is_required()]
    return f"a section with {', '.join(required)}" if required else "a section"


def _explain(
    item: dict, data: Any, text: RecipeText, model: type[BaseModel], stages: Callable[[], dict[str, type[BaseModel]]]
) -> Iterator[tuple[Key, Problem]]:
    key, annotation, parent = _walk(item["loc"], data, model)
    section = _section(parent)
    found, near = short(item["input"]), ""
    expected = re.sub(r"^(Input|Value) (should be|error, )\s*", "", item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        found = f"unknown key {key[-1]}"
        expected, near = _unknown_key(key, section, model, stages)
        paths = _paths(model)
        nested = {} if counterpart(str(key[-1])) or _misspelled(item["input"], near, paths) else item["input"]
        for inner in islice(_foreign_names(nested, key, paths), MAX_NESTED):
            told = _unknown_key(inner, None, model, stages)
            yield inner, Problem(text.where(inner), dotted(inner), f"unknown key {inner[-1]}", *told)
    elif item["type"] == "missing":
        found = "nothing"
        described = section.model_fields[key[-1]].description if section and key[-1] in section.model_fields else None
        expected = f"{_needed(_section(annotation))}. {described or ''}".strip()
    elif item["type"] == "literal_error":
        near = nearest(str(item["input"]), re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    elif item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
        expected += f'; put text that looks like a number in quotes: "{item["input"]}"'
    elif item["type"] in ("list_type", "tuple_type"):
        expected += ": values in brackets, such as [one] or [one, two]"
    elif item["type"] in ("model_type", "model_attributes_type"):
        expected = "a section with keys"
    where = text.where(key)
    if key[-1:] in MAY_HOLD_KEYS or (key[-1:] == ("url",) and re.search("[@?#]", str(item["input"]))):
        found, where = HIDDEN, where.partition("=")[0]
    yield key, Problem(where, dotted(key), found, expected, near)
