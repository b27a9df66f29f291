"""Where head, torso and tail begin: what each choice costs a day, how good and how slow it is, and which one to take.

A choice is two numbers of searches. From `head_from` on, the items that a query shows are labelled by the judge beforehand, and
again every `relabel_days`; the cache answers, the student for what is new since. From `torso_from` on, the student answers. Below,
the judge answers live, its verdict is kept, and the student answers what does not come by the deadline. Two choices leave the judge
out: nothing is in the head, or nothing is in the tail.

The model leaves out: queueing between searches (utilization stands for it), the order of a result page, and that a query's
frequency changes. Each search asks about the same number of candidates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lore.eval.measures.bootstrap import Estimate
from lore.online.plan.inputs import Input, Judge, Latency, Price, Student, cached_share, stored_share
from lore.online.plan.quality import AGREEMENT, METRICS, Quality
from lore.online.plan.traffic import EDGES, Traffic
from lore.support.errors import LoreError

SIMULATED = 8192
"""Searches that are simulated for the latency."""
MOST_EDGES = 40
CLOSE = 0.01
"""Differences in quality that are not paid for, where no target is named: few tests tell smaller ones apart."""


@dataclass(frozen=True)
class Setting:
    """What a plan is made for."""

    candidates: Input
    """Pairs of one search."""
    new_items_per_day: Input
    """Share of the shown items that a day replaces."""
    new_queries: Input
    """Share of the searches whose query the log does not have."""
    relabel_days: float
    judge_days: float
    """Days until the judge is replaced, and all of its verdicts with it."""
    deadline_ms: float
    """Longest wait for the judge."""
    peak: float
    """Traffic of the busiest time over the mean."""
    utilization: float
    metric: str = METRICS[0]
    seed: int = 0


@dataclass(frozen=True)
class Prices:
    """USD of a pair: labelled in batches, answered live by the judge, answered by the student; and USD a day of the cache."""

    label: Price
    live: Price
    student: Price
    cache_day: Input


@dataclass(frozen=True)
class Point:
    """One choice and what is expected of it. Shares are of the requests for pairs."""

    head_from: float
    torso_from: float
    quality: float
    p50_ms: float
    p99_ms: float
    usd_per_day: float
    usd_labels: float
    """Labelling in batches, per day of the judge's life."""
    usd_live: float
    usd_student: float
    coverage: float
    """Answered from the cache."""
    by_judge: float
    """Answered live by the judge."""
    by_student: float
    late: float
    """Of which the judge was too late."""
    label_pairs: float
    """Pairs to label before the start."""
    label_pairs_per_day: float
    """Pairs to label per day later on."""
    judge_pairs_per_day: float
    student_pairs_per_day: float
    work_usd_per_day: float
    """usd_per_day if each pair were paid by itself, without machines that wait."""
    head: float
    """Share of the searches."""
    torso: float
    tail: float

    def to_json(self) -> dict[str, float]:
        return {name: float(f"{value:.6g}") for name, value in vars(self).items()}


@dataclass(frozen=True)
class Plan:
    """points: all choices; frontier: those that no other one beats in quality, cost and p99, by cost; chosen: one of them, and its
    quality; bands: quality of judge and student in the chosen bands."""

    traffic: Traffic
    setting: Setting
    quality: Quality
    points: list[Point]
    frontier: list[Point]
    intervals: dict[int, Estimate]
    """Of the frontier's points, by their place in it."""
    chosen: Point
    chosen_quality: dict[str, Estimate]
    bands: dict[str, dict[str, dict[str, Estimate]]]
    """By band, judge or student, and metric."""
    why: str


