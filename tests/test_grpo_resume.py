"""GRPO and PPO killed with SIGKILL and started again end as a run that was not: the same prompts, the same metrics."""

import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from lore.folder import RunFolder
from lore.run import run_recipe

# Kills its own process in the middle of the fourth step, past the checkpoint of step 2; writes down the prompts it asks.
RUN = """
import json, os, signal, sys
from lore.train import rollouts
note, kill = rollouts.JudgeRollouts._note, len(sys.argv) > 3
def noted(self, groups, tally):
    with open(sys.argv[2], "a") as file:
        rows = [[group.row, group.given, group.completion_ids] for group in groups]
        print(json.dumps([self.state.global_step, rows]), file=file, flush=True)
    if kill and self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return note(self, groups, tally)
rollouts.JudgeRollouts._note = noted
from lore.run import run_command
sys.exit(run_command([sys.argv[1]]))
"""
ADDITIONS = {"dynamic": {"extra": 0.5}, "guided": {"share": 0.5}, "replay": {"rows": 4}}


def run(recipe, asked, *, kill: bool = False) -> int:
    command = [sys.executable, "-c", RUN, str(recipe), str(asked), *(["kill"] if kill else [])]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300).returncode


@pytest.mark.parametrize(
    "stage, kind",
    [
        pytest.param("grpo", "vision", marks=pytest.mark.slow),
        pytest.param("ppo", "text", marks=pytest.mark.slow),
        pytest.param("grpo", "text", marks=pytest.mark.long),
        pytest.param("ppo", "vision", marks=pytest.mark.long),
    ],
)
def test_killed_in_a_step_it_goes_on_as_the_uninterrupted_run(tiny, runs, tmp_path, stage, kind):
    options = {"stage": stage, "adapter": tiny.adapter(kind), "train": {"steps": 5, "save_every": 2, "lr": 1e-2}}
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
        assert mine == pytest.approx(theirs, abs=1e-4, nan_ok=True)
    assert run_recipe(recipe).summary["steps"] == 5
