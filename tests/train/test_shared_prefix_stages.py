"""Every stage that shares prefixes trains as it does on whole rows: one process and two, interrupted or not."""

import sys

import pytest
import torch
from conftest import ROOT, needs_deepspeed
from safetensors.torch import load_file
from test_distributed import launch, launch_script
from test_resume import assert_same, kill_at

from lore.config.stages import load_recipe
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.common import shared_prefix
from lore.train.common.shared_prefix import lay_out

TIERS = {"photo": False, "detail": "tiers", "max_prompt_tokens": 800}  # a rubric that is worth sharing
SFT = {"model": "text", "steps": 3, "save_every": 0, "prompt": TIERS}


@pytest.fixture
def laid(monkeypatch):
    """(tokens of the rows, tokens of their layout) for each batch that is laid out; before those of training are those of the
    check and, in sft, those that count memory."""
    seen = []

    def counted(rows, photo=None):
        layout = lay_out(rows, photo)
        seen.append((sum(map(len, rows)), len(layout.ids) if layout else None))
        return layout

    monkeypatch.setattr(shared_prefix, "lay_out", counted)
    return seen


def losses(folder: RunFolder) -> list[float]:
    return [line["loss"] for line in folder.metrics()]


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "model").glob("*.safetensors")))


def test_sft_has_the_losses_of_whole_rows(train, laid):
    whole = train("whole", lora={}, shared_prefix=False, **SFT)
    assert not laid
    shared = train("shared", lora={}, shared_prefix=True, **SFT)
    assert losses(shared) == pytest.approx(losses(whole), abs=1e-5)
    assert len(laid) > SFT["steps"] and all(tokens < 0.7 * rows for rows, tokens in laid[-SFT["steps"] :])


@pytest.mark.parametrize("options", [{"packing": True}, {"padding_free": True}])
def test_packed_rows_have_no_prefix_to_share(train, laid, options):
    with pytest.raises(LoreError, match="train.shared_prefix"):
        train("packed", lora={}, shared_prefix=True, **options, **SFT)


def test_a_stage_that_computes_every_row_whole_says_so():
    with pytest.raises(LoreError, match="train.shared_prefix(.|\n)*only stages sft, dpo, kto, grpo and ppo"):
        load_recipe(ROOT / "recipes" / "quickstart" / "pretrain.yaml", ["train.shared_prefix=true"])


@pytest.mark.slow
@pytest.mark.parametrize("photo", [False, True])
def test_a_vision_model_shares_the_rubric_and_photos_stay_with_their_rows(train, laid, photo):
    options = SFT | {"model": "vision", "gradient_checkpointing": True, "prompt": TIERS | {"photo": photo}}
    whole, shared = (train(f"run{asked}", shared_prefix=asked, **options) for asked in (False, True))
    assert losses(shared) == pytest.approx(losses(whole), abs=1e-4)
    assert len(laid) > SFT["steps"] and all(tokens < 0.8 * rows for rows, tokens in laid[-SFT["steps"] :])


@pytest.mark.slow
@pytest.mark.parametrize("config, lora", [("cpu2", {"dora": True}), ("zero2", {}), ("fsdp2", {}), ("fsdp2", None)])
def test_two_processes_of_which_one_finds_no_prefix_have_the_losses_of_one_on_whole_rows(tiny, runs, tmp_path, config, lora):
    if config.startswith("zero"):
        needs_deepspeed()
    options = {"model": "text", "lora": lora, "steps": 4, "micro_batch_size": 2, "save_every": 0, "prompt": TIERS}
    options |= {"lr": 3e-3, "gradient_checkpointing": True}
    path = tmp_path / "sft.yaml"
    path.write_text(tiny.recipe("sft", shared_prefix=False, **options))
    one = run_recipe(path)
    path.write_text(tiny.recipe("two", shared_prefix=True, **options))
    done, two = launch_script(config, "prefixes_on_one_rank.py", path), RunFolder(runs / "two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [done.stdout.count(line) for line in ("rank 0: shared", "rank 1: shared", "rank 1: alone")] == [8, 4, 4]
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    expected, found = weights(one), weights(two)
    assert max((expected[name] - found[name]).abs().max().item() for name in expected) < 1e-4


@pytest.mark.slow
def test_two_processes_with_weights_shared_out_have_the_losses_of_one_on_whole_rows(tiny, runs, tmp_path):
    needs_deepspeed()
    path, options = tmp_path / "sft.yaml", SFT | {"lora": {}, "micro_batch_size": 4, "gradient_checkpointing": True}
    path.write_text(tiny.recipe("sft", shared_prefix=False, **options))
    one = losses(run_recipe(path))
    path.write_text(tiny.recipe("two", shared_prefix=True, **options))
    done = launch("zero3", path, "--num-processes", "2")
    assert done.returncode == 0 and "is computed once" in done.stdout, done.stdout + done.stderr
    assert losses(RunFolder(runs / "two")) == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
def test_killed_with_shared_prefixes_it_ends_with_the_weights_of_a_run_that_was_not(tiny, runs, tmp_path):
    folders = []
    for name in ("whole", "killed"):
        path = tmp_path / f"{name}.yaml"
        options = SFT | {"lora": {}, "shared_prefix": True, "micro_batch_size": 4, "steps": 30, "save_every": 4, "log_every": 2}
        path.write_text(tiny.recipe(name, **options))
        if name == "killed":
            kill_at(10, RunFolder(runs / name), [sys.executable, "-m", "lore", "run", path])
        folders.append(run_recipe(path))
    assert_same(*folders)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(train):
    options = SFT | {"lora": {"dropout": 0.1}, "shared_prefix": True, "steps": 4, "save_every": 2}
    whole = train("whole", **options)
    again = train("again", **options)
    again.close()
    again.done_path.unlink()
    (again / "checkpoints" / "checkpoint-4" / "complete").unlink()
    again = train("again", **options)
    assert losses(whole) == losses(again)
    expected, found = weights(whole), weights(again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("kl", [0.0, 0.05])
def test_grpo_has_the_losses_of_whole_rows(tiny, runs, tmp_path, laid, kl):
    tiny.judge("text")
    laid.clear()  # of the judge's own training
    found = []
    for shared in (False, True):
        path = tmp_path / f"grpo{shared}.yaml"
        train = {"shared_prefix": shared, "micro_batch_size": 4, "lr": 1e-5}
        path.write_text(tiny.align(f"grpo{shared}", tiny.judge("text"), train=train, grpo={"kl": kl}))
        found.append([(line["loss"], line["grad_norm"]) for line in run_recipe(path).metrics() if "loss" in line])
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    assert laid and all(tokens < 0.6 * rows for rows, tokens in laid[2:])
