"""Rows of a step that begin alike share a micro-batch, so that what they begin with is computed once (shared_prefix.py).

Only the order within a step changes: its rows, and so its loss and gradient, are those of `training_order`. What rows begin with
counts more than their length, because rows of a layout have no padding; rows with nothing in common stay sorted by length, the
longest first. The order depends on the rows alone, so every process and a resumed run have the same.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from peft import LoraConfig

from lore.support.progress import track
from lore.train.common.config import TrainSection
from lore.train.common.shared_prefix import alike, avoided_dropout, why_not

TOKEN = np.dtype(np.int32)


def group_by_prefix(
    order: np.ndarray, rows: datasets.Dataset, train: TrainSection, micro_batch: int, model: Any, lora: LoraConfig | None
) -> np.ndarray:
    """Row numbers [steps * batch_size] of `training_order`, arranged within each step, whose micro-batches are neighbors in it.

    rows: rendered rows with their `length` and, as `input_ids`, `prompt_ids` or (with photos) `prompt`, what they begin with.
    lora: of the model's new adapter. The order stays as it is where nothing is shared.
    """
    dropped = avoided_dropout(train.shared_prefix, model, lora)
    shares = train.shared_prefix and not (train.packing or train.padding_free or dropped) and why_not(model.config) is None
    # The trainer, which takes the ordered rows, runs the check of the model. Rows stay grouped if only the check refuses.
    if not shares or micro_batch in (1, train.batch_size):
        return order
    begins = rows.data.column(next(name for name in ("input_ids", "prompt_ids", "prompt") if name in rows.column_names))
    lengths, arranged = rows["length"][:], []
    for step in track(order.reshape(-1, train.batch_size), "grouping rows by prefix", total=len(order) // train.batch_size):
        numbers = in_groups([tokens_of(begins[row]) for row in step], [lengths[row] for row in step], micro_batch)
        arranged.append(step[numbers])
    return np.concatenate(arranged)


def tokens_of(begin: pa.Scalar) -> bytes:
    """Token ids of a row as bytes. With photos the collator makes the ids later; four bytes of the text then count as a token."""
    return begin.values.to_numpy().tobytes() if isinstance(begin, pa.ListScalar) else begin.as_py().encode()


def in_groups(rows: Sequence[bytes], lengths: Sequence[int], size: int) -> list[int]:
    """Row numbers, of which each `size` are a micro-batch. rows: of token ids, see `tokens_of`; their number is a multiple of size.

    Rows that share most go together first: micro-batches fill up with rows of one prompt, then with what is left of a query, of a
    rubric, of all. A group is divided only if no other fits where it stands.
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    near = [shared_words(rows[one], rows[other]) for one, other in pairwise(order)]
    filled: list[int] = []

    def fill(first: int, last: int, begun: int) -> list[int]:
        """Fills micro-batches with order[first:last], which share `begun` tokens. Returns the rows that are left."""
        groups = [
            fill(start, end, min(near[start : end - 1])) if end - start > 1 else [order[start]]
            for start, end in alike(near, first, last, begun)
        ]
        groups = sorted(filter(None, groups), key=lambda group: (-len(group), -max(lengths[row] for row in group)))
        joined: list[int] = []
        while groups:
            room = size - len(joined) % size
            joined += groups.pop(next((at for at, group in enumerate(groups) if len(group) <= room), -1))
        full = len(joined) - len(joined) % size
        filled.extend(joined[:full])
        return joined[full:]

    fill(0, len(rows), 0)
    return filled


def shared_words(one: bytes, other: bytes) -> int:
    """Number of tokens that both begin with, four bytes each."""
    most = min(len(one), len(other)) // TOKEN.itemsize
    differ = np.frombuffer(one, TOKEN, most) != np.frombuffer(other, TOKEN, most)
    return int(differ.argmax()) if differ.any() else most
