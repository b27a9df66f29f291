"""What is known about a model and its tokenizer before any work: positions, token ids, and whether both can be saved."""

import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers_for_tests import CHATML, chatml
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from lore.engines.config import ModelSection
from lore.engines.loading import load_model, load_processor, meta_model
from lore.engines.model_checks import check_format, check_positions, check_saving, check_vocabulary, position_limit
from lore.support.errors import LoreError

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
LLAMA2 = {"temperature": 0.9, "top_p": 0.6, "do_sample": False}  # as shipped with Llama-2-chat


def empty(kind: str, **config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | config))


@pytest.mark.parametrize(
    ("kind", "config", "limit"),
    [
        ("llama", {"max_position_embeddings": 96}, 96),
        ("gpt2", {"n_positions": 96}, 96),
        ("gpt_neo", {"max_position_embeddings": 96, "attention_types": [[["global"], 1]], "num_layers": 1, "num_heads": 2}, 96),
        ("gptj", {"n_positions": 96, "rotary_dim": 4}, 96),
        ("opt", {"max_position_embeddings": 96, "ffn_dim": 32, "word_embed_proj_dim": 16}, 96),
        ("biogpt", {"max_position_embeddings": 96}, 96),
        # Two of RoBERTa's rows are reserved: position ids start after the padding id.
        ("roberta", {"max_position_embeddings": 98, "pad_token_id": 1, "is_decoder": True}, 96),
        ("mistral", {"max_position_embeddings": 96, "sliding_window": 16}, 96),
        ("bloom", {}, None),
        ("mpt", {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 96}, 96),
        ("falcon", {"alibi": True, "max_position_embeddings": 96}, None),
        ("llama", {"max_position_embeddings": 96, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 384),
        ("llama", {"max_position_embeddings": 96, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 192),
        (
            "qwen2",
            {
                "max_position_embeddings": 96,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96},
            },
            384,
        ),
        (
            "deepseek_v3",
            {
                "max_position_embeddings": 384,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96},
            },
            384,
        ),
        (
            "llama",
            {
                "max_position_embeddings": 384,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "original_max_position_embeddings": 96,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                },
            },
            384,
        ),
        ("mamba", {}, None),
    ],
)
def test_the_limit_of_positions_is_that_of_the_architecture(kind, config, limit):
    assert position_limit(empty(kind, **config)) == limit


@pytest.mark.parametrize("kind", ["gpt2", "opt", "biogpt", "roberta", "gptj"])
def test_the_limit_is_where_the_forward_pass_fails(kind):
    more = {
        "roberta": {"max_position_embeddings": 34, "pad_token_id": 1, "is_decoder": True},
        "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
        "gpt2": {"n_positions": 32},
        "gptj": {"n_positions": 32, "rotary_dim": 4},
    }
    config = SMALL | {"max_position_embeddings": 32} | more.get(kind, {})
    if "n_positions" in config:
        config.pop("max_position_embeddings")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    limit = position_limit(model)
    ids = torch.full((1, limit), 5)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    longer = torch.full((1, limit + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=longer, attention_mask=torch.ones_like(longer), use_cache=False)
    check_positions(model, limit, "the row", "shorten it")
    with pytest.raises(LoreError, match=rf"the row takes {limit + 1} tokens, and the model has {limit} positions"):
        check_positions(model, limit + 1, "the row", "shorten it")


def adapters(linear: str, *layers: str) -> dict[str, LoraConfig]:
    """Each way in which PEFT wraps an embedding, the first of `layers`, and other layers."""
    return {
        "lora": LoraConfig(r=2, target_modules=[linear, *layers]),
        "dora": LoraConfig(r=2, target_modules=[linear, *layers], use_dora=True),
        "whole": LoraConfig(r=2, target_modules=[linear], modules_to_save=list(layers)),
        "tokens": LoraConfig(r=2, target_modules=[linear], trainable_token_indices={layers[0]: [1, 2]}),
    }


WRAPPED = pytest.mark.parametrize("wrapped_by", ["lora", "dora", "whole", "tokens"])


@WRAPPED
@pytest.mark.parametrize(
    ("kind", "config", "layers"),
    [
        ("gpt2", {"n_positions": 96}, ("c_attn", "wpe")),
        ("opt", {"max_position_embeddings": 96, "ffn_dim": 32, "word_embed_proj_dim": 16}, ("q_proj", "embed_positions")),
        ("roberta", {"max_position_embeddings": 98, "pad_token_id": 1, "is_decoder": True}, ("query", "position_embeddings")),
    ],
    ids=["gpt2", "opt", "roberta"],
)
def test_an_adapter_on_the_positions_does_not_change_their_limit(kind, config, layers, wrapped_by):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | config))
    before = position_limit(model)
    assert position_limit(get_peft_model(model, adapters(*layers)[wrapped_by])) == before == 96


