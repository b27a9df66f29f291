"""Stage ppo on tiny judges: the value learns, the judge's folder knows nothing of it, and warm-up leaves the policy alone."""

import pytest
import torch
from run_names import undeclared
from safetensors.torch import load_file

from lore.config.stages import load_recipe
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.train.rl.length_bucketing import bucket_by_length
from lore.train.rl.ppo import HEAD_FILE, prepare


@pytest.fixture
def written(tiny, runs, tmp_path):
    def write(kind: str, run: str = "ppo", adapter: bool = True, **sections):
        path = tmp_path / f"{run}.yaml"
        given = tiny.adapter(kind) if adapter else None
        path.write_text(tiny.align(run, tiny.judge(kind), stage="ppo", adapter=given, **sections))
        return path

    return write


@pytest.mark.parametrize("kind, adapter", [("text", False), ("vision", True)], ids=["text, every weight", "photos, an adapter"])
def test_the_stage_runs_and_leaves_a_judge_without_the_value_head(written, tiny, kind, adapter):
    folder = run_recipe(written(kind, adapter=adapter, rollout={"updates": 2}, train={"steps": 4, "save_every": 2, "lr": 3e-3}))
    assert undeclared(folder.path) == []
    lines = folder.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"value/mean", "value/return", "value/explained", "reward", "rewards/verdict/mean"} <= lines[0].keys()
    assert all("value/loss" in line for line in lines)
    offset = load_file(folder / "checkpoints" / "checkpoint-2" / HEAD_FILE)["offset"].item()
    assert lines[0]["value/mean"] == pytest.approx(lines[0]["reward"], abs=1e-5) == offset != lines[2]["value/mean"]
    head = load_file(folder / "checkpoints" / "checkpoint-4" / HEAD_FILE)
    assert head["linear.weight"].abs().sum() > 0
    weights = load_file(next((folder / "model").glob("*.safetensors")))
    assert not [name for name in weights if "value" in name]
    if not adapter:
        assert weights.keys() == load_file(tiny.judge(kind) / "model.safetensors").keys()


def test_warm_up_trains_the_value_alone(written):
    folder = run_recipe(written("text", ppo={"value_warmup": 2}, train={"steps": 2, "save_every": 2}))
    start = load_file(load_recipe(written("text")).model.adapter + "/adapter_model.safetensors")
    after = load_file(folder / "model" / "adapter_model.safetensors")
    assert all(line["loss"] == pytest.approx(0.1 * line["value/loss"], abs=1e-5) for line in folder.metrics())
    assert all(torch.equal(start[name], after[name]) for name in start)


def test_the_value_comes_to_expect_what_is_always_paid(written):
    """With a reward that never changes, the value goes to it, even from zero."""
    recipe = load_recipe(
        written("text", ppo={"value_lr": 0.05, "value_clip": 10.0, "gae_lambda": 1.0, "whiten": False}, train={"steps": 30})
    )
    folder = RunFolder.of(recipe)
    folder.open(recipe)
    _, trainer = prepare(recipe, folder)
    trainer.set_offset = lambda totals: torch.zeros(())
    trainer.rewards.totals = lambda parts: torch.full((len(parts),), 0.5).numpy()
    trainer.train()
    lines = [line for line in trainer.state.log_history if "value/mean" in line]
    assert lines[0]["value/return"] == pytest.approx(0.5, abs=0.01)
    assert abs(lines[-1]["value/mean"] - 0.5) < 0.15 < abs(lines[0]["value/mean"] - 0.5)


