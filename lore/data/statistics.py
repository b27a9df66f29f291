"""Statistics of a pairs file: tiers, slices, lengths, duplicates, conflicting labels, queries shared by splits. Needs one pass
over the file and flat arrays.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from lore.data.duplicates import Seen
from lore.data.pair import query_key
from lore.data.parquet import count_pairs, read_metadata, read_pairs
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.support.progress import track
from lore.support.text import normalize

LENGTHS = ("query", "title", "attributes", "description", "rationale")
MAX_NAMES = 10_000
MAX_SPLITS, MAX_LABELS = 20, 100  # each two splits are compared, and each label is a column
OTHERS = "(others)"
NO_SPLIT, NO_LABEL = "(none)", "(none)"


def pair_stats(path: str | Path) -> dict[str, Any]:
    """The statistics as plain JSON data. Lengths are in characters, over the pairs that have the field."""
    seen, tiers, slices = Seen(), {}, Counter()
    lengths = {name: array("I") for name in LENGTHS}
    hashes, texts, codes, splits = array("Q"), array("Q"), array("H"), {}
    weight, images, sources = 0.0, 0, Counter()
    labels, pooled = {}, {}
    for pair in track(read_pairs(path), "reading pairs", total=count_pairs(path)):
        seen.add(pair)
        split = _bounded(pair.split or NO_SPLIT, splits, MAX_SPLITS, "splits", pooled)
        label = _bounded(pair.label or NO_LABEL, labels, MAX_LABELS, "labels", pooled)
        labels.setdefault(label)
        tiers.setdefault(split, Counter())[label] += 1
        for name in pair.slices:
            slices[_bounded(name, slices, MAX_NAMES, "slices", pooled)] += 1
        sources[_bounded(pair.source or NO_LABEL, sources, MAX_NAMES, "sources", pooled)] += 1
        weight += pair.label_weight
        images += pair.image is not None
        for name in LENGTHS:
            value = getattr(pair, name)
            if value:
                lengths[name].append(sum(len(k) + len(v) for k, v in value.items()) if name == "attributes" else len(value))
        hashes.append(_hash(query_key(pair.query, pair.slices)))
        texts.append(_hash(normalize(pair.query)))
        codes.append(splits.setdefault(split, len(splits)))
    keys = (np.frombuffer(column, dtype=np.uint64) for column in (hashes, texts))
    queries = _queries(*keys, np.frombuffer(codes, dtype=np.uint16), list(splits))
    found = seen.result()
    return {
        "file": str(path),
        "pairs": len(seen),
        "labeled": sum(sum(counts.values()) - counts[NO_LABEL] for counts in tiers.values()),
        "with_photo": images,
        "mean_label_weight": round(weight / len(seen), 6) if len(seen) else None,
        "sources": dict(sources.most_common()),
        "tiers": {split: {label: counts.get(label, 0) for label in _labels(path, tiers)} for split, counts in tiers.items()},
        "slices": dict(slices.most_common()),
        "lengths": {name: _spread(values) for name, values in lengths.items() if values},
        "duplicates": found.same_label,
        "conflicting_labels": found.conflicts,
        "pooled": list(pooled),
        "pooled_as": OTHERS,
        **queries,
    }


def _bounded(name: str, known: Collection[str], limit: int, what: str, pooled: dict[str, None]) -> str:
    """`name`, or OTHERS if it is new and `limit` names are already known. Adds `what` to `pooled` in that case."""
    if name in known or len(known) < limit:
        return name
    pooled[what] = None
    return OTHERS


def _labels(path: str | Path, tiers: dict[str, Counter]) -> list[str]:
    """The labels in the order of the rubric that the file was imported with, otherwise sorted by name."""
    found = sorted({label for counts in tiers.values() for label in counts})
    try:
        order = load_rubric(read_metadata(path)["lore.rubric"]).tier_ids
    except (KeyError, LoreError):
        return found  # the file names no rubric or one that is missing here; counting works without it
    return [*(label for label in order if label in found), *(label for label in found if label not in order)]


def _spread(values: array) -> dict[str, int]:
    numbers = np.frombuffer(values, dtype=np.uint32)
    p50, p95 = np.percentile(numbers, [50, 95], method="higher")
    return {"pairs": len(numbers), "p50": int(p50), "p95": int(p95), "max": int(numbers.max())}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _queries(hashes: np.ndarray, texts: np.ndarray, codes: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Number of distinct queries in total and per split (hashes, of the query keys), and for each two splits the number of query
    texts in both: a text of another market in the training split leaks its words too.
    """
    of_split = {name: np.unique(texts[codes == code]) for code, name in enumerate(names)}
    shared = {}
    for at, first in enumerate(names):
        for second in names[at + 1 :]:
            shared[f"{first} and {second}"] = int(np.isin(of_split[first], of_split[second], assume_unique=True).sum())
    return {
        "queries": len(np.unique(hashes)),
        "queries_by_split": {name: len(np.unique(hashes[codes == code])) for code, name in enumerate(names)},
        "queries_shared_by_splits": shared,
    }