def make_plan(
    traffic: Traffic,
    quality: Quality,
    student: Student,
    judge: Judge,
    cache_ms: Latency,
    prices: Prices,
    setting: Setting,
    *,
    target_quality: float | None = None,
    max_usd_per_day: float | None = None,
    max_p99_ms: float | None = None,
) -> Plan:
    """Raises LoreError if no choice keeps the limits."""
    model = _Model(traffic, quality, student, judge, cache_ms, prices, setting)
    points = model.points()
    allowed = [
        point
        for point in points
        if (target_quality is None or point.quality >= target_quality)
        and (max_usd_per_day is None or point.usd_per_day <= max_usd_per_day)
        and (max_p99_ms is None or point.p99_ms <= max_p99_ms)
    ]
    if not allowed:
        raise LoreError(_nothing_allowed(points, target_quality, max_usd_per_day, max_p99_ms))
    if target_quality is not None:
        chosen = min(allowed, key=lambda point: (_digits(point.usd_per_day), -round(point.quality, 3), point.p99_ms))
        why = f"the cheapest choice with {setting.metric} of at least {target_quality:g}"
    else:
        enough = max(point.quality for point in allowed) - CLOSE
        close = [point for point in allowed if point.quality >= enough]
        chosen = min(close, key=lambda point: (_digits(point.usd_per_day), _digits(point.p99_ms), -point.quality))
        why = f"the cheapest choice within {CLOSE:g} of the highest {setting.metric}"
    limits = {"usd a day": max_usd_per_day, "ms p99": max_p99_ms}
    why += "".join(f", at most {limit:g} {name}" for name, limit in limits.items() if limit is not None)
    frontier = pareto(points)
    shown = {at: quality.estimate(model.by_judge(point), setting.metric, setting.seed) for at, point in enumerate(frontier)}
    mix = model.by_judge(chosen)
    of_chosen = {name: quality.estimate(mix, name, setting.seed) for name in (*METRICS, AGREEMENT)}
    return Plan(traffic, setting, quality, points, frontier, shown, chosen, of_chosen, model.bands(chosen), why)


def _nothing_allowed(points: list[Point], quality: float | None, usd: float | None, p99: float | None) -> str:
    best, cheapest = max(points, key=lambda point: point.quality), min(points, key=lambda point: point.usd_per_day)
    fastest = min(points, key=lambda point: point.p99_ms)
    limits = {"--target-quality": quality, "--max-cost-per-day": usd, "--max-p99-ms": p99}
    named = ", ".join(f"{name} {limit:g}" for name, limit in limits.items() if limit is not None)
    return (
        f"No choice of head and tail keeps {named}, so there is nothing to propose.\nThe best one reaches {best.quality:.3f} for "
        f"{best.usd_per_day:,.2f} USD a day with a p99 of {best.p99_ms:,.0f} ms; the cheapest costs "
        f"{cheapest.usd_per_day:,.2f} USD a day; the fastest has a p99 of {fastest.p99_ms:,.0f} ms. Change a limit."
    )


def pareto(points: list[Point]) -> list[Point]:
    """The points that no other one equals or beats in quality, cost and p99; by cost. Numbers that a table shows alike are
    equal."""
    rounded = {id(point): (_digits(point.usd_per_day), -round(point.quality, 3), _digits(point.p99_ms)) for point in points}
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (*rounded[id(point)], point.usd_per_day)):
        one = rounded[id(point)]
        if not any(other[1] <= one[1] and other[2] <= one[2] for other in (rounded[id(best)] for best in found)):
            found.append(point)
    return found


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


