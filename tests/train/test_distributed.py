"""One process and two train the same judge: same global batch, same losses. Text and photos, plain and ZeRO-2."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, needs_deepspeed
from safetensors.torch import load_file

from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe

# A check that fails in the main process, the only one that has the weights under FSDP.
CHECK = """
import os, sys, torch
from lore.support.errors import LoreError
from lore.run.devices import close_process_group, leave, main_process_checks
def check():
    assert os.environ["RANK"] == "0"
    raise LoreError("rows see each other")
torch.distributed.init_process_group("gloo", init_method=sys.argv[1], rank=int(os.environ["RANK"]), world_size=2)
main_process_checks(lambda: None)
try:
    main_process_checks(check)
except LoreError as error:
    print(error, flush=True)
close_process_group()
leave(0)
"""
STEPS = {"steps": 20, "batch_size": 8, "save_every": 0}


def launch(config: str, path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lore", "launch", str(path), "--config", config, *options]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def launch_script(config: str, script: str, path) -> subprocess.CompletedProcess:
    """Runs a recipe with a script of tests/ in two CPU processes. FSDP2 needs fsdp_on_cpus.py or a script that imports it."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    command += ["--config_file", f"launch/accelerate/{config}.yaml", "--main_process_port", "0", f"tests/{script}", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if config.startswith("zero"):  # as `lore launch` does; accelerate's FSDP2 refuses CPUs
        environment |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)


def losses(folder: RunFolder) -> list[float]:
    return [line["loss"] for line in folder.metrics()]


def compare(tiny, runs, tmp_path, config: str, **options) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(tiny.recipe("sft", **STEPS | options))
    one = losses(run_recipe(path))
    (runs / "sft").rename(runs / "one")
    done = launch(config, path)
    assert done.returncode == 0, done.stdout + done.stderr
    two = losses(RunFolder(runs / "sft"))
    assert len(one) == len(two) == 20
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-3, list(zip(one, two, strict=True))
    assert one[-1] < one[0] - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_two_cpu_processes_have_the_losses_of_one(tiny, runs, tmp_path, kind):
    compare(tiny, runs, tmp_path, "cpu2", model=kind, lora={})


@pytest.mark.slow
def test_two_processes_pretrain_the_base_model_of_one(tiny, runs, tmp_path):
    size = {"hidden": 32, "layers": 2, "heads": 2, "mlp": 48, "vision_hidden": 16, "vision_layers": 1, "vision_heads": 2}
    body = {"stage": "pretrain", "run": "base", "corpus": [str(tiny.pairs.parent / "corpus.parquet")], "architecture": size}
    # Many micro-batches of two rows have no photo, but every step has one: without one, AdamW leaves the vision tower as it is.
    body |= {"train": {"steps": 6, "batch_size": 32, "micro_batch_size": 2, "lr": 1e-3, "log_every": 1}}
    path = tmp_path / "pretrain.yaml"
    path.write_text(json.dumps(body))
    one = run_recipe(path)
    before, weights = losses(one), load_file(one / "model" / "model.safetensors")
    one.path.rename(runs / "one")
    done = launch("cpu2", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes on cpu" in done.stdout
    assert losses(RunFolder(runs / "base")) == pytest.approx(before, abs=1e-4)
    after = load_file(runs / "base" / "model" / "model.safetensors")
    assert after.keys() == weights.keys()
    assert max(float((after[name] - weights[name]).abs().max()) for name in weights) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 2], ids=["one pass", "two passes"])
def test_two_cpu_processes_under_zero2_have_the_losses_of_one(tiny, runs, tmp_path, passes):
    needs_deepspeed()
    compare(tiny, runs, tmp_path, "zero2", lora={}, micro_batch_size=4 // passes)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {}], ids=["every weight", "lora"])
def test_two_processes_train_a_vision_model_that_is_shown_no_photo(tiny, runs, tmp_path, lora):
    compare(tiny, runs, tmp_path, "cpu2", lora=lora, lr=3e-3, prompt={"photo": False}, gradient_checkpointing=True)


@pytest.mark.parametrize(
    "lora",
    [pytest.param(None, marks=pytest.mark.slow, id="every weight"), pytest.param({}, marks=pytest.mark.long, id="lora")],
)
def test_fsdp2_with_its_shipped_settings_leaves_the_weights_that_one_process_leaves(tiny, runs, tmp_path, lora):
    path = tmp_path / "sft.yaml"
    path.write_text(tiny.recipe("sft", model="text", lora=lora, steps=6))
    one = weights(run_recipe(path))
    (runs / "sft").rename(runs / "one")
    for _ in range(2):  # the second time from the sharded checkpoint of step 4
        done = launch_script("fsdp2", "fsdp_on_cpus.py", path)
        assert done.returncode == 0, done.stdout + done.stderr
        folder = RunFolder(runs / "sft")
        assert (folder / "checkpoints" / "checkpoint-6" / "pytorch_model_fsdp_0").is_dir()
        two = weights(folder)
        assert one.keys() == two.keys()
        assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-3
        folder.done_path.unlink()
        (folder / "checkpoints" / "checkpoint-6" / "complete").unlink()
        shutil.rmtree(folder / "model")


def weights(folder: RunFolder) -> dict:
    return load_file(next((folder / "model").glob("*.safetensors")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 5}, "train.batch_size is 5 and there are 2 processes"),
        ({"max_tokens": 64}, "tokens, train.max_tokens is 64"),
    ],
    ids=["every process", "the main process alone"],
)
def test_an_error_before_the_first_step_ends_both_processes_without_a_traceback(tiny, runs, tmp_path, options, message):
    path = tmp_path / "sft.yaml"
    path.write_text(tiny.recipe("sft", model="text", lora={}, **options))
    done = launch("cpu2", path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_a_check_finds_in_the_main_process_stops_the_others_too(tmp_path):
    command = [sys.executable, "-c", CHECK, f"file://{tmp_path}/meeting"]
    ranks = [
        subprocess.Popen(command, env={**os.environ, "RANK": rank, "WORLD_SIZE": "2"}, stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    assert [process.communicate(timeout=120)[0] for process in ranks] == ["rows see each other\n"] * 2
    assert [process.returncode for process in ranks] == [0, 0]
