"""The fingerprint of frozen weights: it sees every changed bit and order, and stops any stage whose base was written to."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from lore.support.errors import LoreError
from lore.train.common.frozen_weights import FrozenWeights


def frozen(*weights: torch.Tensor) -> FrozenWeights:
    model = torch.nn.Module()
    model.kept = torch.nn.ParameterList(torch.nn.Parameter(weight, requires_grad=False) for weight in weights)
    model.trained = torch.nn.Parameter(torch.zeros(3))
    state = SimpleNamespace(global_step=7)
    check = FrozenWeights(SimpleNamespace(model=model, is_fsdp_enabled=False, state=state))
    check.on_train_begin(None, None, None)
    return check


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("count", [1, 3, 70_001, 400_003])
def test_any_single_bit_and_any_order_counts(dtype, count):
    torch.manual_seed(0)
    weight = (torch.randn(count) * 100).to(dtype)
    check = frozen(weight.clone(), torch.zeros(0))
    value = check.trainer.model.kept[0].data
    check.check("now")
    raw = value.view(torch.uint8)
    for place in {0, len(raw) // 2, len(raw) - 1}:
        for bit in (0, 7):
            raw[place] ^= 1 << bit
            with pytest.raises(
                LoreError, match=r"1 of 2 frozen weights have changed since training began \(now, step 7\): kept.0\."
            ):
                check.check("now")
            raw[place] ^= 1 << bit
    check.check("now")
    if count > 3:
        value[[1, count - 2]] = value[[count - 2, 1]]
        with pytest.raises(LoreError, match="kept.0"):
            check.check("now")
        value[[1, count - 2]] = value[[count - 2, 1]]
        value[:2] = value[:2].neg() if dtype != torch.uint8 else value[:2].flip(0)
        with pytest.raises(LoreError, match="kept.0"):
            check.check("now")


def test_weights_that_differ_in_one_sign_are_told_apart_when_swapped():
    weight = torch.ones(64, dtype=torch.bfloat16)
    weight[1::8] = -1
    check = frozen(weight)
    value = check.trainer.model.kept[0].data
    value[[1, 2]] = value[[2, 1]]
    with pytest.raises(LoreError, match="1 of 1"):
        check.check("now")


def test_trained_weights_may_change_and_a_new_dtype_or_shape_is_a_change():
    check = frozen(torch.zeros(4, 2), torch.zeros(5))
    with torch.no_grad():
        check.trainer.model.trained += 1
    check.check("now")
    check.trainer.model.kept[0].data = torch.zeros(2, 4)
    check.trainer.model.kept[1].data = torch.zeros(10, dtype=torch.float16)
    with pytest.raises(LoreError, match=r"2 of 2 frozen weights .*: kept.0, kept.1\."):
        check.check("now")


def test_a_view_at_an_odd_offset_is_read():
    whole = torch.arange(9, dtype=torch.bfloat16)
    check = frozen(whole[1:])
    whole[8] += 1
    with pytest.raises(LoreError, match="1 of 1"):
        check.check("now")


def test_the_random_numbers_of_training_stay_the_same():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    frozen(torch.randn(5, generator=torch.Generator())).check("now")
    assert torch.equal(torch.rand(3), expected)


def test_a_run_whose_base_is_written_to_stops_and_names_the_weight(train, monkeypatch):
    """At the end of every stage: here sft, with a bit of a norm changed behind the trainer."""

    before = []

    def tamper(self, args, state, control, model, **_):
        if state.global_step == 2:
            changed = dict(model.named_parameters())["base_model.model.model.norm.weight"].data.view(torch.uint8)
            before.append(int(changed[0]))  # every callback inherits this: the first one sees the bit as it was
            changed[0] = before[0] ^ 1

    monkeypatch.setattr(TrainerCallback, "on_pre_optimizer_step", tamper)
    message = (
        r"1 of 21 frozen weights have changed since training began \(at the end of training, step 3\): base_model.model.model.norm"
    )
    with pytest.raises(LoreError, match=message):
        train("sft", model="text", lora={}, steps=3, save_every=0)


@pytest.mark.parametrize("event", ["on_step_end", "on_train_end"])
def test_a_buffer_that_is_written_to_stops_a_run_even_by_the_last_callback(train, monkeypatch, event):
    def tamper(self, args, state, control, model, **_):
        if state.global_step == 2:
            dict(model.named_buffers())["base_model.model.model.rotary_emb.inv_freq"].mul_(1.5)

    monkeypatch.setattr(TrainerCallback, event, tamper)
    with pytest.raises(LoreError, match=r"1 of 2 constant buffers have changed .*rotary_emb\.inv_freq\.\n") as error:
        train("sft", model="text", lora={}, steps=2, save_every=0)
    assert "rollout.engine" not in str(error.value)
    with pytest.raises(LoreError, match=r"frozen weights|constant buffers"):
        monkeypatch.setattr(TrainerCallback, event, lambda self, a, state, c, model, **_: spoil(model))
        train("norm", model="text", lora={}, steps=2, save_every=0)


def spoil(model):
    dict(model.named_parameters())["base_model.model.model.norm.weight"].data.mul_(2)


def test_statistics_of_a_frozen_layer_are_constant_and_those_of_a_trained_one_are_not():
    def layers(trained: bool) -> FrozenWeights:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4, affine=False))
        model.append(torch.nn.Linear(4, 1))
        model[:3].requires_grad_(trained)
        if trained:  # the layer around it decides for one without weights
            model[3].requires_grad_(False)
        state = SimpleNamespace(global_step=7)
        check = FrozenWeights(SimpleNamespace(model=model, is_fsdp_enabled=False, state=state))
        check.on_train_begin(None, None, None)
        model(torch.randn(8, 3))
        return check

    layers(trained=True).check("now")
    with pytest.raises(LoreError, match=r"^3 of 3 constant buffers have changed .*: 1\.running_mean, 1\.running_var, 1\.num_b"):
        layers(trained=False).check("now")


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "linear", "default"])
def test_rope_that_depends_on_the_longest_row_may_change_its_frequencies(kind):
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 8}
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=8, rope_parameters=rope))
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    state = SimpleNamespace(global_step=7)
    check = FrozenWeights(SimpleNamespace(model=model, is_fsdp_enabled=False, state=state))
    check.on_train_begin(None, None, None)
    before = model.model.rotary_emb.inv_freq.clone()
    model(torch.arange(24).reshape(1, 24))
    assert torch.equal(before, model.model.rotary_emb.inv_freq) == (kind in ("linear", "default"))
    check.check("now")
    model.model.rotary_emb.original_inv_freq.mul_(1.5)
    with pytest.raises(LoreError, match="original_inv_freq"):
        check.check("now")


def test_a_table_that_grows_is_a_cache_and_one_with_other_values_is_not():
    check = frozen(torch.zeros(3))
    model = check.trainer.model
    model.register_buffer("cosines", torch.ones(4), persistent=False)
    check.on_train_begin(None, None, None)
    model.register_buffer("cosines", torch.ones(9), persistent=False)
    check.check("now")
    model.register_buffer("cosines", torch.zeros(4), persistent=False)
    with pytest.raises(LoreError, match="1 of 1 constant buffers .*: cosines"):
        check.check("now")


def test_whole_modules_may_be_trained_and_an_ordinary_run_passes(train, capsys):
    train("sft", model="text", lora={"modules_to_save": ["lm_head"], "dora": True}, steps=2, save_every=0)
    assert "frozen weights: 21 tensors" in capsys.readouterr().out
    train("full", model="text", steps=2, save_every=0)
    assert "frozen weights" not in capsys.readouterr().out
