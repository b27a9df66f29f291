"""Length bucketing: micro-batches of answers of similar length, with little padding.

TRL pads all prompts and answers of a rollout to the longest, and micro-batches keep that width. Here answers of similar length
share a micro-batch, and each micro-batch is trimmed to its longest prompt and answer. Losses are sums over tokens or means over
answers of the whole step, so the grouping changes only the time, not the loss.
"""

from typing import Any

import torch

from lore.train.common.prefix_groups import in_groups
from lore.train.common.trl_internals import COMPLETION_MASK, PHOTO_FIELDS, PROMPT_IDS, PROMPT_MASK, Batch, divided, joined

PROMPT = (PROMPT_IDS, PROMPT_MASK)
BOTH = ("token_type_ids", "mm_token_type_ids")


def bucket_by_length(micro_batches: list[Batch], per_step: int, loss: str, by_prompt: bool = False) -> list[Batch]:
    """Regroups a rollout's micro-batches within each optimizer step (`per_step` micro-batches) and trims their padding. The loss
    bnpo normalizes within a micro-batch, so for bnpo the micro-batches keep their answers. by_prompt: answers to prompts
    that begin alike stay together, sorted by length."""
    if loss != "bnpo":
        steps = [micro_batches[first : first + per_step] for first in range(0, len(micro_batches), per_step)]
        micro_batches = [one for step in steps for one in of_like_length(step, by_prompt=by_prompt)]
    return [without_padding(one) for one in micro_batches]


def of_like_length(micro_batches: list[Batch], *, by_prompt: bool = False) -> list[Batch]:
    """The micro-batches of one optimizer step, regrouped with their rows sorted by length, or by what their prompts begin with."""
    whole = joined(micro_batches)  # joined first: only the whole step shows how its photos map to rows
    lengths = (whole[PROMPT_MASK].sum(1) + whole[COMPLETION_MASK].sum(1)).tolist()
    if by_prompt:
        prompts = zip(whole[PROMPT_IDS].cpu(), whole[PROMPT_MASK].cpu().bool(), strict=True)
        asked = [ids[kept].to(torch.int32).numpy().tobytes() for ids, kept in prompts]
        rows = in_groups(asked, lengths, len(lengths) // len(micro_batches))
    else:
        rows = sorted(range(len(lengths)), key=lengths.__getitem__)
    order = torch.tensor(rows, device=whole[PROMPT_MASK].device)

    def permuted(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[order] if value.ndim else value
        return value if value is None else [value[row] for row in rows]

    return divided({name: permuted(value) for name, value in whole.items()}, len(micro_batches))


def without_padding(batch: Batch) -> Batch:
    """A micro-batch trimmed to its longest prompt and longest answer. Prompts are padded on the left, answers on the right."""
    asked, answered = batch[PROMPT_MASK].shape[1], batch[COMPLETION_MASK].shape[1]
    left = _padded(batch[PROMPT_MASK])
    kept = answered - _padded(batch[COMPLETION_MASK].flip(1))
    shorter = dict(batch)
    for name, value in batch.items():
        if name in PROMPT:
            shorter[name] = value[:, left:]
        elif name in BOTH and value is not None:
            shorter[name] = value[:, left : asked + kept]
        elif isinstance(value, torch.Tensor) and name not in PHOTO_FIELDS and value.ndim == 2 and value.shape[1] == answered:
            shorter[name] = value[:, :kept]
    return shorter


def _padded(mask_BT: torch.Tensor) -> int:
    """Number of leading columns that are padding in every row; at most all columns but one."""
    used = mask_BT.any(0).int()
    return min(int(used.argmax()) if used.any() else len(used), len(used) - 1)
