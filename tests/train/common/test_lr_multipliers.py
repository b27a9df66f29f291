"""train.freeze and train.lr_factors: weights of a trained adapter that further training leaves alone, or moves faster."""

import json

import pytest
from safetensors.torch import load_file

from lore.config.stages import load_recipe
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.common.lr_multipliers import scale_rates
from lore.train.rl.grpo import prepare
from lore.train.rl.ppo import prepare as prepare_ppo

STAGES = pytest.mark.parametrize("stage", ["grpo", pytest.param("ppo", marks=pytest.mark.long)])


@pytest.fixture
def adapter(tiny, runs):
    done = tiny.pairs.parent / "adapter-in-full"
    if not done.exists():
        lora = {"rank": 2, "targets": ["q_proj", "v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
        base = {"name": str(tiny.judge("text"))}
        tiny.train_once("adapter-in-full", done, base, model="text", lora=lora, steps=2, lr=1e-3)
    return done


@pytest.fixture
def recipe(tiny, adapter, runs, tmp_path):
    def write(patterns: list[str], stage: str, factors: dict[str, float] | None = None, **model):
        judge, start = tiny.judge("text"), None if model else adapter
        section = {"freeze": patterns, "lr_factors": factors or {}}
        body = json.loads(tiny.align("second", judge, adapter=start, stage=stage, train=section))
        body["model"] |= model
        path = tmp_path / "second.yaml"
        path.write_text(json.dumps(body))
        return path

    return write


@STAGES
def test_frozen_weights_stay_bit_by_bit_and_the_others_learn(recipe, adapter, stage):
    folder = run_recipe(recipe(["embed_tokens", r"lora_[AB]"], stage))
    before, after = (load_file(f"{path}/adapter_model.safetensors") for path in (adapter, folder / "model"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved and all("lm_head" in name for name in moved)


def test_weights_stay_frozen_when_a_reference_has_had_its_pass(recipe):
    """PEFT wants all of an adapter trained when it is switched back to."""
    made = load_recipe(recipe(["embed_tokens"], "grpo"), ["grpo.kl=0.01"])
    folder = RunFolder.of(made)
    folder.open(made)
    _, trainer = prepare(made, folder)
    trainer.train()
    with_gradient = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert with_gradient and not [name for name in with_gradient if "embed_tokens" in name]
    assert {name.split(".")[-2] for name in with_gradient} == {"default"}


@STAGES
def test_with_a_reference_a_run_goes_on_from_its_checkpoint(recipe, adapter, stage):
    """transformers would load the reference's copy of the start."""
    options = [f"{stage}.kl=0.01", "train.steps=2", "train.save_every=2"]
    folder = run_recipe(recipe([], stage), options)
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    assert not (checkpoint / "ref").exists() and not (folder / "model" / "ref").exists()
    made = load_recipe(recipe([], stage), [*options, "run=again"])
    again = RunFolder.of(made)
    again.open(made)
    _, trainer = (prepare if stage == "grpo" else prepare_ppo)(made, again)
    trainer._load_from_checkpoint(str(checkpoint))
    saved = load_file(checkpoint / "adapter_model.safetensors")
    name = next(name for name in saved if "lora_B" in name)
    held = dict(trainer.model.named_parameters())[name.replace(".weight", ".default.weight")]
    assert held.detach().equal(saved[name]) and not saved[name].equal(load_file(adapter / "adapter_model.safetensors")[name])


def test_an_optimizer_that_is_made_twice_is_scaled_once(recipe):
    """As DeepSpeed's integration does."""
    made = load_recipe(recipe([], "grpo", {"lm_head": 8}))
    folder = RunFolder.of(made)
    folder.open(made)
    _, trainer = prepare(made, folder)
    scale_rates(trainer, made.train.lr_factors)
    trainer.create_optimizer()
    trainer.create_optimizer()
    assert sorted(group["lr"] for group in trainer.optimizer.param_groups if group["params"]) == pytest.approx([1e-3, 8e-3])


@pytest.mark.parametrize("patterns, says", [(["emb_tokens"], "matches no trainable weight"), (["."], "freeze every trainable")])
def test_a_pattern_that_finds_nothing_or_everything_is_an_error(recipe, patterns, says):
    with pytest.raises(LoreError, match=says):
        run_recipe(recipe(patterns, "grpo"))


def test_a_new_adapter_says_itself_what_is_trained(recipe):
    with pytest.raises(LoreError, match="train.freeze"):
        load_recipe(recipe(["lm_head"], "grpo", lora={"rank": 2}))


@STAGES
def test_factors_scale_the_steps_of_the_weights_they_name(recipe, adapter, stage):
    """Adam's first step is lr for every weight with a gradient, whatever its size; with a factor it is that many times lr."""
    path = recipe(["embed_tokens"], stage, {"lm_head": 8, "lora_B": 0.25})
    folder = run_recipe(path, ["train.steps=1", "train.lr=1e-4", "train.schedule=constant", "train.warmup=0"])
    before, after = (load_file(f"{path}/adapter_model.safetensors") for path in (adapter, folder / "model"))
    steps = {name: (after[name] - before[name]).abs().max().item() for name in before}
    for part, step in (("embed_tokens", 0), ("lm_head", 8e-4), ("lora_A", 1e-4), ("lora_B", 2.5e-5)):
        largest = max(value for name, value in steps.items() if part in name)
        assert largest == pytest.approx(step, rel=0.02), part


def test_a_factor_for_no_weight_is_an_error(recipe):
    with pytest.raises(LoreError, match="train.lr_factors: 'lm_haed' matches no trained weight"):
        run_recipe(recipe([], "grpo", {"lm_haed": 2}))
    with pytest.raises(LoreError, match="no regular expression"):
        load_recipe(recipe(["*embed*"], "grpo"))
    with pytest.raises(LoreError, match="not above 0"):
        load_recipe(recipe([], "grpo", {"lm_head": 0}))
