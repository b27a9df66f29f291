"""The recipe's LoRA (or DoRA) for PEFT, checked against the modules of the model: PEFT itself passes over a name that
it does not find.
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
    """The LoRA of a recipe; none trains every weight, or continues with the adapter that the model has. left_out: names of
    modules that get no adapter, whatever lora.targets says; task_type: PEFT's name for what the model does, such as SEQ_CLS,
    which has a classifier's new head trained whole beside the adapter. Raises LoreError when a name in model.lora stands for
    no module of the model.
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
        if not any(_stands_for(wanted, name) for name in names):
            raise _no_module("modules_to_save", wanted, names)
    for wanted in [] if isinstance(lora.targets, str) else lora.targets:
        if not any(_stands_for(wanted, name) for name in names):
            raise _no_module("targets", wanted, names)
    adapted = dict(adapted_modules(config, model))
    if not adapted:
        raise _no_module("targets", str(lora.targets), names)
    output = model.get_output_embeddings()
    for name, module in adapted.items():
        if module is output:
            raise LoreError(
                f"model.lora.targets {lora.targets} takes in {name}, the output layer, whose adapter would never be trained.\n"
                f"Leave it out, or train that layer whole: model.lora.modules_to_save: [{name.rpartition('.')[2]}]."
            )
        if not isinstance(module, ADAPTABLE):
            raise LoreError(
                f"model.lora.targets {lora.targets} takes in {name}, a {type(module).__name__}; an adapter goes to linear, "
                "embedding and convolution layers.\nName those inside it, or use all-linear."
            )
    return config


def _stands_for(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _no_module(key: str, wanted: str, names: list[str]) -> LoreError:
    last = sorted({name.rpartition(".")[2] for name in names} - {""})
    words = [name for name in last if not name.isdigit()]
    hint = nearest_hint(wanted.rpartition(".")[2], words)
    return LoreError(
        f"model.lora.{key}: {wanted!r} stands for no module of the model that may get one, so nothing would be trained "
        f"there.{hint}\nIts modules: {', '.join(words)}. A pattern has to match the whole name, such as {names[-1]}."
    )


def adapted_modules(config: LoraConfig, model: Any) -> Iterator[tuple[str, Any]]:
    """(name, module) of every module that PEFT puts an adapter on, by PEFT's own rule."""
    config = _maybe_include_all_linear_layers(copy.copy(config), model)
    for name, module in model.named_modules():
        if check_target_module_exists(config, name):
            yield name, module


def adapter_size(module: Any, rank: int, dora: bool) -> int:
    """Parameters of the adapter on one module."""
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
    """Whole layers that are trained beside an adapter (modules_to_save) become float32, as PEFT makes its own weights: they are
    copies of the model's, and bfloat16 would round small updates away. DeepSpeed keeps float32 copies by itself."""
    if trainer.is_deepspeed_enabled:
        return
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad and "modules_to_save" in name and weight.dtype == torch.bfloat16:
            weight.data = weight.data.float()
