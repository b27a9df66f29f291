"""Hard negatives for a judge or a student: items on the shelf of a relevant one that fail what the query names.

An item that shares one or two codes with a positive is alike; if it differs in an attribute whose value the query names, it is most
likely irrelevant, and harder to tell than an item that only shares words. benchmarks/recommend_negatives.py measures whether that
holds for a student, before anything is trained on them. They carry no label: a judge gives it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lore.codec.lexical_match import missing_words
from lore.data.pair import ITEM_FIELDS, Pair
from lore.recommend.codes import Codes


@dataclass(frozen=True)
class HardNegative:
    """A new pair without a label. positive: pair_id of the pair that it is made from; shared: codes that the two items share;
    differs: attributes that the query names and in which they differ."""

    pair: Pair
    positive: str
    shared: int
    differs: tuple[str, ...]


def hard_negatives(
    positives: Iterable[Pair],
    items: Sequence[Pair],
    codes: Codes,
    *,
    critical: Collection[str] | None = None,
    shared: tuple[int, int] = (1, 2),
    each: int = 2,
    seed: int = 0,
) -> Iterator[HardNegative]:
    """At most `each` negatives of every positive, those with the most shared codes first, chance by seed among equals.

    items: the catalogue, in the order of the codes. critical: attributes that may decide; None: all. shared: fewest and most codes
    in common. An item that is a positive of the same query, or says nothing about the attribute, is not taken.
    """
    positives = list(positives)
    row_of = {item.item_id: row for row, item in enumerate(items)}
    relevant: dict[str, set[str | None]] = {}
    for pair in positives:
        relevant.setdefault(pair.query, set()).add(pair.item_id)
    low, high = shared[0], min(shared[1], codes.levels)
    prefix = codes.prefixes(low)
    order = np.argsort(prefix, kind="stable")
    starts = np.searchsorted(prefix[order], np.arange(prefix.max() + 2))
    for pair in positives:
        row = row_of.get(pair.item_id)
        named = {} if row is None else named_attributes(pair.query, items[row], critical)
        if not named:
            continue
        shelf = order[starts[prefix[row]] : starts[prefix[row] + 1]]
        common = np.cumprod(codes.values[shelf] == codes.values[row], axis=1).sum(axis=1)
        rng = np.random.default_rng([seed, int.from_bytes(hashlib.blake2b(pair.pair_id.encode(), digest_size=8).digest())])
        found = 0
        for at in np.lexsort((rng.random(len(shelf)), -common)):
            item = items[shelf[at]]
            differs = differing(named, item)
            if common[at] > high or not differs or item.item_id in relevant[pair.query]:
                continue
            fields = {name: getattr(item, name) for name in ITEM_FIELDS}
            new = Pair(pair_id=f"{pair.pair_id}~{item.item_id}", query=pair.query, **fields)
            yield HardNegative(new, pair.pair_id, int(common[at]), differs)
            found += 1
            if found == each:
                break


def named_attributes(query: str, item: Pair, critical: Collection[str] | None = None) -> dict[str, str]:
    """Attributes of an item whose value the query names."""
    known = item.attributes or {}
    return {
        name: value
        for name, value in known.items()
        if value and (critical is None or name in critical) and not missing_words(value, query)
    }


def differing(named: dict[str, str], item: Pair) -> tuple[str, ...]:
    """Names of these attributes for which an item has another value."""
    own = item.attributes or {}
    return tuple(name for name, value in named.items() if own.get(name) and own[name].casefold() != value.casefold())
