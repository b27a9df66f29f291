"""`lore monitor report`: has the shop changed, the judge, or the student?

Traffic says that something has moved, and the frozen probe set says who:

- The student's mix of scores and tiers depends on the shop and the student. Agreement depends on the judge too.
- An alarm is explained by the judge (agreement only) or the student, if its probe or its id had changed by then.
- Otherwise it is the shop that has changed, if the probes of all that the number depends on were asked since the change began and
  stood still. If they were not asked, nobody can tell.
- A probe that moves without an alarm is a change all the same.

After a change the reference no longer holds: begin a new one with --since.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lore.eval.goodrate.estimate import Rate, estimate
from lore.eval.goodrate.log import Shown
from lore.eval.goodrate.rated_sample import nothing_rated, read_rated
from lore.label.summary import SUMMARY
from lore.online.metrics import BINS
from lore.online.monitor.charts import Chart, Watch, agreement_chart, mix_chart
from lore.online.monitor.days import BANDS, NO_ANSWER, NOT_ASKED, Rows
from lore.online.monitor.probe import ProbeLine
from lore.online.shadow import day_name
from lore.rubric.rubric import Rubric, load_rubric
from lore.support.errors import LoreError
from lore.support.untrusted_json import read_object

RUBRIC_HINT = "Name it with --rubric."
ALL = "all"
JUDGE, STUDENT, SHOP, UNKNOWN = "judge", "student", "shop", "unknown"
SAYS = {
    JUDGE: "The judge has changed",
    STUDENT: "The student has changed",
    SHOP: "The shop has changed",
    UNKNOWN: "Something has changed, and no probe tells what",
}


@dataclass
class Change:
    """Who answers differently, since when, and why we know."""

    who: str
    day: int
    why: str


@dataclass
class Day:
    """A day in numbers. tiers: the student's pairs per tier; goodrate: of the items that the student answered."""

    day: int
    pairs: int
    judged: int
    unanswered: int
    tiers: list[int]
    bands: list[int]
    goodrate: Rate | None = None


@dataclass
class Report:
    days: list[Day]
    tier_ids: list[str]
    charts: list[Chart]
    probes: list[ProbeLine]
    changes: list[Change]
    watch: Watch
    remarks: list[str] = field(default_factory=list)

    @property
    def headline(self) -> list[str]:
        if self.changes:
            return [f"{SAYS[change.who]}, seen on {day_name(change.day)}: {change.why}." for change in self.changes]
        watched = [chart for chart in self.charts if chart.why_not is None]
        if not watched and len([line for line in self.probes if len(line.nights) > 1]) == 0:
            return ["Nothing is watched yet: see below what is missing."]
        return ["Nothing has changed that chance does not explain."]


def charts_of(rows: Rows, watch: Watch) -> list[Chart]:
    """Agreement of all pairs and by band, and the student's mixes of scores and tiers."""
    judged = rows.is_judged
    hit = (rows.tier == rows.judged).astype(np.float64)
    found = []
    for name in watched_bands(rows):
        at = judged if name == ALL else judged & (rows.band == BANDS.index(name))
        found.append(agreement_chart(f"agreement, {name}", rows.day[at], rows.query[at], hit[at], watch))
    found.append(mix_chart("scores", rows.day, rows.query, rows.score_bin, BINS, watch))
    found.append(mix_chart("tiers", rows.day, rows.query, rows.tier, len(rows.tier_ids), watch))
    return found


def watched_bands(rows: Rows) -> list[str]:
    """Bands with labels, after all of them together if they are several: a small drop everywhere shows there first."""
    bands = [BANDS[place] for place in np.unique(rows.band[rows.is_judged]).tolist()]
    return bands if len(bands) < 2 else [ALL, *bands]


def watch_of(rows: Rows, *, reference_days: int, horizon: int, chance: float, probes: int) -> Watch:
    """The first days are the reference."""
    days = np.unique(rows.day)[:reference_days].tolist()
    if len(days) < reference_days:  # the rest is still to come
        days += range(int(rows.day.max()) + 1, int(rows.day.max()) + 1 + reference_days - len(days))
    return Watch(frozenset(days), horizon, chance, len(watched_bands(rows)) + 2 + probes)


def id_changes(rows: Rows) -> list[Change]:
    """Days on which the student or the judge has another id than on its first day."""
    found = []
    for who, ids in ((STUDENT, rows.student), (JUDGE, rows.judge)):
        known = ids != ""
        if not known.any():
            continue
        first = int(rows.day[known].min())
        before = set(ids[known & (rows.day == first)].tolist())
        other = known & ~np.isin(ids, list(before))
        if other.any():
            day = int(rows.day[other].min())
            new = sorted(set(ids[other & (rows.day == day)].tolist()))
            found.append(Change(who, day, f"its id is {' and '.join(new)}, and was {' and '.join(sorted(before))}"))
    return found


