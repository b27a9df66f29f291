"""Refuses adapters that vLLM would apply only in part.

vLLM loads what it knows of an adapter and ignores the rest, mostly without a word: settings that change how PEFT applies the
weights, layers of a vision tower and connector, and tensors whose names are not in its own model. Before the engine starts, the
config and the names are checked (`adapter_rank`); afterwards vLLM's workers say what they hold (`check_applied`), which is exact
but needs the started engine: for a server, only the first check runs.
"""

import shlex
from pathlib import Path
from typing import Any

from peft import LoraConfig

from lore.engines.adapter import adapted_names, adapter_folder, check_untied, stored_settings
from lore.engines.config import ModelSection
from lore.engines.loading import load_config, meta_model, photo_parts
from lore.engines.weight_files import some
from lore.support.errors import LoreError

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM accepts for max_lora_rank
# Settings of an adapter_config.json that vLLM honors, or that matter only in training.
HONORED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"}
HONORED |= {"layers_to_transform", "layers_pattern", "lora_dropout", "fan_in_fan_out", "ensure_weight_tying", "inference_mode"}
HONORED |= {"task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "runtime_config"}
HONORED |= {"megatron_config", "megatron_core", "loftq_config", "eva_config", "lora_ga_config", "corda_config", "init_lora_weights"}
# The other named initializations of PEFT change the base weights when the adapter is loaded.
INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


def adapter_rank(section: ModelSection) -> int | None:
    """The smallest max_lora_rank of vLLM that fits the adapter; None without an adapter.

    Raises LoreError for an adapter that does not fit model.name, or that vLLM would not apply completely.
    """
    if section.adapter is None:
        return None
    load_config(section)  # reports a missing path before it is looked up on the hub
    folder = adapter_folder(section.adapter)
    config = stored_settings(section.adapter, folder)
    if unknown := _unsupported_settings(config):
        raise _partly(section, f"has {' and '.join(unknown)}")
    if unknown := _unsupported_layers(section):
        raise _partly(section, f"changes {some(unknown, 'layers')}")
    rank = max([config.get("r", LoraConfig().r), *(config.get("rank_pattern") or {}).values()])
    fitting = [most for most in LORA_RANKS if most >= rank]
    if not fitting:
        raise LoreError(
            f"The adapter {section.adapter} has rank {rank}; vLLM supports at most {LORA_RANKS[-1]}.\n{_merge_first(section)}."
        )
    return fitting[0]


def check_applied(llm: Any, request: Any, section: ModelSection) -> None:
    """Loads the adapter into a started vLLM and asks every worker what it applies. llm: with AdapterParts as
    worker_extension_cls; request: the adapter's LoRARequest. Raises LoreError unless every tensor is applied.
    """
    try:
        llm.llm_engine.add_lora(request)
    except Exception as error:  # vLLM passes errors of its engine process on as plain exceptions
        raise _partly(section, f"is refused by vLLM ({' '.join(str(error).split())[:500]})") from error
    for applied, ignored in llm.collective_rpc("adapter_parts", args=(request.lora_int_id,)):
        if ignored or not applied:
            lost = f"{len(ignored)} layers that have no place in its model ({some(ignored, 'layers')})"
            raise _partly(section, f"has {lost}, {applied} do")


class AdapterParts:
    """What vLLM's worker answers about its adapters: mixed into the worker by worker_extension_cls."""

    model_runner: Any

    def adapter_parts(self, adapter_id: int) -> tuple[int, list[str]]:
        """(number of layers of the adapter that the model applies, names of the others)."""
        manager = self.model_runner.lora_manager._adapter_manager
        layers = manager.get_adapter(adapter_id).loras
        ignored = sorted(name for name in layers if name not in manager.modules)
        return len(layers) - len(ignored), ignored


def _unsupported_settings(config: dict[str, Any]) -> list[str]:
    """Settings of the adapter that vLLM does not apply, in words."""
    if config.get("peft_type") != "LORA":
        return [f"peft_type {config.get('peft_type')}"]
    default = LoraConfig().to_dict()
    found = []
    for key, value in config.items():
        if key == "init_lora_weights" and isinstance(value, str) and value.lower() not in INITS:
            found.append(f"{key} {value}, which changes the base weights,")
        elif key not in HONORED and value and value != default.get(key):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            found.append("DoRA" if key == "use_dora" else f"{key} {shown}")
    return found


def _unsupported_layers(section: ModelSection) -> list[str]:
    """Names of adapted layers that vLLM does not apply: those that read photos, and convolutions."""
    model = meta_model(section)
    check_untied(model, str(section.adapter))
    base = model.get_base_model()
    seen = [name for name, _ in photo_parts(base)]

    def ignored(name: str) -> bool:
        is_convolution = hasattr(base.get_submodule(name).get_base_layer(), "kernel_size")
        return is_convolution or any(f"{name}.".startswith(f"{part}.") for part in seen)

    return [name for name in adapted_names(model) if ignored(name)]


def _partly(section: ModelSection, what: str) -> LoreError:
    return LoreError(
        f"The adapter {section.adapter} {what}, which vLLM does not support, so its answers would differ from the trained "
        f"judge's.\n{_merge_first(section)}, use the transformers engine, or train the adapter with model.lora.targets: "
        "language-model."
    )


def _merge_first(section: ModelSection) -> str:
    """The advice to merge, with the adapter's run folder in the command if it still lies in one."""
    run = Path(str(section.adapter)).parent
    named = shlex.quote(str(run)) if (run / "recipe.yaml").is_file() else "RUN"
    return f"Merge it first (lore export {named} --out FOLDER --merge) and use FOLDER as model.name or as the judge"
