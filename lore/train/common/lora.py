"""Builds PEFT's config for the recipe's LoRA (or DoRA) and checks it against the model's modules, because PEFT silently ignores
names that match no module.
"""

import copy
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.other import EMBEDDING_LAYER_NAMES
from transformers.pytorch_utils import Conv1D

from lore.engines.adapter import adapted_names, are_tied
from lore.engines.config import LANGUAGE_MODEL, LoraSection
from lore.engines.loading import is_vision, photo_parts
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)


def peft_config(
    lora: LoraSection | None, model: Any, *, left_out: Sequence[str] = (), task_type: str = "CAUSAL_LM"
) -> LoraConfig | None:
    """PEFT's config for a new adapter; None if the recipe trains all weights or continues an existing adapter.

    left_out: names of modules that never get an adapter, regardless of lora.targets; task_type: PEFT task type, such as SEQ_CLS,
    which also trains a classifier's new head in full. Raises LoreError if a name in model.lora matches no module of the model,
    a module that cannot have an adapter, or an embedding that shares its weight with the output layer.
    """
    if lora is None:
        return None
    unseen = [re.escape(name) for name in left_out]
    of_text = lora.targets == LANGUAGE_MODEL
    if of_text and is_vision(model.config):
        unseen += [escaped for name, _ in photo_parts(model) if (escaped := re.escape(name)) not in unseen]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale_alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if of_text else lora.targets,
        exclude_modules=rf"({'|'.join(unseen)})(\..*)?" if unseen else None,
        use_dora=lora.dora,
        modules_to_save=list(lora.modules_to_save) or None,  # PEFT may add the name of a tied layer
        task_type=task_type,
        ensure_weight_tying=_trains_tied(lora, model),
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
    source, output = model.get_input_embeddings(), model.get_output_embeddings()
    for name, module in adapted.items():
        if module is source and are_tied(model):
            raise LoreError(
                f"model.lora.targets {lora.targets} matches {name}, the input embeddings, which share their weight with the output "
                "layer.\nAn adapter would change only the input, and the merged judge would be another one than the trained: leave "
                f"it out of the targets, or train the shared weight in full: model.lora.modules_to_save: [{_last(name)}]."
            )
        if module is output:
            raise LoreError(
                f"model.lora.targets {lora.targets} matches {name}, the output layer, whose adapter would never be trained.\n"
                f"Exclude it, or train that layer in full: model.lora.modules_to_save: [{_last(name)}]."
            )
        if not isinstance(module, ADAPTABLE):
            raise LoreError(
                f"model.lora.targets {lora.targets} matches {name}, a {type(module).__name__}, but only linear, "
                "embedding and convolution layers can have an adapter.\nName layers inside it, or use language-model."
            )
    return config


def _trains_tied(lora: LoraSection, model: Any) -> bool:
    """Whether modules_to_save names an embedding that shares its weight with the output layer; PEFT then trains both as one.

    Raises LoreError where PEFT does not know these layers and would train copies that part."""
    if not lora.modules_to_save or not are_tied(model):
        return False
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tied = [name for name, module in model.named_modules() if module in ends]
    named = [name for name in tied if any(_matches(wanted, name) for wanted in lora.modules_to_save)]
    if named and not all(_last(name) in EMBEDDING_LAYER_NAMES for name in tied):
        raise LoreError(
            f"model.lora.modules_to_save names {' and '.join(named)}, but {' and '.join(tied)} share one weight.\nPEFT would train "
            "a copy for one of them, and the merged judge could be another one than the trained: leave them out, or train the "
            "whole model (without model.lora)."
        )
    return bool(named)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


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


def adapted_line(config: LoraConfig | None, model: Any) -> str:
    """Says which modules have an adapter: their number, and the last names of those in each part of the model.

    config: of a new adapter; None for a model that already has its adapter. "none" for a model without one.
    """
    names = adapted_names(model) if config is None else [name for name, _ in adapted_modules(config, model)]
    if not names:
        return "none"
    parts: dict[str, Counter[str]] = {}
    for name in names:
        before, _, last = name.rpartition(".")
        parts.setdefault(re.split(r"\.\d+(?:\.|$)", before)[0], Counter())[last] += 1
    listed = (f"{part or 'model'}: {', '.join(f'{last} x {n}' for last, n in found.items())}" for part, found in parts.items())
    return f"{len(names)} modules ({'; '.join(listed)})"


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
