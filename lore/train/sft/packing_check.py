"""Checks that rows in one sequence (packing, padding_free) do not attend to each other.

This depends on the attention implementation, so it is measured on the actual model.
"""

from typing import Any

import torch

from lore.support.errors import LoreError

ROWS, TOKENS = 3, 64
TOLERANCE = 1e-3  # relative to the largest logit, in float32; 50 times more in lower precision


@torch.inference_mode()
def check_flattening(model: Any, rows: Any) -> None:
    """Raises LoreError if a row's logits depend on the rows before it in the sequence.

    Skips flash attention, which isolates rows by design and cannot run before the trainer has moved the model to the GPU.
    Also raises if DeepSpeed has sharded the weights, because then the check cannot run.
    """
    attention = str(getattr(model.config, "_attn_implementation", None))
    if "flash" in attention:
        return
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise LoreError(_message(attention, "cannot be checked while DeepSpeed shards the weights"))
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
        raise LoreError(_message(attention, f"lets rows attend to each other (logits change by {moved:.1%})"))


def _message(attention: str, what: str) -> str:
    return (
        f"train.packing and train.padding_free put several rows into one sequence, and model.attn {attention} {what}.\n"
        "The loss would look normal, but each row would be trained with the context of other rows. Use model.attn: "
        "flash_attention_2 on a GPU that supports it, or set both to false."
    )
