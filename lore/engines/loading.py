"""Loads checkpoints: text or vision-language, with or without an adapter, with any head that transformers has a class for.
Safetensors only; no remote code unless the recipe says so.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

from lore.engines.config import ModelSection, looks_local
from lore.support.errors import LoreError
from lore.support.library_logging import silence

# Idefics3's own image processor needs torchvision; the Pillow one gives the same pixels everywhere.
PILLOW_BACKEND = {"idefics3"}


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it and float32 elsewhere."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_config(section: ModelSection) -> Any:
    silence()
    if section.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise LoreError(
            "model.quantize is nf4, which bitsandbytes computes, and it is not installed, so the weights cannot be "
            "loaded in 4 bits.\nInstall it (pip install 'lore-relevance[gpu]', a GPU machine), or leave model.quantize "
            "out."
        )
    _check_folder(section.name, "model.name")
    if section.adapter is not None:
        _check_folder(section.adapter, "model.adapter", "adapter_config.json")
    with _readable(section):
        return AutoConfig.from_pretrained(section.name, trust_remote_code=section.trust_remote_code)


def known_stops(section: ModelSection) -> set[int]:
    """The tokens at which a checkpoint's own generation_config, or its config, ends an answer."""
    config = load_config(section)
    try:
        known = GenerationConfig.from_pretrained(section.name).eos_token_id
    except OSError:  # it has none: transformers then asks the config, as here
        known = GenerationConfig.from_model_config(config).eos_token_id
    return set(known if isinstance(known, list) else [known]) - {None}


def is_vision(config: Any) -> bool:
    """True for a model that takes images with its text."""
    return type(config) in AutoModelForImageTextToText._model_mapping


def load_processor(section: ModelSection, *, chat: bool = False) -> Any:
    """A multimodal processor for vision-language models, a tokenizer for the others. chat: it has to have a chat template; raises
    LoreError where it has none."""
    config = load_config(section)
    with _readable(section):
        if not is_vision(config):
            processor = AutoTokenizer.from_pretrained(section.name, trust_remote_code=section.trust_remote_code)
        else:
            backend = {"backend": "pil"} if config.model_type in PILLOW_BACKEND else {}
            processor = AutoProcessor.from_pretrained(section.name, trust_remote_code=section.trust_remote_code, **backend)
    tokenizer = getattr(processor, "tokenizer", processor)
    if chat and not getattr(processor, "chat_template", None):
        raise LoreError(
            f"{section.name} has no chat template, so nothing says how a prompt is written for it.\n"
            "Use the instruction-tuned checkpoint, or save a chat template with its tokenizer."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def load_model(
    section: ModelSection, *, device: str, for_training: bool = False, auto_class: Any = None, **config_overrides: Any
) -> Any:
    """The model on `device`, with its adapter. For training the weights stay where the trainer wants them.

    auto_class: one of transformers' AutoModel classes, such as AutoModelForSequenceClassification; without one the model writes
    text. config_overrides: values that replace those of the model's own config, such as num_labels.

    Weights that are trained in full are float32 under dtype auto, since bfloat16 rounds small updates away; the trainer
    computes in bfloat16 all the same.
    """
    config = load_config(section)
    cls = auto_class or (AutoModelForImageTextToText if is_vision(config) else AutoModelForCausalLM)
    in_full = for_training and section.lora is None and section.adapter is None and section.dtype == "auto"
    dtype = torch.float32 if in_full else resolve_dtype(section.dtype, device)
    kwargs: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": section.trust_remote_code}
    if section.attn:
        kwargs["attn_implementation"] = section.attn
    if section.quantize:
        kwargs["quantization_config"] = _nf4(kwargs["dtype"])
    with _readable(section):
        model = cls.from_pretrained(section.name, **kwargs, **config_overrides)
        if section.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, section.adapter, is_trainable=for_training)
    if not for_training:
        model.eval()
        if not section.quantize:
            model.to(device)
    return model


@contextmanager
def _readable(section: ModelSection) -> Iterator[None]:
    """What the libraries say about a checkpoint they cannot load, in an error that names the key to change."""
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:600]
        if section.attn and any(word in reason.lower() for word in ("attn", "attention")):
            raise LoreError(
                f"model.attn is {section.attn}, which cannot be used here: {reason}\n"
                "Install what it needs, name one that transformers knows (sdpa, eager, flash_attention_2), or leave "
                "model.attn out."
            ) from error
        adapter = f" with model.adapter {section.adapter}" if section.adapter else ""
        raise LoreError(
            f"model.name {section.name}{adapter} cannot be loaded: {reason}\n"
            "Give the folder of a model, or the id of one that the hub can be asked for from here (HF_HUB_OFFLINE, "
            "HF_TOKEN). Only safetensors are read."
        ) from error


def _nf4(dtype):
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _check_folder(name: str, key: str, file: str = "config.json") -> None:
    """A path that is not there must not be taken for a hub id and asked for on the network."""
    path = Path(name)
    if path.is_dir():
        if not (path / file).is_file():
            raise LoreError(
                f"{key}: {name} holds no {file}, so it is not a finished model folder. "
                "Run the recipe that makes it, or correct the path."
            )
    elif looks_local(name):
        raise LoreError(f"{key}: {name} is not a folder. Run the recipe that makes it (see `needs`), or correct the path.")
