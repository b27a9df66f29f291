"""Loads a trained adapter onto its base model and checks that every tensor of its file finds a place among the adapter's weights.

PEFT ignores tensors whose names are not in the model, and leaves adapter weights without a tensor at their initial values, which
add nothing. A judge whose adapter belongs to another base would then answer as the base model without an error. PEFT also writes
tensors with names of the base over the base's own weights, and drops settings that it does not know. Only safetensors are read,
never pickle files.
"""

import inspect
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from lore.engines.weight_files import some, tensor_shapes
from lore.support.errors import LoreError, reason, translated
from lore.support.processes import say_once
from lore.support.untrusted_json import parse_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
NAME = "default"  # PEFT's name of an adapter that is loaded without a name; part of the names of its parameters
PREFIX = "base_model.model."
AGAIN = "Copy the adapter again, or save it again with save_pretrained of the installed PEFT."
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # initializations that change the base's weights when the adapter is loaded


def with_adapter(model: Any, adapter: str, *, base: str, is_trainable: bool = False) -> PeftModel:
    """The model with the adapter of a folder or hub id. base: model.name, for messages.

    The model may be on the meta device; then only names and shapes are checked. Raises LoreError unless every tensor of the file
    has a place in the model and every adapter weight of the model has a tensor.
    """
    folder = adapter_folder(adapter)
    shapes, config = adapter_shapes(folder), read_config(adapter, folder)
    trained_on = config.base_model_name_or_path
    if isinstance(getattr(config, "init_lora_weights", None), str) and any(weight.is_meta for weight in model.parameters()):
        config.init_lora_weights = True  # PiSSA and others compute with the base's values; names and shapes stay the same
    own = {PREFIX + name for name in model.state_dict()}
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings = tuple(f"{PREFIX}{name}." for name, module in model.named_modules() if any(module is end for end in ends))
    extra: list[str] = []
    missing: list[str] = []
    over_base: list[str] = []
    integers: list[str] = []

    def check(_: Any, tensors: Any, prefix: str, *rest: Any) -> None:
        """Before PEFT writes `tensors` into the model."""
        for name, place in model.state_dict(prefix=prefix).items():
            if name not in tensors:
                continue
            is_bias = getattr(config, "bias", "none") != "none" and name.endswith(".bias")  # PEFT saves the trained ones
            is_own = NAME not in name.split(".") or name.replace(".base_layer.", ".") in own
            if is_own and not is_bias and not name.startswith(embeddings):  # PEFT saves embeddings of a resized vocabulary
                over_base.append(name)
            if place.is_floating_point() and not tensors[name].is_floating_point():
                integers.append(name)
        if over_base or integers:
            raise LoreError("refused below")  # nothing is written

    def read(_: Any, keys: Any) -> None:
        extra.extend(keys.unexpected_keys)
        missing.extend(key for key in keys.missing_keys if NAME in key.split(".") and key not in own)

    handles = model.register_load_state_dict_pre_hook(check), model.register_load_state_dict_post_hook(read)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, see below
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # names and shapes are compared first
            loaded = PeftModel.from_pretrained(model, folder, config=config, is_trainable=is_trainable)
    except LoreError as error:
        raise _written_over(adapter, over_base, integers) from error
    except (KeyError, RuntimeError, ValueError) as error:
        why = f"the file lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:500]
        raise _misfit(adapter, base, trained_on, f"The file holds {_counted(list(shapes))}. PEFT says: {why}") from error
    except (TypeError, AttributeError) as error:
        raise _unreadable(folder, f"PEFT cannot use its settings: {reason(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    if extra or missing:
        found = (
            f"{len(shapes) - len(extra)} of the {len(shapes)} tensors in its file have a place in the model, and {len(missing)} "
            "adapter weights of the model have no tensor."
        )
        sides = (("Only in the file", extra), ("Only in the model", missing))
        listed = [f"{side}: {_counted(names)}." for side, names in sides if names]
        raise _misfit(adapter, base, trained_on, "\n".join([found, *listed]))
    if trained_on and Path(trained_on).name != Path(base).name:
        say_once(
            f"note: the adapter {adapter} was trained on {trained_on}; its names and shapes also fit {base}, which it is loaded on"
        )
    if _adds_nothing(folder, config):
        say_once(
            f"note: the adapter {adapter} adds nothing: of every layer lora_A or lora_B is zero, or lora_alpha is, as before the "
            f"first step of training; the judge answers as {base} alone"
        )
    return loaded


def adapter_folder(adapter: str) -> Path:
    """The local folder of an adapter. Of a hub repository only the config and the safetensors file are downloaded."""
    if Path(adapter).is_dir():
        return Path(adapter)
    return Path(snapshot_download(adapter, allow_patterns=[CONFIG, TENSORS]))


def stored_settings(adapter: str, folder: Path) -> dict[str, Any]:
    """The adapter's config file. Raises LoreError if it cannot be read, or if the installed PEFT would drop a setting that is on.
    Every engine asks here first."""
    path = folder / CONFIG
    with translated(lambda _: (f"{path} cannot be read", AGAIN)):
        stored = parse_json(path.read_bytes())
    kind = stored.get("peft_type") if isinstance(stored, dict) else None
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise _unreadable(folder, f"it has peft_type {kind!r}, which PEFT {version('peft')} does not know")
    known = {"peft_type", *inspect.signature(PEFT_TYPE_TO_CONFIG_MAPPING[kind]).parameters}
    if dropped := [f"{key} {value}" for key, value in stored.items() if key not in known and value]:
        raise LoreError(
            f"The adapter {adapter} has {some(dropped, 'settings')} in its {CONFIG}, which PEFT {version('peft')} does not know "
            "and would drop, so its answers could differ from the trained judge's.\nInstall the version of PEFT that saved it"
            f"{f' ({saved_by})' if (saved_by := stored.get('peft_version')) else ''}, or remove a setting that changes nothing.",
            same_on_every_rank=True,
        )
    return stored


def read_config(adapter: str, folder: Path) -> PeftConfig:
    """The adapter's settings. Raises LoreError if PEFT cannot use them, or if they are not those of an adapter of weights."""
    stored_settings(adapter, folder)
    with warnings.catch_warnings(), translated(lambda _: (f"{folder / CONFIG} cannot be used by PEFT {version('peft')}", AGAIN)):
        warnings.filterwarnings("ignore", "Unexpected keyword arguments")  # they are off, see above
        config = PeftConfig.from_pretrained(folder)
    _check_kind(config, adapter)
    return config


def adapter_shapes(folder: Path) -> dict[str, list[int]]:
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
    shapes = tensor_shapes(path)
    if not shapes:
        raise LoreError(
            f"{path} holds no tensors, so the model would answer without its adapter.\nIt was saved without its weights, as "
            "happens when sharded weights are not gathered first: save the adapter again.",
            same_on_every_rank=True,
        )
    return shapes


def _adds_nothing(folder: Path, config: PeftConfig) -> bool:
    """Whether a LoRA leaves the base as it is: one factor of every product is zero. Reads up to the first product that is not."""
    if config.peft_type != "LORA" or str(config.init_lora_weights).lower().startswith(CHANGES_BASE):
        return False
    if config.lora_alpha == 0 and not config.alpha_pattern and not config.modules_to_save:
        return True
    with safe_open(folder / TENSORS, "pt") as file:
        layers: dict[str, list[str]] = {}
        for name in file.keys():  # noqa: SIM118 (not a dict)
            layer, _, factor = name.rpartition(".lora_")
            if not factor.startswith(("A", "B", "embedding_")):  # trained in another way: a whole module, a magnitude of DoRA
                return False
            layers.setdefault(layer, []).append(name)
        return all(any(not file.get_tensor(name).any() for name in names) for names in layers.values())


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


def _counted(names: list[str]) -> str:
    return f"{len(names)} tensors: {some(names, 'tensors')}"


def _unreadable(folder: Path, why: str) -> LoreError:
    return LoreError(f"{folder / CONFIG} cannot be used: {why}.\n{AGAIN}", same_on_every_rank=True)


def _written_over(adapter: str, over_base: list[str], integers: list[str]) -> LoreError:
    what = [f"{len(over_base)} weights of the base itself ({some(over_base, 'weights')})"] * bool(over_base)
    what += [f"whole numbers for {len(integers)} weights ({some(integers, 'weights')})"] * bool(integers)
    return LoreError(
        f"The file of the adapter {adapter} holds {' and '.join(what)}, and PEFT would write them into the model without a word, "
        "so its answers would not be those of the trained judge.\nSave the adapter again with save_pretrained of PEFT, which "
        "writes only the adapter's weights, in floating point.",
        same_on_every_rank=True,
    )


def _misfit(adapter: str, base: str, trained_on: str | None, found: str) -> LoreError:
    known = f"{CONFIG} names the base {trained_on}. " if trained_on else ""
    return LoreError(
        f"model.adapter {adapter} does not fit model.name {base}, so its answers would not be those of the trained judge.\n"
        f"{found}\n{known}Likely causes: the adapter was trained on another base (set model.name to that one), its names come from "
        "another version of PEFT or transformers (save it again with this one), or its file is incomplete (copy it again).",
        same_on_every_rank=True,
    )
