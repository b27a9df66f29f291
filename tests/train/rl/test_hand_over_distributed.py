"""The hand-over to vLLM in two processes: merged copies of sharded weights, and frozen weights that stay bit-identical."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, needs_deepspeed

pytest.importorskip("vllm", reason="TRL imports its side of vLLM only where vllm is installed")

CONFIGS = {
    "cpu2": "2 processes on cpu\n",
    "zero2": "2 processes on cpu, DeepSpeed ZeRO-2\n",
    "zero3": "2 processes on cpu, DeepSpeed ZeRO-3\n",
    "fsdp2": "2 processes on cpu, FSDP 2\n",
}


@pytest.mark.parametrize(
    "config", [pytest.param(one, marks=pytest.mark.slow if one == "fsdp2" else pytest.mark.long) for one in CONFIGS]
)
def test_sharded_weights_reach_the_sampler_merged_and_stay_as_they_are(tiny, runs, tmp_path, config):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if config.startswith("zero"):
        needs_deepspeed()
        environment["DS_ACCELERATOR"] = "cpu"
    if config == "cpu2":
        environment["ACCELERATE_USE_CPU"] = "true"
    train = {"lr": 1e-2, "micro_batch_size": 4}
    body = json.loads(tiny.align("run", tiny.judge("text"), lora={}, rollout={"engine": "vllm_colocate"}, train=train))
    body["model"]["dtype"] = "bfloat16"
    (tmp_path / "run.yaml").write_text(json.dumps(body, indent=1))
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    command += ["--config_file", f"launch/accelerate/{config}.yaml", "--main_process_port", "0"]
    command += [str(Path(__file__).with_name("hand_over_stand_in.py")), config, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "frozen weights: 21 tensors" in done.stdout and CONFIGS[config] in done.stdout
    moved = [json.loads(found) for found in re.findall(r"^moved (.*)$", done.stdout, re.MULTILINE)]
    assert len(moved) == 2 and moved[0] == moved[1]
    assert moved[0][0] == 0 < moved[0][-1] and len(moved[0]) == 3
