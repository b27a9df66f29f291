"""Joins what the layers found into one order, and makes candidates of the best.

Learned fusion (LearnedFusion; fusion.json, for a sentence encoder): a linear score over the layers' scores, fitted by logistic
regression on judged lists. It keeps how sure the graph is, which ranks lose. It does not see ranks, distance and hours, which did
not help on the developing half.

    python benchmarks/nearby_places.py $LORE_DATA/osm_poi --encoder FOLDER --save lore/nearby/fusion.json

Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009), without learned weights: the sum over the layers of 1 / (60 + rank).
Places of equal score in a layer share its best rank, so that the other layer orders, say, twenty cafes that the graph finds equally
good. Distance is no third ranking: the circle has been drawn, and of equal places the nearer one comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field

from lore.config.sections import Conflict, StrictModel
from lore.config.validation import validate
from lore.config.yaml_text import RecipeText
from lore.nearby.retrieval import Reach
from lore.nearby.town import Town
from lore.places.hours import Opening
from lore.places.place import Place
from lore.places.question import Candidate, Hit, Intent
from lore.support.atomic_files import write_atomic
from lore.support.bounds import MAX_WEIGHT
from lore.support.untrusted_json import read_object

SHIPPED = Path(__file__).with_name("fusion.json")
RANK_OFFSET = 60
DEPTH = 100
"""Hits that each layer is asked for."""
LAYERS = ("graph", "vector")
FEATURES = tuple(f"{name}.{what}" for name in LAYERS for what in ("score", "found"))
Hits = Mapping[str, Sequence[Hit]]
Number = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]


def reciprocal_ranks(hits: Sequence[Hit]) -> np.ndarray:
    """(n,) 1 / (60 + rank); hits of equal score share the best rank. hits: the best first."""
    scores = np.array([hit.score for hit in hits])
    return 1 / (RANK_OFFSET + 1 + np.searchsorted(-scores, -scores, side="left"))


def evidence(hits: Hits, rows: Sequence[int]) -> np.ndarray:
    """(n, 4) what the learned fusion sees of each row: FEATURES."""
    at = {row: number for number, row in enumerate(rows)}
    found = np.zeros((len(rows), len(FEATURES)))
    for number, name in enumerate(LAYERS):
        for hit in hits.get(name, ()):
            found[at[hit.row], 2 * number : 2 * number + 2] = hit.score, 1.0
    return found


class LearnedFusion(StrictModel):
    """score = sum of weight * (feature - mean) / scale. One number per feature of FEATURES."""

    features: list[str]
    mean: list[Number]
    scale: list[Annotated[float, Field(gt=0, le=MAX_WEIGHT)]]
    weight: list[Number]

    def conflicts(self) -> Iterator[Conflict]:
        if tuple(self.features) != FEATURES:
            yield Conflict(("features",), ", ".join(self.features), ", ".join(FEATURES))
        for name in ("mean", "scale", "weight"):
            if len(getattr(self, name)) != len(FEATURES):
                yield Conflict((name,), f"{len(getattr(self, name))} numbers", f"{len(FEATURES)} numbers")

    @classmethod
    def fit(cls, features: np.ndarray, relevant: np.ndarray) -> Self:
        """features (n, 4) of evidence over all judged lists, relevant (n,) bool."""
        from sklearn.linear_model import LogisticRegression  # takes time to load

        mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        model = LogisticRegression(max_iter=1000).fit((features - mean) / scale, relevant)
        return cls(features=list(FEATURES), mean=mean.tolist(), scale=scale.tolist(), weight=model.coef_[0].tolist())

    @classmethod
    def load(cls, path: Path = SHIPPED) -> Self:
        """Raises LoreError for another file."""
        advice = "Fit it again, or leave it out: reciprocal rank fusion needs none."
        content = read_object(path, "places cannot be ordered by it", advice)
        return validate(RecipeText(path, content), cls)

    def save(self, path: Path) -> None:
        write_atomic(path, self.model_dump_json(indent=1))

    def scores(self, features: np.ndarray) -> np.ndarray:
        return ((features - np.array(self.mean)) / np.array(self.scale)) @ np.array(self.weight)


def fuse(reach: Reach, hits: Hits, learned: LearnedFusion | None = None) -> list[tuple[int, float]]:
    """(row, score) of all places that a layer found, the best first; of equal ones the nearest."""
    nearness = {row: at for at, row in enumerate(reach.rows.tolist())}
    rows = sorted({hit.row for found in hits.values() for hit in found}, key=nearness.__getitem__)
    scores = np.zeros(len(rows))
    if learned is not None:
        scores = learned.scores(evidence(hits, rows))
    else:
        at = {row: number for number, row in enumerate(rows)}
        for found in hits.values():
            scores[[at[hit.row] for hit in found]] += reciprocal_ranks(found)
    return [(rows[at], float(scores[at])) for at in np.argsort(-scores, kind="stable").tolist()]


def candidates(
    town: Town,
    intent: Intent,
    reach: Reach,
    hits: Hits,
    opening: Callable[[Place], Opening],
    k: int,
    learned: LearnedFusion | None = None,
) -> list[Candidate]:
    """The best k places with their evidence. Where intent.open_then, none that is known to be closed.

    opening: of a place at intent.when; asked only for the head of the list, because reading hours takes longer than all layers.
    """
    at = {row: number for number, row in enumerate(reach.rows.tolist())}
    hit_of = {name: {hit.row: hit for hit in found} for name, found in hits.items()}
    kept: list[Candidate] = []
    for row, score in fuse(reach, hits, learned):
        if len(kept) == k:
            break
        (place,) = town.places([row])
        state = opening(place)
        if not (intent.open_then and state.state == "closed"):
            evidence_of = {name: found[row] for name, found in hit_of.items() if row in found}
            metres, minutes = float(reach.metres[at[row]]), float(reach.minutes[at[row]])
            kept.append(Candidate(row, place, metres, minutes, state, score, evidence_of))
    return kept
