"""Loads a trained adapter onto its base model and checks that every tensor of its file finds a place.

PEFT ignores tensors whose names are not in the model, and leaves adapter weights without a tensor at their initial values, which
add nothing. A judge whose adapter belongs to another base would then answer as the base model without an error. Only safetensors
are read, never pickle files.
"""

import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open

from lore.support.errors import LoreError
from lore.support.processes import say

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
NAME = "default"  # PEFT's name of an adapter that is loaded without a name; part of the names of its parameters
PREFIX = "base_model.model."
SHOWN = 3


def with_adapter(model: Any, adapter: str, *, base: str, is_trainable: bool = False) -> PeftModel:
    """The model with the adapter of a folder or hub id. base: model.name, for messages.

    The model may be on the meta device; then only names and shapes are checked. Raises LoreError unless every tensor of the file
    has a place in the model and every adapter weight of the model has a tensor.
    """
    folder = adapter_folder(adapter)
    shapes, config = tensor_shapes(folder), PeftConfig.from_pretrained(folder)
    trained_on = config.base_model_name_or_path
    _check_kind(config, adapter)
    own = {PREFIX + name for name in model.state_dict()}
    extra: list[str] = []
    missing: list[str] = []

    def read(_: Any, keys: Any) -> None:
        extra.extend(keys.unexpected_keys)
        missing.extend(key for key in keys.missing_keys if NAME in key.split(".") and key not in own)

    handle = model.register_load_state_dict_post_hook(read)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, see below
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # names and shapes are compared first
            loaded = PeftModel.from_pretrained(model, folder, is_trainable=is_trainable)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = f"the file lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:500]
        raise _misfit(adapter, base, trained_on, f"The file holds {_some(list(shapes))}. PEFT says: {reason}") from error
    finally:
        handle.remove()
    if extra or missing:
        found = (
            f"{len(shapes) - len(extra)} of the {len(shapes)} tensors in its file have a place in the model, and {len(missing)} "
            "adapter weights of the model have no tensor."
        )
        sides = (("Only in the file", extra), ("Only in the model", missing))
        listed = [f"{side}: {_some(names)}." for side, names in sides if names]
        raise _misfit(adapter, base, trained_on, "\n".join([found, *listed]))
    if trained_on and Path(trained_on).name != Path(base).name:
        say(f"note: the adapter {adapter} was trained on {trained_on}; its names and shapes also fit {base}, which it is loaded on")
    return loaded


def adapter_folder(adapter: str) -> Path:
    """The local folder of an adapter. Of a hub repository only the config and the safetensors file are downloaded."""
    if Path(adapter).is_dir():
        return Path(adapter)
    return Path(snapshot_download(adapter, allow_patterns=[CONFIG, TENSORS]))


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of the tensors of an adapter. Raises LoreError if the file is missing, damaged or empty."""
    path = folder / TENSORS
    if not path.is_file():
        pickles = sorted(file.name for file in folder.glob("adapter_model*") if file.suffix in (".bin", ".pt", ".pth"))
        other = f" {pickles[0]} is a pickle file, which can run any code when it is loaded, so it is not read." if pickles else ""
        raise LoreError(
            f"{folder} has no {TENSORS}, so there is no adapter to load.{other}\n"
            "Save the adapter as safetensors (save_pretrained of PEFT does), or give the folder of a finished run's model.",
            same_on_every_rank=True,
        )
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise LoreError(
            f"{path} cannot be read: {error}.\nThe file is cut off or damaged: copy it again, or save the adapter again.",
            same_on_every_rank=True,
        ) from error
    if not shapes:
        raise LoreError(
            f"{path} holds no tensors, so the model would answer without its adapter.\nIt was saved without its weights, as "
            "happens when sharded weights are not gathered first: save the adapter again.",
            same_on_every_rank=True,
        )
    return shapes


def adapted_names(model: Any) -> list[str]:
    """Names, in the base model, of the modules of a PeftModel that have an adapter."""
    return [name.removeprefix(PREFIX) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def are_tied(model: Any) -> bool:
    """Whether input and output embeddings share one weight."""
    ends = [_weight(model.get_input_embeddings()), _weight(model.get_output_embeddings())]
    return ends[0] is not None and ends[0] is ends[1]


def check_untied(model: Any, adapter: str) -> None:
    """Raises LoreError if the adapter of a PeftModel changes one of two embeddings that share a weight, which no merge can keep."""
    base = model.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    if not are_tied(base) or not any(isinstance(end, LoraLayer) for end in ends):
        return
    names = [name for name, module in base.named_modules() if module in ends and isinstance(module, LoraLayer)]
    raise LoreError(
        f"The adapter {adapter} changes {' and '.join(names)}, and the base's input and output embeddings share one weight.\n"
        "The adapter changes one use of that weight; merged, it would change both, and the judge would be another one. Serve it "
        "with its adapter on the transformers engine, or train again without these targets.",
        same_on_every_rank=True,
    )


def _weight(module: Any) -> Any:
    inner = module.get_base_layer() if isinstance(module, LoraLayer) else module
    return getattr(inner, "weight", None)


def _check_kind(config: PeftConfig, adapter: str) -> None:
    if config.is_prompt_learning:
        raise LoreError(
            f"The adapter {adapter} is a {config.peft_type.value}, which puts learned tokens before the prompt.\n"
            "Judges are trained and scored with the prompt's own tokens: use a LoRA adapter.",
            same_on_every_rank=True,
        )


def _some(names: list[str]) -> str:
    """Their number and the first few."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} tensors: {', '.join(names[:SHOWN])}{rest}"


def _misfit(adapter: str, base: str, trained_on: str | None, found: str) -> LoreError:
    known = f"{CONFIG} names the base {trained_on}. " if trained_on else ""
    return LoreError(
        f"model.adapter {adapter} does not fit model.name {base}, so its answers would not be those of the trained judge.\n"
        f"{found}\n{known}Likely causes: the adapter was trained on another base (set model.name to that one), its names come from "
        "another version of PEFT or transformers (save it again with this one), or its file is incomplete (copy it again).",
        same_on_every_rank=True,
    )
