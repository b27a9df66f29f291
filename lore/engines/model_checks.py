"""Checks of a model and its processor before any work: what can be saved, which positions and token ids the model has, and whether
tier probabilities can be read. Training, export, evaluation and pool run the same ones.

They read shapes and configs, so they need no forward pass, and they accept a model without weights (`meta_model`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from lore.codec.chat_template import template_text, text_ids
from lore.codec.sanitize import control_strings
from lore.engines.chat import image_tokens, photo_of, prompt_text, turn_end
from lore.engines.config import ModelSection
from lore.engines.loading import load_processor
from lore.engines.row_independence import base_of
from lore.support.atomic_files import scratch_folder
from lore.support.errors import LoreError, translated
from lore.support.fingerprint import template_fingerprint

PROBE = "Größe 42, rot/weiß: l'été 北京 size 10 x 20 cm <verdict>"
"""Text that many tokenizers split differently when their files are not complete."""
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions")
PHOTOS = 8
UNSAVED = (
    "The judge could not be saved after the work. Correct that file in a copy of the checkpoint, and set model.name to the copy."
)
NO_SAFETENSORS = (
    "A full model could not be saved after training, nor exported. Use a checkpoint that transformers can load and save again, "
    "without remote code if the installed transformers has the model."
)


def check_saving(section: ModelSection, model: Any, processor: Any, beside: Path) -> None:
    """Saves config, generation_config and processor into a temporary folder next to `beside`, and reads them again.

    Raises LoreError if one of them cannot be written or read, or if the processor then gives other tokens or prompts.
    """
    base = base_of(model)
    with scratch_folder(beside) as folder:
        for what, save in _savers(base, processor, folder):
            with _translated(section, what, "written"):
                save()
        with _translated(section, "config", "read again"):
            AutoConfig.from_pretrained(folder, trust_remote_code=section.trust_remote_code)
        if base.can_generate():
            with _translated(section, "generation_config", "read again"):
                GenerationConfig.from_pretrained(folder)
        with _translated(section, "processor", "read again"):
            again = load_processor(ModelSection(name=str(folder), trust_remote_code=section.trust_remote_code))
        if changed := _differences(processor, again):
            raise LoreError(
                f"model.name {section.name}: once its processor is saved and read again, {changed}.\n"
                "The saved judge would read other prompts than those it was trained on. Use the tokenizer files of the original "
                "checkpoint (tokenizer.json), or save the processor once with the installed transformers and train on that folder."
            )


def _savers(base: Any, processor: Any, folder: Path) -> Iterator[tuple[str, Any]]:
    """(what, function that saves it)."""
    if getattr(base, "is_remote_code", lambda: False)() and not quantized(base):
        yield "config with its own code", lambda: base.save_pretrained(folder, state_dict={})
    else:
        yield "config", lambda: base.config.save_pretrained(folder)
        if base.can_generate():
            yield "generation_config", lambda: base.generation_config.save_pretrained(folder)
    yield "processor", lambda: processor.save_pretrained(folder)


def _translated(section: ModelSection, what: str, done: str) -> Any:
    return translated(lambda _: (f"model.name {section.name}: its {what} cannot be {done}", UNSAVED))


def _differences(first: Any, second: Any) -> str | None:
    """What differs between a processor and its saved copy; None if nothing does."""
    one, two = (getattr(processor, "tokenizer", processor) for processor in (first, second))
    if len(one) != len(two):
        return f"it has {len(two):,} tokens instead of {len(one):,}"
    if template_fingerprint(first) != template_fingerprint(second):
        return "it has another chat template"
    texts = [PROBE, *([turn_end(first)] if getattr(first, "chat_template", None) else [])]
    for text in texts:
        if (ids := one(text, add_special_tokens=False)["input_ids"]) != (other := two(text, add_special_tokens=False)["input_ids"]):
            return f"it splits {text!r} into {len(other)} other tokens instead of {len(ids)}"
    return None


def check_format(section: ModelSection, model: Any, beside: Path) -> None:
    """Prepares the weights for safetensors as a save does, without writing them. Raises LoreError if that fails, for example for
    tensors that share memory. Skips adapters and weights that are quantized or sharded, which no run saves as they are."""
    if model is not base_of(model) or quantized(model) or any(hasattr(p, "ds_id") for p in model.parameters()):
        return
    # A conversion copies weights. Without values it costs nothing.
    converts = bool(getattr(model, "_weight_conversions", None))
    weights = {name: value.to("meta") for name, value in model.state_dict().items()} if converts else None
    named = model.config.dtype, model.config.architectures
    try:
        failed = f"model.name {section.name}: its weights cannot be written as safetensors"
        with translated(lambda _: (failed, NO_SAFETENSORS)), scratch_folder(beside) as folder:
            model.save_pretrained(folder, is_main_process=False, state_dict=weights)
    finally:
        model.config.dtype, model.config.architectures = named  # a save writes both into the config


def quantized(model: Any) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


def position_limit(model: Any) -> int | None:
    """Largest number of tokens that the model has positions for; None if its architecture sets no limit.

    A table of learned positions counts without the rows that it reserves (OPT, BART, RoBERTa). Without a table, the limit is the
    config's, extended by its rope scaling. A sliding window limits attention, not positions.
    """
    base = base_of(model)
    tables = list(_position_tables(base))
    if tables:
        return min(tables)
    config = base.config.get_text_config()
    if getattr(config, "alibi", False):
        return None
    known = [value for key in POSITIONS if isinstance(value := getattr(config, key, None), int) and value > 0]
    if not known:
        return None
    return max(min(known), _scaled(config, min(known)))


def _position_tables(model: Any) -> Iterator[int]:
    """Positions of each table of absolute positions in the text model."""
    for name, wrapped in (model.get_decoder() or model).named_modules():
        last, module = name.rpartition(".")[2], _own_layer(wrapped)
        if not isinstance(module, torch.nn.Embedding) or "relative" in last or ("pos" not in last and last != "wpe"):
            continue
        reserved = getattr(module, "offset", None)
        if not isinstance(reserved, int):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
        yield module.num_embeddings - reserved


def _scaled(config: Any, positions: int) -> int:
    """Positions with rope scaling. For llama3 and longrope, max_position_embeddings already includes it, and so it does for models
    whose layers have different ropes (Gemma 3)."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind not in ("linear", "dynamic", "yarn"):
        return positions
    return int((rope.get("original_max_position_embeddings") or positions) * (rope.get("factor") or 1))


