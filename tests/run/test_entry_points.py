"""Errors of the operating system at every entry point: a message and status 1, never a traceback."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEMO_PATH, ROOT

from lore.run.devices import main_process_checks
from lore.run.runner import run_command
from lore.support.errors import LoreError

BIN = Path(sys.executable).parent
ADVICE = {
    "file": "A file lies where a folder is needed",
    "too long": "longer than the file system allows",
    "circle": "Links point to one another",
    "limit": "larger than the file system or a limit allows",
}


@pytest.fixture
def recipe(demo, write_recipe):
    return write_recipe("a.yaml", "stage: demo\nrun: a")


def broken(kind: str, tmp_path: Path) -> dict[str, str]:
    """An environment in which the run folder cannot be written."""
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("mine")
    elif kind == "circle":
        place.symlink_to(place)
    elif kind == "too long":
        place = tmp_path / ("x" * 300)
    return {"LORE_RUNS": str(place)}


@pytest.mark.parametrize("kind", ["file", "too long", "circle"])
def test_a_run_folder_that_cannot_be_written_is_a_message(recipe, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv("LORE_RUNS", broken(kind, tmp_path)["LORE_RUNS"])
    assert run_command([str(recipe)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and ADVICE[kind] in said and tmp_path.name in said


def start(command: list, environment: dict[str, str], limit: int | None = None, **options) -> subprocess.CompletedProcess:
    def limited():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "PYTHONPATH": DEMO_PATH, "OMP_NUM_THREADS": "1", **environment}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment, text=True, timeout=120, preexec_fn=limited, **streams
    )


def told(done: subprocess.CompletedProcess, advice: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr and advice in done.stderr
    assert f'File "{ROOT}/lore' not in done.stderr, done.stderr


def test_python_recipe_ends_with_a_message(recipe, runs):
    """Reported: a message under `lore run`, a traceback under `python x.yaml`."""
    told(start([sys.executable, recipe], {}, limit=100), ADVICE["limit"])


def test_the_traceback_is_there_when_asked_for(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("LORE_RUNS", broken("file", tmp_path)["LORE_RUNS"])
    monkeypatch.setenv("LORE_DEBUG", "1")
    with pytest.raises(OSError, match="Not a directory|File exists"):
        run_command([str(recipe)])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lore", "-m lore", "python", "lore launch", "accelerate", "accelerate 2", "torchrun", "grid"])
def test_every_launcher_passes_on_the_message(recipe, tmp_path, write_recipe, launcher):
    commands = {
        "lore": [BIN / "lore", "run", recipe],
        "-m lore": [sys.executable, "-m", "lore", "run", recipe],
        "python": [sys.executable, recipe],
        "lore launch": [BIN / "lore", "launch", recipe, "--num-processes", "1"],
        "accelerate": [BIN / "accelerate", "launch", "--num_processes", "1", "--cpu", recipe],
        "accelerate 2": [BIN / "accelerate", "launch", "--config_file", ROOT / "launch/accelerate/cpu2.yaml", recipe],
        "torchrun": [BIN / "torchrun", "--nproc-per-node", "1", recipe],
        "grid": [sys.executable, write_recipe("g.yaml", "grid: g\nruns: {a: {stage: demo}}")],
    }
    told(start(commands[launcher], broken("file", tmp_path)), ADVICE["file"])


@pytest.mark.slow
@pytest.mark.parametrize("command", [["run", "{recipe}", "--dry-run"], ["--help"], ["--version"]])
def test_a_full_disk_behind_stdout_is_a_message(recipe, runs, command):
    with open("/dev/full", "w") as full:
        words = [word.format(recipe=recipe) for word in command]
        done = start([sys.executable, "-m", "lore", *words], {}, stdout=full)
    told(done, "<stdout> takes no more output")
    assert "Exception ignored" not in done.stderr


def test_a_closed_stdout_is_no_error(recipe, runs, tmp_path, monkeypatch):
    """As in `lore run x.yaml >&-`, and under some schedulers."""
    monkeypatch.setattr(sys, "stdout", None)
    assert run_command([str(recipe), "--dry-run"]) == 0
    assert run_command(["no_such.yaml"]) == 1
    monkeypatch.setenv("LORE_RUNS", broken("file", tmp_path)["LORE_RUNS"])
    assert run_command([str(recipe)]) == 1


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error(recipe, runs):
    command = f"{sys.executable} {recipe} --dry-run | true"
    assert start(["bash", "-c", command], {}).stderr == ""


def test_an_error_of_the_main_process_reaches_the_others_as_a_message(tmp_path):
    def check():
        (tmp_path / "a").touch()
        (tmp_path / "a" / "b").mkdir()

    with pytest.raises(LoreError, match="A file lies where a folder is needed") as caught:
        main_process_checks(check)
    assert caught.value.same_on_every_rank
