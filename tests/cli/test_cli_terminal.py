"""What strangers wrote cannot steer the terminal: every command on data, files and folders with hostile names."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, run_python
from evaluations_for_tests import evaluate, made_pairs, right_in, write_pairs
from traces_for_tests import make_trace, write_traces
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data.pair import Pair

EVIL = "\x1b]0;t\x07\x1b[2J[draft]:x:\u202e\r\x9b2J\u2028\u200b[/x]"
EVIL_NAME = "\x1b]0;t\x07\x1b[2J[draft]:x:\u202e\r\x9b2J\u2028[=x]"  # no slash: the name of a file
LINE = "ok\nerror: forged\nPairs: forged"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture
def lore(monkeypatch, capsys):
    """A command in this process: its stdout and stderr, free of control characters."""
    from lore.cli.main import main

    def run(*arguments, code=0, literal=True) -> str:
        monkeypatch.setattr(sys, "argv", ["lore", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        shown = "".join(capsys.readouterr())
        assert (done.value.code or 0) == code, shown
        assert_clean(shown, literal)
        return shown

    return run


def assert_clean(shown: str, literal: bool = True) -> None:
    assert not CONTROL.search(shown), ascii(shown)
    assert "\u274c" not in shown and not any(re.match(r"(error: |Pairs: )?forged", line) for line in shown.splitlines()), shown
    if literal:
        assert "[draft]" in re.sub(r"[\s│┃|]+", "", shown) and ":x:" in re.sub(r"[\s│┃|]+", "", shown), shown


def hostile_pairs(folder) -> list[Pair]:
    return [
        Pair(
            pair_id=f"{EVIL}{n}",
            query=f"{EVIL} {n}",
            title=f"{EVIL} title {n}",
            attributes={EVIL: EVIL},
            description=EVIL,
            label="123"[n % 3],
            split=["train", "test"][n % 2],
            slices=[EVIL, LINE],
            source=EVIL,
        )
        for n in range(6)
    ]


def test_data_commands_on_a_table_of_hostile_names(lore, tmp_path):
    folder = tmp_path / EVIL_NAME
    folder.mkdir()
    table, pairs = folder / f"{EVIL_NAME}.jsonl", folder / f"{EVIL_NAME}.parquet"
    rows = [{"query": f"{EVIL} {n}", f"{EVIL}+": f"title {EVIL} {n}", "label": "123"[n % 3], LINE: EVIL} for n in range(6)]
    rows += [{"query": EVIL, f"{EVIL}+": EVIL, "label": EVIL}, {"query": "", f"{EVIL}+": EVIL, "label": LINE}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = f"query=query,title={EVIL}+,label=label"
    shown = lore("data", "import", "table", table, "--map", columns, "--rubric", "homedepot", "-o", pairs)
    assert "Columns that are not read" in shown and "rows rejected" in shown
    for wrong in (["--map", "query=nope,title=nope"], ["--map", columns, "--rubric", EVIL]):
        lore("data", "import", "table", table, "--rubric", "homedepot", *wrong, "-o", pairs, code=1)
    for command in (["stats"], ["split", "--by", "item"], ["check", "--rubric", EVIL]):
        lore("data", *command, pairs, code=command[0] == "check")
    write_pairs(pairs, hostile_pairs(folder))
    lore("data", "stats", pairs)
    lore("data", "check", pairs, "--rubric", "esci", code=1)
    lore("data", "split", pairs, "--fractions", EVIL, code=1)
    lore("data", "stats", tmp_path / EVIL_NAME / "none.parquet", code=1)
    for command in (["stats"], ["check"], ["split", "--replace"]):
        lore("data", *command, pairs, "--json", literal=False)


def test_commands_on_runs_with_hostile_names(lore, tmp_path, runs):
    folder = tmp_path / EVIL_NAME
    folder.mkdir()
    pairs = made_pairs(queries=6)
    for pair in pairs:
        pair.query, pair.title, pair.slices = f"{pair.query} {EVIL}", f"{pair.title} {EVIL}", [EVIL]
    data = write_pairs(folder / "pairs.parquet", pairs)
    judges = {"a": right_in(0.9, 1), "b": right_in(0.5, 2)}
    run = evaluate(data, folder, "made", judges, pairs, metrics={"bootstrap_samples": 100})
    lore("run", folder / "made.yaml", "--dry-run")
    lore("check", folder / "made.yaml")
    lore("compare", f"{run}:a", f"{run}:b", "--examples", 1)
    board = lore("leaderboard", run, folder)
    assert "skipped" in board
    page = (run / "report.html").read_text()
    assert "\u202e" not in page and "\x1b" not in page
    write_traces(
        folder / "traced",
        [[make_trace(0, query=EVIL, title=LINE, slices=[EVIL], facts=[EVIL]), make_trace(1, failed={"grounding": EVIL})]],
    )
    lore("traces", "show", folder / "traced", "--no-pager")
    lore("traces", "summary", folder / "traced")
    lore("traces", "show", folder / "traced", "--slice", EVIL + "?", code=1)
    lore("traces", "show", folder / "none", code=1)


def test_goodrate_on_a_log_of_hostile_names(lore, tmp_path):
    folder = tmp_path / EVIL_NAME
    folder.mkdir()
    ids = [f"{EVIL}{n}" for n in range(8)]
    rows = [{"query": one, "pair_id": one, "page_id": one, "position": 1, "system": one} for one in ids]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdicts = [{"pair_id": row["pair_id"], "tier": "123"[n % 3]} for n, row in enumerate(rows)]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verdicts))
    told = ["--verdicts", folder / "verdicts.jsonl", "--rubric", "homedepot"]
    lore("goodrate", folder / "log.jsonl", *told, "-o", folder / "out.json")
    lore("goodrate", "sample", folder / "log.jsonl", "--pairs", 3, "-o", folder / "rated.csv")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", EVIL],
        ["run", f"{EVIL_NAME}.yaml", "--dry-run"],
        ["run", LINE],
        ["run", "recipes/evaluate.yaml", f"{LINE}=3", "--dry-run"],
        ["run", "recipes/evaluate.yaml", f"data.path={EVIL}{LINE}", f"nope={EVIL}", "--dry-run"],
        ["run", f"--{EVIL}"],
        [f"{EVIL}{LINE}"],
        ["data", "split", "x", "--seed", f"{EVIL}{LINE}"],
        ["world", "--size", f"{EVIL}{LINE}"],
        ["teacher", "serve", f"{EVIL}{LINE}.yaml"],
        ["compare", f"{EVIL}{LINE}", "b"],
    ],
    ids=str,
)
def test_errors_quote_arguments_without_obeying_them(arguments):
    """typer's CliRunner in place of a terminal: typer's own errors echo the argument too."""
    from lore.run.runner import report_error
    from lore.support.errors import LoreError

    result = CliRunner().invoke(app, [*map(str, arguments)])
    shown = result.output
    assert result.exit_code
    if isinstance(result.exception, LoreError):
        with CliRunner().isolation() as (_, stderr, _):
            report_error(result.exception)
            shown += stderr.getvalue().decode()
    assert shown
    assert_clean(shown, literal=False)


def test_ascii_streams_and_closed_pipes_are_no_error(tmp_path):
    pairs = write_pairs(tmp_path / "[draft] \u00e9\u2764.parquet", hostile_pairs(tmp_path))
    script = "import sys; sys.argv = ['lore', 'data', 'stats', sys.argv[1]]; from lore.cli.main import main; main()"
    done = run_python("-c", script, pairs, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "[draft] \\xe9\\u2764.parquet" in done.stdout
    assert_clean(done.stdout + done.stderr)
    folder = tmp_path / "odd"
    folder.mkdir()
    raw = folder / os.fsdecode(b"caf\xe9.parquet")  # a name that is not UTF-8
    shutil.copy(pairs, raw)
    done = run_python("-c", script, raw, PYTHONIOENCODING="cp1252")
    assert done.returncode == 1 and done.stderr.startswith("error: An argument holds bytes that are not UTF-8"), done
    assert "/caf?.parquet" in done.stderr
    assert_clean(done.stdout + done.stderr, literal=False)
    assert run_python("-c", script, folder, PYTHONIOENCODING="cp1252").returncode == 0  # found in a folder, it is read
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script, pairs], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert done.returncode == 1 and "Error" not in done.stderr and "Exception" not in done.stderr


WRITERS = {"print", "echo", "secho", "rprint", "pprint"}
RICH = {"Console", "Table", "Text", "Progress", "TextColumn", "print", "escape"}


def test_only_two_modules_write_to_the_terminal():
    allowed = {"lore/support/terminal.py", "lore/support/console.py"}
    found = []
    for folder in ("lore", "eval", "data_synth"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name in allowed or name.startswith(("lore/eval/", "lore/data_synth/")):
                continue
            source = path.read_text(encoding="utf-8")
            if not re.search(r"\b(print|echo|secho|rprint|pprint|rich|std(out|err))\b", source):
                continue
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
                    raw = {alias.name for alias in node.names} & RICH
                elif isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    direct = called in WRITERS or re.fullmatch(r"(typer|click|rich)\.(echo|secho|print|style)", called)
                    raw = {called} if direct or re.match(r"sys\.(__)?(stdout|stderr)(__)?\.(write|reconfigure)", called) else set()
                else:
                    raw = set()
                found += [f"{name}:{node.lineno} {what}" for what in raw]
    assert not found, f"Text for people goes through lore.support.terminal or lore.support.console: {found}"


def test_a_line_end_inside_a_name_begins_no_line(lore, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text('"q\nerror: forged\nforged",title\na,b\n')
    options = ["--map", "query=query,title=title", "--rubric", "homedepot", "-o", tmp_path / "x.parquet"]
    shown = lore("data", "import", "table", table, *options, code=1, literal=False)
    assert "Found: q error: forged forged, title." in shown
    shown = lore("data", "stats", tmp_path / "a\nerror: forged", code=1, literal=False)
    assert [line[:6] for line in shown.splitlines() if "forged" in line] == ["  erro"]
