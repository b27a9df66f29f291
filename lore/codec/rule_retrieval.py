"""Selects the rules of a rubric that apply to a pair, for rule books that are too long to show in full.

BM25 (bm25s) over the rules' texts, queried with the texts of query and item that a judge can see. The pair's rules, demands
and mismatch are never used, because they reveal the label. Not used: embeddings, which need a model. A query word that
occurs in no rule, such as a brand without an example, therefore retrieves nothing.
"""

from typing import Any

import numpy as np

from lore.codec.item_text import ItemText
from lore.codec.tokenize import content_terms
from lore.rubric.rubric import Rubric

_found: dict[tuple, Rubric] = {}
_indices: dict[str, tuple[dict[str, int], Any, list[str]]] = {}
MAX_FOUND, MAX_INDICES = 4096, 64
ITEM_WEIGHT = 0.1  # demands come from the query; item words only break ties between dimensions


def rules_about(rubric: Rubric, item: ItemText, count: int) -> Rubric:
    """The rubric reduced to the best-matching dimensions, in rubric order, with at least `count` rules.

    Dimensions are kept whole, because a threshold means little without the adjacent thresholds. The first dimension with
    rules is always kept: it describes the product type, which matters for every pair and which queries seldom express in
    the words of a rule.
    """
    if len(rubric.rules) <= count:
        return rubric
    terms, index, dimensions = _index(rubric)
    item_words = " \n".join((item.title, *item.fields, *item.attributes))
    scores = _scores(index, terms, item.query) + ITEM_WEIGHT * _scores(index, terms, item_words)
    best = {dimension.id: 0.0 for dimension in rubric.dimensions if dimension.id in dimensions}
    for dimension, score in zip(dimensions, scores, strict=True):
        best[dimension] = max(best[dimension], float(score))
    first, *others = best
    chosen: list[str] = []
    for dimension in (first, *sorted(others, key=lambda name: -best[name])):
        if sum(d in chosen for d in dimensions) >= count:
            break
        chosen.append(dimension)
    key = (rubric.hash, tuple(sorted(chosen)))
    if key not in _found:
        if len(_found) >= MAX_FOUND:
            _found.clear()
        parts = {
            "rules": [rule for rule in rubric.rules if rule.dimension in chosen],
            "dimensions": [dimension for dimension in rubric.dimensions if dimension.id in chosen],
        }
        plain = {name: [part.model_dump() for part in values] for name, values in parts.items()}
        # model_copy would keep the cached hash and indices of the full rubric.
        _found[key] = Rubric.model_validate(rubric.model_dump() | plain)
    return _found[key]


def _index(rubric: Rubric) -> tuple[dict[str, int], Any, list[str]]:
    if rubric.hash in _indices:
        return _indices[rubric.hash]
    import bm25s  # only where rules are retrieved: takes time to load

    meanings = {dimension.id: dimension.meaning for dimension in rubric.dimensions}
    known: dict[str, int] = {}
    ids = []
    for rule in rubric.rules:
        examples = " ".join(f"{example.query} {example.item}" for example in rule.examples)
        text = f"{rule.dimension} {meanings.get(rule.dimension, '')} {rule.principle} {examples}"
        ids.append([known.setdefault(term, len(known)) for term in content_terms(text)])
    index = bm25s.BM25()
    index.index((ids, dict(known)), show_progress=False)
    if len(_indices) >= MAX_INDICES:
        _indices.clear()
    _indices[rubric.hash] = known, index, [rule.dimension for rule in rubric.rules]
    return _indices[rubric.hash]


def _scores(index: Any, known: dict[str, int], text: str) -> np.ndarray:
    ids = [known[term] for term in dict.fromkeys(content_terms(text)) if term in known]
    return index.get_scores_from_ids(ids) if ids else np.zeros(index.scores["num_docs"])
