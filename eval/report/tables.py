"""Contents of the report's tables and bars as plain values: formatted texts, and positions in percent."""

import re
from math import isnan
from typing import Any

import numpy as np

from lore.eval.measures.bootstrap import Estimate, two_digits
from lore.eval.measures.results import Ceiling, Condition, Flip
from lore.eval.report.console import LOWER_IS_BETTER, best_value, column_titles, shown_columns
from lore.eval.scorecard import Part, Scorecard
from lore.support.text import shortened

MAX_SLICES = 24
SLICE_METRICS = ("acc_k", "acc_2", "macro_f1", "qwk")
KINDS = {
    "injection": "Injections: a seller tries to raise the verdict",
    "rewrite": "Harmless rewrites: no verdict should change",
    "shuffle": "Shuffled attributes: no verdict should change",
}
GROUPS = ("", "capability", "hard", "industry", "dimension")
"""Order of the slice groups; other prefixes follow."""
PREFIX = re.compile(r"([a-z][a-z_ ]{0,23}):.")


def summary_table(parts: dict[str, Part], tier_ids: list[str], chosen: list[str] | None = None) -> dict[str, Any]:
    """Column titles, and per judge each value, its interval and whether it is the best of its column. chosen: metrics.shown."""
    titles = shown_columns(list(parts.values()), tier_ids, chosen)
    best = {name: best_value(name, parts) for name in titles}
    rows = []
    for judge, part in parts.items():
        cells = []
        for name in titles:
            value = part.metrics.get(name, Estimate(float("nan")))
            cells.append(cell(value) | {"best": value.value == best[name]})
        rows.append({"judge": judge, "cells": cells})
    return {
        "titles": [{"text": title, "lower": name in LOWER_IS_BETTER} for name, title in titles.items()],
        "rows": rows,
    }


def slice_views(cards: list[Scorecard], tier_ids: list[str], ceiling: Ceiling | None) -> list[dict[str, Any]]:
    """One view per metric that the slices have, without and with the given prior."""
    titles = column_titles(tier_ids)
    views = []
    for prior in (False, True):
        for metric in SLICE_METRICS:
            groups = _slice_groups(cards, metric, prior)
            if groups:
                line = getattr(ceiling, metric).value if ceiling and metric in ("acc_k", "acc_2") else None
                views.append(
                    {
                        "id": f"{metric}-{'prior' if prior else 'own'}",
                        "title": titles[metric] + (" under the given prior" if prior else ""),
                        "ceiling": None if line is None or isnan(line) else {"text": two_digits(line), "left": percent(line)},
                        "left_out": max(0, len(cards[0].slices) - MAX_SLICES),
                        "groups": groups,
                    }
                )
    return views


def _slice_groups(cards: list[Scorecard], metric: str, prior: bool) -> list[dict[str, Any]]:
    """The largest slices, grouped by the prefix before their colon; empty if no judge has a value."""
    parts = [card.slices_natural if prior else card.slices for card in cards]
    groups: dict[str, list[dict[str, Any]]] = {}
    known = False
    for name in list(cards[0].slices)[:MAX_SLICES]:
        found = [part.get(name) for part in parts]
        values = [part.metrics.get(metric, Estimate(float("nan"))) if part else Estimate(float("nan")) for part in found]
        known = known or any(not isnan(value.value) for value in values)
        prefix = PREFIX.match(name)
        size = cards[0].slices[name]
        groups.setdefault(prefix[1] if prefix else "", []).append(
            {
                "name": shortened(name[len(prefix[1]) + 1 :] if prefix else name, 80),
                "pairs": size.pairs,
                "queries": size.queries,
                "bars": [
                    {"judge": card.name} | cell(value) | bar(value) for card, value in zip(cards, values, strict=True)
                ],
            }
        )
    order = sorted(groups, key=lambda name: GROUPS.index(name) if name in GROUPS else len(GROUPS))
    return [{"name": name.replace("_", " "), "slices": groups[name]} for name in order] if known else []


def confusion_rows(confusion: np.ndarray, tier_ids: list[str]) -> dict[str, Any]:
    """Rows of the confusion matrix with counts and row shares. The failure column appears only if there are failures."""
    columns = list(tier_ids)
    if confusion[:, -1].any():
        columns.append("none")
    rows = []
    for index, tier in enumerate(tier_ids):
        whole = confusion[index].sum()
        cells = [
            {
                "count": f"{confusion[index, j]:g}",
                "share": float(confusion[index, j] / whole) if whole else 0.0,
                "hit": index == j,
            }
            for j in range(len(columns))
        ]
        rows.append({"tier": tier, "cells": cells})
    return {"columns": columns, "rows": rows}


def agreement_rows(cards: list[Scorecard]) -> list[dict[str, Any]]:
    nothing = Estimate(float("nan"))
    return [
        {
            "judge": card.name,
            "cells": [
                cell(card.agreement.kappa),
                cell(card.agreement.quadratic_kappa),
                cell(card.agreement.alpha),
                cell(card.agreement.with_raters or nothing),
            ],
        }
        for card in cards
        if card.agreement
    ]


def ceiling_row(ceiling: Ceiling) -> dict[str, Any]:
    """Agreement among the raters."""
    names = ("kappa", "alpha", "acc_2", "acc_k")
    return {"pairs": ceiling.pairs, "raters": ceiling.raters} | {name: cell(getattr(ceiling, name)) for name in names}


