"""The service's own page: GET /dashboard, and its numbers as GET /dashboard.json. It needs no other program.

Every STEP_SECONDS the metrics are read, and the newest STEPS readings are kept. The metrics are those of all workers, so every
worker shows the whole service. The page is made at most once a reading, so a client cannot make the service work by asking for it.

Its plots are polylines of a few hundred bytes. matplotlib (lore.support.svg_plots), which draws those of the reports, would cost
every worker 54 MB and hold up its requests for 40 ms a plot.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lore.online.answer import BANDS
from lore.online.metrics import AGES, BREAKER_STATES, OTHER, SECONDS
from lore.support.html import page_style, page_template

STEP_SECONDS = 5.0
STEPS = 180
"""A quarter of an hour."""
SOURCES = ("cache", "student", "judge")
STAGES = ("cache", "queue", "encode", "model", "student", "judge")
KEPT = (
    "lore_requests",
    "lore_request_seconds",
    "lore_shed_requests",
    "lore_pairs",
    "lore_late_answers",
    "lore_stage_seconds",
    "lore_cache_lookups",
    "lore_cache_errors",
    "lore_cache_age_seconds",
    "lore_judge_requests",
    "lore_judge_breaker",
    "lore_queued_pairs",
    "lore_shadow_pairs",
    "lore_score_psi",
    "lore_service_info",
)
"""Families of lore.online.metrics that the page shows."""
WIDTH, HEIGHT = 300, 72
GAUGES = ("lore_judge_breaker", "lore_queued_pairs", "lore_score_psi", "lore_service_info")
OTHERS = {"schema": OTHER}
"""Requests for paths like /metrics and this page."""
Key = tuple[str, tuple[tuple[str, str], ...]]
Counts = dict[Key, float]
"""Values by name and labels."""


class Dashboard:
    """Keeps the readings. metrics: lore.online.metrics.Metrics."""

    def __init__(self, metrics: Any):
        self.metrics = metrics
        self._steps: deque[Step] = deque(maxlen=STEPS)
        self._last: tuple[float, Counts] | None = None
        self._names: dict[Key, Key] = {}
        self._task: asyncio.Task | None = None
        self._page: tuple[float, str] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts to read, in the running event loop."""
        self._task = asyncio.create_task(self._read_on())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _read_on(self) -> None:
        while True:
            # A file of a worker that ended may be half there: the next reading has all of them.
            with suppress(OSError, ValueError, KeyError):
                await asyncio.to_thread(self.read)
            await asyncio.sleep(STEP_SECONDS)

    def read(self, now: float | None = None) -> None:
        """One reading. now: in seconds since 1970."""
        now, counts = time.time() if now is None else now, self._counts()
        with self._lock:
            if self._last is not None:
                self._steps.append(step_between(self._last, (now, counts)))
            self._last = (now, counts)

    def _counts(self) -> Counts:
        """The samples of the families in KEPT. Their names and labels are kept once: a step holds some of them."""
        found: Counts = {}
        for family in self.metrics.snapshot():
            for sample in family.samples if family.name in KEPT else ():
                key = (sample.name, tuple(sorted(sample.labels.items())))
                found[self._names.setdefault(key, key)] = sample.value
        return found

    def numbers(self) -> dict[str, Any]:
        """What the page shows, for programs. Rates are per second, and lists have one value per step, None where nothing was
        counted; shares are those of all steps."""
        if self._last is None:
            self.read()
        with self._lock:
            steps, (until, last) = list(self._steps), self._last
        points = [step.point for step in steps]
        models = next((dict(labels) for (name, labels), one in last.items() if name == "lore_service_info" and one), {})
        whole = summed(steps, until)
        seen = [stage for stage in STAGES if whole.total("lore_stage_seconds_count", stage=stage)]
        age = whole.quantiles("lore_cache_age_seconds", (0.5, 0.99))
        return {
            "time": until,
            "seconds": round(whole.seconds, 1) if steps else 0.0,
            "ages": [round(step.until - until, 1) for step in steps],
            "models": models,
            "requests": {
                "per_second": [point["requests"] for point in points],
                "by_status": whole.by("lore_requests_total", "status", but=OTHERS),
                "shed": whole.by("lore_shed_requests_total", "reason"),
                "shed_per_second": [point["shed"] for point in points],
                "ms": _columns(points, "request_ms"),
            },
            "pairs": {
                "per_second": {name: [point["pairs"][name] for point in points] for name in SOURCES},
                "by_band": {band: whole.by("lore_pairs_total", "source", band=band) for band in BANDS},
                "tiers": {name: whole.by("lore_pairs_total", "tier", source=name) for name in SOURCES},
                "late": whole.by("lore_late_answers_total", "band"),
                "queued": [point["queued"] for point in points],
            },
            "stages_ms": {stage: _columns(points, f"{stage}_ms") for stage in seen},
            "cache": {
                "hit_share": [point["hit_share"] for point in points],
                "hits": whole.total("lore_cache_lookups_total", result="hit"),
                "misses": whole.total("lore_cache_lookups_total", result="miss"),
                "age_seconds": {"p50": age[0], "p99": age[1]},
                "errors": whole.by("lore_cache_errors_total", "reason"),
            },
            "judge": {
                "outcomes": whole.by("lore_judge_requests_total", "outcome"),
                "breaker": _breaker(last) if models.get("judge", "none") != "none" else None,
            },
            "psi": [point["psi"] for point in points],
            "shadow": whole.by("lore_shadow_pairs_total", "outcome"),
        }

    def page(self) -> str:
        """The page, as HTML."""
        newest = self._last[0] if self._last else 0.0
        if self._page is None or self._page[0] != newest:
            self._page = (newest, rendered(self.numbers()))
        return self._page[1]


