"""Rows that share one sequence (packing, padding_free) must not see each other; whether they do depends on the
attention, so it is measured on the model in hand.
"""

from typing import Any

import torch

from lore.support.errors import LoreError

ROWS, TOKENS = 3, 64
TOLERANCE = 1e-3  # of the largest logit, in float32; bfloat16 gets its own rounding on top


@torch.inference_mode()
def check_flattening(model: Any, rows: Any) -> None:
    """Raises LoreError when a row's logits change with what stands before it in the sequence.

    Flash attention cannot run before the trainer has moved the model, and keeps rows apart by its definition; the same
    goes for weights that DeepSpeed has shared out.
    """
    attention = str(getattr(model.config, "_attn_implementation", None))
    if "flash" in attention:
        return
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise LoreError(_message(attention, "cannot be tried while DeepSpeed has the weights shared out"))
    parts = [torch.tensor(ids[:TOKENS]) for ids in rows.select(range(min(ROWS, len(rows))))["input_ids"]]
    parts = parts if len(parts) > 1 else parts * 2
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    last = parts[-1][None].to(device)
    alone = model(input_ids=last, use_cache=False).logits[0].float()
    positions = torch.cat([torch.arange(len(part)) for part in parts])[None].to(device)
    flat = torch.cat(parts)[None].to(device)
    together = model(input_ids=flat, position_ids=positions, use_cache=False).logits[0, -last.shape[1] :].float()
    model.train(was_training)
    moved = ((alone - together).abs().max() / alone.abs().max()).item()
    if not moved < (TOLERANCE if model.dtype == torch.float32 else 50 * TOLERANCE):
        raise LoreError(_message(attention, f"lets rows see each other (logits move by {moved:.1%})"))


def _message(attention: str, what: str) -> str:
    return (
        f"train.packing and train.padding_free put several rows into one sequence, and model.attn {attention} {what}.\n"
        "The loss would look healthy and the judge would learn from its neighbours: use model.attn: flash_attention_2 "
        "on a GPU that has it, or switch both off."
    )
