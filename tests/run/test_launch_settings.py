"""What accelerate's config file and the environment say against the recipe: accepted where model.dtype is auto, refused else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from lore.run.launch_settings import check_optimization, mixed_precision, outside_precision
from lore.support.errors import LoreError

DEFAULT = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "use_cpu": True, "num_processes": 1, "num_machines": 1}
LAUNCHED = [str(Path(sys.executable).parent / "accelerate"), "launch"]
WAYS = {"accelerate launch": LAUNCHED, "python": [sys.executable], "lore run": [sys.executable, "-m", "lore", "run"]}


@pytest.fixture
def start(tiny, runs, tmp_path, write_recipe):
    """start(command, dtype, **environment) trains two steps in a new process, with a default config that asks for bfloat16."""
    config = tmp_path / "home" / "accelerate" / "default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(DEFAULT | {"mixed_precision": "bf16"}))

    def run(way: str, dtype: str, **environment: str) -> subprocess.CompletedProcess:
        body = json.loads(tiny.recipe("t", model="text", lora={}, steps=2, save_every=0))
        body["model"]["dtype"] = dtype
        path = write_recipe("t.yaml", yaml.safe_dump(body))
        where = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*WAYS[way], str(path)],
            cwd=tmp_path,
            env={**os.environ, **where, **environment},
            capture_output=True,
            text=True,
            timeout=200,
        )

    run.config = config
    return run


def test_a_float32_recipe_refuses_the_bfloat16_of_the_default_config(start):
    done = start("accelerate launch", "float32")
    words = " ".join(done.stderr.split())
    assert done.returncode != 0 and 'Traceback (most recent call last):\n  File "' + str(ROOT / "lore") not in done.stderr
    assert f"model.dtype is float32, but {start.config} has mixed_precision: bf16 (ACCELERATE_MIXED_PRECISION=bf16)" in words
    assert "so training would compute in bfloat16. Remove it there" in words and "or set model.dtype: auto to accept it" in words


@pytest.mark.slow
def test_a_recipe_with_dtype_auto_accepts_the_default_config_and_says_so(start):
    done = start("accelerate launch", "auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"computes in bfloat16 ({start.config} has mixed_precision: bf16 (ACCELERATE_MIXED_PRECISION=bf16)); " in done.stdout
    assert " trained in float32, " in done.stdout and "; 1 process on cpu\n" in done.stdout


@pytest.mark.parametrize("way", ["python", pytest.param("lore run", marks=pytest.mark.slow)])
def test_without_a_launcher_the_default_config_decides_nothing(start, way):
    done = start(way, "float32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("computes in float32 (the recipe); ") == 1


@pytest.mark.parametrize("way", [pytest.param("python", marks=pytest.mark.slow), "lore run"])
def test_a_variable_of_the_environment_is_named(start, way):
    done = start(way, "float32", ACCELERATE_MIXED_PRECISION="bf16")
    assert done.returncode == 1
    assert "model.dtype is float32, but the environment has ACCELERATE_MIXED_PRECISION=bf16, so" in done.stderr


PRECISIONS = [
    ("auto", "no", "no", "no"),
    ("auto", "no", "bf16", "bf16"),
    ("auto", "bf16", "fp16", "fp16"),
    ("bfloat16", "bf16", "no", "bf16"),
    ("bfloat16", "bf16", "bf16", "bf16"),
    ("float16", "no", "fp16", "fp16"),
    ("float16", "no", "bf16", None),
    ("bfloat16", "bf16", "fp16", None),
    ("float32", "no", "fp8", None),
]


@pytest.mark.parametrize("dtype, own, asked, decided", PRECISIONS)
def test_the_launcher_decides_only_where_the_recipe_leaves_it_open(monkeypatch, dtype, own, asked, decided):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    if decided is not None:
        assert mixed_precision(dtype, own) == decided
        return
    with pytest.raises(LoreError, match=f"model.dtype is {dtype}, but the environment has ACCELERATE_MIXED_PRECISION={asked}"):
        mixed_precision(dtype, own)


def deepspeed(monkeypatch, tmp_path: Path, content: dict | None, **variables: str) -> str:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(json.dumps(content))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    return str(path)


RECIPE = {"max_grad_norm": 0.5, "micro_batch": 2, "passes": 4, "batch_size": 8}
AUTO = {"gradient_clipping": "auto", "gradient_accumulation_steps": "auto", "train_micro_batch_size_per_gpu": "auto"}
REFUSED = [
    (AUTO | {"optimizer": {"type": "AdamW"}}, "has the section 'optimizer', which would replace the recipe's optimizer"),
    (AUTO | {"scheduler": {"type": "WarmupLR"}}, "has the section 'scheduler'"),
    (AUTO | {"gradient_clipping": 1.0}, "train.max_grad_norm: 0.5 in the recipe, but PATH has gradient_clipping: 1.0"),
    ({"gradient_accumulation_steps": "auto"}, "train.max_grad_norm: 0.5 in the recipe, but PATH has no gradient_clipping"),
    ({"gradient_clipping": "auto"}, "mean 4 forward passes per step and process, but PATH has no gradient_accumulation_steps"),
    (AUTO | {"train_batch_size": 16}, "train.batch_size: 8 in the recipe, but PATH has train_batch_size: 16"),
    (AUTO | {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "torch_autocast.enabled: true"),
]


@pytest.mark.parametrize("content, message", REFUSED, ids=[message[:24] for _, message in REFUSED])
def test_a_deepspeed_file_against_the_recipe_is_refused(monkeypatch, tmp_path, content, message):
    pytest.importorskip("deepspeed")
    path = deepspeed(monkeypatch, tmp_path, content)
    with pytest.raises(LoreError) as error:
        check_optimization(**RECIPE)
    assert message.replace("PATH", path) in str(error.value) and path in str(error.value)


@pytest.mark.parametrize("enabled", [True, 1, "true", "yes", "on"])
def test_whatever_deepspeed_reads_as_enabled_counts(monkeypatch, tmp_path, enabled):
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.precision_config import get_float16_config

    for said, word in ((enabled, "fp16"), (0, None), ("off", None)):
        path = deepspeed(monkeypatch, tmp_path, {"fp16": {"enabled": said}})
        assert get_float16_config({"fp16": {"enabled": said}}).enabled is (word is not None)
        assert outside_precision() == (None if word is None else (word, f"{path} has fp16.enabled: true"))


@pytest.mark.parametrize("content", [[1], "fp16", 3, None])
def test_a_deepspeed_file_that_is_no_object_is_named(monkeypatch, tmp_path, content):
    path = deepspeed(monkeypatch, tmp_path, {})
    (tmp_path / "ds.json").write_text(json.dumps(content))
    with pytest.raises(LoreError, match=f"deepspeed_config_file {path} holds .*where DeepSpeed reads a JSON object"):
        outside_precision()


def test_a_deepspeed_file_that_leaves_the_values_to_the_recipe_is_accepted(monkeypatch, tmp_path):
    pytest.importorskip("deepspeed")
    path = deepspeed(monkeypatch, tmp_path, AUTO | {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}})
    check_optimization(**RECIPE)
    assert mixed_precision("auto", "no") == "bf16"
    with pytest.raises(LoreError, match=f"model.dtype is float32, but {path} has bf16.enabled: true"):
        mixed_precision("float32", "no")


def test_a_launcher_config_against_the_recipe_is_refused(monkeypatch, tmp_path):
    deepspeed(monkeypatch, tmp_path, None, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4", ACCELERATE_GRADIENT_CLIPPING="0.5")
    check_optimization(**RECIPE)
    with pytest.raises(
        LoreError, match="2 forward passes per step and process, but the environment has ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4"
    ):
        check_optimization(**RECIPE | {"passes": 2})
    with pytest.raises(LoreError, match="train.max_grad_norm: 1.0 in the recipe, but .*ACCELERATE_GRADIENT_CLIPPING=0.5"):
        check_optimization(**RECIPE | {"max_grad_norm": 1.0})
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(LoreError, match="trained data parallel"):
        check_optimization(**RECIPE)
