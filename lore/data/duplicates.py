"""Pairs that occur twice, and pairs that occur with two labels: 64-bit hashes in flat arrays, about 26 bytes a pair.

Two pairs are the same when their pair_id is, or their query and all that a judge can see of the item (see item_key):
an item that differs in brand, price, an attribute or the photo may deserve another label.
"""

import hashlib
import zlib
from array import array
from dataclasses import dataclass

import numpy as np

from lore.data.pair import Pair, item_key
from lore.support.text import normalise


@dataclass
class Duplicates:
    """Indices of the later pairs, in file order, and for each the earlier pair it repeats."""

    repeats: np.ndarray
    first: np.ndarray
    conflicting: np.ndarray
    """Bool per repeat: both pairs carry a label and the labels differ."""

    @property
    def same_label(self) -> int:
        return int((~self.conflicting).sum())

    @property
    def conflicts(self) -> int:
        return int(self.conflicting.sum())


class Seen:
    """Collects one key by id, one by content and the label of every pair."""

    def __init__(self):
        self._ids, self._contents, self._labels = array("Q"), array("Q"), array("I")

    def add(self, pair: Pair) -> None:
        self._ids.append(_key(pair.pair_id))
        self._contents.append(_key(f"{normalise(pair.query)}\x1f{item_key(pair)}"))
        self._labels.append(0 if pair.label is None else zlib.crc32(pair.label.encode(errors="surrogatepass")) or 1)

    def __len__(self) -> int:
        return len(self._ids)

    def result(self) -> Duplicates:
        labels = np.frombuffer(self._labels, dtype=np.uint32)
        first = np.arange(len(labels), dtype=np.uint32)
        conflicting = np.zeros(len(labels), dtype=bool)
        for keys in (self._contents, self._ids):
            index, earliest, labelled = _repeats(np.frombuffer(keys, dtype=np.uint64), labels)
            new = first[index] == index
            first[index[new]] = earliest[new]
            # Compared with the first pair of the group that has a label: an unlabelled copy agrees with every label.
            differs = (labels[index] != 0) & (labelled < index) & (labels[np.minimum(labelled, index)] != labels[index])
            first[index[differs]] = labelled[differs]
            conflicting[index[differs]] = True
        repeats = np.flatnonzero(first != np.arange(len(labels), dtype=np.uint32))
        return Duplicates(repeats, first[repeats], conflicting[repeats])


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _repeats(keys: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The indices whose key occurred before; for each the first index with that key, and the first with that key and a
    label (the number of pairs where none has one). Arrays after the sort are only as long as the repeats.
    """
    order = np.argsort(keys, kind="stable").astype(np.uint32)
    sorted_keys = keys[order]
    as_before = np.zeros(len(keys) + 1, dtype=bool)
    np.equal(sorted_keys[1:], sorted_keys[:-1], out=as_before[1:-1])
    member = as_before[:-1] | as_before[1:]
    index, later = order[member], as_before[:-1][member]
    if not len(index):
        return index, index, index
    starts = np.flatnonzero(~later)
    sizes = np.diff(np.append(starts, len(index)))
    labelled = np.minimum.reduceat(np.where(labels[index] != 0, index, np.uint32(len(keys))), starts)
    return index[later], np.repeat(index[starts], sizes)[later], np.repeat(labelled, sizes)[later]
