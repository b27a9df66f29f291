"""Prometheus metrics of the service, and the drift of the student's scores.

    metrics = Metrics(reference=...)               one per worker; every part reports to it
    metrics.answered(answers)                      once a request
    metrics.rendered(accept_header)                the reply to GET /metrics

Several workers share the files of `shared_metrics` (lore.online.metrics_folder), and whichever of them is asked answers for all. No
label holds a text of a request: schemas, bands, stages and reasons are the service's own words.
"""

import math
import os
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from lore.online.answer import Answer
from lore.online.metrics_folder import VARIABLE

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.35, 0.5, 1.0, 2.5, 5.0, 10.0)
AGES = (60.0, 3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0, 90 * 86_400.0, 365 * 86_400.0)
BINS = 20
"""Of scores, equally wide in [0, 1]."""
REFERENCE_SCORES = 5000
"""Scores of one worker that are the reference where the student's card has none."""
HALF_LIFE = 10_000
"""Newer scores after which a score counts half."""
LEAST_SCORES = 1000
"""Below this many on either side, chance alone moves the index."""
SMOOTHING = 0.5
"""Added to every bin: an empty one would make the index infinite."""
LOOK_SECONDS = 0.5
BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}
BIN_GAUGE = "lore_score_bins"
SCHEMAS = ("/v1/rerank", "/v2/rerank", "/rerank", "/score", "/v1/score", "/judge")
PHOTO_REASONS = ("image_missing", "image_corrupt", "image_too_large", "image_too_narrow", "image_outside")
OTHER = "other"


def psi(expected: Sequence[float], counts: Sequence[float]) -> float:
    """Population stability index of two histograms over the same bins: the sum over bins of (q - p) ln(q / p), with their shares p
    (expected) and q (counts). 0 if the shares are equal; above 0.1 is commonly called a moderate shift and above 0.25 a large one.

    SMOOTHING is added to every bin. Without any shift, the mean is about (bins - 1) (1/n + 1/m) for n and m values. Raises
    ValueError for different numbers of bins.
    """
    rest = SMOOTHING * len(expected)
    before, now = sum(expected) + rest, sum(counts) + rest
    total = 0.0
    for one, other in zip(expected, counts, strict=True):
        p, q = (one + SMOOTHING) / before, (other + SMOOTHING) / now
        total += (q - p) * math.log(q / p)
    return total


class ScoreHistory:
    """Histograms of scores: the reference, and the recent ones, in which older scores count less and less.

    reference: counts of BINS bins, such as those of a student's dev pairs; None: the first REFERENCE_SCORES.
    """

    def __init__(self, reference: Sequence[float] | None = None):
        self.is_full = reference is not None
        self.reference = list(reference) if reference is not None else [0.0] * BINS
        self.recent = [0.0] * BINS

    def add(self, scores: Iterable[float]) -> None:
        counts = Tally(min(BINS - 1, int(score * BINS)) for score in scores)
        total = sum(counts.values())
        if not self.is_full:
            for at, count in counts.items():
                self.reference[at] += count
            self.is_full = sum(self.reference) >= REFERENCE_SCORES
            return
        kept = 0.5 ** (total / HALF_LIFE)
        self.recent = [kept * value + counts.get(at, 0) for at, value in enumerate(self.recent)]


class RequestMetrics:
    """What every service tells about its requests. paths: those that are counted by their names.

    registry: where the metrics are kept, unless several workers share files.
    """

    def __init__(self, paths: Sequence[str], registry: CollectorRegistry | None = None):
        self.paths, self.registry = paths, registry or CollectorRegistry()
        self._children: dict[tuple[Any, tuple[Any, ...]], Any] = {}
        self._requests = self._counter("requests_total", "Requests by path and HTTP status.", "schema", "status")
        self._request_seconds = self._histogram("request_seconds", "Seconds of a request at the server.", SECONDS, "schema")
        self._shed = self._counter("shed_requests_total", "Requests refused because of overload or shutdown.", "reason")
        self._stages = self._histogram("stage_seconds", "Seconds of a request in a stage.", SECONDS, "stage")

    def request(self, schema: str, status: int, seconds: float) -> None:
        """One HTTP request has ended. schema: its path, as the service spells it."""
        schema = schema if schema in self.paths else OTHER
        self._child(self._requests, schema, status).inc()
        self._child(self._request_seconds, schema).observe(seconds)

    def shed(self, reason: str) -> None:
        """A request was refused. reason: overloaded or draining."""
        self._child(self._shed, reason).inc()

    def stage(self, stage: str, seconds: float) -> None:
        """Seconds of a stage of a request, or of a batch (model)."""
        self._child(self._stages, stage).observe(seconds)

    def rendered(self, accept: str = "") -> tuple[bytes, str]:
        """The reply to a scrape and its content type. accept: the request's header."""
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterable[Metric]:
        """All metrics, of all workers."""
        shared = os.environ.get(VARIABLE)
        return (MultiProcessCollector(None, shared) if shared else self.registry).collect()

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"lore_{name}", says, labels, registry=self.registry)

    def _histogram(self, name: str, says: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"lore_{name}", says, labels, registry=self.registry, buckets=buckets)

    def _gauge(self, name: str, says: str, mode: Any, *labels: str) -> Gauge:
        return Gauge(f"lore_{name}", says, labels, registry=self.registry, multiprocess_mode=mode)

    def _child(self, metric: Any, *labels: Any) -> Any:
        """metric.labels(*labels), which takes longer than counting."""
        found = self._children.get((metric, labels))
        if found is None:
            found = self._children[metric, labels] = metric.labels(*labels)
        return found


