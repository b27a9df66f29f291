"""How often `lore monitor report` alarms without a reason, and how soon it does with one.

    python benchmarks/monitor.py RUN/predictions.parquet --runs 200
    python benchmarks/monitor.py --delays

RUN is a run of stage distill or evaluate: its predictions hold the verdicts of the judge and the student on the same test pairs. A
synthetic day draws whole queries of it, with replacement, until it has so many pairs. Each run has a reference of 28 days and 200
days after it, in which nothing changes, or from the 31st day on:

    drop 2, drop 5     agreement of student and judge falls by so many points (on the traffic alone)
    mix                pairs of the last tier are shown more often: their share grows by 5 points
    judge              the judge gives one tier less on 5 % of the pairs, on the traffic and on the probe
    student            the student gives one tier less on 5 % of the pairs, on the traffic and on the probe

The probe has 500 of the pairs. Every night, each of its tiers flips with probability 0.002, as batches and machines may do.
"""

import argparse
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import beta

from lore.eval.measures.bootstrap import query_groups
from lore.online.monitor import charts
from lore.online.monitor.charts import Watch
from lore.online.monitor.days import BANDS, NOT_ASKED, Rows
from lore.online.monitor.probe import Probe, ProbeLine, probe_line
from lore.online.monitor.report import JUDGE, STUDENT, attribute, charts_of, watch_of
from lore.support.progress import track
from lore.support.terminal import print_line

REFERENCE_DAYS, LATER_DAYS, CHANGE = 28, 200, 30
PROBE_PAIRS, FLIPS, CHANGED_SHARE = 500, 0.002, 0.05
SCENARIOS = ("none", "drop 2", "drop 5", "mix", "judge", "student")


@dataclass
class Pool:
    """The test pairs; all arrays are [N]."""

    tier_ids: list[str]
    query: np.ndarray
    band: np.ndarray
    judge: np.ndarray
    student: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        order = np.argsort(self.query, kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(self.query[order])) + 1)
        self.lengths = np.asarray([len(one) for one in self.members])


def read_pool(path: Path) -> Pool:
    table = pq.read_table(path)
    tier_ids = [name[2:] for name in table.column_names if name.startswith("p_")]
    place = {tier: at for at, tier in enumerate(tier_ids)}
    rows: dict[str, dict[str, dict]] = {"judge": {}, "student": {}}
    for row in table.select(["judge", "pair_id", "query", "slices", "tier", *(f"p_{tier}" for tier in tier_ids)]).to_pylist():
        if row["judge"] in rows and row["tier"] is not None:
            rows[row["judge"]][row["pair_id"]] = row
    both = [pair_id for pair_id in rows["judge"] if pair_id in rows["student"]]
    judge, student = ([rows[who][pair_id] for pair_id in both] for who in ("judge", "student"))
    bands = [band_of(row["slices"] or ()) for row in judge]
    probabilities = np.asarray([[row[f"p_{tier}"] for tier in tier_ids] for row in student], dtype=np.float64)
    return Pool(
        tier_ids,
        query_groups([row["query"] for row in judge]),
        np.asarray(bands),
        np.asarray([place[row["tier"]] for row in judge]),
        np.asarray([place[row["tier"]] for row in student]),
        np.clip(probabilities @ np.arange(len(tier_ids)) / (len(tier_ids) - 1), 0, 1),
    )


def band_of(slices: list[str]) -> int:
    """Place in BANDS. Evaluation calls the middle one middle."""
    named = {name.partition(":")[2] for name in slices if name.startswith("frequency:")}
    return 0 if "head" in named else 2 if "tail" in named or not named else 1


def lower(tiers: np.ndarray) -> np.ndarray:
    """One tier less; the lowest one more."""
    return np.where(tiers > 0, tiers - 1, tiers + 1)


