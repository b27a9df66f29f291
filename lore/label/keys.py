"""Keys of a question: its query's hash, which decides where it lies, and its content, which decides whether it is asked.

Both are the same on every machine and do not depend on the order of the input. They are computed column by column, because a plan
hashes every row of a log. The contents of items are those of lore.data.pair.item_digest.
"""

import hashlib
import os
from collections.abc import Callable
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lore.data.pair import MARKETS, Pair, item_digest, market_of
from lore.label.inputs.questions import bytes_of
from lore.support.text import normalize

KEY_COLUMNS = (("hash", pa.uint64()), ("high", pa.uint64()), ("low", pa.uint64()), ("id", pa.uint64()), ("long", pa.bool_()))
"""hash: of the query and its market. high, low: halves of the content. id: hash of pair_id. long: see LONG_CHARACTERS."""
LONG_CHARACTERS = 4000
"""Items of more characters come last, so that one long prompt does not hold up a batch of short ones."""
REMEMBERED_ITEMS, REMEMBERED_BYTES = 200_000, 64 * 2**20
OBJECT_BYTES = 64
"""Of a small Python object, about."""
_MULTIPLIER, _64_BITS = 0x9E3779B97F4A7C15, 2**64 - 1
MULTIPLIER = np.uint64(_MULTIPLIER)
TEXTS = ("title", "description", "category", "brand", "shop")
"""The texts of an item, in the order in which item_digest takes them."""
_ITEM = np.dtype([("high", ">u8"), ("low", ">u8"), ("long", "?")])
_HEAD = np.dtype([("texts", "<i4", len(TEXTS)), ("attributes", "<i4"), ("priced", "?"), ("price", "<f8")])


