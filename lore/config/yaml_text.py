"""Reading YAML that people wrote: recipes with their two-line Python header and overrides, and every other file (`read_yaml`).

YAML is read by the rules of the YAML 1.2 core schema instead of PyYAML's YAML 1.1 rules: `2e-4` is a number; `no`, `on`, `1:30` and
`2024-01-01` are text. Keys are always text. Only plain data is read: other tags, such as `!!python/object` or `!!set`, are errors.
Anchors and aliases are rejected in a recipe, which states each value once; where a file may have them, what they expand to is
bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lore.config.secrets import HIDDEN, is_secret_key, mask_problem
from lore.support.errors import LoreError, reason
from lore.support.text import encodable

HEADER = 'lore: 1; from lore.run import main; main(__name__, __file__); r"""'
FOOTER = '# """'
MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_DIGITS = 400  # of a whole number; a float has no more before it is infinite
MAX_PROBLEMS = 50  # a file with more is one mistake repeated
MAX_EXPANDED = 1_000_000
"""Values and characters that a file with aliases may expand to: `*a` in ten nested lists of ten is 10 GB from 1 kB."""
TRUST = "trust_remote_code"
RECORD, BESIDE_RECORD = "recipe.yaml", ("manifest.json", "done")
"""The recipe that a run folder records, and files by which a run folder is known (see lore.run.run_folder)."""

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
        """No key, password or token is shown, wherever it stands."""
        file, found = mask_problem(self.file), mask_problem(self.found)
        if is_secret_key(self.key) and not found.startswith("unknown key"):
            found = HIDDEN
        lines = [f"{file}: {self.key}" if self.key else file, f"  found:    {found}"]
        lines.append(f"  expected: {self.expected}")
        if self.nearest:
            lines.append(f"  nearest:  {self.nearest}")
        return "\n".join(lines)


class RecipeError(LoreError):
    """All problems of one recipe."""

    def __init__(self, problems: list[Problem], path: Path | None = None):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        shown = "\n".join(map(str, problems[:MAX_PROBLEMS]))
        more = f"\nand {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        super().__init__(f"{count} in {path or 'the recipe'}; nothing was run\n{shown}{more}")


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
    recorded_trust: list[Key] = field(default_factory=list)
    """Keys that allow remote code only because the record in a run folder says so, see `read_recipe_text`."""
    aliases: bool = False
    """Whether anchors, aliases and merge keys are read."""
    expanded: int = 0
    """Values and characters so far. A file without aliases cannot have more than its bytes allow."""

    @property
    def most_expanded(self) -> int:
        return MAX_EXPANDED if self.aliases else 4 * MAX_BYTES

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

    def __init__(self, source: str, aliases: bool):
        super().__init__(source)
        self.aliases = aliases

    def compose_node(self, parent, index):
        if not self.aliases and self.check_event(yaml.AliasEvent):
            raise _refused("anchors and aliases are not allowed", self.peek_event(), "the value itself, written out")
        return super().compose_node(parent, index)


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not read. expected: what to write."""

    expected = "valid YAML"


def _refused(found: str, at: Any, expected: str) -> _Refused:
    error = _Refused(None, None, found, at.start_mark)
    error.expected = expected
    return error


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader above or a YAML 1.1 reader would parse as another type."""

    yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'  # plain and single-quoted style would lose unusual line breaks
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

