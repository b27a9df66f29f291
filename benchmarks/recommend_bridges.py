"""Do semantic ids help to judge relevance? Two bridges, each with the gate that it has to pass before it belongs in lore.

    python benchmarks/recommend_bridges.py negatives runs/quickstart/world/pairs --rubric shop --student runs/quickstart/distill
    python benchmarks/recommend_bridges.py overlap runs/quickstart/world/pairs --rubric shop

negatives: are items of the same shelf harder negatives than items with the same words? For each relevant pair of the split: items
that share one or two codes with its item and differ in an attribute that the query names; the best items by BM25 (title,
description) that differ in such an attribute too; and the first kind with shuffled codes. None is a positive of the query. Gate:
the student's P(relevant) is above that of BM25 negatives, with its 95 % interval over queries.

overlap: does it say more about relevance than a score alone that an item shares codes with what the query finds? The score is the
student's, or without one BM25 and the cosine of query and item in the space of the text features. Further features: the share of
the ten nearest items by that cosine, without the item itself, that have its first code, and its first two. A logistic regression is
fitted on the dev pairs. The gate: AUC on the other split rises, with its interval over queries.

The codes are those of stage semantic_ids on the items of the pairs, without training (fusion: concat). What the gates said is in
docs/lab/recommend.md.
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
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from lore.codec.lexical_match import missing_words, pieces
from lore.codec.pair_text import PairTextFormat, pair_texts
from lore.data.pair import ITEM_FIELDS, ITEM_SCHEMA, Pair
from lore.data.parquet import PairWriter, read_pairs
from lore.eval.measures.bootstrap import Estimate, interval, mean_estimate, pair_weights, query_groups, times_drawn
from lore.eval.measures.ranking import auc_of
from lore.recommend.codes import Codes, read_codes
from lore.recommend.config import TextSection
from lore.recommend.features import text_vectors
from lore.rubric.rubric import load_rubric
from lore.student.scorer import open_student

EACH, DEPTH, HITS = 2, 200, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bridge", choices=["negatives", "overlap"])
    parser.add_argument("pairs", type=Path, help="rated pairs: a folder of Parquet files")
    parser.add_argument("--rubric", required=True)
    parser.add_argument("--student", type=Path, help="run of stage distill; negatives need one")
    parser.add_argument("--split", default="test")
    parser.add_argument("--critical", nargs="*", help="negatives: attributes that may decide; default: all that a query names")
    parser.add_argument("--limit", type=int, default=500, help="negatives: positives")
    parser.add_argument("--text", help="overlap: text encoder of queries and items; default: latent semantic analysis")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work = Path(os.environ.setdefault("LORE_RUNS", "runs")) / "bridges"
    work.mkdir(parents=True, exist_ok=True)
    if arguments.bridge == "overlap":
        overlap(arguments, work)
    elif arguments.student is None:
        parser.error("negatives are scored by a student: --student RUN")
    else:
        negatives(arguments, work)


def negatives(arguments: argparse.Namespace, work: Path) -> None:
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


def overlap(arguments: argparse.Namespace, work: Path) -> None:
    rubric, items, pairs = load_rubric(arguments.rubric), {}, []
    for pair in read_pairs(arguments.pairs):
        if pair.item_id and pair.item_id not in items:
            items[pair.item_id] = Pair(pair_id=pair.item_id, query="", **{name: getattr(pair, name) for name in ITEM_FIELDS})
        if pair.item_id and pair.label and pair.split in ("dev", arguments.split):
            pairs.append(pair)
    catalogue, row_of = list(items.values()), {item: row for row, item in enumerate(items)}
    rows = np.asarray([row_of[pair.item_id] for pair in pairs])
    side = np.asarray(rubric.relevant_mask, dtype=bool)
    relevant = side[[rubric.tier_ids.index(pair.label) for pair in pairs]]
    cosine = cosines(list(dict.fromkeys(pair.query for pair in pairs)), catalogue, arguments)
    alone = scores_alone(pairs, rows, catalogue, cosine, side, arguments)

    own = read_codes(codes_of(catalogue, work), list(items))
    found = {"score alone": alone}
    for name, codes in (("codes", own), ("shuffled codes", own.shuffled(arguments.seed))):
        found[f"score and overlap, {name}"] = np.column_stack([alone, shared_codes(pairs, rows, cosine, codes)])

    fit, tested = (np.asarray([pair.split == part for pair in pairs]) for part in ("dev", arguments.split))
    groups = query_groups([pair.query for pair in pairs if pair.split == arguments.split])
    queries = int(groups.max()) + 1
    told: dict[str, Any] = {"items": len(catalogue), "dev pairs": int(fit.sum()), "pairs": int(tested.sum()), "queries": queries}
    drawn = {}
    for name, features in found.items():
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features[fit], relevant[fit])
        auc = auc_of(relevant[tested], model.decision_function(features[tested]))
        draws = pair_weights(times_drawn(queries, 1000, arguments.seed), groups, None, np.zeros(len(groups), dtype=int))
        drawn[name] = float(auc(np.ones(len(groups)))), np.concatenate([auc(block) for block in draws])
        told[f"AUC, {name}"] = interval("", *drawn[name], queries).to_json()
    gains = {}
    for other in ("score alone", "score and overlap, shuffled codes"):
        (value, draws), (less, fewer) = drawn["score and overlap, codes"], drawn[other]
        gains[other] = interval("", value - less, draws - fewer, queries)
        told[f"overlap over {other}"] = gains[other].to_json()
    print(json.dumps(told, indent=1))
    print("the gate holds" if min(gain.low for gain in gains.values()) > 0 else "the gate does not hold")


def cosines(queries: list[str], catalogue: list[Pair], arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Cosine of a query to every item, by query, in the space of the items' text features."""
    section, fitted = TextSection(encoder=arguments.text), {}
    fmt = PairTextFormat(tuple(section.fields), section.max_field_characters, section.max_tokens)
    texts = [pair_texts(item, fmt)[1] for item in catalogue]
    of_items, of_queries = (normalize(text_vectors(these, section, 8192, arguments.seed, fitted)) for these in (texts, queries))
    return dict(zip(queries, of_queries @ of_items.T, strict=True))