class Metrics(RequestMetrics):
    """What the parts of the service that judges report to. It implements lore.online.cache_store.CacheObserver.

    reference: see ScoreHistory.
    """

    def __init__(self, reference: Sequence[float] | None = None, registry: CollectorRegistry | None = None):
        super().__init__(SCHEMAS, registry)
        self.scores = ScoreHistory(reference)
        self._watched: list[Callable[[], None]] = []
        self._looked = 0.0
        counter, histogram, gauge = self._counter, self._histogram, self._gauge
        self._pairs = counter("pairs_total", "Answered pairs; tier none: without an answer.", "source", "band", "tier")
        self._late = counter("late_answers_total", "Pairs that the student answered because the judge was late.", "band")
        self._lookups = counter("cache_lookups_total", "Pairs looked up in the cache.", "layer", "result")
        self._cache_errors = counter("cache_errors_total", "Pairs that the cache could not serve or store.", "reason")
        self._age = histogram("cache_age_seconds", "Age of cached answers.", AGES)
        self._judge = counter("judge_requests_total", "Pairs that the judge was to answer, by outcome.", "outcome")
        self._breaker = gauge("judge_breaker", "0: the judge is asked, 1: one request tries it, 2: it is left alone.", "livemax")
        self._queued = gauge("queued_pairs", "Pairs of accepted requests that are not answered yet.", "livesum")
        self._photos = counter("photos_refused_total", "Photos of requests that were not shown, by reason.", "reason")
        self._canary = gauge("canary_difference", "Largest difference of a canary's tier probability at the start.", "livemax")
        self._bins = gauge("score_bins", "Scores of the student, in 20 bins from 0 to 1.", "livesum", "window", "bin")
        self._shadow = counter("shadow_pairs_total", "Answers of the student for shadow mode, by what became of them.", "outcome")
        self._info = gauge("service_info", "Always 1; its labels name the models.", "livemax", "student", "judge")
        self._look(now=True)

    # What the parts report

    def request(self, schema: str, status: int, seconds: float) -> None:
        super().request(schema, status, seconds)
        self._look()

    def answered(self, answers: Sequence[Answer]) -> None:
        """A request has its answers."""
        kinds = Tally(_kind(answer) for answer in answers)
        for labels, count in kinds.items():
            self._child(self._pairs, *labels).inc(count)
        for band, count in Tally(answer.band for answer in answers if answer.late).items():
            self._child(self._late, band).inc(count)
        for answer in answers:
            if answer.age_seconds is not None:
                self._age.observe(answer.age_seconds)
        scores = [answer.score for answer in answers if answer.score is not None and answer.source == "student"]
        if scores:
            self.scores.add(scores)
        self._look()

    def cache_asked(self, layer: str, hits: int, misses: int) -> None:
        """See CacheObserver."""
        self._child(self._lookups, layer, "hit").inc(hits)
        self._child(self._lookups, layer, "miss").inc(misses)

    def cache_failed(self, why: str, pairs: int) -> None:
        """See CacheObserver."""
        self._child(self._cache_errors, why).inc(pairs)

    def judge_outcome(self, outcome: str) -> None:
        """See lore.online.judge_client.Outcome."""
        self._child(self._judge, outcome).inc()

    def photo_refused(self, reason: str) -> None:
        """reason: that of an ImageError."""
        self._child(self._photos, reason if reason in PHOTO_REASONS else OTHER).inc()

    def shadow(self, outcome: str, pairs: int) -> None:
        """See lore.online.shadow.Shadow."""
        self._child(self._shadow, outcome).inc(pairs)

    def canary(self, difference: float) -> None:
        """The largest difference of the canary check (CanaryCheck.largest)."""
        self._canary.set(difference)

    def models(self, student: str, judge: str | None) -> None:
        """judge_ids of the models that answer."""
        self._child(self._info, student, judge or "none").set(1)

    def watch(self, queued: Callable[[], int], breaker: Callable[[], str] | None = None) -> None:
        """What is looked at with every request: pairs that are not answered yet, and the state of the judge's breaker."""
        self._watched.append(lambda: self._queued.set(queued()))
        if breaker is not None:
            self._watched.append(lambda: self._breaker.set(BREAKER_STATES[breaker()]))

    # What Prometheus reads

    def rendered(self, accept: str = "") -> tuple[bytes, str]:
        self._look(now=True)
        return super().rendered(accept)

    def snapshot(self) -> list[Metric]:
        """All metrics as they are now."""
        self._look(now=True)
        return list(self.collect())

    def collect(self) -> Iterable[Metric]:
        """All metrics, of all workers, and the drift of the scores."""
        found = list(super().collect())
        bins = next((family.samples for family in found if family.name == BIN_GAUGE), [])
        counts: dict[str, list[float]] = {"reference": [0.0] * BINS, "recent": [0.0] * BINS}
        for sample in bins:
            counts[sample.labels["window"]][int(sample.labels["bin"])] += sample.value
        family = GaugeMetricFamily("lore_score_psi", "Population stability index of the student's recent scores.")
        if min(map(sum, counts.values())) >= LEAST_SCORES:
            family.add_metric([], psi(counts["reference"], counts["recent"]))
        return [*found, family]

    def _look(self, now: bool = False) -> None:
        """Looks at what has no event of its own, because another worker may be the one that is read. At the bins only every
        LOOK_SECONDS: there are many."""
        for look in self._watched:
            look()
        if not now and time.monotonic() < self._looked + LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for window, counts in (("reference", self.scores.reference), ("recent", self.scores.recent)):
            for at, count in enumerate(counts):
                self._child(self._bins, window, at).set(count)


def _kind(answer: Answer) -> tuple[str, str, str]:
    """Source, band and tier. A pair that was refused before anything was asked has none of them."""
    if answer.band is None:
        return "none", "none", "none"
    return answer.source, answer.band, answer.verdict.tier or "none"
