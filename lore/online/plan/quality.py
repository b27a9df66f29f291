"""How good judge and student are on the queries of a test, and how good a mix of them would be on the traffic of a log.

The verdicts are those that stage distill or evaluate has written (predictions.parquet), of judge and student on the same test
pairs. A query of the test counts by its searches in the log, and the tiers of its pairs by who would answer: the judge's verdict
with the share of requests that cache or judge answer, the student's with the rest. The metrics are those of the summed confusion
matrix.

Test queries are fewer than the log's and rarely spread like them, so they are post-stratified: cut by frequency into groups of
equal size, each weighted to its share of the log's searches (Holt and Smith 1979). Intervals come from the bootstrap over the
queries.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lore.data.pair import query_key
from lore.data.tables.parquet_files import open_parquet
from lore.eval.measures.bootstrap import Estimate, interval, summed_draws
from lore.eval.measures.metrics import Counts, measure
from lore.judge.confusion import NO_VERDICT, confusion_matrix
from lore.online.frequencies import Frequencies
from lore.online.plan.traffic import Traffic
from lore.support.errors import LoreError
from lore.support.text import printable
from lore.support.untrusted_json import read_object

PREDICTIONS = "predictions.parquet"
TABLES = ("table.json", "metrics.json")
"""Of stage distill and of stage evaluate."""
METRICS = ("macro_f1", "acc_2", "acc_k")
AGREEMENT = "agreement"
STRATA, FEWEST_IN_STRATUM = 10, 20
SAMPLES = 1000
Rows = dict[str, dict[str, Any]]
"""Rows of predictions.parquet by pair_id."""


@dataclass(frozen=True)
class Quality:
    """Verdicts by query. Q queries, sorted by their searches; K tiers."""

    tiers: list[str]
    relevant: list[bool]
    frequency: np.ndarray
    """[Q] searches in the log; 0 for a query that is not in it."""
    weight: np.ndarray
    """[Q] weight of a pair of the query."""
    judge: np.ndarray
    """[Q, K, K + 1] confusion matrix of the judge, each pair with its query's weight."""
    student: np.ndarray
    against_judge: np.ndarray
    """[Q, 2] weight of the pairs, and of those to which the student gives the judge's tier."""
    pairs: np.ndarray
    """[Q] number of pairs."""
    source: str
    remarks: tuple[str, ...] = ()

    def values(self, by_judge: np.ndarray, metric: str) -> np.ndarray:
        """A metric of mixes. by_judge [Q, P]: share of the requests for a query that the judge's verdicts answer, in P mixes."""
        return self._measured(self._summed(by_judge), metric)

    def estimate(self, by_judge: np.ndarray, metric: str, seed: int = 0, only: np.ndarray | None = None) -> Estimate:
        """A metric of one mix with its interval. by_judge [Q]; only [Q]: the queries that count, as 0 or 1."""
        table = self._table(by_judge[:, None])[:, 0]
        if only is not None:
            table = table * only.reshape(-1, *[1] * (table.ndim - 1))
        queries = int(np.count_nonzero(self.weight if only is None else self.weight * only))
        value = float(self._measured(table.sum(axis=0)[None], metric)[0])
        draws = self._measured(summed_draws(table, SAMPLES, seed), metric) if queries > 1 else None
        return interval(metric, value, draws, queries)

    def _table(self, by_judge: np.ndarray) -> np.ndarray:
        """[Q, P, K + 2 or so, K + 1] cells of each query and mix: the confusion matrix, then a row with the agreement."""
        share = by_judge[:, :, None, None]
        mixed = share * self.judge[:, None] + (1 - share) * self.student[:, None]
        tiers = len(self.tiers)
        extra = np.zeros((*mixed.shape[:2], 1, tiers + 1))
        extra[..., 0, 0] = self.against_judge[:, None, 0]
        extra[..., 0, 1] = by_judge * self.against_judge[:, None, 0] + (1 - by_judge) * self.against_judge[:, None, 1]
        return np.concatenate([mixed, extra], axis=2)

    def _summed(self, by_judge: np.ndarray) -> np.ndarray:
        """[P, K + 1, K + 1], without the cells of each query in memory."""
        judge, student, both = by_judge.T, (1 - by_judge).T, self.against_judge
        mixed = np.tensordot(judge, self.judge, 1) + np.tensordot(student, self.student, 1)
        extra = np.zeros((len(mixed), 1, len(self.tiers) + 1))
        extra[:, 0, 0], extra[:, 0, 1] = both[:, 0].sum(), judge @ both[:, 0] + student @ both[:, 1]
        return np.concatenate([mixed, extra], axis=1)

    def _measured(self, cells: np.ndarray, metric: str) -> np.ndarray:
        if metric == AGREEMENT:
            with np.errstate(invalid="ignore", divide="ignore"):
                return cells[:, -1, 1] / cells[:, -1, 0]
        return measure(Counts(cells[:, :-1]), self.tiers, self.relevant)[metric]