def scores_alone(
    pairs: list[Pair],
    rows: np.ndarray,
    catalogue: list[Pair],
    cosine: dict[str, np.ndarray],
    side: np.ndarray,
    arguments: argparse.Namespace,
) -> np.ndarray:
    """[N, 1] log-odds that the student finds a pair relevant, or [N, 2] its BM25 score and cosine. rows [N]: its item."""
    if arguments.student is not None:
        scorer = open_student(arguments.student)
        sure = np.asarray([np.asarray(verdict.probabilities)[side].sum() for verdict in scorer.score(pairs)])
        scorer.close()
        return logit(np.clip(sure, 1e-6, 1 - 1e-6))[:, None]
    index = word_index(catalogue)
    words = {query: index.get_scores(pieces(query)) for query in cosine}
    return np.asarray([(words[pair.query][row], cosine[pair.query][row]) for pair, row in zip(pairs, rows, strict=True)])


def shared_codes(pairs: list[Pair], rows: np.ndarray, cosine: dict[str, np.ndarray], codes: Codes) -> np.ndarray:
    """[N, 2] share of the query's HITS nearest items, without the pair's own, that have its first code, and its first two."""
    nearest = {query: np.argsort(-values, kind="stable")[: HITS + 1] for query, values in cosine.items()}
    found = []
    for pair, row in zip(pairs, rows, strict=True):
        others = nearest[pair.query][nearest[pair.query] != row][:HITS]
        found.append(np.cumprod(codes.values[others, :2] == codes.values[row, :2], axis=1).mean(axis=0))
    return np.asarray(found)


def codes_of(catalogue: list[Pair], work: Path) -> Path:
    """The run of stage semantic_ids on these items, done once."""
    path = work / "items.parquet"
    if not path.is_file():
        with PairWriter(path, schema=ITEM_SCHEMA, metadata={"lore.source": "pairs"}) as writer:
            for item in catalogue:
                writer.write(item)
    recipe = work / "codes.yaml"
    recipe.write_text(f"stage: semantic_ids\nrun: bridges/codes\ndata: {{items: {path}}}\nfusion: {{kind: concat}}\n")
    subprocess.run([sys.executable, "-m", "lore", "run", str(recipe)], check=True)
    return work / "codes"


def by_words(positives: list[Pair], catalogue: list[Pair], critical: list[str] | None) -> list[tuple[str, Pair]]:
    """EACH items per positive: the best by BM25 that differ in an attribute that the query names."""
    rows = {item.item_id: row for row, item in enumerate(catalogue)}
    index = word_index(catalogue)
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


def word_index(catalogue: list[Pair]) -> bm25s.BM25:
    index = bm25s.BM25()
    index.index([pieces(f"{item.title} {item.description or ''}") for item in catalogue], show_progress=False)
    return index


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
