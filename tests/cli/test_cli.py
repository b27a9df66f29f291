"""The command line: quick help, dry runs without torch, check over many files, packaging.

Commands run in this process, where only their output counts: an interpreter each would take most of the time of these tests.
"""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import setuptools
import typer
from conftest import ROOT, run_python

from lore.cli.main import app
from lore.config.grid import is_grid
from lore.run.dependencies import recipes_of

FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
SHIPPED = [one for file in FILES for one in recipes_of(file) if not re.search("-seed[1-9]$", one.name)]
HEAVY = {"torch", "transformers", "datasets", "trl", "pandas", "sklearn"}


def fastest(*arguments: str, runs: int = 3) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "lore", *arguments], capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
    return min(times)


def imported(*arguments: object) -> tuple[subprocess.CompletedProcess, set[str]]:
    done = run_python("-X", "importtime", "-m", "lore", *arguments)
    return done, {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def groups() -> dict[tuple[str, ...], list[str]]:
    """Every group of commands, by its words behind `lore`, and the names of its commands."""
    found, waiting = {}, [((), typer.main.get_command(app))]
    for words, command in waiting:
        found[words] = [name for name, inner in command.commands.items() if not inner.hidden]
        waiting += [((*words, name), inner) for name, inner in command.commands.items() if hasattr(inner, "commands")]
    return found


def test_help_is_quick_and_lists_the_commands(record_property):
    seconds = fastest("--help")
    record_property("help_seconds", seconds)
    print(f"lore --help: {seconds:.3f} s")
    assert seconds < 0.8  # 0.4 s on an idle machine; busy test machines get twice that
    done, modules = imported("--help")
    for command in ("run", "check", "launch", "data", "world", "export", "doctor", "version"):
        assert f"  {command}" in done.stdout
    assert not modules & (HEAVY | {"numpy", "pyarrow", "PIL", "pydantic"})


@pytest.mark.parametrize("width", ["80", "100"])
def test_no_summary_of_a_command_is_cut_short(lore, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    for words, names in groups().items():
        done = lore(*words, "--help")
        assert done.returncode == 0
        _, _, commands = done.stdout.partition("Commands:\n")
        summaries = dict(line.split(maxsplit=1) for line in commands.splitlines())
        assert list(summaries) == names
        assert not [name for name, summary in summaries.items() if summary.rstrip().endswith(("...", "…"))]


def test_the_two_checks_are_told_apart(lore):
    for words, own, other in (((), "Check recipes", "`lore data check`"), (("data",), "Check a pairs file", "`lore check`")):
        assert own in lore(*words, "--help").stdout
        text = lore(*words, "check", "--help").stdout
        assert own in text and other in text


DRY_RUNS = """
import contextlib, io, json, sys
known, reports = set(), {}
for path in list(sys.argv[1:]):
    sys.argv = ["lore", "run", path, "--dry-run"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        from lore.cli.main import main
        try:
            main()
        except SystemExit as done:
            status = done.code
    reports[path] = {"status": status, "out": out.getvalue(), "err": err.getvalue(), "imports": sorted(set(sys.modules) - known)}
    known |= set(sys.modules)
print(json.dumps(reports))
"""


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory):
    """A dry run of every shipped recipe in one interpreter: status, output, and what the recipe was the first to import."""
    folder = tmp_path_factory.mktemp("dry") / "runs"
    done = run_python("-c", DRY_RUNS, *SHIPPED, LORE_RUNS=str(folder), timeout=300)
    assert done.returncode == 0, done.stderr
    assert not folder.exists()
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_recipe_dry_runs_without_torch(path, dry_runs):
    done = dry_runs[str(path)]
    assert done["status"] == 0, done["err"]
    assert "every value (defaults included)" in done["out"]
    assert not set(done["imports"]) & HEAVY


@pytest.mark.parametrize("path", [file for file in FILES if is_grid(file)], ids=lambda p: p.stem)
def test_every_shipped_grid_dry_runs_without_torch(path, runs):
    done, modules = imported("run", path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "runs, in this order" in done.stdout
    assert not modules & HEAVY
    assert not runs.exists()


@pytest.mark.skipif(not SHIPPED, reason="no recipes")
def test_a_dry_run_is_quick(runs):
    seconds = fastest("run", str(SHIPPED[-1]), "--dry-run")
    print(f"lore run {SHIPPED[-1].name} --dry-run: {seconds:.3f} s")
    assert seconds < 2  # 1 s on an idle machine


def test_check_lists_every_recipe_and_fails_on_any_bad_one(lore, demo, write_recipe):
    good = write_recipe("good.yaml", "stage: demo\nrun: a")
    assert lore("check", good).returncode == 0
    assert lore("check", good, good.parent, good).stdout.count("ok") == 1  # the same file, named three times
    write_recipe("bad.yaml", "stage: demo\nrun: b\ntrain: {lrr: 1, stps: 2}")
    write_recipe("twin.yaml", "stage: demo\nrun: a")
    write_recipe("lonely.yaml", "stage: demo\nrun: c\nneeds: [nowhere.yaml]")
    write_recipe("torn.yml", "stage: [", plain=True)
    done = lore("check", good.parent)
    assert done.returncode == 1
    assert done.stdout.count("ok") == 1
    assert "2 problems" in done.stdout
    for part in ("train.lr", "train.steps", "both write the run folder a", "nowhere.yaml", "valid YAML"):
        assert part in done.stderr
    (good.parent / "rubric.yaml").write_text("name: x\ntiers: []\n")
    (good.parent / ".venv").mkdir()
    (good.parent / ".venv" / "hidden.yaml").write_text("stage: x\n")
    done = lore("check", good.parent)
    assert "2 other YAML files" in done.stdout and "rubric.yaml" not in done.stdout + done.stderr
    empty = good.parent / "empty"
    empty.mkdir()
    assert "no recipe" in lore("check", empty).stderr


def test_check_refuses_an_override_without_its_value(tmp_path):
    from lore.run.runner import check_recipes
    from lore.support.errors import LoreError

    with pytest.raises(LoreError, match=r"takes recipes and folders, not an override(.|\n)*--dry-run") as refused:
        check_recipes([tmp_path, Path("judges.j.endpoint.api_key=hunter2")])
    assert "hunter2" not in str(refused.value) and "judges.j.endpoint.api_key=..." in str(refused.value)


def test_shipped_recipes_pass_check(lore, monkeypatch):
    monkeypatch.chdir(ROOT)
    if SHIPPED:
        done = lore("check", "recipes")
        assert done.returncode == 0, done.stderr


def test_a_dry_run_says_that_data_is_missing_and_where_it_comes_from(lore, demo, write_recipe, tmp_path):
    body = f"stage: demo\nrun: a\ndata: {{path: {tmp_path / 'none.csv'}, source: crowdflower, rubric: crowdflower}}"
    done = lore("run", write_recipe("a.yaml", body), "--dry-run")
    assert done.returncode == 0 and "none.csv does not exist" in done.stdout and "kaggle.com" in done.stdout
    pairs = f"stage: demo\nrun: b\ndata: {{path: {tmp_path}, rubric: shop}}"
    assert "does not exist" not in lore("run", write_recipe("b.yaml", pairs), "--dry-run").stdout


def test_what_the_system_refuses_is_a_message(lore, tmp_path):
    (tmp_path / "taken").touch()
    done = lore("world", "--out", tmp_path / "taken", "--pairs", "10")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "taken" in done.stderr
    assert "Traceback" in run_python("-m", "lore", "world", "--out", tmp_path / "taken", LORE_DEBUG="1").stderr


@pytest.mark.parametrize("arguments", [["x.yaml", "--fast"], ["train.lr=1"], ["x"], ["none.yaml"]])
def test_arguments_that_are_no_recipe_are_a_message(lore, arguments):
    done = lore("run", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_version(lore):
    from lore import __version__

    for words in ("version", "--version"):
        assert lore(words).stdout.strip() == __version__


def test_draw_names_the_command_that_it_has_become(lore):
    for arguments in (["log.csv", "--queries", 40, "-o", "rated.csv"], ["--help"], []):
        done = lore("draw", *arguments)
        assert done.returncode == 1 and "`lore goodrate sample`" in done.stderr


@pytest.mark.parametrize("arguments", [["log.csv"], ["-o", "x.json", "log.csv"], ["estimate", "log.csv"]])
def test_goodrate_estimates_by_default(lore, arguments):
    done = lore("goodrate", *arguments)
    assert done.returncode == 2 and "lore goodrate estimate" in done.stderr and "--verdicts" in done.stderr


def test_a_misspelled_command_of_goodrate_is_not_taken_for_a_log(lore):
    done = lore("goodrate", "smaple", "log.csv")
    assert done.returncode == 2 and "'sample'" in done.stderr


def test_the_stages_import_from_any_folder(tmp_path):
    code = "import lore.eval, lore.data_synth, lore.train, lore.engines.engine; print(lore.eval.__file__)"
    for folder in (tmp_path, ROOT):
        done = run_python("-c", code, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).resolve() == ROOT / "eval" / "__init__.py"


def test_every_package_and_data_file_is_declared(monkeypatch):
    """A folder or file that pyproject.toml does not name would be missing from an installed copy."""
    monkeypatch.chdir(ROOT)
    tool = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]
    assert tool["packages"]["find"].pop("namespaces") is False
    build = setuptools.Distribution(
        {
            "script_name": "setup.py",
            "packages": setuptools.find_packages(**tool["packages"]["find"]),
            "package_data": {"" if name == "*" else name: globs for name, globs in tool["package-data"].items()},
            "include_package_data": False,
        }
    ).get_command_obj("build_py")
    build.ensure_finalized()
    installed = {os.path.normpath(file) for _, _, file in build.find_all_modules()}
    installed |= {os.path.normpath(os.path.join(folder, file)) for _, folder, _, files in build.data_files for file in files}
    # os.walk follows the links that put eval/, data_synth/, recipes/ and launch/accelerate/ into the package.
    tree = {
        os.path.join(folder, file)
        for folder, _, files in os.walk("lore", followlinks=True)
        for file in files
        if not any(part.startswith((".", "__pycache__")) for part in Path(folder, file).parts)
    }
    assert len(tree) > 200 and {"lore/eval/__init__.py", "lore/launch_configs/zero3.yaml"} <= tree
    assert tree == installed
    linked = {"eval": "eval", "data_synth": "data_synth", "recipes": "recipes", "launch/accelerate": "launch_configs"}
    for top, inside in ((top, f"lore/{inside}") for top, inside in linked.items()):
        assert Path(inside).is_symlink() and Path(inside).resolve() == ROOT / top


def test_nothing_speaks_of_the_machine_it_was_written_on():
    words = ["/" + "work/", "/" + "tmp/"]
    files = [ROOT / n for n in ("Makefile", "pyproject.toml", "launch/README.md", "CONTRIBUTING.md", ".ci/run")]
    code = [file for top in ("lore", "eval", "data_synth") for file in (ROOT / top).rglob("*.py")]
    assert len(code) > 200
    for file in [*files, *FILES, *code]:
        text = file.read_text(encoding="utf-8")
        assert not any(word in text for word in words), file