_FLOAT = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)"
_PLAIN = {
    kind: (re.compile(f"^(?:{pattern})$"), first)
    for kind, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]+(?:_[0-9]+)*", list("-+0123456789")),
        ("float", _FLOAT, list("-+.0123456789")),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    )
}
"""Kinds of values besides text, the form of each, and its first characters."""
_TAG = "tag:yaml.org,2002:"
for _kind, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, _pattern, _first)


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML that this module and any YAML 1.1 reader parse to the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "str":
        return encodable(text)
    if kind not in _PLAIN:
        raise _foreign_tag(node)
    if not _PLAIN[kind][0].match(text):  # only with an explicit tag: `!!int red`
        raise _refused(f"!!{kind} {short(text)}", node, f"a value without the tag !!{kind}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    number = text.replace("_", "")
    if kind == "int":
        if len(number) > MAX_DIGITS:
            raise _refused(f"a number of {len(number):,} digits", node, f"at most {MAX_DIGITS} digits; put quotes around a text")
        return int(number)
    return float(number.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _foreign_tag(node: yaml.Node) -> _Refused:
    tag = f"!!{node.tag.removeprefix(_TAG)}" if node.tag.startswith(_TAG) else node.tag
    return _refused(f"the tag {short(tag)} is not allowed", node, "plain text, numbers, lists and mappings, without tags")


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _plain(node: yaml.Node, key: Key, text: RecipeText) -> Any:
    if len(key) > MAX_DEPTH:
        raise _refused(f"nested deeper than {MAX_DEPTH} levels", node, f"at most {MAX_DEPTH} levels")
    text.expanded += 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
    if text.expanded > text.most_expanded:
        raise _refused(
            f"aliases (*name) that expand to over {text.most_expanded:,} values and characters", node, "the values without aliases"
        )
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if node.tag != _TAG + ("seq" if isinstance(node, yaml.SequenceNode) else "map"):
        raise _foreign_tag(node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*key, i), text) for i, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for name_node, value_node in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            raise _refused("a list or a mapping as a key", name_node, "a key of plain text")
        if not name_node.tag.startswith(_TAG) or name_node.tag.removeprefix(_TAG) not in (*_PLAIN, "str"):
            raise _foreign_tag(name_node)
        name, line = encodable(name_node.value), name_node.start_mark.line + 1
        if name == "<<" and name_node.style is None:
            merged = _merge(merged, value_node, key, text)
            continue
        inner = (*key, name)
        value = _plain(value_node, inner, text)
        if name in result:
            if len(text.problems) < MAX_PROBLEMS:
                where = f"{text.path}:{line}"
                first = f"already given on line {text.lines[inner]}: {short(result[name])}"
                text.problems.append(Problem(where, short_key(inner), f"{short(value)}, {first}", "each key once"))
            continue
        text.lines[inner] = line
        result[name] = value
    return merged | result


def _merge(merged: dict[str, Any], node: yaml.Node, key: Key, text: RecipeText) -> dict[str, Any]:
    """`merged` and the mappings of a merge key `<<`; the first that names a key wins."""
    if not text.aliases:
        raise _refused("the merge key <<", node, "the merged keys themselves, written out")
    found = _plain(node, (*key, "<<"), text)
    for one in found if isinstance(found, list) else [found]:
        if not isinstance(one, dict):
            raise _refused(f"<<: {short(one)}", node, "a mapping after <<, such as *name")
        merged = one | merged
    return merged


def short_key(key: Key) -> str:
    """`dotted` for error messages, at most 80 characters."""
    shown = dotted(key)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def short(value: Any) -> str:
    """repr of a value for error messages, at most 80 characters."""
    shown = repr(value[:80] if isinstance(value, str) else value)
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
        raise _fail(path, short(lines[0]), f"first line exactly: {HEADER}", 1)
    if lines[-1] != FOOTER or len(lines) == 1:
        raise _fail(path, short(lines[-1]), f"last line exactly: {FOOTER}   (it closes the string opened in line 1)", len(lines))
    for number, line in enumerate(lines[1:-1], start=2):
        if '"""' in line:
            raise _fail(path, short(line), 'no """ between the first and the last line: it would end the Python string', number)
    return "\n".join(["lore: 1", *lines[1:-1]])


def parse_yaml(source: str, text: RecipeText) -> Any:
    """Parses strict YAML to plain data. Adds duplicate keys to text.problems; raises RecipeError for invalid syntax."""
    loader = None
    try:
        loader = _Loader(source, text.aliases)
        node = loader.get_single_node()
        return None if node is None else _plain(node, (), text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        found, expected = str(error.problem), getattr(error, "expected", "valid YAML")
        if found == "but found another document":
            found, expected = "a second document after ---", "one document"
        elif "'\\t'" in found:
            expected = "valid YAML: indent with spaces, not with tabs"
        raise _fail(text.path, found, expected, line) from error
    except yaml.reader.ReaderError as error:
        line = source.count("\n", 0, error.position) + 1
        raise _fail(text.path, f"the character U+{error.character:04X}", "a text file in UTF-8", line) from error
    except (yaml.YAMLError, ValueError) as error:
        raise _fail(text.path, str(error).splitlines()[0], "valid YAML") from error
    except RecursionError as error:
        raise _fail(text.path, "too many nested brackets", f"at most {MAX_DEPTH} levels") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path, *, aliases: bool = False) -> Any:
    """Plain data of a YAML file other than a recipe, such as a rubric. None for an empty file.

    aliases: whether anchors, aliases and merge keys are read, up to MAX_EXPANDED. Raises LoreError that names file and line, what
    is there and what to write.
    """
    text = RecipeText(path, {}, aliases=aliases)
    try:
        data = parse_yaml(_decoded(path), text)
    except RecipeError as error:
        text.problems.extend(error.problems)
    if text.problems:
        raise LoreError(f"{path} is not valid YAML for LORE, so it was not loaded:\n" + "\n".join(map(str, text.problems)))
    return data


def read_record(path: Path) -> dict[str, Any]:
    """The values in the recipe.yaml of a run folder, without line numbers: the C parser is ten times faster, and a folder may hold
    hundreds of runs. Raises ValueError for a file that no run has written so, and OSError."""
    raw, loader = path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if b"&" in raw and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(raw, loader)):
            raise ValueError("aliases, which no run writes")  # they may expand to gigabytes
        values = yaml.load(raw, loader)  # noqa: S506
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(reason(error)) from error
    if not isinstance(values, dict) or not isinstance(values.get("stage"), str):
        raise ValueError("no mapping with a stage")
    return values


