"""Reads what a plan of ratings needs, and prints it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD

from lore.eval.goodrate.estimate import read_judged
from lore.eval.goodrate.log import Shown, read_log
from lore.eval.goodrate.plan import BANDS, RatingPlan, plan_change, plan_ratings, spread_of, without_judge
from lore.eval.goodrate.rated_sample import read_rated
from lore.rubric.rubric import load_rubric
from lore.support.console import Console, Table, Text
from lore.support.errors import LoreError

BASES = {
    "pilot": "measured on the pilot",
    "judge": "estimated from the judge's probabilities, if they are calibrated",
    "good rate": "estimated from the expected GoodRate",
}


@dataclass(frozen=True)
class Planned:
    """plan: with all that is known; alone: without the judge, None if there is none or a pilot says all."""

    log: Shown
    plan: RatingPlan
    alone: RatingPlan | None
    asked_change: bool


def planned(
    log_path: Path,
    verdicts_path: Path | None,
    rubric_name: str | None,
    rated_path: Path | None,
    judge: str | None,
    top: int | None,
    good_rate: float,
    *,
    change: float | None,
    ratings: int | None,
    power: float,
) -> Planned:
    """Plans for a change, or for a number of ratings. Paths of None: not known."""
    log = read_log(log_path)
    rubric = None if rubric_name is None else load_rubric(rubric_name)
    pilot = None if rated_path is None or rubric is None else read_rated(rated_path, rubric, log)
    if top is not None:
        keep = log.at_top(top)
        log, pilot = log.only(keep), None if pilot is None else pilot.only(keep)
    judged = None
    if verdicts_path is not None and rubric is not None:
        judged, _, _ = read_judged(verdicts_path, rubric, log, judge)
        if pilot is None and not ((judged > 0) & (judged < 1)).any():
            raise LoreError(
                f"{verdicts_path} has no probabilities, so how often the judge errs is unknown before the first rating.\nGive a "
                "pilot (--rated), or plan without the judge."
            )
    spread = spread_of(log, judged, pilot, good_rate)
    others = None if judged is None or pilot is not None else without_judge(log, judged)

    def one(of) -> RatingPlan:
        return plan_change(of, ratings or 0, power) if change is None else plan_ratings(of, change, power)

    plan = one(spread)
    try:
        alone = None if others is None else one(others)
    except LoreError:
        alone = None  # without the judge, the log has too few pairs
    return Planned(log, plan, alone, change is not None)


def show_plan(found: Planned, console: Console) -> None:
    """Prints the ratings by band, and what they see."""
    plan, spread = found.plan, found.plan.spread
    console.print(Text(f"{found.log.path}: {len(found.log):,} shown items, {len(spread.weight):,} pairs"), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("impressions", "pairs", "ratings", "deviation"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, name in enumerate(BANDS):
        inside = spread.band == number
        if not inside.any():
            continue
        weight = spread.weight[inside]
        deviation = float(np.sqrt(weight @ spread.second[inside] / weight.sum()))
        share = 100 * weight.sum() / spread.weight.sum()
        table.add_row(name, f"{share:.0f} %", f"{inside.sum():,}", f"{plan.ratings[number]:,}", f"{deviation:.3f}")
    table.add_row("all", "100 %", f"{len(spread.weight):,}", f"{plan.total:,}", "")
    console.print(table)
    console.print(
        Text(
            f"Two GoodRates from {plan.total:,} ratings each show a change of {100 * plan.change:.2f} points with a probability of "
            f"{100 * plan.power:.0f} %. Deviation of one rating{' from what the judge says' * (spread.power > 0)}: "
            f"{BASES[spread.basis]}."
        )
    )
    if found.alone is not None:
        alone = found.alone
        line = f"{alone.total:,} ratings" if found.asked_change else f"a change of {100 * alone.change:.2f} points"
        console.print(Text(f"Without the judge: {line}."))
    counts = ",".join(str(count) for count in plan.ratings.tolist())
    console.print(Text(f"Draw them with: lore goodrate sample {found.log.path} --bands {counts} -o rated.csv"), soft_wrap=True)
