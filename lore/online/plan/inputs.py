"""What a plan starts from: the latency and the price of a pair from the cache, the student and the judge.

Each number says where it comes from. *measured*: by a run of LORE, or by a probe on this machine. *given*: by an option.
*estimated*: derived from other numbers, or a default; the plan is as good as these.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr, ndtri

from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.label.read import read_labels
from lore.label.summary import SUMMARY
from lore.online.cache import open_store_of
from lore.online.cache_store import judge_in_labels
from lore.online.config import CacheSection
from lore.student.canary import CANARIES
from lore.student.scorer import StudentScorer, open_student
from lore.support.errors import LoreError
from lore.support.untrusted_json import read_object

Basis = Literal["measured", "given", "estimated"]
TAIL_OF_ESTIMATE = 2.0
"""p99 over p50 of a latency of which only the middle is known."""
CACHE_MS, CACHE_MS_PER_PAIR, TAIL_OF_CACHE = 1.0, 0.2, 4.0
"""A request that the cache answers, HTTP included; its p99 over p50."""
STUDENT_MS_PER_PAIR = 1.0
JUDGE_MS_PER_PAIR = 20.0
PROBE_WARM, PROBE_TIMES = 3, 40
PROBE_CONTENTS, PROBE_TIMEOUT_MS = 100_000, 60_000.0
Z99 = float(ndtri(0.99))


@dataclass(frozen=True)
class Input:
    """A number that the plan uses, with its origin. source: a run, a probe or an option, in words."""

    value: float
    basis: Basis
    source: str

    def to_json(self) -> dict[str, Any]:
        return {
            "value": None if not np.isfinite(self.value) else float(f"{self.value:.6g}"),
            "basis": self.basis,
            "source": self.source,
        }


def given(value: float | None, option: str, default: float, why: str) -> Input:
    """The value of an option, or an estimate in its place."""
    return Input(default, "estimated", why) if value is None else Input(value, "given", option)


@dataclass(frozen=True)
class Latency:
    """Milliseconds for the pairs of one search. samples: measured ones; empty for a log-normal distribution through p50 and p99."""

    p50: Input
    p99: Input
    samples: tuple[float, ...] = ()

    def at(self, shares: np.ndarray) -> np.ndarray:
        """Milliseconds [N] that the shares [N] of searches stay below."""
        if self.samples:
            return np.quantile(np.asarray(self.samples), shares)
        sigma = log(max(self.p99.value / self.p50.value, 1.0)) / Z99
        return self.p50.value * np.exp(sigma * ndtri(np.clip(shares, 1e-9, 1 - 1e-9)))

    def above(self, ms: float) -> float:
        """Share of searches that take longer."""
        if self.samples:
            return float(np.mean(np.asarray(self.samples) > ms))
        sigma = log(max(self.p99.value / self.p50.value, 1.0)) / Z99
        if sigma == 0:
            return float(self.p50.value > ms)
        return float(ndtr(-log(ms / self.p50.value) / sigma))


def latency(value: tuple[float, float] | None, option: str, p50: Input, tail: float = TAIL_OF_ESTIMATE) -> Latency:
    """Of an option with p50 and p99; without it, of p50 alone. tail: p99 over p50 then."""
    if value is not None:
        return Latency(Input(value[0], "given", option), Input(value[1], "given", option))
    return Latency(p50, Input(tail * p50.value, "estimated", f"{tail:g} x p50, since only that is known"))


@dataclass(frozen=True)
class Student:
    """ms: for all candidates of a search; fixed: share of it that one candidate takes too; pairs_per_second: of one machine."""

    ms: Latency
    fixed: float
    pairs_per_second: Input


@dataclass(frozen=True)
class Judge:
    """seconds_per_pair: of one worker, in batches; ms: for the candidates of a search, all asked at once. tokens: prompt and
    generated tokens of a pair; None if unknown."""

    seconds_per_pair: Input
    ms: Latency
    tokens: tuple[float, float] | None


def probe_student(path: str | Path, candidates: int, pairs: Sequence[Pair] = ()) -> Student:
    """Times a student on this machine: all candidates of a query, and one, each PROBE_TIMES times. pairs: what it is asked about;
    by default the pairs that travel with an exported student."""
    scorer = open_student(path)
    try:
        asked = list(pairs) or _canaries(scorer)
        many = [replace(asked[at % len(asked)], query=asked[0].query) for at in range(candidates)]
        all_of_them, one = (_timed(scorer, some) for some in (many, many[:1]))
    finally:
        scorer.close()
    middle = float(np.median(all_of_them))
    source = f"{PROBE_TIMES} searches of {candidates} candidates on this machine, one after the other"
    fixed = min(1.0, float(np.median(one)) / middle)
    return Student(_measured(all_of_them, source), fixed, Input(1000 * candidates / middle, "measured", source))


def _measured(ms: list[float], source: str) -> Latency:
    p50, p99 = (Input(float(np.quantile(ms, share)), "measured", source) for share in (0.5, 0.99))
    return Latency(p50, p99, tuple(ms))


def _canaries(scorer: StudentScorer) -> list[Pair]:
    path = scorer.card.folder / CANARIES
    if not path.is_file():
        raise LoreError(
            f"{scorer.card.folder} has no pairs to time the student on, because it is not exported.\nExport it (lore export "
            "student), or name pairs with --pairs."
        )
    return list(read_pairs(path))


def _timed(scorer: StudentScorer, pairs: list[Pair]) -> list[float]:
    """Milliseconds of each call after the first ones."""
    found = []
    for _ in range(PROBE_WARM + PROBE_TIMES):
        began = time.perf_counter()
        scorer.score(pairs)
        found.append(1000 * (time.perf_counter() - began))
    return found[PROBE_WARM:]


def probe_cache(store: str, labels: str | Path, candidates: int) -> Latency:
    """Times a store of verdicts: PROBE_TIMES times the candidates of a search, drawn from the labels. HTTP is not in it.

    store: as in cache.store of the service's recipe. labels: label folder whose verdicts it holds. Raises LoreError for a store
    that has none of them.
    """
    contents = [one for batch in read_labels(labels, ["content"]) for one in batch.column(0).to_pylist()][:PROBE_CONTENTS]
    drawn = np.random.default_rng(0).integers(0, len(contents), (PROBE_WARM + PROBE_TIMES, candidates))
    cache = open_store_of(CacheSection(store=store, timeout_ms=PROBE_TIMEOUT_MS), judge_in_labels(labels))

    async def timed() -> tuple[list[float], int]:
        found, hits = [], 0
        for some in drawn:
            asked = [contents[at] for at in some]
            began = time.perf_counter()
            answers = await cache.get(asked)
            found.append(1000 * (time.perf_counter() - began))
            hits += sum(answer is not None for answer in answers)
        await cache.close()
        return found[PROBE_WARM:], hits

    ms, hits = asyncio.run(timed())
    if not hits:
        raise LoreError(
            f"{store} has no verdict of {labels}, so a probe of it says nothing about the cache.\n"
            "Fill it with `lore cache load`, or give --cache-ms."
        )
    source = f"{PROBE_TIMES} reads of {candidates} verdicts from {store}, without HTTP"
    return _measured(ms, source)


def student_of_table(run: Path, table: dict[str, Any], name: str, candidates: int) -> Student | None:
    """What stage distill measured on its machine; None if its table has no times of the student."""
    row = table.get("rows", {}).get(name, {})
    each, fifty = row.get("milliseconds per pair"), row.get("milliseconds for 50 candidates")
    if not each or not fifty:
        return None
    source = f"the machine of {run}: 50 candidates take {fifty:.1f} ms"
    p50 = Input(fifty * candidates / 50, "measured" if candidates == 50 else "estimated", source)
    return Student(latency(None, "", p50), 0.2, Input(1000 / each, "measured", f"the machine of {run}"))


def student_without_one(candidates: int) -> Student:
    """A guess, for a plan without a student's folder."""
    source = f"{STUDENT_MS_PER_PAIR:g} ms a pair, a guess: name a student with --student"
    p50 = Input(STUDENT_MS_PER_PAIR * candidates, "estimated", source)
    return Student(latency(None, "", p50), 0.2, Input(1000 / STUDENT_MS_PER_PAIR, "estimated", source))


