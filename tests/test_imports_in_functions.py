"""Imports inside functions and under TYPE_CHECKING say why they are there; CONTRIBUTING has the rule."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

CLI_REASON = "keep `lore --help` fast"
Blocks = Iterator[list[ast.stmt]]


def late_blocks(node: ast.AST, late: bool = False) -> Blocks:
    """Imports in functions or under TYPE_CHECKING; those that follow each other are one block."""
    late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        late = True
    block: list[ast.stmt] = []
    for inner in ast.iter_child_nodes(node):
        if late and isinstance(inner, ast.Import | ast.ImportFrom):
            block.append(inner)
            continue
        if block:
            yield block
        block = []
        yield from late_blocks(inner, late)
    if block:
        yield block


def unexplained(source: str, cli: bool = False) -> list[int]:
    """Lines of late imports without a reason. A reason is a comment on the line, a comment on or directly above the first line of
    the block, or, for the command line, the sentence in the module's docstring."""
    tree = ast.parse(source)
    if cli and CLI_REASON in " ".join((ast.get_docstring(tree) or "").split()):
        return []
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.type == tokenize.COMMENT]
    # Line -> whether it holds nothing but the comment. Instructions to the linter are no reason.
    comments = {one.start[0]: one.line.lstrip().startswith("#") for one in tokens if "noqa" not in one.string}
    lines = source.splitlines()
    found = []
    for block in late_blocks(tree):
        first = block[0].lineno
        opening = lines[first - 2].lstrip().startswith("if TYPE_CHECKING") and first - 1 in comments
        if first in comments or comments.get(first - 1) or opening:
            continue
        found += [one.lineno for one in block if not {one.lineno, one.end_lineno} & comments.keys()]
    return found


def sources() -> list[Path]:
    """Each file once: lore/eval and lore/data_synth are links to the other two folders."""
    return sorted({path.resolve() for folder in ("lore", "eval", "data_synth") for path in (ROOT / folder).rglob("*.py")})


def test_every_import_inside_a_function_gives_its_reason():
    files = sources()
    names = [path.relative_to(ROOT.resolve()).as_posix() for path in files]
    assert {"lore/run/devices.py", "eval/sections.py", "data_synth/synthesis/facts.py", "lore/cli/doctor.py"} <= set(names)
    assert len(names) == len(set(names)) > 150
    found = [
        f"{name}:{line}"
        for name, path in zip(names, files, strict=True)
        for line in unexplained(path.read_text(encoding="utf-8"), cli=name.startswith("lore/cli/"))
    ]
    assert not found, f"Imports without a reason: {', '.join(found)}. Move them to the top, or say in a comment what they cost."


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import os\n", []),
        ("def f():\n    import os\n", [2]),
        ("def f():\n    import os  # loads slowly\n", []),
        ("def f():\n    import os  # noqa: F401\n", [2]),
        ("def f():\n    # loads slowly\n    import os\n\n    import sys\n", []),
        ("def f():\n    import os  # loads slowly\n    import sys\n", []),
        ("def f():\n    import os\n    import sys  # loads slowly\n", [2]),
        ("def f():\n    x = 1  # one\n    import os\n", [3]),
        ("def f():\n    # loads slowly\n    x = 1\n    import os\n", [4]),
        ("class A:\n    async def f(self):\n        if self:\n            import os\n", [4]),
        ("if TYPE_CHECKING:\n    import os\n", [2]),
        ("if TYPE_CHECKING:  # loads slowly\n    import os\n    import sys\n", []),
        ("try:\n    import os\nexcept ImportError:\n    os = None\n", []),
    ],
)
def test_the_check_finds_imports_without_a_reason(source, lines):
    assert unexplained(source) == lines


def test_the_docstring_of_a_command_module_is_the_reason_for_its_imports():
    late = "def f():\n    import os\n"
    assert unexplained('"""Commands. Imports inside functions\nkeep `lore --help` fast."""\n' + late, cli=True) == []
    assert unexplained('"""Commands. Imports inside functions\nkeep `lore --help` fast."""\n' + late) == [4]
    assert unexplained('"""Commands."""\n' + late, cli=True) == [3]
