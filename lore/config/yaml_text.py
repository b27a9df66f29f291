"""Reading the text of a recipe: the two-line Python header, strict YAML with line numbers, overrides.

YAML is read by the rules of the YAML 1.2 core schema instead of PyYAML's YAML 1.1 rules: `2e-4` is a number; `no`, `on`, `1:30` and
`2024-01-01` are text. Keys are always text. Anchors and aliases are rejected: a recipe states each value once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lore.support.errors import LoreError
from lore.support.text import printable

HEADER = 'lore: 1; from lore.run import main; main(__name__, __file__); r"""'
FOOTER = '# """'
MAX_BYTES = 1_000_000
MAX_DEPTH = 32

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One problem of a recipe. `file` includes the line if it is known; `nearest` may be empty."""

    file: str
    key: str
    found: str
    expected: str
    nearest: str = ""

    def __str__(self) -> str:
        lines = [f"{self.file}: {self.key}" if self.key else self.file, f"  found:    {self.found}"]
        lines.append(f"  expected: {self.expected}")
        if self.nearest:
            lines.append(f"  nearest:  {self.nearest}")
        return "\n".join(map(printable, lines))


class RecipeError(LoreError):
    """All problems of one recipe."""

    def __init__(self, problems: list[Problem], path: Path | None = None):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in {printable(path or 'the recipe')}; nothing was run\n" + "\n".join(str(p) for p in problems))


@dataclass
class RecipeText:
    """The plain data of a recipe, the line of each key, and the problems found while reading the text."""

    path: Path
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)
    overridden: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    grid_places: dict[Key, str] = field(default_factory=dict)
    """File and line of the keys that a grid sets."""
    variables: dict[str, str] = field(default_factory=dict)
    """Values of additional ${NAME} variables that this text may use."""

    def where(self, key: Key) -> str:
        """The override that set a key, or file and line of the key or its nearest ancestor."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.overridden:
                return f"override {self.overridden[key[:end]]}"
        for end in range(len(key), 0, -1):
            if key[:end] in self.grid_places:
                return self.grid_places[key[:end]]
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return str(self.path)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, "anchors and aliases are not allowed in a recipe", event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader above or a YAML 1.1 reader would parse as another type."""

    yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'  # plain and single-quoted style would lose unusual line breaks
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML that this module and any YAML 1.1 reader parse to the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text.replace("_", ""))
    if kind == "float":
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "str":
        return text
    raise yaml.MarkedYAMLError(None, None, f"the tag {node.tag} is not allowed in a recipe", node.start_mark)


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _plain(node: yaml.Node, key: Key, text: RecipeText) -> Any:
    if len(key) > MAX_DEPTH:
        raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_DEPTH} levels", node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if node.tag.rpartition(":")[2] not in ("seq", "map"):
        raise yaml.MarkedYAMLError(None, None, f"the tag {node.tag} is not allowed in a recipe", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*key, i), text) for i, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    for name_node, value_node in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(None, None, "a key must be plain text", name_node.start_mark)
        name, line = name_node.value, name_node.start_mark.line + 1
        inner = (*key, name)
        value = _plain(value_node, inner, text)
        if name in result:
            where = f"{text.path}:{line}"
            first = f"already given on line {text.lines[inner]}: {short(result[name])}"
            text.problems.append(Problem(where, dotted(inner), f"{short(value)}, {first}", "each key once"))
            continue
        text.lines[inner] = line
        result[name] = value
    return result


def short(value: Any) -> str:
    """repr of a value for error messages, at most 80 characters."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _fail(path: Path, found: str, expected: str, line: int | None = None) -> RecipeError:
    return RecipeError([Problem(f"{path}:{line}" if line else str(path), "", found, expected)], path)


def _strip_header(path: Path, text: str) -> str:
    """The YAML of the file, with unchanged line numbers. Checks the two Python lines if the file has them."""
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise _fail(path, "an empty file", "a recipe with at least the keys stage and run")
    looks_python = "lore.run" in lines[0] or '"""' in lines[0]
    if not looks_python:
        if lines[-1] == FOOTER:
            raise _fail(path, f"the last line {FOOTER} without the first line", f"first line exactly: {HEADER}", 1)
        return text
    if lines[0] != HEADER:
        raise _fail(path, lines[0], f"first line exactly: {HEADER}", 1)
    if lines[-1] != FOOTER or len(lines) == 1:
        raise _fail(path, lines[-1], f"last line exactly: {FOOTER}   (it closes the string opened in line 1)", len(lines))
    for number, line in enumerate(lines[1:-1], start=2):
        if '"""' in line:
            raise _fail(path, line, 'no """ between the first and the last line: it would end the Python string', number)
    return "\n".join(["lore: 1", *lines[1:-1]])


def parse_yaml(source: str, text: RecipeText) -> Any:
    """Parses strict YAML to plain data. Adds duplicate keys to text.problems; raises RecipeError for invalid syntax."""
    loader = None
    try:
        loader = _Loader(source)
        node = loader.get_single_node()
        return None if node is None else _plain(node, (), text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise _fail(text.path, str(error.problem), "valid YAML", line) from error
    except (yaml.YAMLError, ValueError) as error:
        raise _fail(text.path, str(error).splitlines()[0], "valid YAML") from error
    except RecursionError as error:
        raise _fail(text.path, "too many nested brackets", f"at most {MAX_DEPTH} levels") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_recipe_text(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RecipeText:
    """Reads one recipe file and applies `key.path=value` overrides. Raises RecipeError if the file cannot be read or parsed."""
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise _fail(path, kind, f"a recipe file; {path.parent}/ has: {', '.join(near) or 'no recipes'}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _fail(path, f"{size} bytes", f"at most {MAX_BYTES} bytes: this is not a recipe")
    try:
        source = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _fail(path, f"byte {error.start} is not UTF-8", "a text file in UTF-8") from error
    text = RecipeText(path, {})
    data = parse_yaml(_strip_header(path, source), text)
    if not isinstance(data, dict):
        raise _fail(path, short(data), "a mapping with at least the keys stage and run")
    text.data = data
    for override in overrides:
        apply_override(text, override)
    return text


OVERRIDE = re.compile(r"^([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)$", re.DOTALL)


def apply_override(text: RecipeText, override: str) -> None:
    def problem(key: str, found: str, expected: str) -> None:
        text.problems.append(Problem(f"override {override}", key, found, expected))

    match = OVERRIDE.match(override)
    if not match:
        return problem("", override, "key=value, for example train.lr=2e-4")
    name, raw = match.groups()
    key: Key = tuple(name.split("."))
    if key in text.overridden:
        return problem(name, f"given twice, first as {text.overridden[key]}", "each override once")
    if not raw.strip():
        return problem(name, "nothing after =", f"a value; {name}=null for none, {name}='\"\"' for empty text")
    inside = RecipeText(Path(f"override {override}"), {})
    try:
        value = parse_yaml(raw, inside)
    except RecipeError as error:
        text.problems.extend(error.problems)
        return None
    text.problems.extend(inside.problems)
    wrong = set_value(text.data, key, value)
    if wrong:
        return problem(name, *wrong)
    text.overridden[key] = override
    return None


def set_value(data: dict[str, Any], key: Key, value: Any) -> tuple[str, str] | None:
    """Sets the value of a key path and creates missing sections. Returns (found, expected) if a plain value is in the way."""
    target: Any = data
    for part in key[:-1]:
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
            continue
        if not isinstance(target, dict):
            return short(target), f"a section before .{part}"
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
    last = key[-1]
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        return short(target), f"a section before .{last}"
    return None
