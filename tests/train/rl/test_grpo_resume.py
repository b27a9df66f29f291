"""GRPO and PPO killed with SIGKILL and started again end as a run that was not: the same answers, metrics and weights."""

import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from lore.run.run_folder import RunFolder
from lore.train.rl.ppo import HEAD_FILE

# Kills its own process in the middle of the fourth step, past the checkpoint of step 2; writes down the prompts it asks.
RUN = """
import json, os, signal, sys
from lore.train.rl.grpo import GRPO
note, kill = GRPO.log_rollout, len(sys.argv) > 3
def noted(self, groups, tally):
    with open(sys.argv[2], "a") as file:
        rows = [[group.row, group.given, group.completion_ids] for group in groups]
        print(json.dumps([self.state.global_step, rows]), file=file, flush=True)
    if kill and self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return note(self, groups, tally)
GRPO.log_rollout = noted
from lore.run.runner import run_command
sys.exit(run_command([sys.argv[1]]))
"""
ADDITIONS = {"dynamic": {"extra": 0.5}, "guided": {"share": 0.5}, "replay": {"rows": 4}}


def run(recipe, asked, *, kill: bool = False) -> int:
    command = [sys.executable, "-c", RUN, str(recipe), str(asked), *(["kill"] if kill else [])]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600).returncode


@pytest.mark.parametrize(
    "stage, kind, adapter",
    [
        pytest.param("grpo", "vision", True, marks=pytest.mark.slow),
        pytest.param("ppo", "text", True, marks=pytest.mark.slow),
        pytest.param("ppo", "text", False, marks=pytest.mark.long),
        pytest.param("ppo", "vision", True, marks=pytest.mark.long),
    ],
)
def test_killed_in_a_step_it_goes_on_as_the_uninterrupted_run(tiny, runs, tmp_path, stage, kind, adapter):
    options = {"stage": stage, "train": {"steps": 5, "save_every": 2, "lr": 1e-2 if adapter else 1e-3}}
    if adapter:
        options["adapter"] = tiny.adapter(kind)
    options |= ADDITIONS if stage == "grpo" else {"ppo": {"value_lr": 1e-2}, "replay": {"rows": 4}}
    recipe, asked = tmp_path / "killed.yaml", tmp_path / "asked"
    recipe.write_text(tiny.align("killed", tiny.judge(kind), **options))
    assert run(recipe, asked, kill=True) == -signal.SIGKILL
    before = asked.read_text().splitlines()
    assert run(recipe, asked) == 0
    whole, all_asked = tmp_path / "whole.yaml", tmp_path / "all_asked"
    whole.write_text(tiny.align("whole", tiny.judge(kind), **options))
    assert run(whole, all_asked) == 0
    expected = all_asked.read_text().splitlines()
    assert len(expected) == 5 and before == expected[:4]
    assert asked.read_text().splitlines()[4:] == expected[2:]  # from the checkpoint of step 2 on
    killed, uninterrupted = RunFolder(runs / "killed").metrics(), RunFolder(runs / "whole").metrics()
    assert len(killed) == len(uninterrupted) == 5
    for mine, theirs in zip(killed, uninterrupted, strict=True):
        assert mine == pytest.approx(theirs, abs=0, rel=0, nan_ok=True)
    name = "adapter_model.safetensors" if adapter else "model.safetensors"
    one, other = (load_file(runs / run / "model" / name) for run in ("killed", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    if stage == "ppo":
        one, other = (load_file(runs / run / "checkpoints" / "checkpoint-4" / HEAD_FILE) for run in ("killed", "whole"))
        assert one["linear.weight"].any() and all(torch.equal(one[key], other[key]) for key in one)
