"""Tiers from vLLM's pooling runner: the rows of the output layer, and what is refused before vLLM starts."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from test_adapter import write_adapter
from test_transformers_engine import RUBRIC
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from lore.codec.verdict_tokens import verdict_tokens
from lore.engines.config import ModelSection, VllmSection
from lore.engines.loading import load_model, load_processor
from lore.engines.serve import serve_command_line
from lore.engines.vllm import pools
from lore.engines.vllm_pooling import HeadParts, tier_rows
from lore.support.errors import LoreError

SIZE = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
POOLING = VllmSection(scoring="pooling")


def section(folder, adapter=None) -> ModelSection:
    return ModelSection(name=str(folder), adapter=adapter and str(adapter))


def rows_of_the_model(folder, ids) -> np.ndarray:
    model = load_model(section(folder), device="cpu")
    return model.get_output_embeddings().weight.detach()[list(ids)].double().numpy()


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_the_rows_are_those_of_the_tier_tokens(tiny, kind):
    folder = getattr(tiny, kind)
    ids = verdict_tokens(load_processor(section(folder)), RUBRIC).tier_ids
    rows = tier_rows(section(folder), ids, torch.float32)
    np.testing.assert_array_equal(rows, rows_of_the_model(folder, ids))
    rounded = tier_rows(section(folder), ids, torch.bfloat16)
    assert 0 < np.abs(rounded - rows).max() < 0.01


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_of_tied_embeddings_and_of_a_checkpoint_in_several_files(tmp_path, tied):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **SIZE))
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ids = (90, 7, 8)
    np.testing.assert_array_equal(tier_rows(section(tmp_path), ids, torch.float32), rows_of_the_model(tmp_path, ids))


def test_output_layers_that_are_no_plain_product_are_refused(tiny, tmp_path):
    PhiForCausalLM(PhiConfig(**SIZE)).save_pretrained(tmp_path / "phi")
    quantized = shutil.copytree(tiny.text, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    head = write_adapter(tiny.text, tmp_path / "head", target_modules=["q_proj", "lm_head"])
    plain = write_adapter(tiny.text, tmp_path / "plain", target_modules=["q_proj"])
    refused = {
        "has a bias": (tmp_path / "phi", None),
        "quantized": (quantized, None),
        "changes the output layer": (tiny.text, head),
    }
    for words, (folder, adapter) in refused.items():
        with pytest.raises(LoreError, match=f"(?s){words}.*vllm.scoring to logprobs"):
            pools(section(folder, adapter), POOLING, True)
    assert pools(section(tiny.text, plain), POOLING, True) and pools(section(tiny.vision), POOLING, True)


def test_a_job_that_generates_gets_the_engine_that_can(tiny):
    assert not pools(section(tiny.text), VllmSection(), False)
    assert not pools(section(tiny.text), VllmSection(), True)
    with pytest.raises(LoreError, match="(?s)may generate.*scoring to logprobs"):
        pools(section(tiny.text), POOLING, False)


def test_a_server_refuses_the_pooling_runner(tiny, monkeypatch):
    monkeypatch.setattr("lore.engines.serve.check_vllm", lambda: None)  # the refusal needs no vLLM
    with pytest.raises(LoreError, match="(?s)scoring is pooling.*at logprobs"):
        serve_command_line(section(tiny.text), POOLING, "127.0.0.1", 8000, "judge")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_workers_answer_names_what_vllm_does_beside_the_product():
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.models.utils import StageMissingLayer

    def found(**values) -> list[str]:
        one = LogitsProcessor.__new__(LogitsProcessor)
        torch.nn.Module.__init__(one)
        vars(one).update({"scale": 1.0, "soft_cap": None, "logits_as_input": False} | values)
        model = torch.nn.ModuleList([StageMissingLayer("output", torch.nn.Linear(1, 1)), StageMissingLayer("output", one)])
        worker = HeadParts()
        worker.model_runner = type("Runner", (), {"get_model": lambda self: model})()
        return worker.head_parts()

    assert found() == []
    assert found(scale=0.5, soft_cap=30.0) == ["a scale", "a soft cap"]