class Keys:
    """Computes the keys of question rows. Remembers items, because a log shows one item for many queries."""

    def __init__(self) -> None:
        self._items: dict[bytes, bytes] = {}
        self._bytes = 0

    def of(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """The columns of KEY_COLUMNS, one value per row."""
        asked, item = _query_keys(batch), self._item_keys(batch)
        return {
            "hash": asked[:, 0],
            # Digests of query and item, joined by arithmetic on all rows at once. The multiplier keeps the two apart.
            "high": asked[:, 1] + item["high"].astype(np.uint64) * MULTIPLIER,
            "low": asked[:, 2] + item["low"].astype(np.uint64) * MULTIPLIER,
            "id": id_hashes(batch.column("pair_id")),
            "long": item["long"],
        }

    def _item_keys(self, batch: pa.RecordBatch) -> np.ndarray:
        """[rows] of _ITEM."""
        names: list[bytes | None] = _spelled(batch)
        photos = _photos(batch.column("image"))
        if photos is not None:
            named = zip(names, photos, strict=True)
            names = [name if photo is None else name + b"\x1f" + photo.hashed if photo.is_short else None for name, photo in named]
        if len(self._items) > REMEMBERED_ITEMS or self._bytes > REMEMBERED_BYTES:
            self._items.clear()
            self._bytes = 0
        found = [self._items.get(name) for name in names]
        new = [row for row, one in enumerate(found) if one is None]
        if new:
            rows = batch if len(new) == len(found) else batch.take(pa.array(new))
            for row, one in zip(new, _items(rows, photos and [photos[row] for row in new]), strict=True):
                found[row] = one
                if (name := names[row]) is not None:
                    self._items[name] = one
                    self._bytes += len(name)
        return np.frombuffer(b"".join(found), _ITEM)


class ContentKeys:
    """The contents of single pairs, for a service: `content_bytes` of what Keys finds for the same pair. Remembers items, because
    the same ones come for many queries, and normalizing their texts takes longer than all the rest.

    remembered_bytes: of the remembered items; then all are forgotten. For one thread.
    """

    def __init__(self, remembered_bytes: int = REMEMBERED_BYTES) -> None:
        self.remembered_bytes = remembered_bytes
        self._items: dict[tuple, bytes] = {}
        self._bytes = 0

    def of(self, pair: Pair) -> bytes:
        """16 bytes. Does not raise: a photo in a file that is not there has its path."""
        asked = f"{normalize(pair.query)}\x1f{market_of(pair.slices or ())}".encode(errors="surrogatepass")
        digest = hashlib.blake2b(asked, digest_size=24).digest()
        item = self._item(pair)
        high = int.from_bytes(digest[8:16]) + int.from_bytes(item[:8]) * _MULTIPLIER
        low = int.from_bytes(digest[16:]) + int.from_bytes(item[8:]) * _MULTIPLIER
        return ((high & _64_BITS) << 64 | low & _64_BITS).to_bytes(16)

    def _item(self, pair: Pair) -> bytes:
        texts = (pair.title, pair.description, pair.category, pair.brand, pair.shop)
        if pair.image is not None:
            photo = _photo(pair.image.get("bytes"), pair.image.get("path"))
            # item_digest takes any photo as bytes; an empty one still differs from none.
            image = {"bytes": photo.hashed, "path": ""}
            return item_digest(texts, pair.price, pair.attributes.items(), image)
        price = None if pair.price is None else repr(float(pair.price))  # -0.0 equals 0.0 and has another content
        name = (texts, price, tuple(pair.attributes.items()))
        found = self._items.get(name)
        if found is None:
            found = item_digest(texts, pair.price, pair.attributes.items(), None)
            if self._bytes > self.remembered_bytes:
                self._items.clear()
                self._bytes = 0
            self._items[name] = found
            texts_bytes = sum(map(len, filter(None, texts))) + sum(len(key) + len(value) for key, value in name[2])
            self._bytes += texts_bytes + OBJECT_BYTES * (2 + len(texts) + 3 * len(name[2]))
        return found


class _Photo(NamedTuple):
    """hashed: what item_digest adds to the text, after a separator. is_short: whether that is a name, and not the photo itself."""

    hashed: bytes
    is_short: bool


def _query_keys(batch: pa.RecordBatch) -> np.ndarray:
    """[rows, 3] (hash, high, low) of the queries and their markets."""
    asked = pc.binary_join_element_wise(_normalized(batch.column("query")), _markets(batch.column("slices")), "\x1f")
    coded = asked.dictionary_encode()
    return _digests(coded.dictionary, 24)[coded.indices.to_numpy()]


def _markets(slices: pa.ListArray) -> pa.Array | str:
    """market_of the slices of each row."""
    coded = slices.flatten().dictionary_encode()
    names = coded.dictionary.to_pylist()
    are_markets = np.array([name.partition(":")[0] in MARKETS for name in names], bool)
    if not are_markets.any():
        return ""
    found: dict[int, set[str]] = {}
    codes, rows = coded.indices.to_numpy(), np.repeat(np.arange(len(slices)), slices.value_lengths().fill_null(0))
    at = np.flatnonzero(are_markets[codes])
    for row, code in zip(rows[at].tolist(), codes[at].tolist(), strict=True):
        found.setdefault(row, set()).add(names[code])
    return pa.array([market_of(found[row]) if row in found else "" for row in range(len(slices))], pa.string())


def _items(batch: pa.RecordBatch, photos: list[_Photo | None] | None) -> list[bytes]:
    """The items of the rows as bytes of _ITEM: item_digest, and whether the item is long."""
    texts = [batch.column(name) for name in TEXTS]
    prices = ["" if price is None else repr(price) for price in batch.column("price").to_pylist()]
    parts = ["" if text.null_count == len(text) else _normalized(text) for text in texts]
    content = pc.binary_join_element_wise(*parts, pa.array(prices, pa.string()), "\x1f")
    starts, keys, values = _attributes(batch.column("attributes"))
    if len(keys):
        entries = pc.binary_join_element_wise(_normalized(keys), _normalized(values), "\x1e")
        content = pc.binary_join_element_wise(content, _sorted(starts, entries), "")
    long = [b"\1" if one else b"\0" for one in _long(texts, starts, keys, values).tolist()]
    begun, found = hashlib.blake2b(digest_size=16), []
    for text, photo, is_long in zip(content.cast(pa.binary()).to_pylist(), photos or repeat(None), long):  # noqa: B905  (endless)
        digest = begun.copy()
        digest.update(text)
        if photo is not None:
            digest.update(b"\x1f")
            digest.update(photo.hashed)
        found.append(digest.digest() + is_long)
    return found


def _sorted(starts: np.ndarray, entries: pa.Array) -> pa.Array:
    """The entries of each row, sorted and each after a separator."""
    coded = entries.dictionary_encode()
    rank = np.empty(len(coded.dictionary), np.int64)
    rank[pc.array_sort_indices(coded.dictionary).to_numpy()] = np.arange(len(rank))  # by bytes: the order of code points
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((rank[coded.indices.to_numpy()], rows))
    lists = pa.ListArray.from_arrays(pa.array(starts), entries.take(pa.array(order)))
    joined = pc.binary_join(lists, "\x1f")
    return pc.if_else(pa.array(np.diff(starts) > 0), pc.binary_join_element_wise("", joined, "\x1f"), "")


def _long(texts: list[pa.Array], starts: np.ndarray, keys: pa.Array, values: pa.Array) -> np.ndarray:
    """Whether the texts and attributes of a row have more than LONG_CHARACTERS."""

    def summed(length: Callable[[pa.Array], pa.Array]) -> np.ndarray:
        own = sum(pc.fill_null(length(text), 0).to_numpy() for text in texts)
        ends = np.concatenate([[0], np.cumsum(length(keys).to_numpy() + length(values).to_numpy())])
        return own + np.diff(ends[starts])

    long = summed(pc.binary_length) > LONG_CHARACTERS  # a character has at least one byte
    return long & (summed(pc.utf8_length) > LONG_CHARACTERS) if long.any() else long


def _spelled(batch: pa.RecordBatch) -> list[bytes]:
    """What each row says about its item, except for the photo. A head with the lengths of all parts keeps them apart."""
    head = np.zeros(batch.num_rows, _HEAD)
    price = batch.column("price")
    head["priced"], head["price"] = price.is_valid(), price.fill_null(0.0)
    starts, keys, values = _attributes(batch.column("attributes"))
    head["attributes"] = np.diff(starts)
    parts = []
    if len(keys):
        lengths = np.stack([pc.binary_length(keys), pc.binary_length(values)], axis=1).astype("<i4")
        parts.append(_binary(starts * 8, lengths.tobytes()))
        for text in (keys, values):
            offsets, content = bytes_of(text)
            parts.append(_binary(offsets[starts], content))
    for index, name in enumerate(TEXTS):
        text = batch.column(name)
        if text.null_count < len(text):
            text = text.fill_null("")
            head["texts"][:, index] = pc.binary_length(text)
            parts.append(text.cast(pa.binary()))
    heads = _binary(np.arange(batch.num_rows + 1) * _HEAD.itemsize, head.tobytes())
    return pc.binary_join_element_wise(heads, *parts, b"").to_pylist()


def _binary(offsets: np.ndarray, content: bytes) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype(np.int32).tobytes()), pa.py_buffer(content)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _attributes(column: pa.ListArray) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Where the attributes of each row begin, [rows + 1], and their names and values."""
    keys, values = column.flatten().flatten()
    starts = np.zeros(len(column) + 1, np.int32)
    np.cumsum(column.value_lengths().fill_null(0), out=starts[1:])
    return starts, keys, values


def _photos(column: pa.StructArray) -> list[_Photo | None] | None:
    """The photo of each row; None if no row has one."""
    if column.null_count == len(column):
        return None
    held = zip(column.is_valid().to_pylist(), *(part.to_pylist() for part in column.flatten()), strict=True)
    return [_photo(data, path) if there else None for there, data, path in held]


def _photo(data: bytes | None, path: str | None) -> _Photo:
    """A photo in a file by the name and size of the file: its folder may move, and 100 million photos are not read for a plan."""
    if data or not path:
        return _Photo(data or b"", not data)
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError):
        size = -1
    return _Photo(f"{os.path.basename(path)}\0{size}".encode(errors="surrogatepass"), True)


def _normalized(texts: pa.Array) -> pa.Array:
    """`normalize` of each text, "" for null."""
    texts = texts.fill_null("")
    offsets, content = bytes_of(texts)
    codes = np.frombuffer(content, np.uint8)
    plain = pc.ascii_lower(texts)
    if not len(codes):
        return plain
    # Lower case is all that plain text needs: printable ASCII in which every space stands between two other characters.
    odd = (codes - np.uint8(32)) >= 96
    spaces = codes == 32
    odd[1:] |= spaces[1:] & spaces[:-1]
    filled = np.flatnonzero(np.diff(offsets))
    odd[offsets[filled]] |= spaces[offsets[filled]]
    odd[offsets[filled + 1] - 1] |= spaces[offsets[filled + 1] - 1]
    at = np.flatnonzero(odd)
    if not len(at):
        return plain
    rows = np.zeros(len(texts), bool)
    rows[np.searchsorted(offsets, at, side="right") - 1] = True
    coded = texts.filter(pa.array(rows)).dictionary_encode()
    known = pa.array([normalize(text) for text in coded.dictionary.to_pylist()], pa.string())
    return pc.replace_with_mask(plain, pa.array(rows), known.take(coded.indices))


def _digests(texts: pa.Array | pa.ChunkedArray, size: int) -> np.ndarray:
    """[texts, size / 8] BLAKE2b of each text."""
    begun, found = hashlib.blake2b(digest_size=size), []
    for text in texts.cast(pa.binary()).to_pylist():
        digest = begun.copy()  # faster than a new one
        digest.update(text)
        found.append(digest.digest())
    return np.frombuffer(b"".join(found), ">u8").astype(np.uint64).reshape(-1, size // 8)


def id_hashes(pair_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hashes of pair ids, as in KEY_COLUMNS."""
    return _digests(pair_ids, 8)[:, 0]


def content_bytes(high: np.ndarray, low: np.ndarray) -> pa.Array:
    """The contents as 16-byte values, from their halves."""
    both = np.empty((len(high), 2), ">u8")
    both[:, 0], both[:, 1] = high, low
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(high), [None, pa.py_buffer(both.tobytes())])


def content_halves(contents: pa.FixedSizeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """The halves of 16-byte contents, 0 for null."""
    if not len(contents):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    halves = np.frombuffer(contents.buffers()[1], ">u8").reshape(-1, 2)
    halves = halves[contents.offset : contents.offset + len(contents)].astype(np.uint64)
    halves[np.asarray(contents.is_null())] = 0
    return halves[:, 0], halves[:, 1]
