"""Builds PEFT's config for the recipe's LoRA (or DoRA) and checks it against the model's modules, because PEFT silently ignores
names that match no module.
"""

import copy
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from transformers.pytorch_utils import Conv1D

from lore.engines.config import LoraSection
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)


def peft_config(
    lora: LoraSection | None, model: Any, *, left_out: Sequence[str] = (), task_type: str = "CAUSAL_LM"
) -> LoraConfig | None:
    """PEFT's config for a new adapter; None if the recipe trains all weights or continues an existing adapter.

    left_out: names of modules that never get an adapter, regardless of lora.targets; task_type: PEFT task type, such as SEQ_CLS,
    which also trains a classifier's new head in full. Raises LoreError if a name in model.lora matches no module of the model,
    or a module that cannot have an adapter.
    """
    if lora is None:
        return None
    unseen = [re.escape(name) for name in left_out]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale_alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        exclude_modules=rf"({'|'.join(unseen)})(\..*)?" if unseen else None,
        use_dora=lora.dora,
        modules_to_save=lora.modules_to_save or None,
        task_type=task_type,
    )
    names = [name for name, _ in model.named_modules() if name]
    for wanted in lora.modules_to_save:
        if not any(_matches(wanted, name) for name in names):
            raise _no_module("modules_to_save", wanted, names)
    for wanted in [] if isinstance(lora.targets, str) else lora.targets:
        if not any(_matches(wanted, name) for name in names):
            raise _no_module("targets", wanted, names)
    adapted = dict(adapted_modules(config, model))
    if not adapted:
        raise _no_module("targets", str(lora.targets), names)
    output = model.get_output_embeddings()
    for name, module in adapted.items():
        if module is output:
            raise LoreError(
                f"model.lora.targets {lora.targets} matches {name}, the output layer, whose adapter would never be trained.\n"
                f"Exclude it, or train that layer in full: model.lora.modules_to_save: [{name.rpartition('.')[2]}]."
            )
        if not isinstance(module, ADAPTABLE):
            raise LoreError(
                f"model.lora.targets {lora.targets} matches {name}, a {type(module).__name__}, but only linear, "
                "embedding and convolution layers can have an adapter.\nName layers inside it, or use all-linear."
            )
    return config


def _matches(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _no_module(key: str, wanted: str, names: list[str]) -> LoreError:
    last = sorted({name.rpartition(".")[2] for name in names} - {""})
    words = [name for name in last if not name.isdigit()]
    hint = nearest_hint(wanted.rpartition(".")[2], words)
    return LoreError(
        f"model.lora.{key}: {wanted!r} matches no module of the model that can be adapted, so it would train nothing."
        f"{hint}\nModules: {', '.join(words)}. A pattern has to match the full name, such as {names[-1]}."
    )


def adapted_modules(config: LoraConfig, model: Any) -> Iterator[tuple[str, Any]]:
    """(name, module) of every module that gets an adapter according to PEFT's own matching."""
    config = _maybe_include_all_linear_layers(copy.copy(config), model)
    for name, module in model.named_modules():
        if check_target_module_exists(config, name):
            yield name, module


def adapter_size(module: Any, rank: int, dora: bool) -> int:
    """Number of adapter parameters for one module."""
    if isinstance(module, torch.nn.Embedding):
        ins, outs = module.num_embeddings, module.embedding_dim
    elif hasattr(module, "kernel_size"):
        ins, outs = module.in_channels * math.prod(module.kernel_size) // module.groups, module.out_channels
    elif isinstance(module, Conv1D):
        ins, outs = module.nx, module.nf
    else:
        ins, outs = module.in_features, module.out_features
    return rank * (ins + outs) + dora * outs


def whole_layers_in_float32(trainer: Any) -> None:
    """Casts the bfloat16 weights of modules_to_save to float32, the dtype that PEFT uses for adapters.

    They are copies of the model's weights, and bfloat16 would round small updates to zero. DeepSpeed keeps its own float32
    copies.
    """
    if trainer.is_deepspeed_enabled:
        return
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad and "modules_to_save" in name and weight.dtype == torch.bfloat16:
            weight.data = weight.data.float()