def judge_of_labels(folder: str | Path | None, candidates: int, ms: tuple[float, float] | None) -> Judge:
    """The judge's speed from the summary.json of a label run; a guess without one. ms: p50 and p99 of a live search, if given."""
    seconds, tokens = Input(JUDGE_MS_PER_PAIR / 1000, "estimated", "a guess: name a label folder with --labels"), None
    if folder is not None:
        path = Path(folder) / SUMMARY
        if not path.is_file():
            raise LoreError(
                f"{folder} has no {SUMMARY}, so the judge's speed is unknown.\nName a folder that `lore label` has finished."
            )
        totals = read_object(path, "the judge's speed is unknown", "Run `lore label` again.").get("totals") or {}
        pairs = totals.get("pairs") or 0
        if not pairs or not totals.get("seconds"):
            raise LoreError(
                f"{path} has no speed, because the last start of that run asked nothing.\nName the folder of another run, or leave "
                "--labels out and give --judge-ms."
            )
        seconds = Input(totals["seconds"] / pairs, "measured", f"{pairs:,} pairs of {folder}, all workers together")
        tokens = (totals.get("prompt_tokens", 0) / pairs, totals.get("generated_tokens", 0) / pairs)
    live = Input(1000 * seconds.value * candidates, "estimated", "the candidates of one search at the speed of a label run")
    return Judge(seconds, latency(ms, "--judge-ms", live), tokens)