def test_shorter_passes_have_the_loss_and_the_gradients_of_padded_ones(written, monkeypatch):
    """The value's loss too is a mean over the tokens of the step, whoever shares a pass."""
    recipe = load_recipe(written("text", train={"micro_batch_size": 4}, replay=None))
    folder = RunFolder.of(recipe)
    folder.open(recipe)
    setup, trainer = prepare(recipe, folder)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 4
    torch.nn.init.normal_(trainer.head.linear.weight, std=0.02)
    padded = []
    monkeypatch.setattr(
        "lore.train.rl.grpo.bucket_by_length", lambda passes, *how: padded.extend(passes) or bucket_by_length(passes, *how)
    )
    asked = [{"prompt": "", "row": int(row)} for row in setup.order[0] for _ in range(4)]
    trainer._prepare_inputs(asked)
    found = []
    for passes in (trainer._buffered_inputs, padded):
        trainer.model.zero_grad()
        losses = [trainer._compute_loss(trainer.model, dict(batch)) for batch in passes]
        sum(losses).backward()
        found.append((sum(losses).item(), trainer.head.linear.weight.grad.clone()))
    assert padded[0]["completion_ids"].shape != trainer._buffered_inputs[0]["completion_ids"].shape
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-4)
    assert found[0][1].abs().sum() > 0


def test_values_of_the_pass_that_trl_makes_anyway_are_those_of_a_pass_of_their_own(written):
    """With several updates TRL asks for the old log-probabilities of a batch, and that pass leaves its values."""
    recipe = load_recipe(written("text", rollout={"updates": 2}, train={"steps": 4, "save_every": 2}, ppo={"kl": 0.1}))
    folder = RunFolder.of(recipe)
    folder.open(recipe)
    setup, trainer = prepare(recipe, folder)
    trainer.model.train()
    torch.nn.init.normal_(trainer.head.linear.weight, std=0.1)
    with torch.no_grad():  # away from the reference, which is a copy of the adapter that training starts from
        for name, weight in trainer.model.named_parameters():
            if "lora_B.default" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    asks = []
    score = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *given, **more: asks.append(1) or score(*given, **more)
    trainer.state.global_step = 2  # past the first step, which sets the offset
    output = trainer._generate_and_score_completions([{"prompt": "", "row": int(row)} for row in setup.order[1] for _ in range(4)])
    assert len(asks) == 2  # the policy, then the reference
    both = [torch.cat([output[f"prompt_{part}"], output[f"completion_{part}"]], dim=1) for part in ("ids", "mask")]
    trainer.values_BT = None
    with torch.no_grad():
        score(trainer.model, *both, output["completion_ids"].shape[1], batch_size=16)
    torch.testing.assert_close(output["old_values"], trainer.values_BT, atol=1e-5, rtol=0)
    assert output["old_values"].std() > 1e-3


def test_the_loss_of_two_answers_worked_by_hand(written, monkeypatch):
    """Clipped at ratios of .8 and 1.3, token by token; the second answer is a token shorter."""
    recipe = load_recipe(written("text", ppo={"clip_low": 0.2, "clip_high": 0.3, "value_coef": 0.5}))
    folder = RunFolder.of(recipe)
    folder.open(recipe)
    _, trainer = prepare(recipe, folder)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    ratios = torch.tensor([[1.5, 0.5, 1.1], [0.5, 1.5, 9.0]])
    advantages = torch.tensor([[1.0, 1.0, 0.5], [-2.0, -1.0, 7.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    values = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.0, 5.0]])

    def passed(self, *_, **__):
        self.logps_BT, self.values_BT = ratios.log(), values
        return self.logps_BT, torch.zeros(2, 3), None

    monkeypatch.setattr(type(trainer), "_get_per_token_logps_and_entropies", passed)
    tokens = {"prompt_ids": torch.ones(2, 1, dtype=torch.long), "prompt_mask": torch.ones(2, 1, dtype=torch.long)}
    batch = tokens | {"completion_ids": torch.ones(2, 3, dtype=torch.long), "completion_mask": mask, "advantages": advantages}
    batch |= {"old_per_token_logps": torch.zeros(2, 3), "num_items_in_batch": mask.sum()}
    batch |= {"old_values": torch.zeros(2, 3), "returns": torch.zeros(2, 3), "value_mask": mask, "valued_in_batch": mask.sum()}
    # 1.3 x 1, .5 x 1, 1.1 x .5; then .8 x -2 (no less, or a bad answer would pay), 1.5 x -1; the value is off by .1 once.
    policy = -(1.3 + 0.5 + 0.55 - 1.6 - 1.5) / 5
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(policy + 0.5 * 0.5 * 0.1**2 / 5, abs=1e-6)