@dataclass
class Step:
    """What was counted between two readings. grown: counters that grew."""

    until: float
    seconds: float
    grown: Counts
    point: dict[str, Any] = field(default_factory=dict)
    """Its values in the plots."""

    def of(self, name: str, but: Mapping[str, str] | None = None, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and growth of the counters with this name and these labels."""
        for (found, held), value in self.grown.items():
            if found == name:
                known = dict(held)
                without = any(known.get(key) == one for key, one in (but or {}).items())
                if not without and all(known.get(key) == one for key, one in labels.items()):
                    yield known, value

    def total(self, name: str, but: Mapping[str, str] | None = None, **labels: str) -> float:
        return sum(value for _, value in self.of(name, but, **labels))

    def rate(self, name: str, but: Mapping[str, str] | None = None, **labels: str) -> float:
        return round(self.total(name, but, **labels) / self.seconds, 3)

    def by(self, name: str, label: str, but: Mapping[str, str] | None = None, **labels: str) -> dict[str, float]:
        """Growth by the values of a label."""
        found: dict[str, float] = {}
        for known, value in self.of(name, but, **labels):
            found[known[label]] = found.get(known[label], 0.0) + value
        return dict(sorted(found.items()))

    def share(self, name: str, **labels: str) -> float | None:
        whole = self.total(name)
        return round(self.total(name, **labels) / whole, 4) if whole else None

    def quantiles(
        self, name: str, shares: Sequence[float], but: Mapping[str, str] | None = None, **labels: str
    ) -> list[float | None]:
        """Quantiles of a histogram, linear within a bucket as Prometheus' histogram_quantile; None without values."""
        counts: dict[float, float] = {}
        for known, value in self.of(f"{name}_bucket", but, **labels):
            counts[float(known["le"])] = counts.get(float(known["le"]), 0.0) + value
        if not counts:
            return [None] * len(shares)
        edges = [*(AGES if name == "lore_cache_age_seconds" else SECONDS), math.inf]  # a step holds only those that grew
        return [_quantile(edges, counts, share) for share in shares]

    def ms(self, name: str, but: Mapping[str, str] | None = None, **labels: str) -> list[float | None]:
        """p50 and p99."""
        found = self.quantiles(name, (0.5, 0.99), but, **labels)
        return [None if one is None else round(one * 1000, 2) for one in found]


def step_between(before: tuple[float, Counts], after: tuple[float, Counts]) -> Step:
    """The step between two readings. A counter that is lower than before belongs to a service that was started again."""
    grown: Counts = {}
    for key, value in after[1].items():
        known = before[1].get(key, 0.0)
        if key[0] not in GAUGES and value != known:
            grown[key] = value - known if value > known else value
    step = Step(after[0], max(1e-9, after[0] - before[0]), grown)
    step.point = {
        "requests": step.rate("lore_requests_total", OTHERS),
        "shed": step.rate("lore_shed_requests_total"),
        "request_ms": step.ms("lore_request_seconds", OTHERS),
        "pairs": {name: step.rate("lore_pairs_total", source=name) for name in SOURCES},
        **{f"{stage}_ms": step.ms("lore_stage_seconds", stage=stage) for stage in STAGES},
        "hit_share": step.share("lore_cache_lookups_total", result="hit"),
        "queued": _gauge(after[1], "lore_queued_pairs"),
        "psi": _gauge(after[1], "lore_score_psi"),
    }
    return step


def summed(steps: Sequence[Step], until: float) -> Step:
    """All steps as one."""
    grown: Counts = {}
    for step in steps:
        for key, value in step.grown.items():
            grown[key] = grown.get(key, 0.0) + value
    return Step(until, sum(step.seconds for step in steps), grown)


def _gauge(counts: Counts, name: str) -> float | None:
    """The sum over labels; None for a gauge that is not there."""
    found = [value for (one, _), value in counts.items() if one == name]
    return round(sum(found), 4) if found else None


def _columns(points: Sequence[dict[str, Any]], name: str) -> dict[str, list[float | None]]:
    return {key: [point[name][at] for point in points] for at, key in enumerate(("p50", "p99"))}


def _quantile(edges: list[float], counts: dict[float, float], share: float) -> float:
    wanted, low, below = share * counts[edges[-1]], 0.0, 0.0
    for edge in edges:
        count = counts.get(edge, 0.0)
        if count >= wanted:
            return low if math.isinf(edge) else low + (edge - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = edge, count
    return low


def _breaker(counts: Counts) -> str | None:
    """The worst of all workers."""
    found = [value for (name, _), value in counts.items() if name == "lore_judge_breaker"]
    states = {number: name for name, number in BREAKER_STATES.items()}
    return states.get(int(max(found))) if found else None


def rendered(numbers: dict[str, Any]) -> str:
    """The page of `Dashboard.numbers`. It loads nothing and runs no script."""
    requests, pairs, cache, judge = (numbers[name] for name in ("requests", "pairs", "cache", "judge"))
    sources = [name for name in SOURCES if any(pairs["per_second"][name])]
    looked = cache["hits"] + cache["misses"]
    facts = {
        "student": numbers["models"].get("student", "–"),
        "judge": numbers["models"].get("judge", "–"),
        "breaker of the judge": (judge["breaker"] or "no judge").replace("_", " "),
        "answers of the judge": _counts(judge["outcomes"]),
        "cache": f"{cache['hits'] / looked:.1%} of {looked:,.0f} pairs" if looked else "–",
        "age of cached answers": " / ".join(_age(cache["age_seconds"][name]) for name in ("p50", "p99")) + " (p50 / p99)",
        "cache errors": _counts(cache["errors"]),
        "refused requests": _counts(requests["shed"]),
        "requests by status": _counts(requests["by_status"]),
        "late answers by band": _counts(pairs["late"]),
        "shadow mode": _counts(numbers["shadow"]),
    }
    both = ["p50", "p99"]
    plots = [
        ("Requests per second", [""], [requests["per_second"]]),
        ("Milliseconds of a request", both, [requests["ms"][name] for name in both]),
        ("Pairs per second, by who answers", sources, [pairs["per_second"][name] for name in sources]),
        *((f"Milliseconds in {stage}", both, [found[name] for name in both]) for stage, found in numbers["stages_ms"].items()),
        ("Share of pairs from the cache", [""], [cache["hit_share"]]),
        ("PSI of the student's scores", [""], [numbers["psi"]]),
        ("Pairs that wait", [""], [pairs["queued"]]),
        ("Refused requests per second", [""], [requests["shed_per_second"]]),
    ]
    tiers = sorted({tier for found in pairs["tiers"].values() for tier in found})
    return page_template(Path(__file__).parent, "dashboard.html.jinja").render(
        style=Markup(page_style()),
        step=round(STEP_SECONDS),
        minutes=f"{numbers['seconds'] / 60:.1f}",
        at=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(numbers["time"])),
        facts=facts,
        plots=[
            {"title": title, "names": names, "svg": Markup(spark(title, lines)), "now": [_last(line) for line in lines]}
            for title, names, lines in plots
            if lines
        ],
        tiers=tiers,
        by_source=[(name, _shares(pairs["tiers"][name], tiers)) for name in SOURCES if pairs["tiers"][name]],
        sources=SOURCES,
        by_band=[(name, _shares(pairs["by_band"][name], SOURCES)) for name in BANDS if pairs["by_band"][name]],
    )


def spark(title: str, lines: Sequence[Sequence[float | None]]) -> str:
    """Lines over time as a small <svg>, from 0 to the largest value, which it shows. Gaps where there is no value. title: plain
    words of this module."""
    known = [value for line in lines for value in line if value is not None]
    top = max([*known, 0.0]) or 1.0
    parts = []
    for number, line in enumerate(lines):
        step = WIDTH / max(1, len(line) - 1)
        run: list[str] = []
        for at, value in enumerate([*line, None]):
            if value is not None:
                run.append(f"{at * step:.1f},{HEIGHT - 2 - (HEIGHT - 14) * value / top:.1f}")
            elif run:
                points = " ".join([*run, run[0]] if len(run) == 1 else run)
                parts.append(f'<polyline class="s{number}" points="{points}"/>')
                run = []
    scale = f'<text x="0" y="9">{_number(max(known)) if known else "no values"}</text>'
    base = f'<line x1="0" y1="{HEIGHT - 2}" x2="{WIDTH}" y2="{HEIGHT - 2}"/>'
    return f'<svg role="img" aria-label="{escape(title)}" viewBox="0 -2 {WIDTH} {HEIGHT + 2}">{base}{"".join(parts)}{scale}</svg>'


def _shares(counts: dict[str, float], names: Sequence[str]) -> list[str]:
    whole = sum(counts.values())
    return [f"{counts.get(name, 0.0) / whole:.1%}" if whole else "–" for name in names] + [f"{whole:,.0f}"]


def _last(line: Sequence[float | None]) -> str:
    return _number(line[-1]) if line and line[-1] is not None else "–"


def _counts(counts: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,.0f}" for name, count in counts.items()) or "none"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"
