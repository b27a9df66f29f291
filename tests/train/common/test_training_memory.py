"""The estimate of training's memory: the tensors that autograd really keeps, the tensors of a tile of logits, and real peaks."""

import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from test_row_independence import EXPERTS
from test_training_shared_prefix import ROWS, padded, sharing_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from lore.codec.prompt import PromptFormat
from lore.data.parquet import read_pairs
from lore.engines.config import ModelSection
from lore.engines.loading import load_model, load_processor
from lore.engines.row_independence import base_of
from lore.rubric.rubric import load_rubric
from lore.train.common import memory
from lore.train.common.memory import Kept, estimate, kept_by_autograd, storage
from lore.train.common.trl_internals import fused_logps, logit_tile
from lore.train.judge.collator import PhotoCollator
from lore.train.judge.rows import sft_row

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}


def model_of(kind: str, lora: dict | None = None, layers: int = 4):
    """A model in training with TRL's fused output layer, as the trainer has it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, num_hidden_layers=layers, head_dim=8, pad_token_id=0, **SHAPE | EXPERTS)
    model = AutoModelForCausalLM.from_config(config).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model if lora is None else get_peft_model(model, LoraConfig(target_modules="all-linear", **lora))


def really_kept(model, batch, precision="no") -> int:
    """Bytes that autograd keeps of a real pass up to the last hidden states."""
    kept, own = {}, {storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}

    def keep(tensor):
        if storage(tensor) not in own:
            kept[storage(tensor)] = tensor.untyped_storage()
        return tensor

    class Done(Exception):
        pass

    def leave(*_):
        raise Done

    hook = base_of(model).base_model.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), pytest.raises(Done):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            fused_logps(model, batch)
    hook.remove()
    return sum(each.nbytes() for each in kept.values())


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("lora", [None, {"r": 4}, {"r": 4, "use_dora": True}], ids=["full", "lora", "dora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma"])
def test_activations_are_the_tensors_that_autograd_keeps(kind, lora, precision):
    model, batch = model_of(kind, lora), padded(ROWS["nested"])
    before = [weight.clone() for weight in model.parameters()]
    found, _ = kept_by_autograd(model, batch, precision).peaks(checkpointing=False)
    assert found == really_kept(model, batch, precision) > 100_000
    assert all(map(torch.equal, before, model.parameters()))
    assert len(base_of(model).model.layers) == 4


def test_experts_are_counted_too():
    model, batch = model_of("qwen3_moe"), padded(ROWS["nested"])
    found, _ = kept_by_autograd(model, batch, "no").peaks(checkpointing=False)
    numbers_of_rows = 4 * EXPERTS["num_experts"] * 4  # in int32, which only the real kernel keeps, in each layer
    assert found == really_kept(model, batch) - numbers_of_rows


def test_a_shared_prefix_is_counted_once():
    model, batch = model_of("llama"), padded(ROWS["nested"])
    sharing = sharing_of(model, None)
    whole, _ = kept_by_autograd(model, batch, "no").peaks(checkpointing=False)
    with sharing.expected() as shares:
        found, _ = kept_by_autograd(model, batch, "no").peaks(checkpointing=False)
        assert shares and found == really_kept(model, batch) < 0.7 * whole
    assert not sharing.active


def test_photos_and_a_frozen_tower_are_counted(tiny):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    fmt, rubric = PromptFormat("reason_first", "name", max_prompt_tokens=512), load_rubric("shop")
    rows = [sft_row(p, rubric, fmt, processor) for p in [p for p in read_pairs(tiny.pairs, split="train") if p.image][:3]]
    batch = PhotoCollator(processor)(rows)
    model = load_model(ModelSection(name=str(tiny.vision)), device="cpu", for_training=True).train()
    add_fused_lm_head(model)
    found, _ = kept_by_autograd(model, batch, "no").peaks(checkpointing=False)
    assert found == really_kept(model, batch)
    for module in (model.model.vision_model, model.model.connector):
        module.requires_grad_(False)
    frozen, _ = kept_by_autograd(model, batch, "no").peaks(checkpointing=False)
    assert frozen == really_kept(model, batch) < found


def test_checkpointing_keeps_the_inputs_of_layers_and_computes_one_again():
    model, batch = model_of("llama"), padded(ROWS["nested"])
    kept = kept_by_autograd(model, batch, "no")
    ((layers, each, given),) = kept.stacks
    assert (layers, given) == (4, batch["input_ids"].numel() * SHAPE["hidden_size"] * 4)
    begin, end = kept.peaks(checkpointing=True)
    assert (begin, end) == (kept.rest + 4 * given + each, kept.rest + each)
    model.gradient_checkpointing_enable()
    assert kept.rest + 4 * given == pytest.approx(really_kept(model, batch), rel=0.02)


class Live(TorchDispatchMode):
    """Bytes of the tensors made in this context that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.most = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and storage(tensor) not in self.known:
                self.known.add(storage(tensor))
                self.now += tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self.free, storage(tensor), tensor.untyped_storage().nbytes())
        self.most = max(self.most, self.now)
        return made

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_logits_are_the_tensors_of_a_tile():
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    labels, width, vocabulary = 60, 8, 40_000  # the vocabulary is wider than a tile
    hidden, head = torch.randn(labels, width, requires_grad=True), torch.randn(vocabulary, width)
    targets = torch.randint(vocabulary, (labels,))
    with Live() as live:
        live.known.update(map(storage, (hidden, head, targets)))
        outputs = ("entropy", "is_top1")
        found = ChunkedLogProbFunction.apply(hidden, head, None, targets, 1.0, 32_768, None, 1.0, outputs)
        found[0].sum().backward()
    assert live.most == pytest.approx(logit_tile(labels, vocabulary) * 4 * memory.TORCH_TILES, rel=0.01)