def synthetic(pool: Pool, scenario: str, pairs_a_day: int, draw: np.random.Generator) -> Rows:
    """The rows of all days."""
    judge, student = pool.judge.copy(), pool.student.copy()
    altered = draw.random(len(judge)) < CHANGED_SHARE
    whole = REFERENCE_DAYS + LATER_DAYS
    chances = np.full(len(pool.members), 1 / len(pool.members))
    shifted = chances
    if scenario == "mix":
        top = np.asarray([np.mean(student[one] == len(pool.tier_ids) - 1) for one in pool.members])
        mean, spread = float(top.mean()), float(top.var())
        shifted = np.maximum(0, chances * (1 + 0.05 * (top - mean) / spread))
        shifted /= shifted.sum()
    at, day, query = [], [], []
    per_day = round(pairs_a_day / pool.lengths.mean())
    for one in range(whole):
        drawn = draw.choice(len(pool.members), per_day, p=shifted if one >= REFERENCE_DAYS + CHANGE else chances)
        at.append(np.concatenate([pool.members[number] for number in drawn]))
        query.append(np.repeat(np.arange(per_day), pool.lengths[drawn]))
        day.append(np.full(len(at[-1]), one))
    at, day, query = (np.concatenate(parts) for parts in (at, day, query))
    judged, answered, score = judge[at], student[at], pool.score[at]
    later = day >= REFERENCE_DAYS + CHANGE
    if scenario.startswith("drop"):
        agree = judged == answered
        chance = int(scenario[5:]) / 100 / agree.mean()
        judged = np.where(later & agree & (draw.random(len(at)) < chance), lower(judged), judged)
    if scenario == "judge":
        judged = np.where(later & altered[at], lower(judged), judged)
    if scenario == "student":
        moved = later & altered[at]
        answered, score = np.where(moved, lower(answered), answered), np.where(moved, np.abs(score - 1 / 3), score)
    text = np.full(len(at), "", dtype=object)
    probabilities = np.full((len(at), len(pool.tier_ids)), np.nan)
    return Rows(pool.tier_ids, day, text, text, text, query, pool.band[at], answered, score, text, judged, probabilities, text)


def probes(pool: Pool, scenario: str, watch: Watch, noise: float, draw: np.random.Generator) -> list[ProbeLine]:
    chosen = draw.permutation(len(pool.judge))[:PROBE_PAIRS]
    names = [str(number) for number in range(len(chosen))]
    probe = Probe(Path("probe"), names, [None] * len(names), "")
    found = []
    for who, tiers in ((JUDGE, pool.judge[chosen]), (STUDENT, pool.student[chosen])):
        altered = draw.random(len(chosen)) < CHANGED_SHARE
        nights = {}
        for day in range(REFERENCE_DAYS + LATER_DAYS):
            changed = who == scenario and day >= REFERENCE_DAYS + CHANGE
            now = np.where(altered, lower(tiers), tiers) if changed else tiers
            now = np.where(draw.random(len(now)) < FLIPS, lower(now), now)
            nights[day] = {name: (tier, None, "") for name, tier in zip(names, now.tolist(), strict=True)}
        found.append(probe_line(who, probe, nights, pool.tier_ids, noise=noise, chance=watch.chance_of_one / watch.horizon))
    return found


@dataclass
class Outcome:
    """A run: the first change that is reported, whom it names, on which day after the change; charts that alarmed."""

    who: str | None
    day: int | None
    too_early: bool
    charts: list[str]


def one_run(pool: Pool, scenario: str, arguments: argparse.Namespace, seed: int) -> Outcome:
    draw = np.random.default_rng([seed, SCENARIOS.index(scenario)])
    rows = synthetic(pool, scenario, arguments.pairs, draw)
    if arguments.unlabeled:
        rows = replace(rows, judged=np.where(draw.random(len(rows)) < arguments.unlabeled, NOT_ASKED, rows.judged))
    watch = watch_of(rows, reference_days=REFERENCE_DAYS, horizon=LATER_DAYS, chance=arguments.false_alarms, probes=2)
    lines = probes(pool, scenario, watch, arguments.probe_noise, draw)
    found = charts_of(rows, watch)
    changes = attribute(found, lines, [], int(rows.day.max()))
    alarmed = [chart.name for chart in found if chart.alarm is not None]
    alarmed += [f"probe of the {line.who}" for line in lines if line.changed is not None]
    if not changes:
        return Outcome(None, None, False, alarmed)
    day = changes[0].day - REFERENCE_DAYS - CHANGE + 1
    return Outcome(changes[0].who, day, scenario != "none" and day < 1, alarmed)