def attribute(charts: list[Chart], probes: list[ProbeLine], changed_ids: list[Change], last: int) -> list[Change]:
    """Who has changed, by the rule above. last: the last day."""
    asked = {line.who: line for line in probes}
    changes: dict[str, Change] = {}
    for change in [*changed_ids, *(Change(one.who, one.changed, one.why) for one in probes if one.changed is not None)]:
        if change.who not in changes or change.day < changes[change.who].day:
            changes[change.who] = change
    movers = dict(changes)
    for chart in sorted((chart for chart in charts if chart.alarm is not None), key=lambda chart: chart.alarm):
        parts = (STUDENT,) if chart.kind == "mix" else (STUDENT, JUDGE)
        if any(who in movers and movers[who].day <= chart.alarm for who in parts):
            continue
        still = all(who in asked and asked[who].was_asked(chart.began, last) for who in parts)
        why = f"{chart.name} {'rises' if chart.rises else 'falls'} since about {day_name(chart.began)}"
        if still:
            why += f", and the frozen pairs get the same answers of {' and '.join(parts)}"
        else:
            lacking = [who for who in parts if who not in asked or not asked[who].was_asked(chart.began, last)]
            why += f"; ask the probe to tell whether the {' or the '.join(lacking)} or the shop has changed"
        changes.setdefault(SHOP if still else UNKNOWN, Change(SHOP if still else UNKNOWN, chart.alarm, why))
    return sorted(changes.values(), key=lambda change: change.day)


def days_of(rows: Rows) -> list[Day]:
    found = []
    for day in np.unique(rows.day).tolist():
        at = rows.day == day
        found.append(
            Day(
                day,
                int(at.sum()),
                int((at & rows.is_judged).sum()),
                int((at & (rows.judged == NO_ANSWER)).sum()),
                np.bincount(rows.tier[at], minlength=len(rows.tier_ids)).tolist(),
                np.bincount(rows.band[at], minlength=len(BANDS)).tolist(),
            )
        )
    return found


def goodrates(rows: Rows, rubric: Rubric, rated: Path | None = None) -> tuple[dict[int, Rate], list[str]]:
    """GoodRate of each day's items that the student answered, by the judge's labels and, where there are some, raters' labels
    (lore.eval.goodrate). rated: a file of `lore goodrate sample`."""
    asked = rows.judged != NOT_ASKED
    if not asked.any():
        return {}, []
    mask = np.asarray(rubric.relevant_mask, dtype=np.float64)
    by_tier = np.where(rows.judged >= 0, mask[np.maximum(rows.judged, 0)], 0.0)
    by_probability = rows.probabilities @ mask
    judged = np.where((rows.judged >= 0) & ~np.isnan(by_probability), by_probability, by_tier)[asked]
    names = np.asarray([day_name(day) for day in rows.day[asked].tolist()], dtype=object)
    empty = np.full(len(names), "", dtype=object)
    log = Shown(
        Path("the shadow folder"),
        rows.pair_ids[asked],
        rows.queries[asked],
        empty,
        names,
        empty,
        np.full(len(names), np.nan),
        np.ones(len(names)),
        markets=rows.markets[asked],
    )
    sample = nothing_rated(log) if rated is None else read_rated(rated, rubric, log)
    rates, remarks = estimate(log, judged, sample, "traffic")
    by_name = {rate.system: rate for rate in rates if rate.of == "items"}
    return {day: by_name[day_name(day)] for day in np.unique(rows.day[asked]).tolist()}, remarks


def report_of(rows: Rows, probes: list[ProbeLine], watch: Watch) -> Report:
    """Everything except for GoodRate."""
    charts = charts_of(rows, watch)
    changes = attribute(charts, probes, id_changes(rows), int(rows.day.max()))
    remarks = []
    if rows.repeated:
        remarks.append(f"{rows.repeated:,} rows repeat a pair of the same day and count once.")
    judged = int(rows.is_judged.sum())
    unanswered = int((rows.judged == NO_ANSWER).sum())
    if unanswered:
        remarks.append(f"The judge has no answer to {unanswered:,} of {judged + unanswered:,} pairs; agreement leaves them out.")
    if rows.label_folders and (waiting := int((rows.judged == NOT_ASKED).sum())):
        remarks.append(f"{waiting:,} of {len(rows):,} pairs are not labeled yet.")
    after = int(rows.day.max()) - max(watch.reference)
    if after > watch.horizon:
        remarks.append(
            f"{after} days after the reference, and the chance of a false alarm holds for {watch.horizon}. Begin a new reference "
            "with --since, or set --horizon-days."
        )
    return Report(days_of(rows), rows.tier_ids, charts, probes, changes, watch, remarks)


def rubric_of(rows: Rows, name: str | None) -> Rubric:
    """The rubric of the labels. name: None: that of their summary. Raises LoreError if it cannot be found, or is another one."""
    if name is None:
        named = {
            read_object(folder / SUMMARY, "so their rubric is unknown.", RUBRIC_HINT).get("rubric") for folder in rows.label_folders
        }
        if len(named) != 1 or not isinstance(name := next(iter(named)), str):
            raise LoreError(f"The labels name {len(named)} rubrics, so it is unknown which tiers are good. {RUBRIC_HINT}")
    rubric = load_rubric(name)
    if rubric.tier_ids != rows.tier_ids:
        raise LoreError(
            f"The rubric {name} has the tiers {', '.join(rubric.tier_ids)}, and the labels have {', '.join(rows.tier_ids)}. "
            f"{RUBRIC_HINT}"
        )
    return rubric
