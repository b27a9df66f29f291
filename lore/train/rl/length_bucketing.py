"""Passes over a batch of answers without the padding they do not need.

TRL pads prompts and answers to the longest of all that were sampled together, and passes keep that width. Here answers of like
length go through one pass, and each pass is cut to its own longest prompt and answer. Losses are sums over tokens or means over
answers of the whole step, so who shares a pass changes nothing but the time.
"""

from typing import Any

import torch
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from lore.train.judge.mixed_photos import PHOTO_FIELDS

Batch = dict[str, Any]
PROMPT = ("prompt_ids", "prompt_mask")
BOTH = ("token_type_ids", "mm_token_type_ids")


def shorter_passes(passes: list[Batch], per_step: int, loss: str) -> list[Batch]:
    """The passes of newly sampled answers, `per_step` to an optimiser step. The loss bnpo weighs an answer by those that share its
    pass: there they keep their company."""
    if loss != "bnpo":
        steps = [passes[first : first + per_step] for first in range(0, len(passes), per_step)]
        passes = [one for step in steps for one in of_like_length(step)]
    return [without_padding(one) for one in passes]


def of_like_length(passes: list[Batch]) -> list[Batch]:
    """The passes of one optimiser step, their answers dealt out anew from the shortest row to the longest."""
    # Whether photos lie row by row is only told from all rows together.
    whole = split_pixel_values_by_grid({name: _together([batch[name] for batch in passes]) for name in passes[0]})
    order = (whole["prompt_mask"].sum(1) + whole["completion_mask"].sum(1)).argsort(stable=True)
    rows = order.tolist()

    def permuted(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[order] if value.ndim else value
        return value if value is None else [value[row] for row in rows]

    dealt = split_tensor_dict({name: permuted(value) for name, value in whole.items()}, len(passes))
    return [unsplit_pixel_values_by_grid(batch) for batch in dealt]


def _together(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values) if first.ndim else first
    return first if first is None else [one for value in values for one in value]


def without_padding(batch: Batch) -> Batch:
    """A pass cut to its longest prompt and its longest answer. Prompts are padded on their left, answers on their right."""
    asked, answered = batch["prompt_mask"].shape[1], batch["completion_mask"].shape[1]
    left = _padded(batch["prompt_mask"])
    kept = answered - _padded(batch["completion_mask"].flip(1))
    shorter = dict(batch)
    for name, value in batch.items():
        if name in PROMPT:
            shorter[name] = value[:, left:]
        elif name in BOTH and value is not None:
            shorter[name] = value[:, left : asked + kept]
        elif isinstance(value, torch.Tensor) and name not in PHOTO_FIELDS and value.ndim == 2 and value.shape[1] == answered:
            shorter[name] = value[:, :kept]
    return shorter


def _padded(mask: torch.Tensor) -> int:
    """Columns at the start that are padding in every row; one column is always left."""
    used = mask.any(0).int()
    return min(int(used.argmax()) if used.any() else len(used), len(used) - 1)
