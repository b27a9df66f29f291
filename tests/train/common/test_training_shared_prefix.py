"""Rows that share a prefix in one sequence have the losses and gradients of separate rows, or the model is refused."""

import contextlib
import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend
from peft import LoraConfig, get_peft_model
from test_row_independence import CONFIGS, EXPERTS, LEARNED, ROPED, SIZE, engine_of
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from lore.codec.prompt import PromptFormat
from lore.data.parquet import read_pairs
from lore.engines.config import ModelSection
from lore.engines.loading import load_model, load_processor
from lore.engines.row_independence import base_of
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.train.common import shared_prefix
from lore.train.common.arrow_rows import IGNORE
from lore.train.common.shared_prefix import (
    Refused,
    SharedAttention,
    SharedPrefix,
    compare_gradients,
    kernel,
    kernel_for,
    kernel_gradient,
    lay_out,
)
from lore.train.common.trl_internals import fused_logps
from lore.train.judge.collator import PhotoCollator
from lore.train.judge.rows import sft_row

VOCABULARY = 300  # fewer ids than any model of these tests has


def sharing_of(model, tokenizer, asked="auto", rows=4, attach=lambda base: None):
    """What a trainer does with a model: TRL's fused output layer and what a stage attaches, then the check before step 0."""
    add_fused_lm_head(base_of(model), outputs=("log_probs", "entropy", "is_top1"))
    attach(base_of(model))
    state = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO))
    accelerator = SimpleNamespace(device=torch.device("cpu"), state=state, autocast=contextlib.nullcontext)
    trainer = SimpleNamespace(model=model, model_wrapped=model, accelerator=accelerator, add_callback=lambda _: None)
    return SharedPrefix(trainer, asked, tokenizer, rows)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(5, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


RUBRIC, QUERY = tokens(70, 1), tokens(34, 2)
ROWS = {
    "nested": [RUBRIC + tokens(9, 3), RUBRIC + QUERY + tokens(20, 4), RUBRIC + QUERY + tokens(11, 5), tokens(50, 6), RUBRIC + [7]],
    "equal rows and a row within a row": [RUBRIC + QUERY, RUBRIC + QUERY, RUBRIC, RUBRIC + tokens(5, 3), RUBRIC + QUERY + [9]],
}


def padded(rows: list[list[int]], *, left: bool = False, share: float = 0.3) -> dict[str, torch.Tensor]:
    """A batch with a `share` of its tokens labeled at random."""
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ids = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)])
    ones = [[1] * len(row) for row in rows]
    mask = torch.tensor([pad + one if left else one + pad for one, pad in zip(ones, pads, strict=True)])
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < share
    labeled = drawn & mask.bool() & (mask.cumsum(1) > 1)  # nothing before the first token of a row predicts it
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~labeled, IGNORE)}