def test_positions_of_photos_are_no_limit_of_the_text(tiny):
    vision = ModelSection(name=str(tiny.vision))
    assert position_limit(meta_model(vision)) == position_limit(load_model(vision, device="cpu")) == 1024


def test_the_engine_may_allow_fewer_tokens_than_the_model():
    model = empty("llama", max_position_embeddings=96)
    with pytest.raises(LoreError, match=r"takes 80 tokens, and vllm.max_model_tokens is 64"):
        check_positions(model, 80, "the prompt", "shorten it", most=64, most_key="vllm.max_model_tokens")
    check_positions(model, 64, "the prompt", "shorten it", most=64, most_key="vllm.max_model_tokens")


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny text model, to be spoiled."""
    folder = tmp_path / "model"
    load_model(ModelSection(name=str(tiny.text)), device="cpu").save_pretrained(folder)
    load_processor(ModelSection(name=str(tiny.text))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("values", "gone"),
    [
        (LLAMA2, {"temperature", "top_p"}),
        ({"early_stopping": True, "length_penalty": 2.0}, {"early_stopping", "length_penalty"}),
        ({"pad_token_id": -1, "top_k": 5}, {"pad_token_id", "top_k"}),
        ({"output_scores": True, "use_cache": False, "cache_implementation": "static"}, {"output_scores", "cache_implementation"}),
    ],
)
def test_a_generation_config_that_cannot_be_written_is_repaired(copy, tmp_path, capsys, values, gone):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **values}))
    section = ModelSection(name=str(copy))
    changed = AutoModelForCausalLM.from_pretrained(copy)
    changed.generation_config.eos_token_id = 3  # as training sets it; newer versions write a config that nobody has changed
    with pytest.raises(ValueError, match="invalid"):  # transformers refuses, which is the reason for the repair
        changed.save_pretrained(tmp_path / "refused")
    model = load_model(section, device="cpu")
    load_model(section, device="cpu")
    said = capsys.readouterr().out
    assert "do_sample)" not in said and "which transformers refuses to save beside the other values" in said
    assert said.count("its generation_config sets") == 1 and all(f"{key}={values[key]}" in said for key in gone)
    check_saving(section, model, load_processor(section), tmp_path / "beside")
    model.save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert saved.eos_token_id == 2
    assert all(getattr(saved, key) == getattr(GenerationConfig(), key) for key in gone)
    kept = {key: value for key, value in values.items() if key not in gone and key != "do_sample"}
    assert all(getattr(saved, key) == value for key, value in kept.items())


def test_a_generation_config_that_samples_stays(copy):
    (copy / "generation_config.json").write_text(json.dumps(LLAMA2 | {"do_sample": True}))
    config = load_model(ModelSection(name=str(copy)), device="cpu").generation_config
    assert (config.temperature, config.top_p, config.do_sample) == (0.9, 0.6, True)


def test_a_generation_config_that_cannot_be_read_names_the_model(copy):
    (copy / "generation_config.json").write_text(json.dumps({"max_new_tokens": 0}))
    with pytest.raises(LoreError, match="cannot be loaded: `max_new_tokens`"):
        load_model(ModelSection(name=str(copy)), device="cpu")
    with pytest.raises(LoreError, match="cannot be loaded: `max_new_tokens`"):
        meta_model(ModelSection(name=str(copy)))


def test_what_transformers_refuses_to_save_stops_with_the_reason(copy, tmp_path):
    section = ModelSection(name=str(copy))
    model, processor = load_model(section, device="cpu"), load_processor(section)
    model.generation_config.num_return_sequences = 2
    with pytest.raises(LoreError, match=r"its generation_config cannot be written: .*num_return_sequences"):
        check_saving(section, model, processor, tmp_path / "beside")
    model.generation_config = GenerationConfig()
    model.config.num_beams = 4  # a generation parameter in the model's config
    with pytest.raises(LoreError, match=r"its config cannot be written: .*generation parameters"):
        check_saving(section, model, processor, tmp_path / "beside")
    del model.config.num_beams
    check_saving(section, model, processor, tmp_path / "beside")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_processor_that_loses_tokens_when_saved_stops(copy, tmp_path):
    section = ModelSection(name=str(copy))
    model, processor = load_model(section, device="cpu"), load_processor(section)
    save = processor.save_pretrained

    def forgets(folder, **options):
        save(folder, **options)
        path = next(file for file in (folder / "tokenizer.json",) if file.exists())
        state = json.loads(path.read_text())
        state["normalizer"] = {"type": "Lowercase"}
        path.write_text(json.dumps(state))

    processor.save_pretrained = forgets
    with pytest.raises(LoreError, match="once its processor is saved and read again, it splits"):
        check_saving(section, model, processor, tmp_path / "beside")


def test_weights_that_share_memory_are_found_before_a_save_fails(copy, tmp_path):
    section = ModelSection(name=str(copy))
    model = load_model(section, device="cpu")
    named = model.config.dtype, model.config.architectures
    check_format(section, model, tmp_path / "beside")
    assert (model.config.dtype, model.config.architectures) == named
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight  # tied without the config knowing
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(LoreError, match="cannot be written as safetensors: .*shared tensors"):
        check_format(section, model, tmp_path / "beside")


def model_for(tokenizer, rows):
    config = AutoConfig.for_model("llama", **SMALL | {"vocab_size": rows, "intermediate_size": 24})
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


def wrapped(**changes):
    """A copy of the tokenizer of ChatML with the same files."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=transformers.PreTrainedTokenizerFast(tokenizer_object=chatml().backend_tokenizer).backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHATML
    for key, value in changes.items():
        setattr(tokenizer, key, value)
    return tokenizer


