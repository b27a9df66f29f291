"""Validates plain data against a recipe class. One error lists all problems, with the keys and lines of the recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lore.config.recipe import VARIABLES, variable
from lore.config.secrets import HIDDEN
from lore.config.sections import StrictModel
from lore.config.yaml_text import Key, Problem, RecipeError, RecipeText, dotted, short
from lore.support.nearest import nearest

Model = TypeVar("Model", bound=StrictModel)

HUGGING_FACE = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "micro_batch_size",
    "train_batch_size": "batch_size",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "logging_steps": "log_every",
    "save_steps": "save_every",
    "save_total_limit": "keep_checkpoints",
    "dataloader_num_workers": "workers",
    "output_dir": "run",
    "report_to": "track",
    "model_name_or_path": "name",
    "attn_implementation": "attn",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "use_dora": "dora",
    "num_generations": "group",
    "num_iterations": "updates",
    "loss_type": "loss",
    "scale_rewards": "scale",
    "tensor_parallel_size": "tensor_parallel",
    "gpu_memory_utilization": "gpu_memory",
    "max_model_len": "max_model_tokens",
}
"""Names of transformers, TRL, PEFT and vLLM that many users type, and the recipe's names for the same."""

MAX_ERRORS = 500  # that are explained; each looks for the nearest of all keys
_VARIABLE = re.compile(r"\$\{([^}]{0,200})\}")  # bounded: a text of "${${${" has no end to find


def validate(text: RecipeText, model: type[Model]) -> Model:
    """The data of `text` as a typed recipe or another strict model. Raises RecipeError with all problems: syntax, types, unknown
    keys and invalid combinations."""
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
            key, problem = _explain(item, data, text, model)
            known = by_key.get(key)
            # A union reports one error per branch; the expected value is any of them.
            by_key[key] = problem if known is None else _either(known, problem)
        bad = set(by_key)
        problems.extend(by_key.values())
        recipe = _without(data, bad, model)
    if recipe is not None:
        problems.extend(_conflicts(recipe, (), bad, text))
    if problems:
        raise RecipeError(sorted(dict.fromkeys(problems), key=_line), text.path)
    return recipe


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
    section = _section(annotation)
    for name, info in section.model_fields.items() if section else ():
        yield (*at, name)
        yield from _all_keys(info.annotation, (*at, name))


def _elsewhere(name: str, model: type[BaseModel]) -> str:
    """The same key in other sections, otherwise the most similar key of the whole recipe."""
    keys = list(_all_keys(model))
    wanted = name if any(key[-1] == name for key in keys) else nearest(name, {key[-1] for key in keys}, cutoff=0.75)
    return " or ".join(dotted(key) for key in keys if key[-1] == wanted)


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


def _explain(item: dict, data: Any, text: RecipeText, model: type[BaseModel]) -> tuple[Key, Problem]:
    key, _, parent = _walk(item["loc"], data, model)
    section = _section(parent)
    found, near = short(item["input"]), ""
    expected = re.sub(r"^(Input|Value) (should be|error, )\s*", "", item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        names = list(section.model_fields) if section else []
        name = HUGGING_FACE.get(str(key[-1]), str(key[-1]))
        close = nearest(name, names) if name in names or name == key[-1] else ""
        near = dotted((*key[:-1], close)) if close else _elsewhere(name, model)
        found = f"unknown key {key[-1]}"
        expected = f"a key of {dotted(key[:-1]) or 'this recipe'}: {', '.join(names)}"
    elif item["type"] == "missing":
        found = "nothing"
        described = section.model_fields[key[-1]].description if section and key[-1] in section.model_fields else None
        expected = f"a value. {described or ''}".strip()
    elif item["type"] == "literal_error":
        near = nearest(str(item["input"]), re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    elif item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
        expected += f'; put text that looks like a number in quotes: "{item["input"]}"'
    elif item["type"] in ("list_type", "tuple_type"):
        expected += ": values in brackets, such as [one] or [one, two]"
    elif item["type"] in ("model_type", "model_attributes_type"):
        expected = "a section with keys"
    where = text.where(key)
    if key[-1:] in (("key_variable",), ("extra",)) or (key[-1:] == ("url",) and re.search("[@?#]", str(item["input"]))):
        found, where = HIDDEN, where.partition("=")[0]
    return key, Problem(where, dotted(key), found, expected, near)
