"""The table of recommenders: metrics with 95 % intervals, paired differences, cold items apart, coverage and popularity bias."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
from scipy import sparse

from lore.eval.measures.bootstrap import Estimate, interval, summed_draws
from lore.recommend.histories import COLD, Histories, Part
from lore.recommend.metrics import METRICS, RULES, SHOWN, Measured, gini

GROUPS = ("all", "cold", "warm")
"""Targets: all of them, those whose item has at most COLD training events, the others."""
Key = tuple[str, str, str]
"""Rule, group of targets, metric."""
KEYS: list[Key] = [(rule, group, metric) for rule in RULES for group in GROUPS for metric in METRICS]
HEADLINE: dict[str, Key] = {
    "NDCG@10 removed": ("removed", "all", "NDCG@10"),
    "NDCG@10 kept": ("kept", "all", "NDCG@10"),
    "cold HR@10": ("removed", "cold", "HR@10"),
}
NDCG, COLD_HITS = HEADLINE["NDCG@10 removed"], HEADLINE["cold HR@10"]


@dataclass(frozen=True)
class Row:
    """One recommender. over_reference: its metrics minus those of the reference row, paired; None for that row itself. control_of:
    the row that this is a control of; below: that row's metrics minus this one's. coverage: share of the catalogue that somebody is
    shown among the first 10 (history removed); shown_count: mean training events of what is shown; shown_gini: of how often items
    are shown."""

    name: str
    metrics: dict[Key, Estimate]
    over_reference: dict[Key, Estimate] | None
    control_of: str | None
    below: dict[Key, Estimate] | None
    coverage: float
    shown_count: float
    shown_gini: float


@dataclass(frozen=True)
class Table:
    """rows: in the recipe's order. targets, users: of the whole part, and of its cold items. repeats: targets that are in their
    history already, which count as a miss where the history is removed."""

    rows: list[Row]
    part: str
    reference: str
    targets: int
    users: int
    cold: int
    repeats: int
    items: int
    target_count: float

    def texts(self) -> dict[str, dict[str, str]]:
        """The headline by row and column, for the terminal."""
        controlled = any(row.control_of for row in self.rows)
        found = {}
        for row in self.rows:
            cells = {title: text(row.metrics[key]) for title, key in HEADLINE.items()}
            for title, key in ((f"NDCG@10 over {self.reference}", NDCG), ("cold HR@10 over it", COLD_HITS)):
                cells[title] = "" if row.over_reference is None else text(row.over_reference[key], signed=True)
            if controlled:
                cells["controlled row over its control"] = "" if row.below is None else text(row.below[NDCG], signed=True)
            found[row.name] = cells | {"coverage": f"{100 * row.coverage:.1f} %"}
        return found

    def remarks(self) -> list[str]:
        """What was measured and how, for people."""
        of = f"{self.targets:,} held-out events of {self.users:,} histories over {self.items:,} items"
        cold = f"{self.cold:,} events are of cold items (at most {COLD} training events)"
        lines = [f"{self.part}: {of}; {cold}; 95 % intervals over histories"]
        if self.repeats:
            lines.append(f"{self.repeats:,} of them repeat an item of their history: a miss wherever the history is removed")
        return lines

    def to_json(self) -> dict[str, Any]:
        def nested(metrics: dict[Key, Estimate] | None) -> dict[str, Any] | None:
            if metrics is None:
                return None
            return {
                rule: {group: {name: metrics[rule, group, name].to_json() for name in METRICS} for group in GROUPS} for rule in
                RULES
            }

        about = {"part": self.part, "reference": self.reference, "targets": self.targets, "users": self.users, "items": self.items}
        about |= {"targets of cold items": self.cold, "targets in their history": self.repeats}
        about["training events of a target's item"] = rounded(self.target_count)
        return about | {
            "rows": {
                row.name: {
                    "metrics": nested(row.metrics),
                    "over reference": nested(row.over_reference),
                    "control of": row.control_of,
                    "the controlled row over it": nested(row.below),
                    f"coverage of the first {SHOWN}": rounded(row.coverage),
                    "training events of a shown item": rounded(row.shown_count),
                    "gini of shown items": rounded(row.shown_gini),
                }
                for row in self.rows
            },
        }


def make_table(
    measured: dict[str, Measured],
    histories: Histories,
    part: Part,
    *,
    reference: str,
    controls: dict[str, str],
    samples: int = 1000,
    seed: int = 0,
) -> Table:
    """measured: by the name of the row. controls: the row that a row is a control of. Every row sees the same resamples of
    users."""
    targets, counts = histories.targets(part), histories.training_counts()
    wanted = histories.items[targets.place]
    cold = counts[wanted] <= COLD
    users, of = np.unique(targets.user, return_inverse=True)
    by_user = sparse.csr_matrix((np.ones(len(of)), (of, np.arange(len(of)))), shape=(len(users), len(of)))
    groups = np.stack([np.ones(len(cold)), cold, ~cold], axis=1)
    found = {name: _values_and_draws(one, groups, by_user, samples, seed) for name, one in measured.items()}

    def estimates(value: np.ndarray, draws: np.ndarray | None) -> dict[Key, Estimate]:
        columns = range(len(KEYS))
        return {
            key: interval("", float(value[at]), None if draws is None else draws[:, at], len(users))
            for key, at in zip(KEYS, columns, strict=True)
        }

    def difference(one: str, other: str) -> dict[Key, Estimate]:
        draws = None if found[one][1] is None else found[one][1] - found[other][1]
        return estimates(found[one][0] - found[other][0], draws)

    rows = []
    for name, one in measured.items():
        shown = one.shown.astype(np.float64)
        of = controls.get(name)
        rows.append(
            Row(
                name,
                estimates(*found[name]),
                None if name == reference else difference(name, reference),
                of,
                None if of is None else difference(of, name),
                coverage=float((shown > 0).mean()),
                shown_count=float(shown @ counts / max(1.0, shown.sum())),
                shown_gini=gini(shown),
            )
        )
    repeats = sum(bool((histories.before(targets, at) == wanted[at]).any()) for at in range(len(targets)))
    target_count = float(counts[wanted].mean()) if len(wanted) else float("nan")
    return Table(
        rows, part, reference, len(targets), len(users), int(cold.sum()), repeats, len(histories.item_ids), target_count
    )


def _values_and_draws(
    measured: Measured, groups: np.ndarray, by_user: sparse.csr_matrix, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Means in the order of KEYS, and the same of the resamples [samples, keys]. groups [N, G]: 1 for a target of the group."""
    size = len(METRICS)
    values = measured.values.astype(np.float64)
    sums = by_user @ np.concatenate([groups[:, g, None] * rule for rule in values for g in range(len(GROUPS))], axis=1)
    table = np.concatenate([sums, by_user @ groups], axis=1)

    def means(total: np.ndarray) -> np.ndarray:
        each = np.repeat(total[..., -len(GROUPS) :], size, axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return total[..., : -len(GROUPS)] / np.concatenate([each] * len(RULES), axis=-1)

    draws = means(summed_draws(table, samples, seed)) if samples and len(table) > 1 else None
    return means(table.sum(axis=0)), draws


def text(estimate: Estimate, *, signed: bool = False) -> str:
    """Four decimals and the interval: the differences that matter here are in the third."""
    if isnan(estimate.value):
        return "–"
    sign = "+" if signed else ""
    ends = "" if isnan(estimate.low) else f" [{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"
    return f"{estimate.value:{sign}.4f}{ends}"


def rounded(value: float) -> float | None:
    return None if isnan(value) else round(value, 4)
