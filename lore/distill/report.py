"""Writes report.html of a distillation: the table, slices, the curve over labels, the loss, what the student learned from.

The page is self-contained. Names come from the user's data, so the template escapes everything and the page's content security
policy allows no script and no external resource.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lore.distill.config import DistillRecipe
from lore.distill.curve import Curve
from lore.distill.labels import Human
from lore.distill.table import COST, OF_JUDGE, Table, cells, metric_titles
from lore.eval.measures.bootstrap import Estimate
from lore.run.run_folder import RunFolder
from lore.student.card import read_student
from lore.support.atomic_files import write_atomic
from lore.support.html import page_style, page_template
from lore.support.svg_plots import TEXT_MARKS, Line, line_chart, reliability_svg

FOLDER = Path(__file__).parent
TERMS = {"loss": "loss", "loss_parts/tiers": "tiers", "loss_parts/margin": "margin", "loss_parts/cumulative": "cumulative"}
TERMS |= {"loss_parts/grade": "grade", "loss_parts/rationale": "rationale"}


def write_report(
    recipe: DistillRecipe, folder: RunFolder, human: Human, table: Table, curve: Curve | None, targets: dict[str, Any]
) -> None:
    """Writes <run>/report.html. targets: see lore.distill.rows."""
    rubric, test = human.source.rubric, human.test
    texts = table.texts(len(rubric.tier_ids))
    rows = [{"name": row.card.name, "how": row.card.how, "cells": texts[row.card.name]} for row in table.rows]
    html = page_template(FOLDER, "report.html.jinja").render(
        title=f"{recipe.run}: {rubric.name}",
        style=Markup(page_style()),
        headline=headline(table),
        tables=_tables(list(rows[0]["cells"])),
        rows=rows,
        best=_best(table, len(rubric.tier_ids)),
        remarks=table.remarks,
        test=f"{len(test):,} pairs of {test.n_queries:,} queries of split {test.split}",
        slices=_slices(table),
        names=[row.card.name for row in table.rows],
        curve=_curve(curve),
        loss=_loss(folder),
        marks=TEXT_MARKS,
        reliability=_reliability(table),
        thresholds=_thresholds(folder),
        targets={name: _text(value) for name, value in targets.items()},
    )
    write_atomic(folder / "report.html", html)


def headline(table: Table) -> list[str]:
    """What a reader wants to know first."""
    by_name = {row.card.name: row for row in table.rows}
    student = by_name["student"]
    said = [f"The student reaches Macro-F1 {student.metric('macro_f1')}."]
    if not math.isnan(student.kept.value):
        kept = cells(student, 0)[OF_JUDGE[1]]
        same = f"{100 * student.agreement.value:.1f} %"
        said.append(f"That is {kept} of the judge's; it gives the judge's tier to {same} of the pairs.")
    if student.cost.ms_of_50 is not None:
        said.append(f"50 candidates of a query take {student.cost.ms_of_50:.0f} ms here.")
    return said


def _tables(titles: list[str]) -> dict[str, list[str]]:
    """Columns of quality, and those of the judge and of cost: together they are wider than a page."""
    others = [title for title in titles if title in (*OF_JUDGE, *COST)]
    return {"quality": [title for title in titles if title not in others], "against the judge, size, latency": others}


def _best(table: Table, tiers: int) -> dict[str, str]:
    """The row with the best value of each metric, by column title."""
    found = {}
    for name, title in metric_titles(tiers).items():
        values = {row.card.name: row.metric(name).value for row in table.rows if not math.isnan(row.metric(name).value)}
        if len(values) > 1:
            found[title] = (min if name == "ece" else max)(values, key=values.__getitem__)
    return found


def _slices(table: Table) -> list[dict[str, Any]]:
    """Macro-F1 by slice."""
    first = table.rows[0].card
    return [
        {
            "name": name,
            "pairs": f"{part.pairs:,}",
            "cells": [str(row.card.slices[name].metrics.get("macro_f1", Estimate(float("nan")))) for row in table.rows],
        }
        for name, part in first.slices.items()
    ]


def _curve(curve: Curve | None) -> dict[str, Any] | None:
    if curve is None:
        return None
    title = metric_titles(0)[curve.metric]
    labels = [point.labels for point in curve.points]
    lines = [_band([point.dev for point in curve.points], labels, 0), _band([point.test for point in curve.points], labels, 1)]
    known = [value for line in lines for value in (*line.y, *(line.low or ()), *(line.high or ())) if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = 0.08 * (high - low) or 0.05
    svg = line_chart(
        lines,
        f"{title} by labels of the judge",
        xlabel="labels of the judge",
        ylabel=title,
        ylim=(low - margin, high + margin),
        xticks=labels,
        log_x=True,
    )
    points = [
        {"labels": f"{point.labels:,}", "dev": str(point.dev), "gain": str(point.gain or ""), "test": str(point.test)}
        for point in curve.points
    ]
    return {"svg": Markup(svg), "title": title, "points": points, "stopped": curve.stopped}


def _band(estimates: list[Estimate], x: list[int], series: int) -> Line:
    bounds = None, None
    if not any(math.isnan(one.low) for one in estimates):
        bounds = [one.low for one in estimates], [one.high for one in estimates]
    return Line(x, [one.value for one in estimates], *bounds, series=series)


def _loss(folder: RunFolder) -> dict[str, Any] | None:
    """The loss and its terms over the steps of the recipe's student."""
    lines = folder.metrics()
    drawn, names = [], []
    for key, name in TERMS.items():
        points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float) and "step" in line]
        if points:
            steps, values = (np.asarray(column, dtype=np.float64) for column in zip(*points, strict=True))
            width = -(-len(steps) // 400)
            starts = np.arange(0, len(steps), width)
            sizes = np.diff(np.append(starts, len(steps)))
            drawn.append(Line(steps[starts], np.add.reduceat(values, starts) / sizes, series=len(names)))
            names.append({"name": name, "series": len(names), "last": f"{values[-1]:.4g}"})
    if not drawn:
        return None
    most = max(float(np.max(line.y)) for line in drawn)
    last = int(max(line.x[-1] for line in drawn))
    ticks = sorted({round(last * share) for share in (0, 0.25, 0.5, 0.75, 1)})
    svg = line_chart(drawn, "Loss", xlabel="step", ylabel="", ylim=(0, 1.06 * most or 1), xticks=ticks)
    return {"svg": Markup(svg), "lines": names}


def _reliability(table: Table) -> list[dict[str, Any]]:
    return [
        {"name": row.card.name, "svg": Markup(reliability_svg(row.card.reliability, None, f"calibration of {row.card.name}"))}
        for row in table.rows
        if row.card.reliability
    ]


def _thresholds(folder: RunFolder) -> list[dict[str, str]]:
    """The student's thresholds per use."""
    found = []
    for use, one in read_student(folder / "model").thresholds.items():
        of = "recall" if use == "filter" else "precision"
        threshold = "none reaches it" if one.threshold is None else f"{one.threshold:.3f}"
        shares = {"recall": one.recall, "precision": one.precision, "kept": one.kept}
        found.append({"use": use.replace("_", " "), "target": f"{of} {one.target:g}", "threshold": threshold})
        found[-1] |= {name: f"{100 * value:.1f} %" for name, value in shares.items()}
    return found


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