def trainer_of(model, **arguments):
    given = {"mixed_precision": "no", "gradient_checkpointing": False, "gradient_accumulation_steps": 1}
    args = SimpleNamespace(**given | arguments, device=torch.device("cpu"))
    return SimpleNamespace(model=model, args=args, is_deepspeed_enabled=False, is_fsdp_enabled=False)


def test_weights_gradients_and_moments_are_those_of_trained_parameters():
    batch = padded(ROWS["nested"])
    full, adapter = model_of("llama"), model_of("llama", {"r": 4})
    size = sum(weight.numel() for weight in full.parameters()) * 4
    first, many = (estimate(trainer_of(full, gradient_accumulation_steps=steps), batch) for steps in (1, 2))
    assert first.weights == pytest.approx(size, rel=1e-3) and first.optimizer == 2 * size
    head = full.lm_head.weight.numel() * 4
    assert (first.gradients, many.gradients) == (head, size + head)  # what is there when the backward pass begins
    found = estimate(trainer_of(adapter), batch)
    trained = sum(weight.numel() for weight in adapter.parameters() if weight.requires_grad) * 4
    assert found.optimizer == 2 * trained and found.gradients == 0
    assert found.total == found.weights + found.gradients + found.optimizer + found.activations + found.logits
    assert str(found).startswith("about 0.0") and "activations" in str(found)


def test_without_room_for_activations_all_gradients_are_the_peak():
    model = model_of("llama")
    one = {name: values[:, :2] for name, values in padded([[5, 6]], share=1).items()}
    found = estimate(trainer_of(model), one)
    assert found.gradients == sum(weight.numel() for weight in model.parameters()) * 4 and found.logits == 0


@pytest.mark.parametrize("stops", [lambda hidden: hidden.nonzero_static(size="a"), lambda hidden: hidden @ torch.ones(7, 7)])
def test_a_model_that_cannot_be_counted_says_why_and_trains(stops, caplog):
    model = model_of("llama")
    model.model.layers[0].forward = lambda hidden, **_: stops(hidden)
    found = estimate(trainer_of(model), padded(ROWS["nested"]))
    assert not caplog.records
    assert str(found).startswith("at least") and "cannot be counted: " in str(found) and found.activations == 0
    assert len(model.model.layers) == 4 and not any(isinstance(w, torch._subclasses.FakeTensor) for w in model.parameters())


def test_stacks_add_up():
    kept = Kept([(3, 100, 10), (2, 50, 5)], rest=7)
    assert kept.peaks(checkpointing=False) == (7 + 300 + 100, 7 + 100)
    assert kept.peaks(checkpointing=True) == (7 + 30 + 10 + 100, 7 + 100)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "full, checkpointing", "lora"])
def test_the_peak_of_live_tensors_is_within_a_quarter(way, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sys.modules.pop("models", None)
    from training_memory import apart, measured, prepare, write_recipe

    apart(prepare, tmp_path, "30M")
    peak, said, line = measured(write_recipe(tmp_path, "30M", way), mapped=True)
    assert said > 0.3 and 0.75 < said / peak < 1.25, (line, peak)
