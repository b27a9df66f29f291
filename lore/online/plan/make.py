"""`lore plan`: reads the log and the runs, plans, and writes the folder of the plan."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lore.data.parquet import read_pairs
from lore.label.config import InputSection
from lore.online.plan.inputs import (
    CACHE_MS,
    CACHE_MS_PER_PAIR,
    TAIL_OF_CACHE,
    Input,
    Student,
    given,
    judge_of_labels,
    judge_price,
    latency,
    probe_cache,
    probe_student,
    student_of_table,
    student_price,
    student_without_one,
)
from lore.online.plan.output import FREQUENCIES, save, show
from lore.online.plan.plan import Plan, Prices, Setting, machines, make_plan
from lore.online.plan.quality import read_quality
from lore.online.plan.traffic import EDGES, Traffic, read_traffic
from lore.support.console import Console

CANDIDATES, NEW_ITEMS_PER_DAY = 50, 0.01
PROBE_PAIRS = 1000


@dataclass(frozen=True)
class Choices:
    """The options of `lore plan`. Latencies: p50 and p99 in ms."""

    quality: Path
    judge_name: str = "judge"
    student_name: str = "student"
    student: Path | None = None
    pairs: Path | None = None
    labels: Path | None = None
    cache: str | None = None
    days: float = 30.0
    candidates: int | None = None
    new_items_per_day: float | None = None
    new_queries: float | None = None
    relabel_days: float = 7.0
    judge_days: float = 90.0
    deadline_ms: float = 1000.0
    judge_ms: tuple[float, float] | None = None
    cache_ms: tuple[float, float] | None = None
    student_ms: tuple[float, float] | None = None
    student_usd_per_hour: float | None = None
    judge_usd_per_hour: float | None = None
    usd_per_million: tuple[float | None, float | None] = (None, None)
    cache_usd_per_day: float | None = None
    utilization: float = 0.5
    peak: float = 2.0
    metric: str = "macro_f1"
    target_quality: float | None = None
    max_usd_per_day: float | None = None
    max_p99_ms: float | None = None
    seed: int = 0


def make(section: InputSection, folder: Path, choices: Choices, console: Console | None = None) -> Plan:
    """Plans, prints the plan and writes it into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    candidates = given(choices.candidates, "--candidates", CANDIDATES, "a default: give --candidates")
    count = round(candidates.value)
    traffic, found = read_traffic(section, work=folder / "work", table=folder / FREQUENCIES, days=choices.days)
    quality, table = read_quality(choices.quality, choices.judge_name, choices.student_name, found, traffic)
    student = _student(choices, table, count)
    judge = judge_of_labels(choices.labels, count, choices.judge_ms)
    guess = CACHE_MS + CACHE_MS_PER_PAIR * count
    probed = None
    if choices.cache is not None and choices.labels is not None:
        probed = probe_cache(choices.cache, choices.labels, count)
    cache = probed or latency(
        choices.cache_ms, "--cache-ms", Input(guess, "estimated", "a default: give --cache-ms"), TAIL_OF_CACHE
    )
    batches, live = judge_price(judge, choices.judge_usd_per_hour, choices.usd_per_million, choices.utilization)
    prices = Prices(
        batches,
        live,
        student_price(student, choices.student_usd_per_hour, choices.utilization),
        given(choices.cache_usd_per_day, "--cache-usd-per-day", 0.0, "free: no --cache-usd-per-day"),
    )
    default = "a default: give --new-items-per-day"
    setting = Setting(
        candidates,
        given(choices.new_items_per_day, "--new-items-per-day", NEW_ITEMS_PER_DAY, default),
        given(choices.new_queries, "--new-queries", unseen(traffic), "queries searched for once over all searches (Good 1953)"),
        choices.relabel_days,
        choices.judge_days,
        choices.deadline_ms,
        choices.peak,
        choices.utilization,
        choices.metric,
        choices.seed,
    )
    limits = {
        "target_quality": choices.target_quality,
        "max_usd_per_day": choices.max_usd_per_day,
        "max_p99_ms": choices.max_p99_ms,
    }
    plan = make_plan(traffic, quality, student, judge, cache, prices, setting, **limits)
    inputs = {
        "candidates of a search": setting.candidates,
        "new items a day, share": setting.new_items_per_day,
        "searches with new queries, share": setting.new_queries,
        "cache p50, ms": cache.p50,
        "cache p99, ms": cache.p99,
        "student p50, ms": student.ms.p50,
        "student p99, ms": student.ms.p99,
        "student, pairs a second": student.pairs_per_second,
        "student, USD per 1,000 pairs": _thousand(prices.student.pair),
        "judge p50, ms": judge.ms.p50,
        "judge p99, ms": judge.ms.p99,
        "judge, pairs a second": replace(judge.seconds_per_pair, value=1 / judge.seconds_per_pair.value),
        "judge in batches, USD per 1,000 pairs": _thousand(prices.label.pair),
        "judge live, USD per 1,000 pairs": _thousand(prices.live.pair),
        "cache, USD a day": prices.cache_day,
    }
    needed = machines(plan.chosen, student, judge, setting)
    show(plan, inputs, needed, console or Console())
    save(plan, inputs, needed, folder)
    return plan


def unseen(traffic: Traffic) -> float:
    """Share of the searches whose query the log does not have: the share of those whose query it has once (Good 1953, Biometrika
    40). Queries of 1 to 1.2 searches are those that it has once."""
    once = traffic.least == EDGES[EDGES.searchsorted(1.0)]
    return min(0.99, float(traffic.searches[once].sum() / traffic.searches.sum()))


def _student(choices: Choices, table: dict[str, Any], candidates: int) -> Student:
    found = None
    if choices.student is not None:
        pairs = [] if choices.pairs is None else list(read_pairs(choices.pairs, limit=PROBE_PAIRS))
        found = probe_student(choices.student, candidates, pairs)
    else:
        found = student_of_table(choices.quality, table, choices.student_name, candidates) or student_without_one(candidates)
    return found if choices.student_ms is None else replace(found, ms=latency(choices.student_ms, "--student-ms", found.ms.p50))


def _thousand(one: Input) -> Input:
    return replace(one, value=1000 * one.value)