def _decoded(path: Path) -> str:
    """The text of a small UTF-8 file with `\\n` line ends. Raises RecipeError."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _fail(path, f"{size:,} bytes", f"at most {MAX_BYTES:,} bytes")
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _fail(path, f"byte {error.start} is not UTF-8", "a text file in UTF-8") from error
    except OSError as error:
        raise _fail(path, f"a file that cannot be read ({error.strerror})", "a readable YAML file") from error


def read_recipe_text(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RecipeText:
    """Reads one recipe file and applies `key.path=value` overrides. Raises RecipeError if the file cannot be read or parsed.

    A run folder may come from another machine, so its recipe.yaml cannot allow remote code: see `recorded_trust`.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise _fail(path, kind, f"a recipe file; {path.parent}/ has: {', '.join(near) or 'no recipes'}")
    text = RecipeText(path, {})
    data = parse_yaml(_strip_header(path, _decoded(path)), text)
    if not isinstance(data, dict):
        raise _fail(path, short(data), "a mapping with at least the keys stage and run")
    text.data = data
    if path.name == RECORD and any((path.parent / name).exists() for name in BESIDE_RECORD):
        text.recorded_trust = list(_allowing_remote_code(data, ()))
    for override in overrides:
        apply_override(text, override)
    return text


def _allowing_remote_code(value: Any, at: Key) -> Iterator[Key]:
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if name == TRUST and inner is True:
            yield (*at, name)
        yield from _allowing_remote_code(inner, (*at, name))


OVERRIDE = re.compile(r"^([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)$", re.DOTALL)


def apply_override(text: RecipeText, override: str) -> None:
    def problem(key: str, found: str, expected: str) -> None:
        text.problems.append(Problem(f"override {override}", key, found, expected))

    match = OVERRIDE.match(override)
    if not match:
        return problem("", override, "key=value, for example train.lr=2e-4")
    name, raw = match.groups()
    key: Key = tuple(name.split("."))
    if len(key) > MAX_DEPTH:
        return problem(short_key(key), f"{len(key):,} levels", f"at most {MAX_DEPTH} levels")
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


def _is_place(part: str, items: list) -> bool:
    return part.isdecimal() and len(part) < 10 and int(part) < len(items)


def set_value(data: dict[str, Any], key: Key, value: Any) -> tuple[str, str] | None:
    """Sets the value of a key path and creates missing sections. Returns (found, expected) if a plain value is in the way."""
    target: Any = data
    for part in key[:-1]:
        if isinstance(target, list) and _is_place(part, target):
            target = target[int(part)]
            continue
        if not isinstance(target, dict):
            return short(target), f"a section before .{part}"
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
    last = key[-1]
    if isinstance(target, list) and _is_place(last, target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        return short(target), f"a section before .{last}"
    return None