SECTION = ModelSection(name="base")


def test_a_vocabulary_smaller_than_the_tokenizers_stops():
    tokenizer = wrapped()
    check_vocabulary(SECTION, model_for(tokenizer, len(tokenizer)), tokenizer)
    with pytest.raises(LoreError, match=r"base has embeddings for 100 token ids, and its tokenizer has .* an ordinary token"):
        check_vocabulary(SECTION, model_for(tokenizer, 100), tokenizer)


@WRAPPED
def test_an_adapter_on_the_embeddings_does_not_change_their_number(wrapped_by):
    tokenizer = wrapped()

    def adapted(rows):
        return get_peft_model(
            model_for(tokenizer, rows).to_empty(device="cpu"), adapters("q_proj", "embed_tokens", "lm_head")[wrapped_by]
        )

    check_vocabulary(SECTION, adapted(len(tokenizer)), tokenizer)
    with pytest.raises(LoreError, match=r"base has embeddings for 100 token ids, .* an ordinary token"):
        check_vocabulary(SECTION, adapted(100), tokenizer)


def test_a_padding_token_without_an_embedding_stops():
    tokenizer = wrapped()
    model = model_for(tokenizer, len(tokenizer))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(LoreError, match=r"'\[PAD\]' \(id \d+, the pad token\)"):
        check_vocabulary(SECTION, model, tokenizer)


def test_an_added_control_token_that_never_occurs_is_no_problem():
    tokenizer = wrapped()
    model = model_for(tokenizer, len(tokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})  # as in Gemma 3's text-only checkpoints
    check_vocabulary(SECTION, model, tokenizer)
    with pytest.raises(LoreError, match="in the rows"):
        check_vocabulary(SECTION, model, tokenizer, highest_id=len(tokenizer) - 1)
    tokenizer.chat_template = "<image_soft_token>" + CHATML
    with pytest.raises(LoreError, match="part of the chat template"):
        check_vocabulary(SECTION, model, tokenizer)


def test_an_added_word_that_queries_contain_stops():
    tokenizer = wrapped()
    model = model_for(tokenizer, len(tokenizer))
    tokenizer.add_tokens(["sneaker"])
    with pytest.raises(LoreError, match="'sneaker' .* an ordinary token"):
        check_vocabulary(SECTION, model, tokenizer)
