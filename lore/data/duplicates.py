"""Finds duplicate pairs and pairs with conflicting labels. Stores 64-bit hashes in flat arrays, about 26 bytes per pair.

Two pairs are duplicates if they have the same pair_id, or the same query and the same visible content of the item (see item_key).
Items that differ in brand, price, an attribute or the photo may deserve different labels and are not duplicates.
"""

import hashlib
import zlib
from array import array
from dataclasses import dataclass

import numpy as np

from lore.data.pair import Pair, item_key, query_key


@dataclass
class Duplicates:
    """`repeats`: indices of the repeated pairs in file order. `first`: for each, the index of the earlier pair."""

    repeats: np.ndarray
    first: np.ndarray
    conflicting: np.ndarray
    """One bool per repeat: both pairs have a label and the labels differ."""

    @property
    def same_label(self) -> int:
        return int((~self.conflicting).sum())

    @property
    def conflicts(self) -> int:
        return int(self.conflicting.sum())


class Seen:
    """Collects for every pair a hash of its id, a hash of its content, and its label."""

    def __init__(self):
        self._ids, self._contents, self._labels = array("Q"), array("Q"), array("I")

    def add(self, pair: Pair) -> None:
        self._ids.append(_key(pair.pair_id))
        self._contents.append(_key(f"{query_key(pair.query, pair.slices)}\x1f{item_key(pair)}"))
        self._labels.append(0 if pair.label is None else zlib.crc32(pair.label.encode(errors="surrogatepass")) or 1)

    def __len__(self) -> int:
        return len(self._ids)

    def result(self) -> Duplicates:
        labels = np.frombuffer(self._labels, dtype=np.uint32)
        first = np.arange(len(labels), dtype=np.uint32)
        conflicting = np.zeros(len(labels), dtype=bool)
        for keys in (self._contents, self._ids):
            index, earliest, first_label = _repeats(np.frombuffer(keys, dtype=np.uint64), labels)
            new = first[index] == index
            first[index[new]] = earliest[new]
            # Compare with the first labeled pair of the group: an unlabeled copy conflicts with no label.
            differs = (labels[index] != 0) & (first_label < index) & (labels[np.minimum(first_label, index)] != labels[index])
            first[index[differs]] = first_label[differs]
            conflicting[index[differs]] = True
        repeats = np.flatnonzero(first != np.arange(len(labels), dtype=np.uint32))
        return Duplicates(repeats, first[repeats], conflicting[repeats])


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _repeats(keys: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns three arrays: the indices whose key occurred before; for each, the first index with that key; and the first index
    with that key and a label, or the number of pairs if none has a label. Arrays after the sort only hold repeated keys.
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
    first_label = np.minimum.reduceat(np.where(labels[index] != 0, index, np.uint32(len(keys))), starts)
    return index[later], np.repeat(index[starts], sizes)[later], np.repeat(first_label, sizes)[later]