def check_positions(model: Any, tokens: int, what: str, fix: str, *, most: int | None = None, most_key: str = "") -> None:
    """Raises LoreError if `tokens` exceed the model's positions, or `most`, the value of recipe key `most_key`.

    what: the longest text, for the message; fix: which recipe keys to change.
    """
    limit = position_limit(model)
    if most is not None and tokens > most and (limit is None or most < limit):
        raise LoreError(
            f"{what} takes {tokens:,} tokens, and {most_key} is {most:,}, so the engine would refuse it.\nRaise it, or {fix}."
        )
    if limit is not None and tokens > limit:
        raise LoreError(
            f"{what} takes {tokens:,} tokens, and the model has {limit:,} positions. Beyond them it fails, or reads positions that "
            f"it was never trained on.\n{fix[0].upper()}{fix[1:]}, or use a model with a longer context."
        )


def longest_prompt(conversations: Iterable[list[dict]], processor: Any) -> int:
    """Tokens of the longest conversation, photos included; 0 for none."""
    tokenizer, longest = getattr(processor, "tokenizer", processor), 0
    for messages in conversations:
        text, images = prompt_text(processor, messages)
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        longest = max(longest, length + sum(image_tokens(processor, image) for image in images))
    return longest


def photo_tokens(pairs: Iterable[Any], fmt: Any, processor: Any) -> int:
    """Most tokens that one of the first PHOTOS photos adds to a prompt; 0 if the model reads no photos."""
    if not fmt.photo or not hasattr(processor, "tokenizer"):
        return 0
    found = []
    for pair in pairs:
        photo, _ = photo_of(pair, fmt, processor)
        if photo is not None:
            found.append(image_tokens(processor, photo))
        if len(found) == PHOTOS:
            break
    return max(found, default=0)


