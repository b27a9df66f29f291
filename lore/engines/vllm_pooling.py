"""The second way to read tier probabilities in vLLM: its pooling runner returns the last hidden state of a prompt, and the tiers'
rows of the output layer turn it into the logits of the tiers.

vLLM then needs no sampler and computes no other logits, and it cannot generate. On a CPU that is no faster than one sampled token
with its log-probabilities (docs/lab/label.md), so it has to be asked for: vllm.scoring. Left out: vLLM's own conversion into a
classifier (`classifier_from_token`). It gives the same numbers for text models, but other numbers for models with photos.

The output layer has to be linear, without bias and with the weights of the checkpoint. `check_before` looks at the checkpoint and
the adapter, `HeadParts` at the model that vLLM has built.
"""

from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lore.engines.adapter import adapted_names, are_tied
from lore.engines.config import ModelSection
from lore.engines.loading import load_config, meta_model
from lore.engines.weight_files import weight_files
from lore.support.errors import LoreError

OTHER_WAY = "Set vllm.scoring to logprobs."


def pooling_options() -> dict[str, Any]:
    """Keyword arguments of vllm.LLM beside those of `engine_options`."""
    from vllm.config import PoolerConfig  # vLLM is optional and takes seconds to load

    # Without normalization. A checkpoint of sentence-transformers could ask for another pooling.
    pooler = PoolerConfig(task="embed", seq_pooling_type="LAST", use_activation=False)
    return {"runner": "pooling", "convert": "embed", "pooler_config": pooler}


def check_before(section: ModelSection) -> None:
    """Raises LoreError if the output layer is not linear, has a bias, is quantized or is changed by the adapter."""
    if getattr(load_config(section), "quantization_config", None) is not None:
        raise _refused(section, "is quantized, so its files do not hold the rows of the output layer as numbers")
    _output_name(section)


def tier_rows(section: ModelSection, tier_ids: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
    """The rows of the output layer for the tier tokens, float64 [tiers, hidden], rounded to the engine's dtype as vLLM does.

    Reads these rows only. Raises LoreError as check_before does, and if the files do not hold exactly one output layer.
    """
    name = _output_name(section)
    paths = weight_files(section)
    if paths is None:
        raise _refused(section, "has its weight files neither in a folder nor in the cache of the hub")
    found = []
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    if f".{key}".endswith(f".{name}.weight"):
                        found.append(torch.stack([file.get_slice(key)[row] for row in tier_ids]))
        except (SafetensorError, OSError, IndexError) as error:
            raise LoreError(f"{path} cannot be read: {error}.\nThe file is damaged: copy it again.") from error
    if len(found) != 1 or not found[0].is_floating_point():
        raise _refused(section, f"has {len(found)} tensors with a name that ends with {name}.weight; one of numbers is needed")
    return found[0].to(dtype).double().numpy()


class HeadParts:
    """What vLLM's worker answers about the output layer that it left out: mixed into the worker by worker_extension_cls."""

    model_runner: Any

    def head_parts(self) -> list[str]:
        """What the model does between its last hidden state and the logits beside a matrix product, in words."""
        from vllm.model_executor.layers.logits_processor import LogitsProcessor  # vLLM is optional and takes seconds to load

        # The pooling runner replaces the output layer with an empty module that remembers it.
        left_out = [vars(module).get("module") for module in self.model_runner.get_model().modules()]
        processors = [module for module in left_out if isinstance(module, LogitsProcessor)]
        if len(processors) != 1:
            return [f"{len(processors)} logits processors"]
        (one,) = processors
        found = {"a scale": one.scale != 1.0, "a soft cap": one.soft_cap is not None, "its own logits": one.logits_as_input}
        return [words for words, holds in found.items() if holds]


def check_after(llm: Any, section: ModelSection, rows: np.ndarray) -> None:
    """Asks every worker of a started vLLM. Raises LoreError if the logits are not the product that `tier_rows` is for."""
    for parts in llm.collective_rpc("head_parts"):
        if parts:
            raise _refused(section, f"computes its logits with {' and '.join(parts)}")
    if rows.shape[1] != llm.model_config.get_hidden_size():
        raise _refused(section, f"has hidden states of {llm.model_config.get_hidden_size()} and output rows of {rows.shape[1]}")


def _output_name(section: ModelSection) -> str:
    """The last part of the name of the output layer; that of the input embeddings if the two share their weight."""
    model = meta_model(section, adapter=False)
    output, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(output, torch.nn.Linear) or output.bias is not None:
        raise _refused(section, "has an output layer that is not linear or has a bias")
    names = {id(module): name for name, module in model.named_modules()}
    if section.adapter is not None and names[id(output)] in adapted_names(meta_model(section)):
        raise _refused(section, f"has an adapter that changes the output layer {names[id(output)]}")
    return names[id(embeddings if are_tied(model) else output)].rpartition(".")[2]


def _refused(section: ModelSection, what: str) -> LoreError:
    return LoreError(f"model.name {section.name} {what}, so vLLM's pooling runner cannot give its tier probabilities.\n{OTHER_WAY}")
