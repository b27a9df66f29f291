"""The command line: quick help, dry runs without torch, check over many files, packaging."""

import re
import subprocess
import sys
import time
import tomllib

import pytest
from conftest import ROOT, run_python

from lore.config.grid import is_grid
from lore.run.dependencies import recipes_of

FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
SHIPPED = [one for file in FILES for one in recipes_of(file) if not re.search("-seed[1-9]$", one.name)]
HEAVY = {"torch", "transformers", "datasets", "trl", "pandas", "sklearn"}


def fastest(*arguments: str, runs: int = 5) -> float:
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


def test_help_is_quick_and_lists_the_commands(record_property):
    seconds = fastest("--help")
    record_property("help_seconds", seconds)
    print(f"lore --help: {seconds:.3f} s")
    assert seconds < 0.8  # 0.4 s on an idle machine; busy test machines get twice that
    done, modules = imported("--help")
    for command in ("run", "check", "launch", "data", "world", "export", "doctor", "version"):
        assert f"  {command}" in done.stdout
    assert not modules & (HEAVY | {"numpy", "pyarrow", "PIL", "pydantic"})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_recipe_dry_runs_without_torch(path, runs):
    done, modules = imported("run", path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "every value (defaults included)" in done.stdout
    assert not modules & HEAVY
    assert not runs.exists()


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


def test_check_lists_every_recipe_and_fails_on_any_bad_one(demo, write_recipe):
    good = write_recipe("good.yaml", "stage: demo\nrun: a")
    assert run_python("-m", "lore", "check", good).returncode == 0
    write_recipe("bad.yaml", "stage: demo\nrun: b\ntrain: {lrr: 1, stps: 2}")
    write_recipe("twin.yaml", "stage: demo\nrun: a")
    write_recipe("lonely.yaml", "stage: demo\nrun: c\nneeds: [nowhere.yaml]")
    write_recipe("torn.yml", "stage: [", plain=True)
    done = run_python("-m", "lore", "check", good.parent)
    assert done.returncode == 1
    assert done.stdout.count("ok") == 1
    assert "2 problems" in done.stdout
    for part in ("train.lr", "train.steps", "both write the run folder a", "nowhere.yaml", "valid YAML"):
        assert part in done.stderr
    (good.parent / "rubric.yaml").write_text("name: x\ntiers: []\n")
    (good.parent / ".venv").mkdir()
    (good.parent / ".venv" / "hidden.yaml").write_text("stage: x\n")
    done = run_python("-m", "lore", "check", good.parent)
    assert "2 other YAML files" in done.stdout and "rubric.yaml" not in done.stdout + done.stderr
    empty = good.parent / "empty"
    empty.mkdir()
    assert "no recipe" in run_python("-m", "lore", "check", empty).stderr


def test_shipped_recipes_pass_check():
    if SHIPPED:
        done = run_python("-m", "lore", "check", "recipes")
        assert done.returncode == 0, done.stderr


def test_a_dry_run_says_that_data_is_missing_and_where_it_comes_from(demo, write_recipe, tmp_path):
    body = f"stage: demo\nrun: a\ndata: {{path: {tmp_path / 'none.csv'}, source: crowdflower, rubric: crowdflower}}"
    done = run_python("-m", "lore", "run", write_recipe("a.yaml", body), "--dry-run")
    assert done.returncode == 0 and "none.csv does not exist" in done.stdout and "kaggle.com" in done.stdout
    pairs = f"stage: demo\nrun: b\ndata: {{path: {tmp_path}, rubric: shop}}"
    assert "does not exist" not in run_python("-m", "lore", "run", write_recipe("b.yaml", pairs), "--dry-run").stdout


def test_what_the_system_refuses_is_a_message(tmp_path):
    (tmp_path / "taken").touch()
    done = run_python("-m", "lore", "world", "--out", tmp_path / "taken", "--pairs", "10")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "taken" in done.stderr
    assert "Traceback" in run_python("-m", "lore", "world", "--out", tmp_path / "taken", LORE_DEBUG="1").stderr


@pytest.mark.parametrize("arguments", [["x.yaml", "--fast"], ["train.lr=1"], ["x"], ["none.yaml"]])
def test_arguments_that_are_no_recipe_are_a_message(arguments):
    done = run_python("-m", "lore", "run", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_version():
    import lore

    assert run_python("-m", "lore", "version").stdout.strip() == lore.__version__


def test_the_stages_import_from_any_folder(tmp_path):
    code = "import lore.eval, lore.data_synth, lore.train, lore.engines.engine; print(lore.eval.__file__)"
    for folder in (tmp_path, ROOT):
        done = run_python("-c", code, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(ROOT / "eval" / "__init__.py")


def test_every_package_and_data_file_is_declared():
    """A folder or file that pyproject.toml does not name would be missing from an installed copy."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapping = tool["package-dir"]
    declared = {mapping.get(name, name.replace(".", "/")) for name in tool["packages"]}
    tops = [ROOT / "lore", ROOT / "data_synth", ROOT / "eval"]
    packages = {p.parent.relative_to(ROOT).as_posix() for top in tops for p in top.rglob("__init__.py")}
    assert packages <= declared
    for name in tool["packages"]:
        folder = ROOT / mapping.get(name, name.replace(".", "/"))
        globs = tool["package-data"].get(name, [])
        shipped = {file for pattern in globs for file in folder.glob(pattern)}
        inner = {ROOT / other for other in declared}
        for file in folder.rglob("*"):
            mine = not any(parent in inner - {folder} for parent in file.parents)
            hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
            if file.is_file() and mine and not hidden and file.suffix not in {".py", ".pyc"}:
                assert file in shipped, f"{file.relative_to(ROOT)} is in no package-data pattern"


def test_nothing_speaks_of_the_machine_it_was_written_on():
    words = ["/" + "work/", "/" + "tmp/"]
    files = [ROOT / n for n in ("Makefile", "pyproject.toml", "launch/README.md", "CONTRIBUTING.md", ".ci/run")]
    for file in [*files, *FILES, *(ROOT / "lore").glob("*.py")]:
        text = file.read_text(encoding="utf-8")
        assert not any(word in text for word in words), file