def numbers(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities, gradient of a weighted sum of them)."""
    model.zero_grad()
    logps = fused_logps(model, batch)
    (logps * torch.linspace(0.5, 1.5, logps.numel()).view_as(logps)).sum().backward()
    return logps.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def assert_same(expected: torch.Tensor, found: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ((expected - found).norm() / expected.norm()).item() < tolerance


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "qwen3_moe", "gpt2"])
def test_losses_and_gradients_are_those_of_separate_rows(kind, rows, monkeypatch):
    monkeypatch.setitem(CONFIGS, "gpt2", LEARNED | {"attn_pdrop": 0.0})
    engine = engine_of(kind)
    sharing = sharing_of(engine.model, engine.tokenizer)
    sharing.check()
    for batch in (padded(ROWS[rows]), padded(ROWS[rows], left=True)):
        if kind == "gpt2" and batch["attention_mask"][:, 0].min() == 0:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        sharing.active, sharing.laid = False, None
        expected = numbers(engine.model, batch)
        assert sharing.laid is None
        sharing.active = True
        found = numbers(engine.model, batch)
        assert len(sharing.laid.ids) < 0.75 * batch["attention_mask"].sum()
        assert len(sharing.laid.attended) == engine.model.config.num_hidden_layers
        for one, other in zip(expected, found, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize(("reentrant", "dora"), [(True, False), (False, False), (False, True)])
def test_adapters_and_checkpointing_share_too(reentrant, dora):
    engine = engine_of("llama")
    torch.manual_seed(0)
    model = get_peft_model(engine.model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=dora))
    sharing = sharing_of(model, engine.tokenizer)
    sharing.check()
    batch, sharing.active = padded(ROWS["nested"]), False
    expected = numbers(model, batch)
    sharing.active = True
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    for one, other in zip(expected, numbers(model, batch), strict=True):
        assert_same(one, other)
    assert len(sharing.laid.attended) == 4  # each of two layers once more in the backward pass


def test_in_bfloat16_the_numbers_differ_by_its_rounding():
    engine = engine_of("qwen3")
    batch = padded(ROWS["nested"])
    sharing = sharing_of(engine.model, engine.tokenizer)
    exact = numbers(engine.model, batch)
    engine.model.to(torch.bfloat16)
    apart = numbers(engine.model, batch)
    sharing.check()
    for one, separate, shared in zip(exact, apart, numbers(engine.model, batch), strict=True):
        assert (shared.float() - one).norm() < 1.3 * (separate.float() - one).norm()


@pytest.mark.parametrize(
    "rows",
    [
        [tokens(20, seed) for seed in range(4)],
        [RUBRIC[:31] + tokens(9, seed) for seed in range(3)],
        [RUBRIC[: 40 - 8 * seed] + tokens(20 + 8 * seed, seed) for seed in range(6)],
        [RUBRIC + QUERY],
    ],
    ids=["nothing in common", "too little in common", "two of six rows, 9 % of all tokens", "one row"],
)
def test_without_a_common_prefix_nothing_changes_to_the_bit(rows):
    engine = engine_of("llama")
    sharing = sharing_of(engine.model, engine.tokenizer)
    batch = padded(rows)
    expected = numbers(engine.model, batch)
    sharing.check()
    assert all(torch.equal(one, other) for one, other in zip(expected, numbers(engine.model, batch), strict=True))
    assert lay_out(rows) is None


def test_rows_with_positions_or_gaps_of_their_own_are_computed_whole():
    engine = engine_of("llama")
    sharing = sharing_of(engine.model, engine.tokenizer)
    batch, holes = padded(ROWS["nested"]), padded(ROWS["nested"])
    restarted = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"]).clone()
    restarted[:, 60:] -= 60  # two texts in a row
    holes["attention_mask"][:, 75:80] = 0
    for own in (batch | {"position_ids": restarted}, holes):
        sharing.active = False
        expected = fused_logps(engine.model, own)
        sharing.check()
        assert torch.equal(expected, fused_logps(engine.model, own))
    batch["position_ids"] = torch.arange(restarted.shape[1]).expand_as(restarted)
    assert sharing.layout({name: batch[name] for name in batch if name != "labels"}) is not None


def test_logits_are_computed_at_labels_and_other_outputs_are_those_of_trl():
    engine = engine_of("llama")
    add_fused_lm_head(engine.model, outputs=("log_probs", "entropy", "is_top1"))
    batch = padded(ROWS["nested"], share=0.1)
    with torch.no_grad():
        expected = engine.model(**batch, fused_lm_head=True)
    engine = engine_of("llama")
    sharing_of(engine.model, engine.tokenizer).check()
    seen = []
    engine.model.base_model.register_forward_hook(lambda *args: seen.append(args[2].last_hidden_state.shape[:2]))
    with torch.no_grad():
        found = engine.model(**batch, fused_lm_head=True)
    assert seen == [(1, int((batch["labels"][:, 1:] != IGNORE).sum()))]
    assert torch.equal(found.label_mask, expected.label_mask) and torch.equal(found.is_top1, expected.is_top1)
    for name in ("loss", "log_probs", "entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    nothing = batch | {"labels": torch.full_like(batch["labels"], IGNORE)}
    assert engine.model(**nothing, fused_lm_head=True).log_probs.abs().sum() == 0
    logits = engine.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape[:2] == batch["input_ids"].shape  # other passes are as they were


SOFTCAP = {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 20.0, "layer_types": ["full_attention"] * 2}

LONG_WINDOW = {"sliding_window": 80}  # more tokens than the rows of the check
MIXED_LAYERS = LONG_WINDOW | {"use_sliding_window": True, "max_window_layers": 2, "shared_expert_intermediate_size": 16}
SPARSE = {"index_topk": 80, "index_n_heads": 2, "index_head_dim": 16, "q_lora_rank": 16, "kv_lora_rank": 8} | {
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("gpt2", LEARNED | {"attn_pdrop": 0.1, "resid_pdrop": 0.0, "embd_pdrop": 0.0}, r"dropout \(?0.1"),
        ("llama", ROPED | {"attention_dropout": 0.1}, "dropout 0.1"),
        ("phimoe", ROPED | EXPERTS | LONG_WINDOW, "sliding_window 80"),
        ("qwen2_moe", ROPED | EXPERTS | MIXED_LAYERS, "sliding_attention"),
        ("glm_moe_dsa", SIZE | {"num_key_value_heads": 4} | SPARSE, "a mask of its own"),
        ("gemma2", ROPED | SOFTCAP, "softcap 20.0|attention interface"),  # transformers 5.24 takes eager attention for it
        ("mistral", None, "sliding_window 16"),
        ("gemma3_text", None, "sliding_attention"),
        ("lfm2", None, "1 of its 2 layers"),
        ("falcon_h1", None, "log-probabilities change"),
        ("phi3", None, "longest row"),
        ("bloom", None, "attention interface"),
    ],
)
def test_models_that_cannot_are_refused_with_the_reason(kind, options, why, monkeypatch, capsys):
    if options is not None:
        monkeypatch.setitem(CONFIGS, kind, options)
    engine = engine_of(kind)
    sharing = sharing_of(engine.model, engine.tokenizer)
    with pytest.raises(Refused, match=why):
        sharing.check()
    sharing.on_train_begin(None, None, None)
    assert re.search(why, capsys.readouterr().out) and not sharing.active
    sharing.asked = True
    with pytest.raises(LoreError, match=f"train.shared_prefix is true.*{why}"):
        sharing.on_train_begin(None, None, None)


@pytest.mark.parametrize(
    ("dropout", "rows", "asked", "said", "active"),
    [
        (0.0, 4, "auto", "is computed once", True),
        (0.0, 1, "auto", "nothing to share, because a micro-batch has one row", False),
        (0.0, 1, True, "nothing to share, because a micro-batch has one row", False),
        (0.2, 4, "auto", r"dropout \(0.2\) once for all rows", False),
        (0.2, 4, True, "is computed once", True),
    ],
)
def test_what_the_run_says_is_what_it_does(dropout, rows, asked, said, active, capsys):
    engine = engine_of("llama")
    model = get_peft_model(engine.model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout))
    sharing = sharing_of(model, engine.tokenizer, asked, rows)
    sharing.on_train_begin(None, None, None)
    assert re.search(said, capsys.readouterr().out) and sharing.active == active
    fused_logps(model, padded(ROWS["nested"]))
    assert (sharing.laid is not None) == active


class CudaKernels(TorchDispatchMode):
    """CUDA's attention kernels on CPU tensors: what their sources demand of arguments (torch 2.13, flash_api.cpp and
    attention_backward.cu), what they leave, and their sums."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not name.removesuffix("_backward").endswith(("flash_attention", "efficient_attention")):
            return func(*args, **(kwargs or {}))
        known = func._schema.arguments
        given = {one.name: one.default_value for one in known} | dict(zip((one.name for one in known), args, strict=False)) | kwargs
        query, key, value, flash = given["query"], given["key"], given["value"], "flash" in name
        unused = torch.empty(0)
        for one in (query, key, value):
            assert one.stride(-1) == 1 and one.shape[-1] % 8 == 0 and one.dtype == query.dtype
        assert query.dtype == torch.bfloat16 or not flash
        scores = query.double() @ key.double().mT * given["scale"]
        if given["is_causal"]:  # flash aligns the triangle of unequal lengths at its end, the efficient kernel at its beginning
            assert query.shape == key.shape
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
        if not name.endswith("backward"):
            assert flash or given["compute_log_sumexp"]
            lse = scores.logsumexp(-1).float()
            out = (scores.softmax(-1) @ value.double()).to(query.dtype).transpose(1, 2).contiguous().transpose(1, 2)
            if flash:
                return out, lse, unused, unused, query.shape[2], key.shape[2], unused, unused, unused
            return out, pad(lse, (0, -lse.shape[-1] % 32), value=float("inf")), unused, unused
        grad, out, lse = args[0], given["out"], given["logsumexp"]
        assert out.transpose(1, 2).is_contiguous() and lse.is_contiguous() and lse.dtype == torch.float32
        assert out.dtype == grad.dtype == query.dtype and out.shape == grad.shape == query.shape
        if flash:
            assert lse.shape == query.shape[:3] and (given["max_q"], given["max_k"]) == (query.shape[2], key.shape[2])
            assert given["cum_seq_q"] is None and given["philox_seed"].dtype == torch.uint64
        else:
            assert lse.shape[2] % 32 == 0 and lse[:, :, query.shape[2] :].isposinf().all()
            assert given["attn_bias"] is None and given["philox_seed"].dtype == torch.int64
        share = (scores - lse[:, :, : query.shape[2], None]).exp()
        of_scores = share * (grad.double() @ value.double().mT - (grad.double() * out.double()).sum(-1, keepdim=True))
        found = [of_scores @ key.double(), of_scores.mT @ query.double(), share.mT @ grad.double()]
        found = [one * scale for one, scale in zip(found, (given["scale"], given["scale"], 1), strict=True)]
        return (*(one.to(query.dtype) for one in found), *([] if flash else [unused]))