@dataclass(frozen=True)
class Price:
    """USD for a pair, and for a machine that is kept running (0: paid by the pair)."""

    pair: Input
    machine_day: float = 0.0


def student_price(student: Student, usd_per_hour: float | None, utilization: float) -> Price:
    if usd_per_hour is None:
        return Price(Input(0.0, "estimated", "free: no --student-usd-per-hour"))
    usd = usd_per_hour / 3600 / student.pairs_per_second.value / utilization
    source = f"--student-usd-per-hour at {100 * utilization:.0f} % utilization, speed {student.pairs_per_second.basis}"
    return Price(Input(usd, _weaker("given", student.pairs_per_second.basis), source), 24 * usd_per_hour)


def judge_price(
    judge: Judge, usd_per_hour: float | None, usd_per_million: tuple[float | None, float | None], utilization: float
) -> tuple[Price, Price]:
    """(labelling in batches, answering live). usd_per_million: prompt and completion tokens of a server that is paid by them."""
    if any(price is not None for price in usd_per_million):
        if judge.tokens is None:
            raise LoreError("Prices by token need the tokens of a pair, and none are known. Name a label folder with --labels.")
        usd = sum((price or 0.0) * tokens / 1e6 for price, tokens in zip(usd_per_million, judge.tokens, strict=True))
        price = Price(Input(usd, "given", f"prices by token, {judge.tokens[0]:.0f} + {judge.tokens[1]:.0f} tokens a pair measured"))
        return price, price
    if usd_per_hour is None:
        free = Price(Input(0.0, "estimated", "free: no --judge-usd-per-hour"))
        return free, free
    usd = usd_per_hour / 3600 * judge.seconds_per_pair.value
    basis = _weaker("given", judge.seconds_per_pair.basis)
    batches = Input(usd, basis, f"--judge-usd-per-hour, speed {judge.seconds_per_pair.basis}")
    live = Input(usd / utilization, "estimated", f"as in batches, at {100 * utilization:.0f} % utilization")
    return Price(batches), Price(live, 24 * usd_per_hour)


def _weaker(one: Basis, other: Basis) -> Basis:
    return "estimated" if "estimated" in (one, other) else "given" if "given" in (one, other) else "measured"


def cached_share(new_items_per_day: float, days: float) -> float:
    """Share of requests for pairs of labelled queries that have a label, on average over `days` days after the labelling, if each
    day this share of the shown items is new."""
    if new_items_per_day == 0:
        return 1.0
    rate = -log(1 - new_items_per_day)
    return (1 - exp(-rate * days)) / (rate * days)


def stored_share(searches_per_day: np.ndarray, new_items_per_day: float, days: float) -> np.ndarray:
    """Share of requests for a pair that an earlier search has stored, on average over `days` days from an empty cache.

    Searches of a query come at random times (Poisson), and an item is replaced after an exponential time. A request is the first
    of its item if none came since the item or the cache began: at age t of the cache with probability
    d / (d + s) + s / (d + s) exp(-(d + s) t), for s searches and a share d of new items per day.
    """
    s = np.asarray(searches_per_day, dtype=np.float64)
    d = -log(1 - new_items_per_day) if new_items_per_day else 0.0
    both = np.maximum(d + s, 1e-12)
    waiting = -np.expm1(-both * days) / (both * days)
    return 1 - (d / both + s / both * waiting)