def between(hits: int, whole: int) -> str:
    """A share with its exact 95 % interval (Clopper and Pearson)."""
    low = beta.ppf(0.025, hits, whole - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, whole - hits) if hits < whole else 1.0
    return f"{100 * hits / whole:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def delays(draw: np.random.Generator, replicates: int = 2000) -> None:
    """Days until one chart of normal days sees a shift, by the slack. All are in standard errors of a day."""
    pairs, chance = 770, 0.0064
    for days in (14, 28, 56):
        for slack in (0.5, 0.75, 1.0, 1.25):
            charts.SLACK = slack
            threshold = charts.agreement_threshold.__wrapped__(0.87, pairs, pairs * days, LATER_DAYS, chance)
            found = []
            for shift in (1.0, 1.6, 4.0):
                reference = draw.standard_normal(replicates) / np.sqrt(days)
                up, seen = np.zeros(replicates), np.full(replicates, float(LATER_DAYS))
                for day in range(LATER_DAYS):
                    up = np.maximum(0, up + draw.standard_normal(replicates) + shift - reference - slack)
                    seen = np.where((up > threshold) & (seen == LATER_DAYS), day + 1, seen)
                found.append(f"{shift}: {np.median(seen):.0f}, {np.quantile(seen, 0.9):.0f}")
            print_line(
                f"{days} days of reference, slack {slack}, threshold {threshold:.1f}; median and 90 % by shift {'; '.join(found)}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, nargs="?")
    parser.add_argument("--delays", action="store_true", help="only compare slacks, on normal days")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs a day")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--false-alarms", type=float, default=0.05)
    parser.add_argument("--probe-noise", type=float, default=0.005)
    parser.add_argument("--unlabeled", type=float, default=0.0, help="share of pairs without a label")
    parser.add_argument("--scenarios", nargs="*", default=SCENARIOS, choices=SCENARIOS)
    arguments = parser.parse_args()
    if arguments.delays:
        return delays(np.random.default_rng(arguments.seed))
    if arguments.predictions is None:
        parser.error("name the predictions of a run, or pass --delays")
    pool = read_pool(arguments.predictions)
    shares = ", ".join(f"{name} {np.mean(pool.band == at):.0%}" for at, name in enumerate(BANDS))
    agreement = np.mean(pool.judge == pool.student)
    print_line(f"{len(pool.judge):,} pairs of {len(pool.members):,} queries ({shares}); agreement {agreement:.3f}")
    for scenario in arguments.scenarios:
        began = time.process_time()
        seeds = range(arguments.seed, arguments.seed + arguments.runs)
        found = [one_run(pool, scenario, arguments, seed) for seed in track(seeds, scenario)]
        spent = (time.process_time() - began) / arguments.runs
        alarmed = [one for one in found if one.day is not None]
        names = Counter(name for one in found for name in one.charts)
        print_line(f"{scenario}: {arguments.pairs:,} pairs a day, {arguments.runs} runs, {spent:.2f} CPU s a run")
        if scenario == "none":
            print_line(f"  runs with any alarm in {LATER_DAYS} days: {between(len(alarmed), len(found))}; {dict(names)}")
            continue
        seen = [one for one in alarmed if not one.too_early]
        days = np.sort([one.day for one in seen])
        print_line(f"  before the change: {len(alarmed) - len(seen)} runs; after it: {between(len(seen), len(found))}")
        if len(days):
            quantiles = ", ".join(f"{name} {np.quantile(days, q):.0f}" for name, q in (("median", 0.5), ("90 %", 0.9), ("last", 1)))
            print_line(f"  days until it is reported: {quantiles}; named: {dict(Counter(one.who for one in seen))}; {dict(names)}")


if __name__ == "__main__":
    main()