class _Model:
    """The expectations of all choices. B bins of the log and one of unknown queries, which comes first."""

    def __init__(
        self,
        traffic: Traffic,
        quality: Quality,
        student: Student,
        judge: Judge,
        cache_ms: Latency,
        prices: Prices,
        setting: Setting,
    ):
        self.traffic, self.quality, self.prices, self.setting = traffic, quality, prices, setting
        k, day = setting.candidates.value, traffic.searches_per_day
        share = traffic.searches / traffic.searches.sum() * (1 - setting.new_queries.value)
        self.share = np.concatenate([[setting.new_queries.value], share])
        """[B] share of the searches."""
        self.least = np.concatenate([[0.0], traffic.least])
        self.pairs_per_day = day * k
        self.items = np.full(len(traffic.queries), k) if traffic.items is None else traffic.items / traffic.queries
        """[B] different items that a query shows."""
        shown = np.minimum(1.0, k / self.items)
        per_day = np.concatenate([[1 / traffic.days], traffic.mean / traffic.days * shown])
        new, life = setting.new_items_per_day.value, setting.judge_days
        self.in_cache = cached_share(new, min(setting.relabel_days, life))
        self.stored = stored_share(per_day, new, life)
        first = 1 - stored_share(np.concatenate([[1 / traffic.days], traffic.mean / traffic.days]), 0.0, life)
        self.first = np.minimum(first, 1 - self.stored)
        """[B] share of the searches that are the first of their query: then all pairs are new."""
        self.of_query = np.interp(quality.frequency, self.traffic.mean, self.stored[1:]) * (quality.frequency > 0)
        """[Q] share of the requests that an earlier search has stored, if the judge answers the query live."""
        self.late = judge.ms.above(setting.deadline_ms)
        self.times = self._simulated(student, judge, cache_ms)

    def _simulated(self, student: Student, judge: Judge, cache_ms: Latency) -> tuple[np.ndarray, np.ndarray]:
        """(bin [N], ms [3, N] in head, torso and tail) of the same searches."""
        rng, k = np.random.default_rng(self.setting.seed), round(self.setting.candidates.value)
        bins = rng.choice(len(self.share), SIMULATED, p=self.share / self.share.sum())
        cached, small, large = cache_ms.at(rng.random(SIMULATED)), *(one.ms.at(rng.random(SIMULATED)) for one in (student, judge))
        new = rng.binomial(k, 1 - self.in_cache, SIMULATED)
        first = self.first[bins]
        later = np.clip((1 - self.stored[bins] - first) / np.maximum(1 - first, 1e-12), 0.0, 1.0)
        unknown = np.where(rng.random(SIMULATED) < first, k, rng.binomial(k, later))

        def of_student(pairs: np.ndarray) -> np.ndarray:
            return np.where(pairs > 0, small * (student.fixed + (1 - student.fixed) * pairs / k), 0.0)

        waits = np.where(unknown > 0, np.minimum(large, self.setting.deadline_ms), 0.0)  # pairs are asked side by side
        head, torso = cached + of_student(new), cached + of_student(np.full(SIMULATED, k))
        return bins, np.stack([head, torso, cached + np.maximum(waits, of_student(unknown))])

    def points(self) -> list[Point]:
        edges = [float(edge) for edge in self.traffic.least]
        edges = [edges[round(at)] for at in np.linspace(0, len(edges) - 1, min(len(edges), MOST_EDGES))]
        above = float(EDGES[np.searchsorted(EDGES, edges[-1], side="right")])
        choices = [(head, torso) for head in [*edges, above] for torso in [0.0, *edges, above] if torso <= head]
        by_judge = np.stack([self._by_judge(*choice) for choice in choices], axis=1)
        values = self.quality.values(by_judge, self.setting.metric)
        return [self._point(*choice, float(value)) for choice, value in zip(choices, values, strict=True)]

    def _by_judge(self, head_from: float, torso_from: float) -> np.ndarray:
        """[Q] share of the requests for a query of the test that verdicts of the judge answer. Where no test query is in the log,
        that of all requests."""
        frequency = self.quality.frequency
        if not frequency.any():
            live = self.stored + (1 - self.stored) * (1 - self.late)
            head, tail = self._head(head_from), self.least < torso_from
            return np.full(len(frequency), float((self.share * np.where(head, self.in_cache, np.where(tail, live, 0.0))).sum()))
        live = self.of_query + (1 - self.of_query) * (1 - self.late)
        return np.where(frequency >= head_from, self.in_cache, np.where(frequency >= torso_from, 0.0, live))

    def _head(self, head_from: float) -> np.ndarray:
        """[B] whether a bin is in the head; unknown queries are not."""
        return (self.least >= head_from) & (np.arange(len(self.least)) > 0)

    def by_judge(self, point: Point) -> np.ndarray:
        return self._by_judge(point.head_from, point.torso_from)

    def bands(self, point: Point) -> dict[str, dict[str, dict[str, Estimate]]]:
        """Every metric of judge and student alone by band; bands without a test query are left out."""
        quality, seed = self.quality, self.setting.seed
        head, tail = quality.frequency >= point.head_from, quality.frequency < point.torso_from
        found: dict[str, dict[str, dict[str, Estimate]]] = {}
        for name, inside in {"head": head, "torso": ~head & ~tail, "tail": tail}.items():
            if (quality.weight * inside).any():
                found[name] = {
                    who: {
                        metric: quality.estimate(np.full(len(inside), share), metric, seed, inside.astype(float))
                        for metric in (*METRICS, AGREEMENT)
                    }
                    for who, share in {"judge": 1.0, "student": 0.0}.items()
                }
        return found

    def _point(self, head_from: float, torso_from: float, quality: float) -> Point:
        head = self._head(head_from)
        tail = self.least < torso_from
        torso = ~head & ~tail
        share, setting, prices = self.share, self.setting, self.prices
        in_head, in_torso, in_tail = (float(share[band].sum()) for band in (head, torso, tail))
        stored = float((share * self.stored)[tail].sum())
        coverage = in_head * self.in_cache + stored
        asked = in_tail - stored
        late = asked * self.late
        by_student = in_head * (1 - self.in_cache) + in_torso + late
        labels = float((self.items * self.traffic.queries)[head[1:]].sum())
        renewed = 1 - (1 - setting.new_items_per_day.value) ** setting.relabel_days
        later = labels * renewed / setting.relabel_days
        judge_pairs, student_pairs = self.pairs_per_day * asked, self.pairs_per_day * (1 - coverage)
        per_day = labels / setting.judge_days + later * max(0.0, 1 - setting.relabel_days / setting.judge_days)
        usd_labels = per_day * prices.label.pair.value
        live, student = judge_pairs * prices.live.pair.value, student_pairs * prices.student.pair.value
        usd_live = max(live, prices.live.machine_day) if in_tail > 0 else 0.0
        usd_student = max(student, prices.student.machine_day)
        bins, times = self.times
        ms = np.where(head[bins], times[0], np.where(tail[bins], times[2], times[1]))
        p50, p99 = np.quantile(ms, (0.5, 0.99))
        cache = prices.cache_day.value
        return Point(
            head_from,
            torso_from,
            quality,
            float(p50),
            float(p99),
            usd_labels + usd_live + usd_student + cache,
            usd_labels,
            usd_live,
            usd_student,
            coverage,
            asked - late,
            by_student,
            late,
            labels,
            later,
            judge_pairs,
            student_pairs,
            usd_labels + live + student + cache,
            in_head,
            in_torso,
            in_tail,
        )


def machines(point: Point, student: Student, judge: Judge, setting: Setting) -> dict[str, int]:
    """Machines for the busiest time: of the student, and of the judge for live answers."""

    def needed(pairs_per_day: float, pairs_per_second: float) -> int:
        return max(1, int(np.ceil(setting.peak * pairs_per_day / 86_400 / pairs_per_second / setting.utilization)))

    found = {"student": needed(point.student_pairs_per_day, student.pairs_per_second.value)}
    if point.tail > 0:
        found["judge"] = needed(point.judge_pairs_per_day, 1 / judge.seconds_per_pair.value)
    return found


def summary(plan: Plan) -> dict[str, Any]:
    """The log in numbers."""
    traffic = plan.traffic
    return {
        "searches": float(traffic.searches.sum()),
        "searches_per_day": traffic.searches_per_day,
        "queries": float(traffic.queries.sum()),
        "pairs": None if traffic.items is None else float(traffic.items.sum()),
        "days": traffic.days,
        "counted": traffic.counted,
    }
