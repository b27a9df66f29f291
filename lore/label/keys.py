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


class Keys:
    """Computes the keys of question rows. Remembers items, because a log shows one item for many queries."""

    def __init__(self) -> None:
        self._items: dict[tuple, tuple[bytes, bool]] = {}
        self._queries: dict[tuple, tuple[int, bytes]] = {}

    def of(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """The columns of KEY_COLUMNS, one value per row."""
        columns = {name: _values(batch, name) for name in ("title", "description", "category", "brand", "shop", "price")}
        attributes, images = _values(batch, "attributes"), _values(batch, "image")
        slices, queries, ids = _values(batch, "slices"), batch.column("query").to_pylist(), batch.column("pair_id").to_pylist()
        rows = len(queries)
        hashes, contents = np.empty(rows, np.uint64), bytearray(16 * rows)
        id_hashes, long = bytearray(8 * rows), np.zeros(rows, bool)
        blake2b = hashlib.blake2b
        for row, item in enumerate(zip(*columns.values(), attributes, images, strict=True)):
            hashes[row], query = self._query(queries[row], slices[row])
            digest, long[row] = self._item(item)
            contents[16 * row : 16 * row + 16] = blake2b(query + digest, digest_size=16).digest()
            id_hashes[8 * row : 8 * row + 8] = blake2b(ids[row].encode(errors="surrogatepass"), digest_size=8).digest()
        halves = np.frombuffer(bytes(contents), ">u8").reshape(rows, 2).astype(np.uint64)
        id_hash = np.frombuffer(bytes(id_hashes), ">u8").astype(np.uint64)
        return {"hash": hashes, "high": halves[:, 0], "low": halves[:, 1], "id": id_hash, "long": long}

    def _query(self, query: str, slices: list[str] | None) -> tuple[int, bytes]:
        key = (query, *slices) if slices else (query,)
        found = self._queries.get(key)
        if found is None:
            if len(self._queries) >= REMEMBERED_ITEMS:
                self._queries.clear()
            market = market_of(slices or ())
            text = f"{normalize(query)}\x1f{market}\x1e".encode(errors="surrogatepass")
            found = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()), text
            self._queries[key] = found
        return found

    def _item(self, item: tuple) -> tuple[bytes, bool]:
        title, description, category, brand, shop, price, attributes, image = item
        key = None
        if image is None or not image.get("bytes"):
            path = image and image.get("path")
            key = (title, description, category, brand, shop, price, tuple(attributes or ()), path)
            found = self._items.get(key)
            if found is not None:
                return found
        texts = (title, description, category, brand, shop)
        found = item_digest(texts, price, attributes or (), _photo(image)), _characters(texts, attributes or ()) > LONG_CHARACTERS
        if key is not None:
            if len(self._items) >= REMEMBERED_ITEMS:
                self._items.clear()
            self._items[key] = found
        return found


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
    raw = b"".join(hashlib.blake2b(one.encode(errors="surrogatepass"), digest_size=8).digest() for one in pair_ids)
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


def _characters(texts: tuple, attributes: object) -> int:
    return sum(len(text) for text in texts if text) + sum(len(key) + len(value) for key, value in attributes)


def _values(batch: pa.RecordBatch, name: str) -> list:
    column = batch.column(name)
    if column.null_count == len(column):
        return [None] * len(column)
    if name == "attributes":
        pairs = column.flatten()
        flat = list(zip(*(child.to_pylist() for child in pairs.flatten()), strict=True))
        offsets, at = column.value_lengths().to_pylist(), 0
        found = []
        for length in offsets:
            found.append(flat[at : at + (length or 0)])
            at += length or 0
        return found
    return column.to_pylist()
