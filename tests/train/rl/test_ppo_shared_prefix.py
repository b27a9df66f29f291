"""PPO on answers whose prompts are computed once: the losses, values, gradients and weights of separate rows."""

import pytest
import torch
from test_distributed import launch
from test_row_independence import engine_of
from test_training_shared_prefix import ROWS, assert_same, padded, sharing_of

from lore.config.stages import load_recipe
from lore.run.run_folder import RunFolder
from lore.train.common.arrow_rows import IGNORE
from lore.train.common.trl_internals import fused_logps
from lore.train.rl.ppo import prepare
from lore.train.rl.value_head import HEAD, attach_value_head


@pytest.mark.parametrize("alone", [False, True], ids=["all weights", "the head alone"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_values_and_gradients_are_those_of_separate_rows(kind, alone):
    engine, made = engine_of(kind), []
    sharing = sharing_of(engine.model, engine.tokenizer, attach=lambda base: made.append(attach_value_head(base)))
    head = getattr(engine.model, HEAD)
    torch.nn.init.normal_(head.linear.weight)
    head.offset.fill_(0.25)
    head.alone = alone

    def numbers(batch):
        """(log-probabilities, values at labels, gradient of a weighted sum of both, or of the values for a head that is alone)."""
        engine.model.zero_grad()
        made[0].clear()
        logps = fused_logps(engine.model, batch)
        values = made[0][0] * (batch["labels"][:, 1:] != IGNORE)
        weights = torch.linspace(0.5, 1.5, logps.numel()).view_as(logps)
        (weights * values + (0 if alone else weights * logps)).sum().backward()
        grads = {name: one.grad for name, one in engine.model.named_parameters() if one.grad is not None}
        assert not alone or all(HEAD in name for name in grads)
        return logps.detach(), values.detach(), torch.cat([grad.flatten() for grad in grads.values()])

    for rows in ROWS.values():
        for batch in (padded(rows, left=True), padded(rows)):
            sharing.active, sharing.laid = False, None
            expected = numbers(batch)
            assert sharing.laid is None
            sharing.check()
            found = numbers(batch)
            assert len(sharing.laid.ids) < 0.75 * batch["attention_mask"].sum()
            for one, other in zip(expected, found, strict=True):
                assert_same(one, other)
            places = batch["labels"][:, 1:] != IGNORE
            assert found[1][places].std() > 0.1 and (made[0][0][~places] == 0).all()


def test_every_position_has_a_value_where_no_label_is_left_out():
    engine, made = engine_of("llama"), []
    sharing_of(engine.model, engine.tokenizer, attach=lambda base: made.append(attach_value_head(base)))
    torch.nn.init.normal_(getattr(engine.model, HEAD).linear.weight)
    batch = padded(ROWS["nested"])
    hidden = engine.model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    expected = getattr(engine.model, HEAD)(hidden)[:, :-1]
    whole = engine.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(whole.state_values, expected)  # a pass for logits, as replayed pairs take it
    fused_logps(engine.model, batch)
    places = batch["labels"][:, 1:] != IGNORE
    torch.testing.assert_close(made[0][0][places], expected[places])


@pytest.mark.parametrize("full", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.long)])
def test_two_updates_lead_to_the_weights_of_whole_rows(tiny, runs, tmp_path, full):
    """The second update is off-policy, and the reference is in its loss."""
    moved, laid = [], []
    for shared in (False, True):
        path = tmp_path / f"ppo{shared}.yaml"
        # With a large epsilon AdamW's steps are proportional to gradients, and rounding stays rounding.
        train = {"steps": 2, "micro_batch_size": 4, "lr": 1e-2, "adam_epsilon": 1.0, "shared_prefix": shared}
        sections = {"rollout": {"updates": 2}, "ppo": {"kl": 0.05, "value_lr": 0.1}}
        adapter = None if full else tiny.adapter("text")
        path.write_text(tiny.align(f"ppo{shared}", tiny.judge("text"), stage="ppo", adapter=adapter, train=train, **sections))
        recipe = load_recipe(path)
        folder = RunFolder.of(recipe)
        folder.open(recipe)
        _, trainer = prepare(recipe, folder)
        before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        trainer.train()
        laid.append(trainer.sharing.laid)
        after = {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        lines = [line for line in trainer.state.log_history if "loss" in line]
        assert len(lines) == 2 and all("value/loss" in line for line in lines)
        moved.append(({name: after[name] - weight for name, weight in before.items()}, lines))
    assert laid[0] is None and laid[1] is not None
    (whole, lines), (shared, others) = moved
    judge, head = ([name for name in whole if (HEAD in name) == mine] for mine in (False, True))
    for names in (judge, head):
        one, other = (torch.cat([part[name].flatten() for name in names]) for part in (whole, shared))
        assert one.norm() > 0
        assert_same(one, other, 1e-4)
    for one, other in zip(lines, others, strict=True):
        for key in one.keys() & {"loss", "value/loss", "value/mean", "value/explained", "grad_norm"}:
            assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key


@pytest.mark.long
def test_two_processes_have_the_losses_of_whole_rows(tiny, runs, tmp_path):
    found = []
    for shared in (False, True):
        path = tmp_path / f"two{shared}.yaml"
        train = {"shared_prefix": shared, "micro_batch_size": 4, "lr": 1e-5}
        path.write_text(tiny.align(f"two{shared}", tiny.judge("text"), stage="ppo", train=train))
        done = launch("cpu2", path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert ("is computed once" in done.stdout) == shared
        found.append([(line["loss"], line["value/loss"]) for line in RunFolder(runs / f"two{shared}").metrics() if "loss" in line])
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
