"""Adapters in vLLM: applied completely, or refused with the ways out."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_adapter import Saved, write_adapter
from test_transformers_engine import RUBRIC, prompts
from tiny import make
from transformers import AutoConfig, AutoModelForCausalLM, Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM

from lore.engines.vllm_adapter import AdapterParts, adapter_rank
from lore.support.errors import LoreError

WAYS_OUT = r"lore export RUN --out FOLDER --merge.*the transformers engine.*model.lora.targets: language-model"
LAYERS = r".*(text_model|model)\.layers.*proj"  # of the language model
# Per-module ranks and alphas with rank-stabilized scaling, and layers chosen by number: vLLM honors them.
PATTERNS = {"use_rslora": True, "rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 2}}
PATTERNS |= {"alpha_pattern": {"v_proj": 3, "up_proj": 64}}


def refused(section, *patterns: str) -> str:
    with pytest.raises(LoreError, match=f"(?s){'.*'.join(patterns)}") as error:
        adapter_rank(section)
    return str(error.value)


def test_an_adapter_of_the_vision_tower_and_connector_is_refused_and_one_of_the_language_model_is_not(tiny, tmp_path):
    everywhere = Saved(tiny.vision, write_adapter(tiny.vision, tmp_path / "all"))
    message = refused(everywhere.section, r"changes model\.(vision_model|connector)\..* and 4 more layers", WAYS_OUT)
    assert "text_model" not in message
    assert adapter_rank(Saved(tiny.vision, write_adapter(tiny.vision, tmp_path / "text", target_modules=LAYERS)).section) == 8
    assert adapter_rank(Saved(tiny.text, write_adapter(tiny.text, tmp_path / "plain")).section) == 8
    assert adapter_rank(Saved(tiny.text, write_adapter(tiny.text, tmp_path / "patterns", **PATTERNS | {"r": 16})).section) == 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save lm_head"),
        ({"bias": "lora_only"}, "bias lora_only"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa, which changes the base weights"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, r"target_parameters mlp\.experts\.gate_up_proj"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [5, 6]}, "trainable_token_indices 5, 6"),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens 7"),
        ({"peft_type": "ADALORA"}, "peft_type ADALORA"),
        ({"use_dora": True, "bias": "all"}, "bias all and DoRA"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_vllm_does_not_apply_are_refused(tiny, tmp_path, change, named):
    saved = Saved(tiny.text, write_adapter(tiny.text, tmp_path / "adapter"))
    saved.config(**change)
    refused(saved.section, named, WAYS_OUT)


def test_the_refusal_names_the_run_whose_adapter_it_is(tiny, tmp_path):
    saved = Saved(tiny.text, write_adapter(tiny.text, tmp_path / "my run" / "model", modules_to_save=["lm_head"]))
    assert "lore export RUN --out" in refused(saved.section, WAYS_OUT)
    (tmp_path / "my run" / "recipe.yaml").touch()
    assert f"(lore export '{tmp_path / 'my run'}' --out FOLDER --merge)" in refused(saved.section, "FOLDER as model.name")


def test_names_that_fit_no_module_are_refused_before_vllm_starts(tiny, tmp_path):
    saved = Saved(tiny.text, write_adapter(tiny.text, tmp_path / "adapter"))
    saved.rename(lambda name: name.replace("model.layers", "language_model.layers"))
    refused(saved.section, "0 of the 28 tensors")


def test_a_convolution_and_a_tied_embedding_are_refused(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    Lfm2ForCausalLM(Lfm2Config(vocab_size=64, layer_types=["conv"], **size)).save_pretrained(tmp_path / "mixed")
    saved = Saved(tmp_path / "mixed", write_adapter(tmp_path / "mixed", tmp_path / "conv", target_modules=["conv.conv"], r=32))
    refused(saved.section, r"changes model\.layers\.0\.conv\.conv, which", WAYS_OUT)
    LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **size)).save_pretrained(tmp_path / "tied")
    saved = Saved(tmp_path / "tied", tmp_path / "tied_adapter")
    config = LoraConfig(target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(saved.base), config).save_pretrained(saved.folder)
    refused(saved.section, r"changes model\.embed_tokens, and the base's input and output embeddings share one weight")


def test_the_workers_answer_names_what_vllm_ignores():
    class Manager:
        modules = {"model.layers.0.mlp.down_proj": None, "model.layers.0.self_attn.qkv_proj": None}

        def get_adapter(self, number):
            return type("Lora", (), {"loras": {"model.layers.0.mlp.down_proj": 0, "visual.merger": 0, "a": 0}})

    worker = AdapterParts()
    worker.model_runner = type("Runner", (), {"lora_manager": type("Worker", (), {"_adapter_manager": Manager()})})
    assert worker.adapter_parts(1) == (1, ["a", "visual.merger"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_vllm_applies_what_transformers_does_and_names_what_it_ignores(kind, tmp_path):
    """One engine, many adapters: the checks before the start are passed over, to see what vLLM itself does."""
    tiny = make(tmp_path / "tiny", hidden=64)
    base = getattr(tiny, kind)
    adapters = {
        "plain": {"target_modules": LAYERS},
        "patterns": {"target_modules": LAYERS, **PATTERNS},
        "embeddings": {"target_modules": r".*(q_proj|embed_tokens)", "exclude_modules": ".*vision.*"},
        "output": {"target_modules": r".*(q_proj|lm_head)", "exclude_modules": ".*vision.*"},
        "everywhere": {},
    }
    if kind == "text":
        adapters["layers"] = {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}
    for name, options in adapters.items():
        write_adapter(base, tmp_path / "adapters" / name, **options)
    renamed = tmp_path / "adapters" / "renamed"
    shutil.copytree(tmp_path / "adapters" / "plain", renamed)
    tensors = load_file(renamed / "adapter_model.safetensors")
    save_file({re.sub(r"layers\.1", "layers.7", k): t for k, t in tensors.items()}, renamed / "adapter_model.safetensors")
    command = [sys.executable, str(ROOT / "tests" / "engines" / "vllm_adapters.py"), str(tmp_path), kind]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "engines")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    ignored = {"renamed": r"7 layers that have no place in its model \(model.*layers\.7"}
    if kind == "vision":
        ignored["everywhere"] = r"7 layers that have no place in its model \(model\.connector"
        ignored |= dict.fromkeys(("embeddings", "output"), "is refused by vLLM.*expected target modules")
    for name in (*adapters, "renamed"):
        if name in ignored:
            assert re.search(f"(?s){ignored[name]}.*{WAYS_OUT}", found[name]["error"]), found[name]
            continue
        print(f"{kind}, {name}: vLLM and transformers differ by {found[name]['difference']:.1e}, base by {found[name]['base']:.2f}")
        assert found[name]["difference"] < 1e-4 and found[name]["base"] > 0.05
    if kind == "vision":
        print(f"vision, everywhere: vLLM and transformers differ by {found['everywhere']['difference']:.2f}")
        assert found["everywhere"]["difference"] > 0.05


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_shared_embedding_that_was_trained_in_full_is_the_same_judge_in_vllm_once_merged(tmp_path, runs):
    from lore.engines.config import ModelSection
    from lore.engines.loading import load_processor
    from lore.engines.open_engine import open_engine
    from lore.run.runner import run_recipe
    from lore.train.export import export

    tiny = make(tmp_path / "tiny", hidden=64)
    config = AutoConfig.from_pretrained(tiny.text)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    load_processor(ModelSection(name=str(tiny.text))).save_pretrained(tmp_path / "tied")
    lora = {"modules_to_save": ["embed_tokens"]}
    body = json.loads(tiny.recipe("judge", model="text", lora=lora, steps=4, lr=3e-2, save_every=0))
    body["model"]["name"] = str(tmp_path / "tied")
    (tmp_path / "judge.yaml").write_text(json.dumps(body))
    run = run_recipe(tmp_path / "judge.yaml")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "pairs").symlink_to(tiny.pairs)
    export(run.path, tmp_path / "served" / "text", dtype="float32")
    command = [sys.executable, str(ROOT / "tests" / "engines" / "vllm_answers.py"), str(tmp_path / "served"), "text"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([*command, str(tmp_path / "out.json")], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    engine = open_engine(ModelSection(name=str(tmp_path / "tied"), adapter=str(run / "model")), RUBRIC, device="cpu")
    scores = np.array(json.loads((tmp_path / "out.json").read_text())["scores"])
    difference = np.abs(scores - engine.score(prompts(tiny, engine.processor))).max()
    print(f"merged in vLLM and the adapter in transformers differ by {difference:.1e}")
    assert difference < 1e-4
