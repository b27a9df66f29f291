"""Keys of a question: its query's hash, which decides where it lies, and its content, which decides whether it is asked.

Both are the same on every machine and do not depend on the order of the input.
"""

import hashlib
import os

import numpy as np
import pyarrow as pa

from lore.data.pair import item_digest, market_of
from lore.support.text import normalize

KEY_COLUMNS = (("hash", pa.uint64()), ("high", pa.uint64()), ("low", pa.uint64()), ("id", pa.uint64()), ("long", pa.bool_()))
"""hash: of the query and its market. high, low: halves of the content. id: hash of pair_id. long: see LONG_CHARACTERS."""
LONG_CHARACTERS = 4000
"""Items of more characters come last, so that one long prompt does not hold up a batch of short ones."""
REMEMBERED_ITEMS = 200_000
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Keys:
    """Computes the keys of question rows. Remembers items, because a log shows one item for many queries."""

    def __init__(self) -> None:
        self._items: dict[tuple, tuple[int, int, bool]] = {}

    def of(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """The columns of KEY_COLUMNS, one value per row."""
        asked, item = self._query_keys(batch), self._item_keys(batch)
        ids = [_digest(one, 8) for one in batch.column("pair_id").to_pylist()]
        return {
            "hash": asked[0],
            # Digests of query and item, joined by arithmetic on all rows at once. The multiplier keeps the two apart.
            "high": asked[1] + item[0] * MULTIPLIER,
            "low": asked[2] + item[1] * MULTIPLIER,
            "id": np.frombuffer(b"".join(ids), ">u8").astype(np.uint64),
            "long": item[2],
        }

    def _query_keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hash, high, low) of the queries and their markets."""
        queries, slices = batch.column("query"), batch.column("slices")
        if slices.null_count == len(slices):
            coded = queries.dictionary_encode()
            different, at = [(text, ()) for text in coded.dictionary.to_pylist()], coded.indices.to_numpy()
        else:
            places: dict[tuple[str, tuple[str, ...]], int] = {}
            rows = zip(queries.to_pylist(), map(tuple, (one or () for one in slices.to_pylist())), strict=True)
            at = np.fromiter((places.setdefault(row, len(places)) for row in rows), np.int64, len(queries))
            different = list(places)
        keys = [_digest(f"{normalize(text)}\x1f{market_of(tags)}", 24) for text, tags in different]
        found = np.frombuffer(b"".join(keys), ">u8").astype(np.uint64).reshape(-1, 3)[at]
        return found[:, 0], found[:, 1], found[:, 2]

    def _item_keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(high, low, long) of the items."""
        names = ("title", "description", "category", "brand", "shop", "price", "attributes", "image")
        rows, items = list(zip(*(_values(batch, name) for name in names), strict=True)), self._items
        if len(items) > REMEMBERED_ITEMS:
            items.clear()
        if batch.column("image").null_count < batch.num_rows:
            found = [self._photographed(row) for row in rows]
        else:
            found = [items.get(row) or self._new(row) for row in rows]
        high, low, long = zip(*found, strict=True)
        return np.array(high, np.uint64), np.array(low, np.uint64), np.array(long, bool)

    def _photographed(self, row: tuple) -> tuple[int, int, bool]:
        image = _photo(row[-1])
        if image and image.get("bytes"):
            return _item(row[:-1], image)
        key = (*row[:-1], image and image["path"])
        found = self._items.get(key)
        if found is None:
            found = self._items[key] = _item(row[:-1], image)
        return found

    def _new(self, row: tuple) -> tuple[int, int, bool]:
        found = self._items[row] = _item(row[:-1], None)
        return found


def _item(row: tuple, image: dict | None) -> tuple[int, int, bool]:
    *texts, price, attributes = row
    digest = item_digest(texts, price, attributes or (), image)
    long = _characters(texts, attributes or ()) > LONG_CHARACTERS
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:]), long


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=size).digest()


def content_bytes(high: np.ndarray, low: np.ndarray) -> pa.Array:
    """The contents as 16-byte values, from their halves."""
    both = np.empty((len(high), 2), ">u8")
    both[:, 0], both[:, 1] = high, low
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(high), [None, pa.py_buffer(both.tobytes())])


def content_halves(contents: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The halves of 16-byte contents."""
    raw = b"".join(contents.to_pylist())
    halves = np.frombuffer(raw, ">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def id_hashes(pair_ids: list[str]) -> np.ndarray:
    """Hashes of pair ids, as in KEY_COLUMNS."""
    raw = b"".join(_digest(one, 8) for one in pair_ids)
    return np.frombuffer(raw, ">u8").astype(np.uint64)


def _photo(image: dict | None) -> dict | None:
    """A photo in a file by the name and size of the file: its folder may move, and 100 million photos are not read for a plan."""
    if image is None or image.get("bytes") or not image.get("path"):
        return image
    try:
        size = os.stat(image["path"]).st_size
    except (OSError, ValueError):
        size = -1
    return {"path": f"{os.path.basename(image['path'])}\0{size}"}


def _characters(texts: list, attributes: tuple) -> int:
    return sum(len(text) for text in texts if text) + sum(len(key) + len(value) for key, value in attributes)


def _values(batch: pa.RecordBatch, name: str) -> list:
    column = batch.column(name)
    if column.null_count == len(column):
        return [None] * len(column)
    if name == "attributes":
        flat = list(zip(*(child.to_pylist() for child in column.flatten().flatten()), strict=True))
        ends = np.cumsum(column.value_lengths().fill_null(0).to_numpy()).tolist()
        return [tuple(flat[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return column.to_pylist()
