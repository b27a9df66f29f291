"""Loads checkpoints: text or vision-language, with or without an adapter, with any head that transformers supports.

Loads only safetensors, and runs remote code only if model.trust_remote_code is true.
"""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import GENERATION_CONFIG_NAME

from lore.engines.config import ModelSection, looks_local
from lore.engines.row_independence import keep_rows_apart
from lore.engines.weight_files import REPORTED, refuse_misfits
from lore.support.allocator import keep_freed_memory
from lore.support.errors import LoreError, translated
from lore.support.library_logging import silence
from lore.support.processes import say_once

# The default image processor of Idefics3 needs torchvision; the Pillow backend gives the same pixels on every machine.
PILLOW_BACKEND = {"idefics3"}

ADAPTER = "adapter_config.json and adapter_model.safetensors"


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype; `auto` is bfloat16 on a GPU that supports it, else float32."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32


def default_device() -> str:
    """`cuda` or `cpu`. A process that computes on the CPU keeps freed memory from then on."""
    if torch.cuda.is_available():
        return "cuda"
    keep_freed_memory()
    return "cpu"


def load_config(section: ModelSection) -> Any:
    silence()
    if section.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise LoreError(
            "model.quantize is nf4, which needs bitsandbytes, and bitsandbytes is not installed, so the weights cannot be "
            "loaded in 4 bits.\nInstall it (pip install 'lore-relevance[gpu]' on a GPU machine), or remove model.quantize."
        )
    _check_folder(section.name, "model.name")
    if section.adapter is not None:
        _check_folder(section.adapter, "model.adapter", "adapter_config.json")
    with _readable(section, "config.json"):
        return AutoConfig.from_pretrained(section.name, trust_remote_code=section.trust_remote_code)


def known_stops(section: ModelSection) -> set[int]:
    """The eos token ids of a checkpoint's generation_config, or of its config if it has no generation_config."""
    known = load_generation_config(section).eos_token_id
    return set(known if isinstance(known, list) else [known]) - {None}


def load_generation_config(section: ModelSection) -> GenerationConfig:
    """The checkpoint's generation_config; the one that transformers derives from the config if it has none."""
    config = load_config(section)
    with _readable(section, GENERATION_CONFIG_NAME):
        try:
            return GenerationConfig.from_pretrained(section.name)
        except OSError:  # no generation_config.json: use the config, as transformers does
            if (Path(section.name) / GENERATION_CONFIG_NAME).is_file():  # there is one, which is no JSON
                raise
            return GenerationConfig.from_model_config(config)


