"""Pair, the row type of all data: its fields, Arrow schema and id."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lore.rubric.demand import Demand
from lore.support.text import normalize


@dataclass(slots=True, kw_only=True)
class Pair:
    """A query, an item and their human annotations. Only pair_id, query and title are required."""

    pair_id: str
    query: str
    title: str
    item_id: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    description: str | None = None
    category: str | None = None
    brand: str | None = None
    shop: str | None = None
    price: float | None = None
    image: dict[str, Any] | None = None
    """{"bytes", "path"}, as datasets.Image stores it."""
    label: str | None = None
    """A tier id of the rubric."""
    label_weight: float = 1.0
    split: str | None = None
    slices: list[str] = field(default_factory=list)
    query_frequency: float | None = None
    """Number of searches for the query in the period of the log."""
    source: str | None = None
    rationale: str | None = None
    """The gold reasoning for the label, with its mismatch dimension and rule ids, if there is one."""
    mismatch: str | None = None
    rules: list[str] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    label_distribution: dict[str, float] | None = None
    """Probability per tier id, where the label sums up several raters. `label` is the single tier."""
    rubric: str | None = None
    """File of the rule book that the label follows, below the folder of the pairs; None for the rubric of the whole data."""


_TEXTS = pa.list_(pa.string())
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ATTRIBUTES = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
DEMAND_FIELDS = ("dimension", "wanted", "found", "source", "rule", "tier")
_DEMANDS = pa.list_(pa.struct([(name, pa.string()) for name in DEMAND_FIELDS]))
_DISTRIBUTION = pa.list_(pa.struct([("tier", pa.string()), ("probability", pa.float64())]))
_TYPES = {
    "attributes": _ATTRIBUTES,
    "price": pa.float64(),
    "image": _IMAGE,
    "label_weight": pa.float64(),
    "slices": _TEXTS,
    "query_frequency": pa.float64(),
    "rules": _TEXTS,
    "demands": _DEMANDS,
    "label_distribution": _DISTRIBUTION,
}
FIELDS = tuple(Pair.__slots__)
REQUIRED = ("pair_id", "query", "title")
ITEM_FIELDS = ("item_id", "title", "attributes", "description", "category", "brand", "shop", "price", "image")
"""Fields of a catalogue's items: pairs without a query."""


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """An Arrow type as a `datasets` feature for the file's metadata, so that `datasets` loads `image` as datasets.Image."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {child.name: _feature(child.type) for child in kind}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def _schema(names: Iterable[str]) -> pa.Schema:
    columns = [pa.field(name, _TYPES.get(name, pa.string())) for name in names]
    features = {column.name: _feature(column.type) for column in columns}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


PAIR_SCHEMA, ITEM_SCHEMA = _schema(FIELDS), _schema(ITEM_FIELDS)


MARKETS = ("locale", "market")
"""Kinds of slices that name the market in which a query was typed, such as `locale:us`."""


def market_of(slices: Iterable[str]) -> str:
    """The market of a pair with these slices; empty if the data names none."""
    return "\x1f".join(sorted({name for name in slices if name.partition(":")[0] in MARKETS}))


def query_key(query: str, slices: Iterable[str] = ()) -> str:
    """What makes two pairs pairs of one query: the text, whatever its case and spacing, and the market. `bol` in two locales is two
    queries with two results pages. Every grouping by query uses this key, except splits: they keep equal texts together.
    """
    market = market_of(slices)
    return f"{normalize(query)}\x1f{market}" if market else normalize(query)


def make_pair_id(query: str, item: str, market: str = "") -> str:
    """`p` and 16 hex digits, equal for the same query and item on every machine. Case and spacing of the query do not matter.

    `item`: the exact id of the item, or its item_key if it has no id. market: see market_of. Earlier versions wrote the digits
    without the letter, and spreadsheet programs rewrote some of them as numbers; joins accept both, see tables.ids.known_as.
    """
    return f"p{pair_digest(query, item, market)}"


def pair_digest(query: str, item: str, market: str = "") -> str:
    """The digits of make_pair_id. The embedded shop uses them as ids: its random draws depend on them."""
    item = f"{item}\x1f{market}" if market else item
    text = f"{normalize(query)}\x1f{item}"  # normalizing turns this separator into a space, so the query cannot contain it
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def item_key(pair: Pair) -> str:
    """32 hex digits over the item fields that a judge sees. Case, spacing and the order of attributes do not matter."""
    texts = (pair.title, pair.description, pair.category, pair.brand, pair.shop)
    return item_digest(texts, pair.price, pair.attributes.items(), pair.image).hex()


def item_digest(
    texts: Iterable[str | None], price: float | None, attributes: Iterable[tuple[str, str]], image: dict[str, Any] | None
) -> bytes:
    """The 16 bytes of item_key. texts: title, description, category, brand and shop."""
    parts = [normalize(text) if text else "" for text in texts]
    parts.append("" if price is None else repr(float(price)))
    parts += sorted(f"{normalize(key)}\x1e{normalize(value)}" for key, value in attributes)
    content = hashlib.blake2b("\x1f".join(parts).encode(errors="surrogatepass"), digest_size=16)
    if image:
        content.update(b"\x1f")
        content.update(image.get("bytes") or (image.get("path") or "").encode(errors="surrogatepass"))
    return content.digest()
