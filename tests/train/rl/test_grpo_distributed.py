"""GRPO and PPO on two CPU processes, plain (DDP) and under ZeRO-2: groups stay whole, and rewards are those of one process within
noise."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, needs_deepspeed
from test_distributed import launch

from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe

ADDITIONS = {"dynamic": {"extra": 0.5}, "guided": {"share": 0.5}, "replay": {"rows": 4}}


def rewards(folder: RunFolder) -> np.ndarray:
    return np.array([line["reward"] for line in folder.metrics() if "reward" in line])


@pytest.mark.parametrize(
    "config, stage, kind",
    [
        pytest.param("zero2", "grpo", "text", marks=pytest.mark.slow),
        pytest.param("zero2", "ppo", "text", marks=pytest.mark.long),
        pytest.param("zero2", "grpo", "vision", marks=pytest.mark.long),
        pytest.param("cpu2", "grpo", "vision", marks=pytest.mark.slow),
        pytest.param("cpu2", "ppo", "text", marks=pytest.mark.long),
    ],
)
def test_two_processes_learn_from_whole_groups_as_one_does(tiny, runs, tmp_path, config, stage, kind):
    if config == "zero2":
        needs_deepspeed()
    train = {"steps": 4, "batch_size": 32, "micro_batch_size": 16, "lr": 1e-3}
    options = {"stage": stage, "adapter": tiny.adapter(kind), "train": train, **(ADDITIONS if stage == "grpo" else {})}
    one = []
    for seed in range(3):
        path = tmp_path / f"one{seed}.yaml"
        body = json.loads(tiny.align(f"one{seed}", tiny.judge(kind), **options))
        path.write_text(json.dumps(body | {"seed": seed}, indent=1))
        one.append(rewards(run_recipe(path)).mean())
    path = tmp_path / "two.yaml"
    path.write_text(tiny.align("two", tiny.judge(kind), **options))
    done = launch(config, path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = RunFolder(runs / "two")
    lines = [line for line in folder.metrics() if "reward" in line]
    assert len(lines) == 4
    # Other samples, so other rewards: within the spread that seeds give.
    noise = max(np.std(one, ddof=1), 0.02)
    assert abs(rewards(folder).mean() - np.mean(one)) < 4 * noise, (rewards(folder), one)
    if stage == "ppo":
        assert lines[0]["value/explained"] == pytest.approx(0, abs=1e-6) != lines[-1]["value/explained"]  # beyond the offset


@pytest.mark.slow
def test_each_of_two_processes_holds_whole_groups(tiny, runs, tmp_path):
    """A group's answers are learned from by the process that has sampled them all, and compared with one another alone."""
    needs_deepspeed()
    path = tmp_path / "whole.yaml"
    path.write_text(
        tiny.align("whole", tiny.judge("text"), adapter=tiny.adapter("text"), train={"steps": 2}, dynamic={"extra": 0.5})
    )
    script = tmp_path / "noted.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        "from lore.train.rl.grpo import GRPO\n"
        "finished = GRPO.with_advantages\n"
        "def noted(self, output, groups):\n"
        f"    file = pathlib.Path({str(tmp_path)!r}) / f'rank{{self.accelerator.process_index}}'\n"
        "    held = {'rows': [int(group.row) for group in groups], 'rewards': [group.rewards_G.tolist() for group in groups]}\n"
        "    with open(file, 'a') as out:\n"
        "        print(json.dumps({**held, 'advantages': output['advantages'].tolist()}), file=out)\n"
        "    return finished(self, output, groups)\n"
        "GRPO.with_advantages = noted\n"
        "from lore.run import main\n"
        f"main('__main__', {str(path)!r})\n"
    )
    config = ROOT / "launch" / "accelerate" / "zero2.yaml"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(config),
        "--num_processes",
        "2",
        str(script),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    held = [[json.loads(line) for line in (tmp_path / f"rank{rank}").read_text().splitlines()] for rank in (0, 1)]
    for first, second in zip(*held, strict=True):
        assert len({*first["rows"], *second["rows"]}) == 4
        for one in (first, second):
            rewards = np.array(one["rewards"])
            assert rewards.shape == (2, 4)
            apart = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
            np.testing.assert_allclose(one["advantages"], apart.reshape(-1), atol=1e-4)
    assert np.std([one["advantages"] for lines in held for one in lines]) > 0.1


@pytest.mark.parametrize(
    "config, stage",
    [
        pytest.param("zero2", "grpo", marks=pytest.mark.long),
        pytest.param("zero2", "ppo", marks=pytest.mark.long),
        pytest.param("cpu2", "grpo", marks=pytest.mark.long),
        pytest.param("cpu2", "ppo", marks=pytest.mark.slow),
    ],
)
def test_processes_go_on_together_when_only_one_of_them_is_shown_a_photo(tiny, runs, tmp_path, config, stage):
    """Passes of one group each: often the one process has a photo and the other none."""
    if config == "zero2":
        needs_deepspeed()
    path = tmp_path / f"{stage}.yaml"
    steps = {"steps": 12, "batch_size": 16, "micro_batch_size": 4}
    path.write_text(tiny.align(stage, tiny.judge("vision"), stage=stage, lora={"targets": "all-linear"}, train=steps))
    done = launch(config, path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert [line["step"] for line in RunFolder(runs / stage).metrics()] == list(range(1, 13))