def is_vision(config: Any) -> bool:
    """Whether the model accepts images along with text."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_processor(section: ModelSection, *, chat: bool = False) -> Any:
    """A multimodal processor for vision-language models, a tokenizer for other models.

    chat: require a chat template; raises LoreError if there is none.
    """
    config = load_config(section)
    with _readable(section, "tokenizer and processor files"):
        if not is_vision(config):
            processor = AutoTokenizer.from_pretrained(section.name, trust_remote_code=section.trust_remote_code)
        else:
            backend = {"backend": "pil"} if config.model_type in PILLOW_BACKEND else {}
            processor = AutoProcessor.from_pretrained(section.name, trust_remote_code=section.trust_remote_code, **backend)
    tokenizer = getattr(processor, "tokenizer", processor)
    if isinstance(named := getattr(processor, "chat_template", None), dict):  # a template for each purpose, such as tool use
        if "default" not in named:
            raise LoreError(
                f"{section.name} has the chat templates {', '.join(named)} and none named default, so its prompt format is open.\n"
                "Save the one for plain conversations with its tokenizer, as chat_template.jinja."
            )
        processor.chat_template = named["default"]
    if chat and not getattr(processor, "chat_template", None):
        raise LoreError(
            f"{section.name} has no chat template, so its prompt format is unknown.\n"
            "Use the instruction-tuned checkpoint, or save a chat template with its tokenizer."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def load_model(
    section: ModelSection, *, device: str, for_training: bool = False, auto_class: Any = None, **config_overrides: Any
) -> Any:
    """The model on `device`, with its adapter. With for_training the model is not moved; the trainer places it.

    auto_class: an AutoModel class of transformers, such as AutoModelForSequenceClassification; None loads a generative model.
    config_overrides: values that replace those in the model's config, such as num_labels.

    With dtype auto, weights that are trained in full are float32, because bfloat16 rounds small updates to zero. The trainer
    still computes in bfloat16 (mixed precision).
    """
    cls = auto_class or _generative(load_config(section))
    in_full = for_training and section.lora is None and section.adapter is None and section.dtype == "auto"
    dtype = torch.float32 if in_full else resolve_dtype(section.dtype, device)
    kwargs: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": section.trust_remote_code}
    if section.attn:
        kwargs["attn_implementation"] = section.attn
    if section.quantize:
        kwargs["quantization_config"] = _nf4(kwargs["dtype"])
    if auto_class is None:
        load_generation_config(section)  # an error in it is not one of the weights
    with _readable(section, "config.json and weights"):
        if auto_class is None:
            model, found = cls.from_pretrained(section.name, **kwargs, **config_overrides, **REPORTED)
            if not section.quantize:
                refuse_misfits(section, found)
        else:  # a new head has no weights in the file
            model = cls.from_pretrained(section.name, **kwargs, **config_overrides)
    make_generation_config_writable(model, section.name)
    if section.adapter is not None:
        from lore.engines.adapter import check_untied, with_adapter  # PEFT takes seconds to load: only for an adapter

        with _readable(section, ADAPTER):
            model = with_adapter(model, section.adapter, base=section.name, is_trainable=for_training)
        if for_training:
            check_untied(model, section.adapter)
    keep_rows_apart(model)
    if not for_training:
        model.eval()
        if not section.quantize:
            model.to(device)
    return model


def meta_model(section: ModelSection, *, adapter: bool = True) -> Any:
    """The generative model without weights: to look at names, shapes and configs, in seconds even for a large model.

    adapter: with the section's adapter, if it has one.
    """
    config = load_config(section)
    with _readable(section, "config.json"), torch.device("meta"):
        model = _generative(config).from_config(config, trust_remote_code=section.trust_remote_code)
    if model.can_generate():
        model.generation_config = load_generation_config(section)
        make_generation_config_writable(model, section.name)
    if adapter and section.adapter is not None:
        from lore.engines.adapter import with_adapter  # PEFT takes seconds to load: only for an adapter

        with _readable(section, ADAPTER):
            model = with_adapter(model, section.adapter, base=section.name)
    return model


def photo_parts(model: Any) -> list[tuple[str, Any]]:
    """(name, module) of the outermost modules that text-only prompts do not use: vision tower and connector."""
    text = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    used = {id(p) for module in text if module is not None for p in module.parameters()}

    def walk(module: Any, at: str) -> Iterator[tuple[str, Any]]:
        for name, child in module.named_children():
            inside = [id(p) in used for p in child.parameters()]
            if inside and not any(inside):
                yield f"{at}{name}", child
            elif not all(inside):
                yield from walk(child, f"{at}{name}.")

    return list(walk(model, ""))


def _generative(config: Any) -> Any:
    return AutoModelForImageTextToText if is_vision(config) else AutoModelForCausalLM


def make_generation_config_writable(model: Any, name: str) -> None:
    """Resets values of the generation_config that transformers refuses to write, such as a temperature with do_sample false.

    transformers reads such a config but refuses to write it, so the model could not be saved. The values have no effect on
    transformers' own decoding, and LORE's engines and rollouts set theirs. Says so once per model. Other problems are left to
    `lore.engines.model_checks.check_saving`.
    """
    config = getattr(model, "generation_config", None)
    if config is None or not model.can_generate():
        return
    default, dropped = GenerationConfig(), {}
    while refused := _refused_values(config, default):
        dropped |= {key: getattr(config, key) for key in refused}
        for key in refused:
            setattr(config, key, getattr(default, key))
    if dropped:
        values = ", ".join(f"{key}={value}" for key, value in dropped.items())
        say_once(
            f"{name}: its generation_config sets {values}, which transformers refuses to save beside the other values; the saved "
            "judge has the defaults instead, and its answers stay the same"
        )


def _refused_values(config: GenerationConfig, default: GenerationConfig) -> list[str]:
    """Keys that transformers names as the reason not to write the config, and that differ from the default."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        named = re.findall(r"^- `(\w+)`: ", str(error), re.MULTILINE)
        return [key for key in named if getattr(config, key, None) != getattr(default, key, None)]
    return []


def _readable(section: ModelSection, part: str) -> AbstractContextManager[None]:
    """Translates errors of transformers and peft while loading a part of a checkpoint into a LoreError that names the recipe key.

    part: the file or files that are read, in words.
    """
    of_adapter = part == ADAPTER and section.adapter is not None
    key, name = ("model.adapter", str(section.adapter)) if of_adapter else ("model.name", section.name)

    def explain(error: Exception) -> tuple[str, str]:
        stated = isinstance(error, (OSError, ImportError, ValueError))
        if stated and section.attn and any(word in str(error).lower() for word in ("attn", "attention")):
            return f"model.attn is {section.attn}, which cannot be used here", (
                "Install its requirements, choose another implementation of transformers (sdpa, eager, flash_attention_2), or "
                "remove model.attn."
            )
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return f"{key} {name}: its {part} do not fit in memory", (
                "Use a device with more memory, a smaller model, or on a GPU model.quantize: nf4."
            )
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            return f"{key} {name}: its {part} need Python code from the checkpoint, which could do anything on this machine", (
                "Use a checkpoint that the installed transformers knows. Or read that code, and if you trust it, set "
                "trust_remote_code: true beside the model's name in your own recipe (lore export: --trust-remote-code)."
            )
        if isinstance(error, ImportError):
            return f"{key} {name}: its {part} cannot be loaded", "Install the package that the message names."
        if isinstance(error, OSError) and not Path(name).is_dir():
            return f"{key} {name} cannot be loaded", (
                "Give a model folder, or a hub id that this machine can download (check HF_HUB_OFFLINE and "
                "HF_TOKEN). Only safetensors are loaded."
            )
        return f"{key} {name}: its {part} cannot be loaded", (
            f"The file is damaged, or written for another version than the installed transformers {transformers.__version__}: copy "
            f"it again, or correct it in a copy of the checkpoint and set {key} to the copy."
        )

    return translated(explain)


def _nf4(dtype):
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _check_folder(name: str, key: str, file: str = "config.json") -> None:
    """Raises LoreError for a missing path, so that it is not looked up on the hub as an id."""
    path = Path(name)
    if path.is_dir():
        if not (path / file).is_file():
            raise LoreError(
                f"{key}: {name} has no {file}, so it is not a complete model folder. "
                "Run the recipe that creates it, or correct the path."
            )
    elif looks_local(name):
        raise LoreError(f"{key}: {name} is not a folder. Run the recipe that creates it (see `needs`), or correct the path.")