def check_vocabulary(section: ModelSection, model: Any, processor: Any, highest_id: int | None = None) -> None:
    """Raises LoreError if a token id that can occur has no row in the embeddings, or an answer's end no logit.

    highest_id: the highest id in the rows. An added control token that no prompt contains may lie beyond the embeddings, as in
    text-only checkpoints of a model family with photos: texts are cleared of control tokens, so it never occurs.
    """
    base, tokenizer = base_of(model), getattr(processor, "tokenizer", processor)
    rows, logits = _rows(base.get_input_embeddings(), base), _rows(base.get_output_embeddings(), base)
    beyond = {id: token for token, id in tokenizer.get_vocab().items() if id >= rows}
    problems = []
    if beyond:
        roles = {getattr(tokenizer, f"{role}_token_id", None): f"the {role} token" for role in ("unk", "eos", "pad")}
        roles |= {getattr(base.config, "image_token_id", None): "the image token"} if hasattr(processor, "tokenizer") else {}
        roles |= dict.fromkeys(_template_ids(processor), "part of the chat template")
        control = control_strings(processor)
        reached = {id: roles.get(id, "an ordinary token") for id, token in beyond.items() if id in roles or token not in control}
        problems += [f"{beyond[id]!r} (id {id}, {role})" for id, role in sorted(reached.items())[:4]]
        if len(reached) > 4:
            problems.append(f"{len(reached) - 4:,} more")
    if highest_id is not None and highest_id >= rows:
        problems.append(f"id {highest_id} in the rows")
    if problems:
        raise LoreError(
            f"model.name {section.name} has embeddings for {rows:,} token ids, and its tokenizer has {len(tokenizer):,} tokens; "
            f"without an embedding: {', '.join(problems)}.\n"
            "The first batch with such a token would fail with an IndexError. Use the tokenizer of the checkpoint, choose a token "
            "that the model has as pad_token, or resize the model once (model.resize_token_embeddings) and save both together."
        )
    if not getattr(processor, "chat_template", None):
        return
    end = turn_end(processor)
    if lost := [id for id in tokenizer(end, add_special_tokens=False)["input_ids"] if id >= logits]:
        raise LoreError(
            f"model.name {section.name} has logits for {logits:,} token ids, and {end!r}, the end of an answer, is id {lost[0]}, "
            "so the model could never end an answer.\nUse the checkpoint's tokenizer, or resize the model and save both together."
        )


def _own_layer(layer: Any) -> Any:
    """The model's own layer inside PEFT's wrappers: of an adapter, of modules_to_save and of trainable tokens."""
    while (inner := getattr(layer, "base_layer", getattr(layer, "original_module", None))) is not None:
        layer = inner
    return layer


def _rows(layer: Any, model: Any) -> int:
    """Token ids of an embedding or output layer. Its weight has no shape here while DeepSpeed shards it."""
    layer = _own_layer(layer)
    for name in ("num_embeddings", "out_features"):
        if isinstance(found := getattr(layer, name, None), int):
            return found
    weight = getattr(layer, "weight", None)
    return weight.shape[0] if weight is not None and weight.ndim == 2 else model.config.get_text_config().vocab_size


def _template_ids(processor: Any) -> set[int]:
    """Token ids of a rendered prompt with its answer's end."""
    if not getattr(processor, "chat_template", None):
        return set()
    text = template_text(processor, [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]) + turn_end(processor)
    return set(text_ids(processor, text))
