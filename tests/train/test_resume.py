"""A run that is killed with SIGKILL and started again ends with the metrics and the weights of one that was not.

Weights are compared bit by bit: the same machine, the same number of threads, the same order of arithmetic.
"""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import ROOT, needs_deepspeed
from safetensors.torch import load_file

from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.train.common.checkpoint import COMPLETE

# Kills its own process in the middle of writing a checkpoint's optimizer state, with half of the bytes on disk.
DIE_WHILE_SAVING = """
import os, signal, sys, torch
save = torch.save
def half(obj, path, *args, **kwargs):
    save(obj, path, *args, **kwargs)
    if "checkpoint-6" in str(path) and str(path).endswith("optimizer.pt"):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
from lore.run.runner import run_command
sys.exit(run_command([sys.argv[1]]))
"""
# Kills its own process while the oldest checkpoint is being deleted, with some of its files gone.
DIE_WHILE_DELETING = """
import os, pathlib, shutil, signal, sys
remove = shutil.rmtree
def half(path, *args, **kwargs):
    if not pathlib.Path(path).name.startswith("checkpoint-"):
        return remove(path, *args, **kwargs)
    (pathlib.Path(path) / "trainer_state.json").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
shutil.rmtree = half
from lore.run.runner import run_command
sys.exit(run_command([sys.argv[1]]))
"""
DROPOUT = {"dropout": 0.1}  # so that the random state matters


@pytest.fixture
def recipe(tiny, runs, tmp_path):
    """Writes an SFT recipe; called twice with one name it is the same recipe."""

    def write(run: str, **options):
        path = tmp_path / f"{run}.yaml"
        path.write_text(tiny.recipe(run, lora=DROPOUT, **options))
        return path

    return write


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def assert_same(one: RunFolder, other: RunFolder) -> None:
    assert one.metrics_path.read_bytes() == other.metrics_path.read_bytes()
    before, after = weights(one), weights(other)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def kill_at(step: int, folder: RunFolder, command: list, seconds: float = 240) -> None:
    """Starts the command and kills it and all it has started as soon as metrics.jsonl has the step."""
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + seconds
    while f'"step": {step},' not in (folder.metrics_path.read_text() if folder.metrics_path.is_file() else ""):
        if process.poll() is not None or time.time() > deadline:
            process.kill()
            raise AssertionError(f"ended before step {step}: {process.communicate()[1][-3000:]}")
        time.sleep(0.002)
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # a launcher's worker that was quicker to go
    process.communicate()
    psutil.wait_procs(family[1:], timeout=30)
    assert not folder.is_done


@pytest.mark.slow
def test_killed_between_checkpoints_it_goes_on_from_the_last_one(recipe, runs):
    steps = {"steps": 40, "save_every": 4, "log_every": 2}
    whole = run_recipe(recipe("whole", **steps))
    path = recipe("killed", **steps)
    folder = RunFolder(runs / "killed")
    kill_at(10, folder, [sys.executable, "-m", "lore", "run", path])
    assert (folder / "checkpoints").is_dir()
    assert_same(whole, run_recipe(path))


def test_killed_while_a_checkpoint_is_written_it_takes_the_one_before(recipe, runs):
    whole = run_recipe(recipe("whole"))
    path = recipe("killed")
    folder = RunFolder(runs / "killed")
    done = subprocess.run([sys.executable, "-c", DIE_WHILE_SAVING, str(path)], cwd=ROOT, capture_output=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    half = folder / "checkpoints" / "checkpoint-6"
    assert (half / "optimizer.pt").is_file() and not (half / COMPLETE).exists()
    assert folder.metrics()[-1]["step"] == 6
    stamp = (half / "optimizer.pt").stat().st_mtime_ns
    assert_same(whole, run_recipe(path))
    assert (half / COMPLETE).is_file() and (half / "optimizer.pt").stat().st_mtime_ns > stamp


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_killed_while_an_old_checkpoint_is_deleted_it_takes_the_new_one(recipe, runs, keep):
    whole = run_recipe(recipe("whole", keep_checkpoints=keep))
    assert len(list((whole / "checkpoints").glob("checkpoint-*"))) == keep
    path = recipe("killed", keep_checkpoints=keep)
    folder = RunFolder(runs / "killed")
    done = subprocess.run([sys.executable, "-c", DIE_WHILE_DELETING, str(path)], cwd=ROOT, capture_output=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not (folder / "checkpoints" / "checkpoint-2" / COMPLETE).exists()
    assert (folder / "checkpoints" / f"checkpoint-{2 + 2 * keep}" / COMPLETE).is_file()
    assert_same(whole, run_recipe(path))
    assert len(list((folder / "checkpoints").glob("checkpoint-*"))) == keep


def test_killed_after_the_last_step_it_only_writes_the_weights(recipe, runs):
    whole = run_recipe(recipe("whole"))
    path = recipe("killed")
    folder = run_recipe(path)
    folder.close()
    folder.done_path.unlink()
    (folder / "model" / "adapter_model.safetensors").unlink()
    assert_same(whole, run_recipe(path))


def test_without_checkpoints_it_starts_over(recipe, runs):
    options = {"steps": 4, "save_every": 0}
    whole = run_recipe(recipe("whole", **options))
    path = recipe("killed", **options)
    folder = RunFolder(runs / "killed")
    folder.path.mkdir(parents=True)
    run_recipe(path)
    folder.close()
    folder.done_path.unlink()
    folder.record({"step": 9, "loss": 1.0})
    assert_same(whole, run_recipe(path))


def test_keeping_one_checkpoint_and_a_full_model(tiny, runs, tmp_path):
    folders = []
    for run in ("whole", "killed"):
        path = tmp_path / f"{run}.yaml"
        path.write_text(tiny.recipe(run, model="text", keep_checkpoints=1, gradient_checkpointing=True))
        folders.append(run_recipe(path))
    folders[1].close()
    folders[1].done_path.unlink()
    assert [p.name for p in (folders[1] / "checkpoints").glob("checkpoint-*")] == ["checkpoint-8"]
    again = run_recipe(path)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (folders[0], again))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("config", [pytest.param("cpu2", marks=pytest.mark.long), pytest.param("zero2", marks=pytest.mark.slow)])
def test_two_processes_killed_and_started_again(recipe, runs, config):
    if config == "zero2":
        needs_deepspeed()
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += ["--config_file", ROOT / "launch" / "accelerate" / f"{config}.yaml", "-m", "lore", "run"]
    steps = {"steps": 30, "save_every": 4, "log_every": 2}
    whole = recipe("whole", **steps)
    done = subprocess.run([*map(str, launcher), str(whole)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    path = recipe("killed", **steps)
    folder = RunFolder(runs / "killed")
    kill_at(10, folder, [*launcher, path])
    again = subprocess.run([*map(str, launcher), str(path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same(RunFolder(runs / "whole"), folder)
