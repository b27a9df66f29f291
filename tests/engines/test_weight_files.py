"""A base whose files are missing, cut or of another model is refused before the run and when it is loaded, with the file's name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from lore.engines.config import ModelSection
from lore.engines.loading import load_config, load_model, load_processor, meta_model
from lore.engines.weight_files import check_weights
from lore.support.errors import LoreError


@pytest.fixture(params=["vision", "text"])
def base(request, tiny, tmp_path):
    return shutil.copytree(getattr(tiny, request.param), tmp_path / "base")


@pytest.fixture
def text(tiny, tmp_path):
    return shutil.copytree(tiny.text, tmp_path / "text")


def refused(folder, pattern: str) -> None:
    """Both refuse it: the dry pass and the loading."""
    section = ModelSection(name=str(folder))
    for look in (lambda: check_weights(section, meta_model(section)), lambda: load_model(section, device="cpu")):
        with pytest.raises(LoreError, match=f"(?s){pattern}") as error:
            look()
        assert "HF_TOKEN" not in str(error.value)


def test_a_whole_checkpoint_passes_in_one_file_and_in_several(base):
    section = ModelSection(name=str(base))
    check_weights(section, meta_model(section))
    load_model(section, device="cpu").save_pretrained(base / "parts", max_shard_size="20kB")
    section = ModelSection(name=str(base / "parts"))
    assert len(list((base / "parts").glob("model-*.safetensors"))) > 2
    check_weights(section, meta_model(section))
    next(iter(sorted((base / "parts").glob("model-*.safetensors")))).unlink()
    refused(base / "parts", r"model-00001-of-\d+\.safetensors")


def test_a_cut_file_and_no_file_are_refused(base):
    path = base / "model.safetensors"
    whole = path.read_bytes()
    for kept in (whole[: len(whole) // 2], whole[:5], b""):
        path.write_bytes(kept)
        refused(base, "(model.safetensors cannot be read: .*cut off or damaged|weights cannot be loaded)")
    path.unlink()
    refused(base, "model.safetensors")


def test_a_weight_without_a_tensor_and_one_of_another_shape_are_refused(base):
    path = base / "model.safetensors"
    tensors = load_file(path)
    norm = next(name for name in tensors if name.endswith("input_layernorm.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != norm}, path, {"format": "pt"})
    refused(base, r"1 weights would have random values.*No tensor for .*input_layernorm\.weight")
    save_file(tensors | {norm: torch.ones(7)}, path, {"format": "pt"})
    refused(base, r"input_layernorm\.weight has the shape \(7,\) in the file and \(32,\) in the model")


def test_tied_embeddings_and_a_new_head_are_no_fault(text):
    load_model(ModelSection(name=str(text)), device="cpu", auto_class=AutoModelForSequenceClassification, num_labels=3)
    path = text / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "lm_head.weight"}, path, {"format": "pt"})
    refused(text, "No tensor for lm_head.weight")
    (text / "config.json").write_text(json.dumps(json.loads((text / "config.json").read_text()) | {"tie_word_embeddings": True}))
    section = ModelSection(name=str(text))
    check_weights(section, meta_model(section))
    load_model(section, device="cpu")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"vocab_size": 100}, r"its weight files and its config.json do not belong together.*embed_tokens"),
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "its config.json .*cannot be loaded: KeyError: 'foo'"),
        ({"hidden_size": "32"}, "its config.json cannot be loaded: Strict"),
        ({"dtype": "foo"}, "its config.json cannot be loaded: AttributeError"),
        ({"hidden_act": "nothing"}, "its config.json .*cannot be loaded: KeyError"),
    ],
)
def test_a_config_that_transformers_cannot_use_is_no_traceback(text, changes, said):
    path = text / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(text, rf"model.name {text}: {said}")


def test_other_broken_files_are_named(text):
    (text / "generation_config.json").write_text(json.dumps({"num_return_sequences": 4}))
    refused(text, "its generation_config.json cannot be loaded: .*num_return_sequences.*correct it in a copy")
    (text / "generation_config.json").write_text("{'max_new_tokens': 3}")
    refused(text, "its generation_config.json cannot be loaded")
    (text / "generation_config.json").unlink()
    (text / "tokenizer.json").write_text("{")
    with pytest.raises(LoreError, match="its tokenizer and processor files cannot be loaded"):
        load_processor(ModelSection(name=str(text)))
    (text / "config.json").write_text("[1]")
    with pytest.raises(LoreError, match="its config.json cannot be loaded"):
        load_config(ModelSection(name=str(text)))


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"weight_map": [1]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../b.safetensors"}}',
    ],
    ids=lambda text: text[:40],
)
def test_a_damaged_index_of_several_files_is_named(base, index):
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(index)
    section = ModelSection(name=str(base))
    with pytest.raises(LoreError, match="index.json cannot be read"):
        check_weights(section, meta_model(section))
