"""Are items of the same shelf harder negatives than items with the same words? A student's P(relevant) of both.

    python benchmarks/recommend_negatives.py runs/quickstart/world/pairs --rubric shop --student runs/quickstart/distill

For every relevant pair of the split: items that share one or two codes with its item and differ in an attribute that the query
names; the best items by BM25 (title, description) that differ in such an attribute too; and the first kind with shuffled codes.
None is a positive of the query. The codes are those of stage semantic_ids on the items of the pairs, without training (fusion:
concat). The gate: the difference to BM25 is above 0 with its 95 % interval over queries. It does not hold in the embedded shop
(docs/lab/recommend.md), so the function is here and not in lore.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from lore.codec.lexical_match import missing_words, pieces
from lore.data.pair import ITEM_FIELDS, ITEM_SCHEMA, Pair
from lore.data.parquet import PairWriter, read_pairs
from lore.eval.measures.bootstrap import Estimate, mean_estimate, query_groups
from lore.recommend.codes import Codes, read_codes
from lore.rubric.rubric import load_rubric
from lore.student.scorer import open_student

EACH, DEPTH = 2, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", type=Path, help="rated pairs: a folder of Parquet files")
    parser.add_argument("--rubric", required=True)
    parser.add_argument("--student", type=Path, required=True, help="run of stage distill")
    parser.add_argument("--split", default="test")
    parser.add_argument("--critical", nargs="*", help="attributes that may decide; default: all that a query names")
    parser.add_argument("--limit", type=int, default=500, help="positives")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work = Path(os.environ.setdefault("LORE_RUNS", "runs")) / "negatives"
    work.mkdir(parents=True, exist_ok=True)

    rubric, items, positives = load_rubric(arguments.rubric), {}, []
    relevant = {tier for tier, is_relevant in zip(rubric.tier_ids, rubric.relevant_mask, strict=True) if is_relevant}
    for pair in read_pairs(arguments.pairs):
        if pair.item_id and pair.item_id not in items:
            fields = {name: getattr(pair, name) for name in ITEM_FIELDS}
            items[pair.item_id] = Pair(pair_id=pair.item_id, query="", **fields)
        if pair.split == arguments.split and pair.label in relevant:
            positives.append(pair)
    rng = np.random.default_rng(arguments.seed)
    chosen = sorted(rng.permutation(len(positives))[: arguments.limit])
    positives, catalogue = [positives[at] for at in chosen], list(items.values())
    codes = read_codes(codes_of(catalogue, work), list(items))

    options = {"critical": arguments.critical, "each": EACH, "seed": arguments.seed}
    found = {
        name: [(one.positive, one.pair) for one in hard_negatives(positives, catalogue, those, **options)]
        for name, those in (("same shelf", codes), ("same shelf, shuffled codes", codes.shuffled(arguments.seed)))
    }
    found |= {
        "BM25": by_words(positives, catalogue, arguments.critical),
    }
    side = np.asarray(rubric.relevant_mask, dtype=bool)
    scorer = open_student(arguments.student)
    scores: dict[str, dict[str, list[float]]] = {}
    for name, made in {"positives": [(pair.pair_id, pair) for pair in positives], **found}.items():
        by_positive = scores.setdefault(name, {})
        for (positive, _), verdict in zip(made, scorer.score([pair for _, pair in made]), strict=True):
            if verdict.probabilities is not None:
                by_positive.setdefault(positive, []).append(float(np.asarray(verdict.probabilities)[side].sum()))
    scorer.close()
    query_of = {pair.pair_id: pair.query for pair in positives}
    told: dict[str, Any] = {"items": len(catalogue), "positives": len(positives)}
    for name, values in scores.items():
        known = list(values)
        each = mean_estimate(np.asarray([np.mean(values[one]) for one in known]), query_groups([query_of[one] for one in known]))
        told[f"P(relevant), {name}"] = each.to_json() | {"positives": len(known)}
    gain = Estimate(float("nan"))
    for other in ("same shelf, shuffled codes", "BM25"):
        both = sorted(scores["same shelf"].keys() & scores[other].keys())
        apart = np.asarray([np.mean(scores["same shelf"][one]) - np.mean(scores[other][one]) for one in both])
        gain = mean_estimate(apart, query_groups([query_of[one] for one in both]))
        told[f"same shelf over {other}"] = gain.to_json() | {"positives": len(both)}
    print(json.dumps(told, indent=1))
    print("the gate holds" if gain.low > 0 else "the gate does not hold: BM25 negatives are as hard or harder")


def codes_of(catalogue: list[Pair], work: Path) -> Path:
    """The run of stage semantic_ids on these items, done once."""
    path = work / "items.parquet"
    if not path.is_file():
        with PairWriter(path, schema=ITEM_SCHEMA, metadata={"lore.source": "pairs"}) as writer:
            for item in catalogue:
                writer.write(item)
    recipe = work / "codes.yaml"
    recipe.write_text(f"stage: semantic_ids\nrun: negatives/codes\ndata: {{items: {path}}}\nfusion: {{kind: concat}}\n")
    subprocess.run([sys.executable, "-m", "lore", "run", str(recipe)], check=True)
    return work / "codes"


def by_words(positives: list[Pair], catalogue: list[Pair], critical: list[str] | None) -> list[tuple[str, Pair]]:
    """EACH items per positive: the best by BM25 that differ in an attribute that the query names."""
    rows = {item.item_id: row for row, item in enumerate(catalogue)}
    index = bm25s.BM25()
    index.index([pieces(f"{item.title} {item.description or ''}") for item in catalogue], show_progress=False)
    relevant: dict[str, set[str | None]] = {}
    for pair in positives:
        relevant.setdefault(pair.query, set()).add(pair.item_id)
    found = []
    for pair in positives:
        named = named_attributes(pair.query, catalogue[rows[pair.item_id]], critical)
        ranked = np.argsort(-index.get_scores(pieces(pair.query)), kind="stable")[:DEPTH]
        kept = [row for row in ranked if differing(named, catalogue[row]) and catalogue[row].item_id not in relevant[pair.query]]
        for row in kept[:EACH]:
            fields = {name: getattr(catalogue[row], name) for name in ITEM_FIELDS}
            found.append((pair.pair_id, Pair(pair_id=f"{pair.pair_id}~{catalogue[row].item_id}", query=pair.query, **fields)))
    return found


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


if __name__ == "__main__":
    main()