def read_quality(run: Path, judge: str, student: str, found: Frequencies, traffic: Traffic) -> tuple[Quality, dict[str, Any]]:
    """Reads a run of stage distill or evaluate. judge, student: their names in its predictions. Returns the run's table, too.

    Raises LoreError for a folder without predictions, for a name that is not there, and for verdicts on different pairs.
    """
    predictions, table = run / PREDICTIONS, next((run / name for name in TABLES if (run / name).is_file()), None)
    if table is None or not predictions.is_file():
        raise LoreError(
            f"{run} has no {PREDICTIONS} with {' or '.join(TABLES)}, so nothing is known of judge and student.\nName a finished "
            "run of stage distill or evaluate with --quality."
        )
    content = read_object(table, "the tiers are unknown", "Run the stage again.")
    rubric = content.get("rubric") or {}
    tiers, relevant = rubric.get("tiers"), rubric.get("relevant")
    if not tiers or not relevant:
        raise LoreError(f"{table} names no tiers, so verdicts cannot be compared. Run the stage again.")
    with open_parquet(predictions) as parquet:
        rows = parquet.read(["judge", "pair_id", "query", "label", "slices", "tier"]).to_pylist()
    names = list(dict.fromkeys(row["judge"] for row in rows))
    for option, name in (("--judge-name", judge), ("--student-name", student)):
        if name not in names:
            shown = printable(", ".join(map(str, names)))
            raise LoreError(f"{predictions} has no verdicts of {name!r}; it has those of {shown}.\nChoose one with {option}.")
    by_name = {name: {row["pair_id"]: row for row in rows if row["judge"] == name} for name in (judge, student)}
    if by_name[judge].keys() != by_name[student].keys():
        raise LoreError(
            f"{predictions}: {judge} and {student} answered different pairs, so their quality cannot be compared.\nName a run in "
            "which both answered the whole test."
        )
    return _of_verdicts(by_name[judge], by_name[student], tiers, relevant, run, found, traffic), content


def _of_verdicts(
    judge: Rows, student: Rows, tiers: list[str], relevant: list[bool], run: Path, found: Frequencies, traffic: Traffic
) -> Quality:
    asked = list(judge.values())
    index = {tier: place for place, tier in enumerate(tiers)}
    gold = np.asarray([index[row["label"]] for row in asked])
    said = [np.asarray([index.get(one[row["pair_id"]]["tier"], NO_VERDICT) for row in asked]) for one in (judge, student)]
    keys = [query_key(row["query"], row["slices"] or ()) for row in asked]
    first = dict(zip(keys, asked, strict=True))
    frequency = {key: found.of(row["query"], row["slices"] or ()) for key, row in first.items()}
    order = sorted(frequency, key=frequency.__getitem__)
    place = {key: at for at, key in enumerate(order)}
    groups = np.asarray([place[key] for key in keys])
    of_query = np.asarray([frequency[key] for key in order])
    pairs = np.bincount(groups, minlength=len(order))
    weight, remarks = stratified(of_query, pairs, traffic)
    confusions = [confusion_matrix(gold, one, len(tiers), groups=groups) * weight[:, None, None] for one in said]
    same = np.bincount(groups, (said[0] == said[1]).astype(float), len(order))
    against = np.stack([weight * pairs, weight * same], axis=1)
    source = f"{len(asked):,} test pairs of {len(order):,} queries in {run}"
    return Quality(tiers, relevant, of_query, weight, *confusions, against, pairs, source, tuple(remarks))


def stratified(frequency: np.ndarray, pairs: np.ndarray, traffic: Traffic) -> tuple[np.ndarray, list[str]]:
    """Weight of a pair of each query, so that the strata have the log's shares of the traffic; and remarks. frequency [Q],
    ascending."""
    remarks = []
    known = np.flatnonzero(frequency > 0)
    if not len(known):
        remarks.append(
            "No test query is in the log, so the quality is that of the test as it is: head, torso and tail are taken to be alike."
        )
        return np.full(len(frequency), 1 / pairs.sum()), remarks
    if len(known) < len(frequency):
        remarks.append(f"{len(frequency) - len(known):,} of {len(frequency):,} test queries are not in the log and do not count.")
    strata = max(1, min(STRATA, len(known) // FEWEST_IN_STRATUM))
    weight = np.zeros(len(frequency))
    starts = [float(frequency[part[0]]) for part in np.array_split(known, strata)]
    starts = sorted(set(starts))
    starts[0] = 0.0
    stratum = np.searchsorted(starts, frequency[known], side="right") - 1
    of_log = np.searchsorted(starts, traffic.mean, side="right") - 1
    shares = np.bincount(of_log, traffic.searches, len(starts)) / traffic.searches.sum()
    for number, share in enumerate(shares):
        inside = known[stratum == number]
        mass = frequency[inside]
        weight[inside] = share * mass / (mass * pairs[inside]).sum()
    return weight, remarks
