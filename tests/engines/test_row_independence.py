"""A row's numbers are the same alone and beside others, for every way in which models read positions, windows and padding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers_for_tests import chatml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from lore.codec.prompt import PromptFormat, render
from lore.data.images import load_image
from lore.data.parquet import read_pairs
from lore.engines.config import ModelSection, VllmSection
from lore.engines.engine import Sampling
from lore.engines.loading import is_vision, load_model
from lore.engines.open_engine import open_engine
from lore.engines.row_independence import keep_rows_apart, padding_moves
from lore.engines.transformers import TransformersEngine
from lore.engines.vllm import VllmEngine, engine_options, longrope
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("shop")
WORDS = "red cotton dress for women and a blue scarf of wool with small white dots"
# 21 to 54 tokens, and two prompts of equal length.
PROMPTS = [[{"role": "user", "content": f"{number}: {WORDS[: 20 + 11 * number]}"}] for number in (0, 1, 3, 3, 4, 5)]

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ROPED = SIZE | {"num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8}
LEARNED = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.5, 3.0, 5.0, 9.0], "original_max_position_embeddings": 40}
LONGROPE = {"original_max_position_embeddings": 40, "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}}
DYNAMIC = {"max_position_embeddings": 30, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
BY_POSITION = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 20}
LLAMA4 = {"floor_scale": 40, "attn_scale": 0.5, "no_rope_layers": [0, 1], "attention_chunk_size": 32}
GPT_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
OPT = SIZE | {"ffn_dim": 48, "max_position_embeddings": 128, "word_embed_proj_dim": 32}

# The name of the configuration in transformers and, after a dash, of a variant.
CONFIGS = {
    "llama": ROPED,
    "qwen2": ROPED,
    "qwen3": ROPED,
    "qwen3_moe": ROPED | EXPERTS,
    "gpt_neox": SIZE,
    "gptj": LEARNED | {"rotary_dim": 8},
    # learned positions, with and without an offset, and ALiBi
    "gpt2": LEARNED,
    "gpt_bigcode": LEARNED,
    "gpt_neo": SIZE | GPT_NEO | {"max_position_embeddings": 128},
    "opt": OPT,
    "biogpt": SIZE | {"max_position_embeddings": 128},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "falcon-alibi": SIZE | {"alibi": True, "new_decoder_architecture": False},
    # a window shorter than the prompts
    "mistral": ROPED | {"sliding_window": 16},
    "gemma": ROPED,
    "gemma2": ROPED | WINDOW | {"query_pre_attn_scalar": 8},
    "gemma3_text": ROPED | WINDOW | {"query_pre_attn_scalar": 8},
    "cohere2": ROPED | WINDOW,
    "gpt_oss": ROPED | WINDOW | EXPERTS,
    # frequencies and scales that depend on the length
    "phi3": ROPED | LONGROPE,
    "phimoe": ROPED | LONGROPE | {"rope_parameters": LONGROPE["rope_parameters"] | {"long_mscale": 1.2, "short_mscale": 1.1}},
    "llama-dynamic": ROPED | DYNAMIC,
    "ministral3": ROPED | {"rope_parameters": BY_POSITION},
    "llama4_text": ROPED | LLAMA4 | {"num_local_experts": 2, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48},
    # states and convolutions
    "minimax": ROPED | EXPERTS | {"num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2},
    "recurrent_gemma": SIZE | {"num_key_value_heads": 1, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    "qwen3_next": ROPED | LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_5_text": ROPED | LINEAR,
    "falcon_h1": ROPED | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "jamba": ROPED | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "lfm2": ROPED | {"layer_types": ["conv", "full_attention"]},
    # text of vision-language models
    "qwen2_vl": {"text_config": ROPED | MROPE, "vision_config": {"depth": 1, "embed_dim": 16, "num_heads": 2}},
    "qwen2_5_vl": {"text_config": ROPED | MROPE, "vision_config": QWEN_VISION | {"fullatt_block_indexes": [0]}},
    "qwen3_vl": {"text_config": ROPED | MROPE, "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]}},
    "gemma3": {"text_config": ROPED | WINDOW | {"query_pre_attn_scalar": 8}, "vision_config": SIZE},
}


def engine_of(kind: str) -> TransformersEngine:
    """An engine over a tiny model with random weights."""
    tokenizer = chatml()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids["bos_token_id"] = None
    options = dict(CONFIGS[kind])
    if "text_config" in options:
        options["text_config"] = options["text_config"] | ids
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.partition("-")[0], **options | ids)
    model = (AutoModelForImageTextToText if is_vision(config) else AutoModelForCausalLM).from_config(config).eval()
    for weight in model.parameters():  # large enough that rows differ and attention is not flat
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
    return TransformersEngine(model, tokenizer, RUBRIC, batch_tokens=100_000)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_row_has_the_same_numbers_alone_and_beside_others(kind):
    engine = engine_of(kind)
    for asked in (PROMPTS, PROMPTS[::-1]):  # also after batches of other lengths
        alone = np.concatenate([engine.score([prompt]) for prompt in asked])
        beside = engine.score(asked)
        print(f"{kind}: largest difference {np.abs(alone - beside).max():.1e}")
        np.testing.assert_allclose(alone, beside, atol=1e-5)
        assert alone.std(axis=0).min() > 1e-4
        sampling = Sampling(max_tokens=10)
        assert engine.generate(asked, sampling) == [engine.generate([prompt], sampling)[0] for prompt in asked]


def test_photos_of_other_sizes_in_the_batch_change_nothing(tiny):
    engine = open_engine(ModelSection(name=str(tiny.vision)), RUBRIC, device="cpu")
    pair = next(pair for pair in read_pairs(tiny.pairs, split="test") if pair.image)
    fmt, photo = PromptFormat("reason_first", "name", max_prompt_tokens=512), load_image(pair.image)
    shown = [photo, photo.resize((90, 30)), None, photo.resize((20, 100))]
    asked = [render(pair, RUBRIC, fmt, tokenizer=engine.processor, image=image) for image in shown]
    alone, beside = np.concatenate([engine.score([prompt]) for prompt in asked]), engine.score(asked)
    print(f"idefics3: largest difference {np.abs(alone - beside).max():.1e}")
    np.testing.assert_allclose(alone, beside, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "llama-dynamic", "llama"])
def test_several_samples_of_a_prompt_come_from_the_same_distribution_as_one(kind):
    engine, read = engine_of(kind), []
    sampling = Sampling(temperature=1.0, n=3, max_tokens=10, seed=3)
    hook = engine.model.register_forward_pre_hook(lambda *args: read.append(args[2]["input_ids"].shape), with_kwargs=True)
    shared = [engine.generate([prompt], sampling) for prompt in PROMPTS]
    prefills = read[:1]
    hook.remove()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine), "_can_share", False)
        assert shared == [engine.generate([prompt], sampling) for prompt in PROMPTS]
    assert prefills == [(1, 21)]


def test_an_answer_that_grows_beyond_the_short_frequencies_is_that_of_a_model_without_cache():
    engine = engine_of("phi3")
    grown = engine.generate(PROMPTS[2:3], Sampling(max_tokens=10))[0][0]
    inputs = engine._inputs([(engine.tokenizer.apply_chat_template(PROMPTS[2], tokenize=False, add_generation_prompt=True), [])])
    ids, start = inputs["input_ids"], inputs["input_ids"].shape[1]
    assert start <= 40 < start + 10
    for _ in range(10):
        ids = torch.cat([ids, engine.model(input_ids=ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert grown.text == engine.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_models_with_plain_rope_are_left_as_they_are():
    for kind, hooked in {"llama": False, "qwen2_vl": False, "gpt2": True, "phi3": True}.items():
        model = engine_of(kind).model
        keep_rows_apart(model)  # a second time
        assert len(model._forward_pre_hooks) == hooked, kind


def test_padding_that_a_model_reads_is_found_out_once(monkeypatch):
    assert engine_of("recurrent_gemma")._equal_lengths and not engine_of("mamba")._equal_lengths
    engine = engine_of("gpt2")
    engine.model._forward_pre_hooks.clear()
    assert not padding_moves(engine.model, engine.tokenizer)  # measured before
    del engine.model._lore_padding_moves
    assert padding_moves(engine.model, engine.tokenizer)


def test_vllm_reads_short_prompts_of_longrope_with_the_short_frequencies_or_not_at_all(tmp_path):
    engine = engine_of("phi3")
    engine.model.save_pretrained(tmp_path)
    section = ModelSection(name=str(tmp_path))
    assert engine_options(section, VllmSection(), None, takes_images=False)["max_model_len"] == 40
    assert engine_options(section, VllmSection(max_model_tokens=200), None, takes_images=False)["max_model_len"] == 200
    started = SimpleNamespace(model_config=SimpleNamespace(max_model_len=200))
    vllm = VllmEngine(started, engine.tokenizer, RUBRIC, set(), rule=longrope(section))
    with pytest.raises(LoreError, match="39 tokens.*max_model_tokens 200.*at most 40"):
        vllm._input(PROMPTS[2])
    assert len(vllm._input(PROMPTS[5])["prompt_token_ids"]) == 54
    started.model_config.max_model_len = 40
    assert len(vllm._input(PROMPTS[2])["prompt_token_ids"]) == 39


def test_a_loaded_checkpoint_keeps_its_rows_apart(tmp_path):
    engine_of("gpt2").model.save_pretrained(tmp_path)
    model = load_model(ModelSection(name=str(tmp_path)), device="cpu")
    ids = torch.arange(5, 17)[None]
    padded, mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1), torch.tensor([[0] * 4 + [1] * 12])
    with torch.no_grad():
        moved = model(input_ids=padded, attention_mask=mask).logits[:, 4:] - model(input_ids=ids).logits
    assert moved.abs().max() < 1e-4
