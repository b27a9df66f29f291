"""Which modules a new adapter gets, and embeddings that share one weight."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    GPT2LMHeadModel,
    LlavaForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from lore.engines.adapter import are_tied
from lore.engines.config import LoraSection, ModelSection
from lore.engines.loading import is_vision, load_model, load_processor, photo_parts
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.common.lora import adapted_line, adapted_modules, peft_config
from lore.train.export import export


def names(model, **lora) -> list[str]:
    return [name for name, _ in adapted_modules(peft_config(LoraSection(**lora), model), model)]


def test_by_default_the_language_model_is_adapted_and_all_linear_still_means_every_layer(tiny):
    text, vision = (load_model(ModelSection(name=str(getattr(tiny, kind))), device="cpu") for kind in ("text", "vision"))
    assert names(text) == names(text, targets="all-linear") and len(names(text)) == 14
    everywhere = names(vision, targets="all-linear")
    assert names(vision) == [name for name in everywhere if "text_model" in name]
    assert len(everywhere) == 21 and len(names(vision)) == 14
    line = adapted_line(peft_config(LoraSection(), vision), vision)
    assert line.startswith("14 modules (model.text_model.layers: q_proj x 2, ") and "vision" not in line
    assert "model.vision_model" in adapted_line(peft_config(LoraSection(targets="all-linear"), vision), vision)
    assert adapted_line(None, text) == "none"


@pytest.mark.parametrize(
    "cls", [LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration]
)
def test_the_language_model_is_found_in_other_vision_language_models(cls):
    with torch.device("meta"):
        model = cls(cls.config_class())
    assert is_vision(model.config)
    everywhere, adapted = names(model, targets="all-linear"), names(model)
    assert adapted == [name for name in everywhere if ".language_model." in name]
    left = {name.split(".")[1] for name in everywhere if name not in adapted}
    assert left == {name.split(".")[1] for name, _ in photo_parts(model)} and "language_model" not in left


@pytest.fixture(scope="module")
def tied(tiny, tmp_path_factory):
    """kind -> the tiny model whose output layer shares the weight of its input embeddings."""
    found = {}
    for kind, auto in (("text", AutoModelForCausalLM), ("vision", AutoModelForImageTextToText)):
        folder, section = tmp_path_factory.mktemp(f"tied-{kind}"), ModelSection(name=str(getattr(tiny, kind)))
        config = AutoConfig.from_pretrained(section.name)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
        load_processor(section).save_pretrained(folder)
        assert are_tied(load_model(ModelSection(name=str(folder)), device="cpu"))
        found[kind] = folder
    return found


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_an_adapter_on_embeddings_that_share_a_weight_is_refused_before_step_0(tiny, tied, kind, runs, tmp_path):
    body = json.loads(tiny.recipe("judge", model=kind, lora={"targets": ["q_proj", "embed_tokens"]}, steps=2))
    body["model"]["name"] = str(tied[kind])
    path = tmp_path / "judge.yaml"
    path.write_text(json.dumps(body))
    message = r"embed_tokens, the input embeddings, which share their weight.*model.lora.modules_to_save: \[embed_tokens\]"
    with pytest.raises(LoreError, match=f"(?s){message}"):
        run_recipe(path)
    assert not list((runs / "judge").glob("**/*.safetensors"))
    names(load_model(ModelSection(name=str(getattr(tiny, kind))), device="cpu"), targets=["q_proj", "embed_tokens"])  # untied: fine


EMBEDDINGS, OUTPUT = ["embed_tokens"], ["lm_head"]


@pytest.mark.parametrize(
    "kind, saved",
    [
        ("text", EMBEDDINGS),
        ("text", OUTPUT),
        pytest.param("text", EMBEDDINGS + OUTPUT, marks=pytest.mark.slow),
        pytest.param("vision", EMBEDDINGS, marks=pytest.mark.slow),
        pytest.param("vision", OUTPUT, marks=pytest.mark.slow),
        pytest.param("vision", EMBEDDINGS + OUTPUT, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_shared_weight_that_is_trained_in_full_stays_shared_from_training_to_the_merged_files(
    tiny, tied, kind, saved, runs, tmp_path, capsys
):
    body = json.loads(tiny.recipe("judge", model=kind, lora={"modules_to_save": saved}, steps=4, lr=3e-2, save_every=0))
    body["model"]["name"] = str(tied[kind])
    path = tmp_path / "judge.yaml"
    path.write_text(json.dumps(body))
    run = run_recipe(path)
    assert "adapter" in capsys.readouterr().out
    weights = load_file(run / "model" / "adapter_model.safetensors")
    ends = [tensor for name, tensor in weights.items() if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    before = load_model(ModelSection(name=str(tied[kind])), device="cpu").get_input_embeddings().weight
    assert len(ends) == 2 and torch.equal(*ends) and (ends[0] - before).abs().max() > 1e-3
    found = export(run.path, tmp_path / "out", dtype="float32")
    print(f"{kind}, {saved}: merging moves a tier probability by at most {found.written:.1e}")
    assert found.written < 1e-5
    assert are_tied(load_model(ModelSection(name=str(tmp_path / "out")), device="cpu"))


def test_an_older_adapter_that_parts_the_shared_weight_is_merged_as_two_and_the_configs_say_so(tiny, tied, runs, tmp_path):
    body = json.loads(tiny.recipe("judge", lora={"modules_to_save": ["lm_head"]}, steps=1, save_every=0))
    body["model"]["name"] = str(tied["vision"])
    path = tmp_path / "judge.yaml"
    path.write_text(json.dumps(body))
    run = run_recipe(path)
    adapter = run / "model" / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(adapter).items() if "embed_tokens" not in name}
    save_file({name: tensor + tensor.std() * ("lm_head" in name) for name, tensor in tensors.items()}, adapter)
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    config |= {"modules_to_save": ["lm_head"], "ensure_weight_tying": False}
    (run / "model" / "adapter_config.json").write_text(json.dumps(config))
    assert export(run.path, tmp_path / "out", dtype="float32").written < 1e-5
    written = AutoConfig.from_pretrained(tmp_path / "out")
    assert not written.tie_word_embeddings and not written.get_text_config().tie_word_embeddings
    assert not are_tied(load_model(ModelSection(name=str(tmp_path / "out")), device="cpu"))


def test_shared_layers_that_peft_does_not_know_are_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    assert are_tied(model)
    for saved in ("wte", "lm_head"):
        with pytest.raises(LoreError, match=r"(?s)transformer.wte and lm_head share one weight.*train the whole model"):
            peft_config(LoraSection(modules_to_save=[saved]), model)
    assert peft_config(LoraSection(modules_to_save=["ln_f"]), model).ensure_weight_tying is False


def test_an_adapter_on_shared_embeddings_from_elsewhere_scores_as_trained_and_is_neither_merged_nor_trained(tied, tmp_path):
    from peft import LoraConfig, get_peft_model

    from lore.engines.open_engine import open_engine
    from lore.rubric.rubric import load_rubric

    base = load_model(ModelSection(name=str(tied["text"])), device="cpu")
    config = LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    section = ModelSection(name=str(tied["text"]), adapter=str(tmp_path / "adapter"))
    engine = open_engine(section, load_rubric("shop"), device="cpu")
    ids = torch.arange(5, 25)[None]
    np.testing.assert_allclose(engine.model(ids).logits.detach(), adapted(ids).logits.detach(), atol=1e-6)
    with pytest.raises(LoreError, match="changes model.embed_tokens, and the base's input and output embeddings share one weight"):
        load_model(section, device="cpu", for_training=True)