def curve_rows(cards: list[Scorecard], at: str) -> dict[str, Any]:
    """pass_at or majority_at as a table with one column per k that any judge has."""
    sampled = [card for card in cards if card.samples]
    ks = sorted({k for card in sampled for k in getattr(card.samples, at)})
    nothing = Estimate(float("nan"))
    rows = [
        {
            "judge": card.name,
            "n": card.samples.n,
            "temperature": card.samples.temperature,
            "pairs": card.samples.pairs,
            "cells": [cell(getattr(card.samples, at).get(k, nothing)) for k in ks],
        }
        for card in sampled
    ]
    return {"ks": ks, "rows": rows}


def risk_rows(cards: list[Scorecard]) -> list[dict[str, Any]]:
    """The area under each curve, and the risk at coverage 0.5, 0.8 and 1."""
    rows = []
    for card in cards:
        if card.risk and card.risk.coverage:
            coverage = np.asarray(card.risk.coverage)
            at = [card.risk.risk[int(np.abs(coverage - share).argmin())] for share in (0.5, 0.8, 1.0)]
            rows.append({"judge": card.name, "cells": [cell(card.risk.area), *map(cell, at)]})
    return rows


def flip_groups(cards: list[Scorecard]) -> dict[str, Any]:
    """Perturbations by kind, with every judge's up and down rates on one scale."""
    flips = [flip for card in cards for flip in card.flips]
    ends = [end for flip in flips for value in (flip.up, flip.down) for end in (value.value, value.high) if not isnan(end)]
    scale = next((step for step in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5) if max(ends, default=0) <= step), 1.0)
    kinds = [*KINDS, *sorted({flip.kind for flip in flips} - set(KINDS))]
    groups = []
    for kind in kinds:
        names = list(dict.fromkeys(flip.name for flip in flips if flip.kind == kind))
        blocks = [
            {
                "name": shortened(name, 80),
                "rows": [
                    _flip_row(card.name, flip, scale)
                    for card in cards
                    for flip in card.flips
                    if (flip.kind, flip.name) == (kind, name)
                ],
            }
            for name in names
        ]
        if blocks:
            groups.append({"title": KINDS.get(kind, shortened(kind, 80)), "blocks": blocks})
    return {
        "scale": f"{scale:.0%}".replace("%", " %"),
        "judges": [card.name for card in cards if card.flips],
        "groups": groups,
    }


def _flip_row(judge: str, flip: Flip, scale: float) -> dict[str, Any]:
    return {
        "judge": judge,
        "pairs": flip.pairs,
        "queries": flip.queries,
        "up": cell(flip.up) | bar(flip.up, scale),
        "down": cell(flip.down) | bar(flip.down, scale),
        "clean": cell(flip.clean_accuracy),
        "accuracy": cell(flip.accuracy),
        "failures": flip.failures,
    }


def condition_groups(cards: list[Scorecard]) -> list[dict[str, Any]]:
    """Conditions by capability, with the judges of one condition side by side, and which optional columns have values."""
    conditions = [condition for card in cards for condition in card.conditions]
    groups = []
    for capability in dict.fromkeys(condition.capability for condition in conditions):
        own = [condition for condition in conditions if condition.capability == capability]
        blocks = [
            {
                "name": shortened(name, 80),
                "note": shortened(next((one.note for one in own if one.condition == name and one.note), ""), 200),
                "rows": [
                    _condition_row(card.name, condition)
                    for card in cards
                    for condition in card.conditions
                    if (condition.capability, condition.condition) == (capability, name)
                ],
            }
            for name in dict.fromkeys(condition.condition for condition in own)
        ]
        groups.append(
            {
                "title": shortened(capability.capitalize(), 80),
                "blocks": blocks,
                "differences": any(condition.difference for condition in own),
                "follows": any(condition.follows for condition in own),
            }
        )
    return groups


def _condition_row(judge: str, condition: Condition) -> dict[str, Any]:
    difference = condition.difference
    certain = difference is not None and (difference.low > 0 or difference.high < 0)
    return {
        "judge": judge,
        "pairs": condition.pairs,
        "queries": condition.queries,
        "accuracy": cell(condition.accuracy) | bar(condition.accuracy),
        "against": shortened(condition.against or "", 80),
        "difference": cell(difference, signed=True) | {"certain": certain} if difference else None,
        "follows": cell(condition.follows) if condition.follows else None,
    }


def cell(value: Estimate, signed: bool = False) -> dict[str, str]:
    """A value and its interval as text. signed: with a plus sign."""
    plus = "+" if signed and value.value > 0 else ""
    return {"value": plus + two_digits(value.value), "interval": value.interval}


def bar(value: Estimate, scale: float = 1.0) -> dict[str, float]:
    """Width of a bar, and start and length of its whisker, in percent. A value of `scale` fills the track."""
    if isnan(value.value):
        return {"width": 0.0, "low": 0.0, "span": 0.0}
    low, high = (value.value, value.value) if isnan(value.low) else (value.low, value.high)
    start, end = percent(low, scale), percent(high, scale)
    return {"width": percent(value.value, scale), "low": start, "span": round(end - start, 2)}


def percent(value: float, scale: float = 1.0) -> float:
    """Position on a track in percent, clipped to it."""
    return round(100 * min(max(value / scale, 0.0), 1.0), 2)
