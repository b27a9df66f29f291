"""Checks before step 0 that a row's log-probabilities do not depend on the rows beside it in a batch.

`load_model` mends learned positions (lore/engines/row_independence.py). Two things cannot be mended, because TRL chooses the
batches: rows on both sides of a length at which a model computes a whole batch in another way, and models that read padding.
"""

from collections.abc import Collection
from typing import Any

from lore.engines.row_independence import length_rule
from lore.support.errors import LoreError


def check_lengths(config: Any, lengths: Collection[int], *, padded_left: bool = False, alone: bool = False) -> None:
    """Raises LoreError if the shortest and the longest of the rows would change one another's numbers in a batch.

    config: the model's. lengths: tokens of the rows, at least those of the shortest and the longest. padded_left: whether the
    trainer pads on the left. alone: every row has a forward pass of its own.
    """
    rule = length_rule(config)
    if rule is None or alone or not lengths or (rule.padding_only and not padded_left):
        return
    shortest, longest = min(lengths), max(lengths)
    if rule.company(shortest) == rule.company(longest):
        return
    raise LoreError(
        f"The model computes every batch with a row of more than {rule.tokens:,} tokens in another way ({rule.kind}), and the rows "
        f"have {shortest:,} to {longest:,} tokens. The loss of a row would depend on the rows beside it, and the trained judge "
        f"would answer differently alone.\nKeep prompt and answer within {rule.tokens:,} tokens (prompt.max_prompt_tokens, "
        "train.max_tokens, rollout.max_tokens)"
        + (", or filter the data so that every row is longer" if not rule.exact else "")
        + ". Stage sft can also train each row alone: train.micro_batch_size: 1 without packing.",
        same_on_every_rank=True,
    )