@pytest.mark.parametrize(("kind", "dtype"), [("flash", torch.bfloat16), ("efficient", torch.float32)])
@pytest.mark.parametrize("size", [16, 20])
def test_cuda_kernels_get_what_they_demand(kind, dtype, size, monkeypatch):
    layout = lay_out(ROWS["nested"])
    shapes = [torch.Size([1, heads, len(layout.ids), size]) for heads in (4, 2)]
    layout.attended.append((*shapes, dtype))
    monkeypatch.setattr(shared_prefix, "kernel_for", lambda _: kind)
    with CudaKernels():
        compare_gradients(layout, torch.device("cpu"))
        query, key = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for shape in shapes)
        found = SharedAttention.apply(query, key, key, 0.3, layout.parts)
    monkeypatch.undo()
    assert_same(SharedAttention.apply(query, key, key, 0.3, layout.parts), found, 1e-5 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cuda_kernels_are_called_as_the_installed_torch_declares_them(dtype):
    query, out = (torch.empty(1, 4, 7, 20, dtype=dtype, device="meta") for _ in range(2))
    key, value = (torch.empty(1, 4, 11, 20, dtype=dtype, device="meta") for _ in range(2))
    assert kernel_for(query) == ("efficient" if dtype == torch.float32 else "flash")
    attended, lse = kernel(query, key, value, 0.3, causal=False)
    assert attended.shape == query.shape and lse.shape == (1, 4, 7) and lse.dtype == torch.float32
    gradients = kernel_gradient(out, query, key, value, attended, lse, 0.3, causal=False)
    assert [one.shape for one in gradients] == [query.shape, key.shape, value.shape]
    assert all(one.dtype == dtype for one in (attended, *gradients))


def test_a_device_that_stops_at_the_gradient_refuses_and_one_that_is_lost_says_what_to_set(monkeypatch, capsys):
    engine = engine_of("llama")
    sharing = sharing_of(engine.model, engine.tokenizer)

    def stops(*_, **__):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr(shared_prefix, "kernel_gradient", stops)
    sharing.on_train_begin(None, None, None)
    assert "only supports Ampere GPUs" in capsys.readouterr().out and not sharing.active

    def lost():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(sharing, "check", lost)
    with pytest.raises(LoreError, match=r"illegal memory access was encountered\), (.|\n)*Set train.shared_prefix to false"):
        sharing.on_train_begin(None, None, None)


def test_a_layout_holds_every_token_of_every_row():
    for rows in ROWS.values():
        layout = lay_out(rows)
        for row, places in zip(rows, layout.places, strict=True):
            assert [layout.ids[place] for place in places] == row
            assert [layout.positions[place] for place in places] == list(range(len(row)))
    (prefix, *rest) = lay_out([RUBRIC + tokens(5, 3), RUBRIC + tokens(6, 4)]).parts
    assert (prefix.start, prefix.end, prefix.last) == (0, 70, 81) and all(part.last == part.end for part in rest)


SMOLVLM = {"vision_config": "smolvlm_vision", "text_config": "llama"}


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_photos_stay_with_their_rows(tiny, kind):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    model = load_model(ModelSection(name=str(tiny.vision)), device="cpu", for_training=True)
    if kind == "smolvlm":
        known = model.config.to_dict()
        parts = {name: {**known[name], "model_type": kind_of} for name, kind_of in SMOLVLM.items()}
        model = SmolVLMForConditionalGeneration._from_config(SmolVLMConfig(**known | parts | {"model_type": kind}))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    sharing = sharing_of(model, processor.tokenizer)
    fmt = PromptFormat("answer_only", "name", max_prompt_tokens=512)
    pairs = [pair for pair in read_pairs(tiny.pairs, split="train", limit=40) if pair.image][:3]
    same = [dataclasses.replace(pairs[0], image=pair.image) for pair in pairs]  # one text with three photos
    without = dataclasses.replace(pairs[1], image=None)
    batch = PhotoCollator(processor)([sft_row(pair, load_rubric("shop"), fmt, processor) for pair in [*pairs, without, *same[1:]]])
    expected = numbers(model, batch)
    sharing.check()
    for one, other in zip(expected, numbers(model, batch), strict=True):
        assert_same(one, other)
    assert len(sharing.laid.ids) < 0.7 * batch["attention_mask"].sum()
    logps = expected[0][[0, 4, 5]]
    assert (logps[0] - logps[1]).abs().max() > 1e-4 < (logps[1] - logps[2]).abs().max()  # the photos count
