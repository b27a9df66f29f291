"""Loading an adapter: every tensor of its file finds a place in the model, or nothing is loaded."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_transformers_engine import RUBRIC, prompts
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lore.engines.adapter import adapted_names
from lore.engines.config import ModelSection
from lore.engines.loading import load_model, meta_model
from lore.engines.open_engine import open_engine
from lore.support.errors import LoreError


def write_adapter(base: Path, out: Path, **options) -> Path:
    """An adapter with random weights, which change every answer."""
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False, **options}
    model = load_model(ModelSection(name=str(base)), device="cpu")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options)).save_pretrained(out)
    return out


@dataclass
class Saved:
    """An adapter in a folder of its own, and how to change it."""

    base: Path
    folder: Path

    def rename(self, change) -> None:
        tensors = load_file(self.folder / "adapter_model.safetensors")
        save_file({change(name): tensor for name, tensor in tensors.items()}, self.folder / "adapter_model.safetensors")

    def keep(self, chosen) -> None:
        tensors = load_file(self.folder / "adapter_model.safetensors")
        save_file({name: t for name, t in tensors.items() if chosen(name)}, self.folder / "adapter_model.safetensors")

    def config(self, **changes) -> None:
        path = self.folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    @property
    def section(self) -> ModelSection:
        return ModelSection(name=str(self.base), adapter=str(self.folder))

    def refused(self, pattern: str) -> str:
        """The message of the LoreError with which all loaders refuse the adapter."""
        messages = []
        for load in (
            lambda: open_engine(self.section, RUBRIC, device="cpu"),
            lambda: load_model(self.section, device="cpu", for_training=True),
            lambda: meta_model(self.section),
        ):
            with pytest.raises(LoreError, match=f"(?s){pattern}") as error:
                load()
            messages.append(str(error.value))
        assert len(set(messages)) == 1
        return messages[0]


@pytest.fixture(params=["vision", "text"])
def saved(request, tiny, tmp_path) -> Saved:
    base = getattr(tiny, request.param)
    return Saved(base, write_adapter(base, tmp_path / "adapter"))


def test_an_adapter_that_fits_changes_the_answers_and_is_the_same_without_weights(saved, tiny, capsys):
    sections = (saved.section, ModelSection(name=str(saved.base)))
    engine, base = (open_engine(section, RUBRIC, device="cpu") for section in sections)
    asked = prompts(tiny, engine.processor, count=12)
    moved = np.abs(engine.score(asked) - base.score(asked)).max()
    print(f"largest difference of a tier probability from the base: {moved:.2f}")
    assert moved > 0.05
    assert "note" not in capsys.readouterr().out.replace("largest", "")
    names = adapted_names(meta_model(saved.section))
    assert names == adapted_names(load_model(saved.section, device="cpu"))
    assert 2 * len(names) == len(load_file(saved.folder / "adapter_model.safetensors"))
    assert all(weight.is_meta for weight in meta_model(ModelSection(name=str(saved.base))).parameters())


def test_tensors_whose_names_are_not_in_the_model_are_counted_and_named(saved):
    count = len(load_file(saved.folder / "adapter_model.safetensors"))
    saved.rename(lambda name: name.replace("base_model.model.", "base_model.model.old."))
    message = saved.refused(rf"0 of the {count} tensors in its file have a place.*{count} adapter weights of the model have no")
    assert "base_model.model.old." in message and ".lora_A.default.weight" in message
    assert str(saved.base) in message and "another base" in message and "another version of PEFT" in message


def test_one_renamed_tensor_is_enough(saved):
    count = len(load_file(saved.folder / "adapter_model.safetensors"))
    saved.rename(lambda name: re.sub(r"layers\.1\.(.*)q_proj\.lora_B", r"layers.1.\1query.lora_B", name))
    assert "query.lora_B" in saved.refused(f"{count - 1} of the {count} tensors.* and 1 adapter weights")


def test_missing_tensors_are_counted(saved):
    count = len(load_file(saved.folder / "adapter_model.safetensors"))
    saved.keep(lambda name: "layers.0" in name)
    left = len(load_file(saved.folder / "adapter_model.safetensors"))
    saved.refused(f"{left} of the {left} tensors in its file have a place in the model, and {count - left} adapter weights")


def test_a_file_without_tensors_a_file_that_is_cut_off_and_a_pickle_are_refused(saved):
    path = saved.folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    saved.refused("cut off or damaged")
    save_file({}, path)
    saved.refused("holds no tensors")
    path.unlink()
    saved.refused("has no adapter_model.safetensors")
    (saved.folder / "adapter_model.bin").write_bytes(b"never read")
    saved.refused("adapter_model.bin is a pickle file.*Save the adapter as safetensors")


def test_fully_trained_modules_are_counted_too(tiny, tmp_path):
    saved = Saved(tiny.text, write_adapter(tiny.text, tmp_path / "adapter", modules_to_save=["lm_head"]))
    load_model(saved.section, device="cpu")
    saved.keep(lambda name: "lm_head" not in name)
    saved.refused("the file lacks 'base_model.model.lm_head.weight'")


def test_an_adapter_of_another_architecture_or_size_is_refused_with_both_bases(tiny, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny.text, other)
    config = AutoConfig.from_pretrained(tiny.text)
    config.hidden_size = 64
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    message = Saved(tiny.text, write_adapter(other, tmp_path / "wide")).refused("does not fit.*size mismatch")
    assert f"names the base {other}" in message
    gpt = tmp_path / "gpt"
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(gpt)
    Saved(tiny.text, write_adapter(gpt, tmp_path / "conv")).refused("does not fit.*not found in the base model")


def test_an_adapter_on_a_base_of_another_name_that_fits_says_so(saved, capsys):
    saved.config(base_model_name_or_path="Qwen/Qwen3-8B")
    load_model(saved.section, device="cpu")
    assert f"was trained on Qwen/Qwen3-8B; its names and shapes also fit {saved.base}" in capsys.readouterr().out
    saved.config(base_model_name_or_path=f"elsewhere/{saved.base.name}")
    load_model(saved.section, device="cpu")
    assert capsys.readouterr().out == ""


def test_learned_prompt_tokens_are_no_adapter_of_a_judge(tiny, tmp_path):
    from peft import PromptTuningConfig

    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(load_model(ModelSection(name=str(tiny.text)), device="cpu"), config).save_pretrained(tmp_path / "adapter")
    Saved(tiny.text, tmp_path / "adapter").refused("PROMPT_TUNING, which puts learned tokens before the prompt")


def test_an_adapter_is_folded_into_a_model_whose_text_config_says_nothing_of_tied_embeddings():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from lore.engines.transformers import folded

    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"intermediate_size": 32, "head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    config = Qwen3VLConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0]})
    model = get_peft_model(Qwen3VLForConditionalGeneration(config), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert not hasattr(config.get_text_config(), "tie_word_embeddings")
    assert not hasattr(folded(model), "merge_and_unload")


# What PEFT would do without a word


def change(saved: Saved, **tensors) -> None:
    path = saved.folder / "adapter_model.safetensors"
    save_file(load_file(path) | tensors, path)


def test_tensors_that_lie_on_the_bases_own_weights_are_refused(saved, tiny):
    name = next(name for name in load_file(saved.folder / "adapter_model.safetensors") if name.endswith("q_proj.lora_A.weight"))
    inside = name.replace("lora_A", "base_layer")
    change(saved, **{inside: torch.zeros(32, 32)})
    saved.refused(rf"1 weights of the base itself \({re.escape(inside)}\)")
    shutil.rmtree(saved.folder)
    write_adapter(saved.base, saved.folder)
    weights = dict(load_model(ModelSection(name=str(saved.base)), device="cpu").named_parameters())
    norm = next(name for name in weights if name.endswith("norm.weight"))
    change(saved, **{f"base_model.model.{norm}": torch.zeros_like(weights[norm])})
    saved.refused(rf"1 weights of the base itself \(base_model\.model\.{re.escape(norm)}\)")


def test_embeddings_and_biases_that_peft_saves_are_no_fault(tiny, tmp_path):
    torch.manual_seed(1)
    model = load_model(ModelSection(name=str(tiny.text)), device="cpu")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    saved = Saved(tiny.text, tmp_path / "adapter")
    assert "base_model.model.model.embed_tokens.weight" in load_file(saved.folder / "adapter_model.safetensors")
    meta_model(saved.section)
    load_model(saved.section, device="cpu")
    gpt = tmp_path / "gpt"
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(gpt)
    saved = Saved(gpt, write_adapter(gpt, tmp_path / "biased", target_modules=["c_attn"], bias="lora_only"))
    assert any(name.endswith("c_attn.base_layer.bias") for name in load_file(saved.folder / "adapter_model.safetensors"))
    load_model(saved.section, device="cpu")


def test_whole_numbers_are_refused(saved):
    name, tensor = next(iter(load_file(saved.folder / "adapter_model.safetensors").items()))
    change(saved, **{name: (tensor * 10).to(torch.int8)})
    saved.refused("whole numbers for 1 weights")


@pytest.mark.parametrize("zero", ["lora_A", "lora_B"])
def test_an_adapter_that_adds_nothing_says_so_once(tiny, tmp_path, capsys, zero):
    saved = Saved(tiny.text, write_adapter(tiny.text, tmp_path / "adapter"))
    tensors = load_file(saved.folder / "adapter_model.safetensors")
    one, *rest = [name for name in tensors if zero in name]
    change(saved, **{name: torch.zeros_like(tensors[name]) for name in rest})
    meta_model(saved.section)
    assert "adds nothing" not in capsys.readouterr().out
    change(saved, **{one: torch.zeros_like(tensors[one])})
    for load in (meta_model, lambda section: load_model(section, device="cpu")):
        load(saved.section)
    assert capsys.readouterr().out.count(f"note: the adapter {saved.folder} adds nothing") == 1


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_starts_from_the_bases_values_can_be_looked_at_without_them(tiny, tmp_path, start):
    saved = Saved(tiny.text, write_adapter(tiny.text, tmp_path / "adapter", init_lora_weights=start))
    assert adapted_names(meta_model(saved.section)) == adapted_names(load_model(saved.section, device="cpu"))


# The config file


def test_a_setting_that_peft_would_drop_is_refused_by_every_engine(tiny, tmp_path):
    from lore.engines.vllm_adapter import adapter_rank

    saved = Saved(tiny.text, write_adapter(tiny.text, tmp_path / "adapter"))
    saved.config(a_setting_of_a_newer_peft=None, other_thing=False)  # off
    meta_model(saved.section)
    assert adapter_rank(saved.section) == 8
    saved.config(a_setting_of_a_newer_peft=3)
    message = saved.refused("has a_setting_of_a_newer_peft 3 in its adapter_config.json, which PEFT .* does not know")
    with pytest.raises(LoreError) as error:
        adapter_rank(saved.section)
    assert str(error.value) == message and "Install the version of PEFT that saved it (" in message


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"peft_type": None}, "has peft_type None"),
        ({"peft_type": "NEWER"}, "has peft_type 'NEWER'"),
        ({"peft_type": ["LORA"]}, "has peft_type .'LORA'"),
        ({"r": "4"}, "TypeError"),
        ({"lora_alpha": "16"}, "TypeError"),
        ({"target_modules": 7}, ""),
        ({"rank_pattern": 3}, ""),
    ],
)
def test_a_broken_config_names_its_file(tiny, tmp_path, changes, said):
    from lore.engines.vllm_adapter import adapter_rank

    saved = Saved(tiny.text, write_adapter(tiny.text, tmp_path / "adapter"))
    saved.config(**changes)
    message = saved.refused(said)
    assert str(saved.folder / "adapter_config.json") in message and "HF_TOKEN" not in message
    with pytest.raises(LoreError):
        adapter_rank(saved.section)


def test_a_config_that_is_no_json_names_its_file(saved):
    for text in ("{'r': 4", "[" * 100_000, '{"r": 4, "r": 8}'):
        (saved.folder / "adapter_config.json").write_text(text)
        assert "HF_TOKEN" not in saved.refused("adapter_config.json cannot be read: ")
