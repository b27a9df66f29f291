"""Keeps the rows of a batch from changing one another's numbers: positions, scaled rope and padding.

Three things in a model can depend on the other rows of a batch. Learned positions count the padding on the left as tokens
(GPT-2, GPT-Neo): `keep_rows_apart` passes position ids. Some kinds of rope choose their frequencies by the longest row
(longrope, dynamic NTK), and some attention scales by position: `length_rule` says which rows may share a batch. Whatever else
reads padding (convolutions and states of recurrent models) is measured by `padding_moves`: rows of such a model share a batch
only with rows of the same length.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

PROBE, PADS = "red running shoes for a child, size 31", 5
# Relative change of the logits. Rounding alone: 6e-7 in float32, 0.02 in bfloat16; wrong positions or states: above 0.05.
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-4, 0.05
DONE, MEASURED = "_lore_rows_apart", "_lore_padding_moves"


@dataclass(frozen=True)
class LengthRule:
    """A model that computes batches with a row of more than `tokens` tokens in another way.

    kind: what does it, for messages. exact: the exact length of the longest row counts. padding_only: only padding on the left
    does it, so batches padded on the right are free.
    """

    tokens: int
    kind: str
    exact: bool = True
    padding_only: bool = False

    def company(self, tokens: int, more: int = 0) -> int:
        """Rows may share a batch if this number is the same. tokens: the row's length; more: tokens that it may grow by."""
        if tokens + more <= self.tokens:
            return 0
        return -1 if tokens > self.tokens and not self.exact else tokens


def length_rule(config: Any) -> LengthRule | None:
    """The rule of a model's config; None for models without one."""
    text = config.get_text_config()
    for rope in _ropes(text):
        kind = _kind(rope)
        if kind == "longrope":
            limit = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
            return LengthRule(limit or text.max_position_embeddings, "longrope", exact=False)
        if kind == "dynamic":
            return LengthRule(text.max_position_embeddings, "dynamic rope")
    if getattr(text, "attn_temperature_tuning", False):  # Llama 4 counts the padding, too
        return LengthRule(int(text.floor_scale) - 1, "attn_temperature_tuning", padding_only=True)
    return None


def keep_rows_apart(model: Any) -> None:
    """Adds hooks to a model whose rows would change one another: position ids for learned positions and for scaled rope, and
    frequencies of dynamic rope that do not depend on earlier batches. Models with plain rope stay as they are."""
    base = base_of(model)
    if getattr(base, DONE, False):
        return
    setattr(base, DONE, True)
    ropes = list(_ropes(base.config.get_text_config()))
    if "position_ids" in inspect.signature(base.forward).parameters and (not ropes or any(map(_reads_positions, ropes))):
        base.register_forward_pre_hook(_with_positions, with_kwargs=True)
    if any(_kind(rope) == "dynamic" for rope in ropes):
        for module in base.modules():
            if hasattr(module, "original_max_seq_len") and hasattr(module, "max_seq_len_cached"):
                module.register_forward_pre_hook(_forget_earlier_batches, with_kwargs=True)


def padding_moves(model: Any, tokenizer: Any) -> bool:
    """Whether padding on the left changes a row's logits, measured once a model with short forward passes.

    Call `keep_rows_apart` first. Every process has to call it if the weights are sharded.
    """
    base = base_of(model)
    if not hasattr(base, MEASURED):
        setattr(base, MEASURED, _measured(model, tokenizer))
    return getattr(base, MEASURED)


def base_of(model: Any) -> Any:
    """The model without the wrapper of its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def _measured(model: Any, tokenizer: Any) -> bool:
    # At most 16 tokens: no rule about lengths begins there.
    ids = torch.tensor([tokenizer(PROBE, add_special_tokens=False)["input_ids"][:16]], device=model.device)
    pads = torch.full((1, PADS), tokenizer.pad_token_id or 0, device=model.device)
    mask = torch.ones_like(ids)
    padded = {"input_ids": torch.cat([pads, ids], dim=1), "attention_mask": torch.cat([torch.zeros_like(pads), mask], dim=1)}
    was_training = model.training
    model.eval()
    try:
        alone = _last_logits(model, ids, mask)
        beside = _last_logits(model, padded["input_ids"], padded["attention_mask"])
    except (ValueError, TypeError):  # a model that reads no text without a photo cannot be measured
        return True
    finally:
        model.train(was_training)
    moved = max(((a - b).norm() / a.norm().clamp(min=1e-9)).item() for a, b in zip(alone, beside, strict=True))
    precise = model.dtype == torch.float32 and not torch.is_autocast_enabled(ids.device.type)
    return not moved < (TOLERANCE if precise else LOW_PRECISION_TOLERANCE)


def _last_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Logits behind a row, and behind one more token that is read with the cache of generation: some states take padding in only
    there."""
    scored = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, -1].float()
    read = model(input_ids=ids, attention_mask=mask, use_cache=True)
    if getattr(read, "past_key_values", None) is None:
        return [scored]
    grown = torch.cat([mask, mask[:, -1:]], dim=1)
    # The row's last token again: whichever it is, it has to have the same logits in both rows.
    written = model(input_ids=ids[:, -1:], attention_mask=grown, past_key_values=read.past_key_values, use_cache=True)
    return [scored, written.logits[0, -1].float()]


def _ropes(text: Any) -> Iterator[dict[str, Any]]:
    """The rope parameters of a text config: one for all layers, or one for each kind of layer."""
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if not found and getattr(text, "rope_theta", None):
        found = {"rope_type": "default"}
    nested = [value for value in found.values() if isinstance(value, dict)]
    yield from nested or ([found] if found else [])


def _kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type")))


def _reads_positions(rope: dict[str, Any]) -> bool:
    """Whether more than the distance between two tokens counts. Models with M-RoPE compute their positions themselves."""
    return "mrope_section" not in rope and (_kind(rope) in ("longrope", "dynamic") or "llama_4_scaling_beta" in rope)


def _with_positions(_: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Forward pre-hook: position ids by which the first token of each row has position 0. Only for batches padded on the left."""
    mask, ids = options.get("attention_mask"), options.get("input_ids")
    ids = options.get("inputs_embeds") if ids is None else ids
    ids = arguments[0] if ids is None and arguments else ids
    if options.get("position_ids") is not None or ids is None or mask is None or mask.dim() != 2 or mask[:, 0].all():
        return None
    positions = (mask.long().cumsum(dim=1) - 1).masked_fill(mask == 0, 0)
    return arguments, options | {"position_ids": positions[:, -ids.shape[1] :]}


def _forget_earlier_batches(rope: Any, arguments: tuple, options: dict[str, Any]) -> None:
    """Forward pre-hook of a rotary embedding: dynamic rope keeps the frequencies of the longest batch so far, until a batch
    shorter than the trained length comes. Afterwards they depend on this batch alone."""
    kind = options.get("layer_type")
    prefix = f"{kind}_" if kind else ""
    if getattr(rope, f"{prefix}max_seq_len_cached", 0) > rope.original_max_seq_len:
        frequencies = getattr(rope, f"{prefix}original_inv_freq").to(getattr(rope, f"{prefix}inv_freq").device)
        rope.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
        setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)
