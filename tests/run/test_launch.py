"""Launching: the shipped accelerate configs, two real CPU processes, a recipe typed after `accelerate launch`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import DEMO_PATH, ROOT, needs_deepspeed, run_python

from lore.run.devices import check_world, device_arguments, settle_devices
from lore.run.launch import accelerate_arguments, config_names, find_config, split_arguments, take_config
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError

CONFIGS = sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))
SHIPPED = ["cpu2", "ddp", "fsdp2", "zero2", "zero3"]


def accelerate(*arguments: object) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": DEMO_PATH, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def training(demo, write_recipe):
    return write_recipe("t.yaml", "stage: train_demo\nrun: t")


def summary(done: subprocess.CompletedProcess, runs: Path) -> dict:
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(runs / "t").summary


def test_the_shipped_configs_are_found_by_name_and_described():
    assert config_names() == SHIPPED
    text = (ROOT / "launch" / "README.md").read_text()
    for name in SHIPPED:
        assert find_config(name).name == f"{name}.yaml"
        assert f"`{name}`" in text
    with pytest.raises(LoreError, match="nearest: zero2"):
        find_config("zero_2")
    with pytest.raises(LoreError, match="the file does not exist"):
        find_config("mine.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_every_config_and_picks_the_launcher_meant(path, monkeypatch):
    from accelerate.commands import launch

    chosen = []
    monkeypatch.setattr("lore.run.devices.visible_gpus", lambda: 0)
    for name in ("multi_gpu_launcher", "deepspeed_launcher", "simple_launcher"):
        monkeypatch.setattr(launch, name, lambda args, name=name: chosen.append((name, args)))
    arguments = accelerate_arguments("x.yaml", ["train.lr=1"], [], str(path), None)
    launch.launch_command(launch.launch_command_parser().parse_args(arguments))
    ((name, args),) = chosen
    content = yaml.safe_load(path.read_text())
    assert name == ("deepspeed_launcher" if content["distributed_type"] == "DEEPSPEED" else "multi_gpu_launcher")
    assert args.module
    assert args.training_script == "lore"
    assert args.training_script_args == ["run", "x.yaml", "train.lr=1"]
    assert args.num_processes == content["num_processes"]
    if path.stem == "fsdp2":
        assert args.use_fsdp and str(args.fsdp_version) == "2"
    if path.stem.startswith("zero"):
        assert args.zero_stage == int(path.stem[-1])
        assert args.gradient_clipping is None and args.gradient_accumulation_steps is None  # the recipe's values count


def test_options_and_overrides_are_told_apart():
    given = ["--machine_rank", "1", "x.yaml", "train.lr=2", "--main_process_port", "7", "run=b"]
    assert split_arguments(given) == (
        "x.yaml",
        ["train.lr=2", "run=b"],
        ["--machine_rank", "1", "--main_process_port", "7"],
    )
    with pytest.raises(LoreError, match="No recipe"):
        split_arguments(["train.lr=2"])
    arguments = accelerate_arguments("x.yaml", [], [], "ddp", 4)
    assert arguments[-8:] == ["--num_processes", "4", "--main_process_port", "0", "--module", "lore", "run", "x.yaml"]
    assert "--multi_gpu" in accelerate_arguments("x.yaml", [], [], None, 2)


def test_overrides_and_options_stand_anywhere_and_one_recipe_is_started():
    assert split_arguments(["train.lr=2", "--config-file", "c.yaml", "--multi_gpu", "x.yaml", "data.path=a.yaml"]) == (
        "x.yaml",
        ["train.lr=2", "data.path=a.yaml"],
        ["--config-file", "c.yaml", "--multi_gpu"],
    )
    with pytest.raises(LoreError, match=r"one recipe and got 2: x\.yaml, y\.yaml"):
        split_arguments(["x.yaml", "y.yaml"])
    assert take_config(["--a", "--config_file", "c.yaml"], None) == (["--a"], "c.yaml")
    assert take_config(["--config-file=c.yaml", "--a"], None) == (["--a"], "c.yaml")
    assert take_config(["--a"], "ddp") == (["--a"], "ddp")
    with pytest.raises(LoreError, match="Give one config, once"):
        take_config(["--config_file", "c.yaml"], "ddp")


def test_a_free_port_is_taken_on_one_machine_unless_one_is_given(tmp_path):
    def port(options, config="ddp"):
        return "--main_process_port 0" in " ".join(accelerate_arguments("x.yaml", [], options, config, 2))

    assert port([]) and port([], None)
    assert not port(["--main_process_port", "7"]) and not port(["--main_process_port=7"])
    assert not port(["--num_machines", "2", "--machine_rank", "0"])
    (tmp_path / "own.yaml").write_text("num_machines: 1\nmain_process_port: 7\n")
    assert not port([], str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("text", ["- a\n", "a: [1\n", "a: !foo b\n", "\0", "[" * 5000, "red"])
def test_an_accelerate_config_that_is_no_mapping_is_named(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(LoreError, match=r"accelerate config .*own\.yaml"):
        accelerate_arguments("x.yaml", [], [], str(tmp_path / "own.yaml"), None)
    assert "--main_process_port" not in accelerate_arguments("x.yaml", [], [], None, None)


def test_one_process_per_gpu_unless_a_number_is_given(monkeypatch):
    monkeypatch.setattr("lore.run.launch.visible_gpus", lambda: 4)
    assert "--num_processes 4" in " ".join(accelerate_arguments("x.yaml", [], [], "zero2", None))
    assert "--num_processes 3" in " ".join(accelerate_arguments("x.yaml", [], [], "zero2", 3))
    assert "--num_processes" not in accelerate_arguments("x.yaml", [], [], "cpu2", None)
    given = accelerate_arguments("x.yaml", [], ["--num-processes=2"], "zero2", None)
    assert "--num_processes" not in given


def test_a_trainer_that_sees_fewer_processes_than_were_started_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_world(2)
    with pytest.raises(LoreError, match="2 processes were started and the trainer sees 1"):
        check_world(1)


def test_device_arguments_on_a_cpu(monkeypatch):
    monkeypatch.setattr("lore.run.devices.visible_gpus", lambda: 0)
    assert device_arguments() == {"use_cpu": True}
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert device_arguments() == {"ddp_backend": "gloo"}
    monkeypatch.setattr("lore.run.devices.visible_gpus", lambda: 2)
    assert device_arguments() == {}


def test_accelerate_launch_of_a_recipe_typed_exactly_so(training, runs):
    assert summary(accelerate(training), runs)["world"] == 1
    assert "already done" in run_python(training).stdout
    changed = run_python(training, "seed=3")
    assert changed.returncode == 1
    assert "seed: was 0, now 3" in changed.stderr


@pytest.mark.slow  # two processes train twice
def test_two_cpu_processes_train_one_model(training, runs):
    config = ROOT / "launch" / "accelerate" / "cpu2.yaml"
    found = summary(accelerate("--config_file", config, training), runs)
    assert (found["world"], found["kind"]) == (2, "MULTI_CPU")
    (runs / "t").rename(runs / "two")
    one = summary(run_python(training), runs)
    assert one["world"] == 1
    assert one["losses"] == pytest.approx(found["losses"], abs=1e-3)


def test_lore_launch_takes_a_plain_recipe_and_runs_what_it_needs_first(demo, write_recipe, runs):
    write_recipe("base.yaml", "stage: demo\nrun: base", plain=True)
    path = write_recipe("t.yaml", "stage: train_demo\nrun: t\nneeds: [base.yaml]", plain=True)
    shown = run_python("-m", "lore", "launch", path, "--config", "cpu2", "--dry-run")
    assert "accelerate launch --config_file" in shown.stdout
    assert not runs.exists()
    done = run_python("-m", "lore", "launch", path, "--config", "cpu2", "seed=1", timeout=300)
    assert summary(done, runs)["world"] == 2
    assert RunFolder(runs / "base").summary["rank"] is None
    assert yaml.safe_load((runs / "t" / "recipe.yaml").read_text())["seed"] == 1


def test_lore_launch_reports_a_bad_recipe_once_before_any_process_starts(demo, write_recipe):
    path = write_recipe("t.yaml", "stage: train_demo\nrun: t\nsede: 3")
    done = run_python("-m", "lore", "launch", path, "--config", "cpu2")
    assert done.returncode == 1
    assert done.stderr.count("unknown key sede") == 1
    assert "Traceback" not in done.stderr


def test_an_error_in_the_stage_ends_lore_launch_with_a_status_and_no_launcher_traceback(demo, write_recipe, runs):
    path = write_recipe("t.yaml", "stage: demo\nrun: t\nfail: true")
    done = run_python("-m", "lore", "launch", path, "--config", "cpu2", timeout=300)
    assert done.returncode == 1
    assert "the demo was told to fail" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.slow)])
def test_two_cpu_processes_under_deepspeed(training, runs, stage):
    needs_deepspeed()
    config = ROOT / "launch" / "accelerate" / f"zero{stage}.yaml"
    found = summary(accelerate("--config_file", config, "--num_processes", 2, training), runs)
    assert (found["world"], found["kind"]) == (2, "DEEPSPEED")
    (runs / "t").rename(runs / "two")
    assert summary(run_python(training), runs)["losses"] == pytest.approx(found["losses"], abs=1e-3)


def test_the_lock_of_a_killed_build_is_named_before_anybody_waits_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    settle_devices()  # one that is being built now
    assert "lock" not in capsys.readouterr().out
    hours_ago = time.time() - 7200
    os.utime(lock, (hours_ago, hours_ago))
    settle_devices()
    assert f"{lock} is 2.0 h old" in capsys.readouterr().out.replace("\n", " ")
