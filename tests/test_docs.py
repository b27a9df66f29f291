"""README and docs are correct: links resolve, named files and tests exist, commands parse and their recipes load."""

import re
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Template

import pytest
import typer
from conftest import ROOT
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lore.cli.main import app
from lore.config.stages import load_recipe

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(p for top in ("docs", "launch") for p in (ROOT / top).rglob("*.md"))]
ROOMS = ("lore", "recipes", "data_synth", "eval", "launch", "tests", "benchmarks", "docs")
PATH = re.compile(rf"(?<![\w./$-])(?:{'|'.join(ROOMS)})/[\w./*-]*[\w/*](?:::(\w+))?")
HEREDOC = r"(?ms)(?:cat > (?P<file>\S+) )?<<'?(?P<end>\w+)'?[^\n]*\n(?P<body>.*?)^(?P=end)$\n?"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def tokens(page: Path) -> list[Token]:
    """The Markdown tokens of a page, including inline tokens."""
    return [inner for token in MarkdownIt().parse(page.read_text(encoding="utf-8")) for inner in [token, *(token.children or [])]]


def slugs(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub makes them."""
    titles = [text.content for head, text in zip(tokens(page), tokens(page)[1:], strict=False) if head.type == "heading_open"]
    return {re.sub(r"[^\w -]", "", title.replace("`", "").lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[list[str]]:
    """The simple commands in the code of a page, with shell variables expanded. Inline code: only `lore` and accelerate."""
    for token in tokens(page):
        if token.type == "code_inline" and re.match(r"(lore|accelerate launch|make|pytest|python) ", token.content):
            words = shlex.split(token.content)
            yield [*words, "--help"] if re.fullmatch("lore( [a-z]+)+", token.content) else words  # a command name without arguments
        if token.type not in ("fence", "code_block"):
            continue
        variables: dict[str, str] = {}
        for line in re.sub(HEREDOC, "\n", token.content).replace("\\\n", " ").splitlines():
            line = Template(line).safe_substitute(variables)
            if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[assigned[1]] = assigned[2]
            elif re.match(r"\s*(time )?(\w+=\S+ )*(lore|accelerate|make|pytest|python) ", line):
                words: list[str] = []
                parts = shlex.shlex(line, posix=True, punctuation_chars=True)
                parts.whitespace_split = True
                for word in [*parts, "&&"]:
                    if word.strip("&|;<>") and word != "time":
                        words.append(word)
                    elif words:
                        yield words
                        words = []


@pytest.fixture
def command_line():
    """Parses `lore` arguments with the parser of the command line. Returns the command words and values and runs nothing."""
    seen = []

    def record(command: object, words: tuple[str, ...]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            record(inner, (*words, name))
        if not hasattr(command, "commands"):
            command.callback = lambda **values: seen.append((words, values))

    def read(arguments: list[str]) -> tuple[tuple[str, ...], dict]:
        root = typer.main.get_command(app)
        record(root, ())
        root.main(arguments, standalone_mode=False)
        return seen.pop() if seen else ((), {})

    return read


@pytest.fixture
def workplace(tmp_path, monkeypatch, runs):
    """A folder with the folders of the project, the files that readers provide, and the files that a page tells them to write."""
    for name in ROOMS:
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "lore/rubric/rubrics/shop.yaml", tmp_path / "my_rubric.yaml")
    monkeypatch.chdir(tmp_path)

    def write(page: Path) -> None:
        for token in tokens(page):
            for written in re.finditer(HEREDOC, token.content):
                if written["file"]:
                    Path(written["file"]).write_text(written["body"])

    return write


@each_page
def test_links_resolve(page):
    targets = [str(token.attrs["href"]) for token in tokens(page) if token.type == "link_open"]
    for target in targets:
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target


@each_page
def test_files_and_tests_that_are_named_exist(page):
    for found in PATH.finditer(page.read_text(encoding="utf-8")):
        name, _, test = found[0].partition("::")
        files = [ROOT / name] if "*" not in name else [*ROOT.glob(name)]
        assert files and files[0].exists(), found[0]
        assert not test or f"def {test}(" in files[0].read_text(), found[0]


@each_page
def test_commands_of_lore_parse_and_their_recipes_load(page, workplace, command_line, lore):
    workplace(page)
    for program, *arguments in commands(page):
        if program != "lore" or "x.yaml" in arguments:  # x.yaml is a placeholder for any recipe
            continue
        arguments = ["1" if argument == "N" else argument for argument in arguments]  # N is a placeholder for any number
        words, values = command_line(arguments)
        if words in (("run",), ("launch",)):
            done = lore(*arguments, "--dry-run")
            assert done.returncode == 0, done.stderr
        elif words == ("check",):
            assert all(path.exists() for path in values["paths"]), arguments
        elif words == ("teacher", "serve"):
            load_recipe(values["recipe"], values["overrides"] or [])


@each_page
def test_commands_of_accelerate_parse_and_their_recipes_load(page, workplace, lore):
    from accelerate.commands.launch import launch_command_parser

    workplace(page)
    for words in commands(page):
        if words[:2] == ["accelerate", "launch"] and len(words) > 2:
            given = launch_command_parser().parse_args(words[2:])
            assert given.config_file is None or Path(given.config_file).is_file(), words
            done = lore("run", given.training_script, *given.training_script_args, "--dry-run")
            assert done.returncode == 0, done.stderr


@each_page
def test_targets_and_scripts_that_are_named_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(page):
        if words[0] == "make":
            for word in words[1:]:
                assert re.search(rf"^{word.partition('=')[0]} *(\?=|:)", makefile, re.MULTILINE), words
        elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            script = (ROOT / words[1]).read_text()
            assert all(f'"{word.partition("=")[0]}"' in script for word in words[2:] if word.startswith("-")), words
        elif words[0] == "pytest":
            assert all((ROOT / word.partition("::")[0]).exists() for word in words[1:] if word.startswith("tests/")), words
            if "-k" in words:
                test = rf"def test_\w*{words[words.index('-k') + 1]}"
                assert any(re.search(test, (ROOT / word).read_text()) for word in words if word.startswith("tests/")), words


def test_the_pages_are_read():
    """Guards against tests above that find no commands."""
    found = [words for page in PAGES for words in commands(page)]
    assert sum(words[0] == "lore" for words in found) > 30
    assert sum(words[:2] == ["accelerate", "launch"] for words in found) > 5
    assert ["lore", "run", "words.yaml", "run=few", "train_limit=1000"] in found
