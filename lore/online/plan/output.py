"""Output of a plan: a table for people, plan.json for programs, plan.html with the plot, and the route section of the recipe."""

import json
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from rich.box import SIMPLE_HEAD

from lore.eval.measures.bootstrap import Estimate
from lore.eval.report.console import column_titles
from lore.online.config import RouteSection
from lore.online.frequencies import is_frequencies
from lore.online.plan.inputs import Input
from lore.online.plan.plan import Plan, Point, summary
from lore.online.plan.quality import AGREEMENT, METRICS
from lore.support.atomic_files import write_atomic
from lore.support.console import Console, Table, Text, with_room
from lore.support.html import page_style, page_template
from lore.support.outputs import Output, begins_with
from lore.support.svg_plots import TEXT_MARKS, Line, frontier_chart

FREQUENCIES, JSON, HTML, RECIPE = "frequencies.arrow", "plan.json", "plan.html", "online.yaml"
JSON_MARK, HTML_MARK, RECIPE_MARK = '{\n "lore": "plan",', "<!doctype html>\n<!-- lore plan -->", "# Written by `lore plan`"
SHOWN, WIDTH = 16, 132
Inputs = dict[str, Input]


def outputs(folder: Path) -> list[Output]:
    """The files of a plan."""
    return [
        Output(folder / FREQUENCIES, is_frequencies),
        Output(folder / JSON, begins_with(JSON_MARK)),
        Output(folder / HTML, begins_with(HTML_MARK)),
        Output(folder / RECIPE, begins_with(RECIPE_MARK)),
    ]


def show(plan: Plan, inputs: Inputs, machines: dict[str, int], console: Console) -> None:
    """Prints inputs, frontier and the chosen point."""
    log = summary(plan)
    pairs = "" if log["pairs"] is None else f", {log['pairs']:,.0f} pairs"
    about = f"{log['searches']:,.0f} searches in {log['days']:g} days, {log['queries']:,.0f} queries{pairs}"
    console.print(Text(f"{about}; a search is {log['counted']}"), soft_wrap=True)
    table = Table(title="what the plan starts from", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("from", overflow="fold")
    for name, one in inputs.items():
        table.add_row(name, number(one.value), one.basis, one.source)
    with_room(console, WIDTH).print(table)
    with_room(console, WIDTH).print(_table(plan))
    for line in [*headline(plan, machines), *remarks(plan)]:
        console.print(Text(line))


def headings(plan: Plan) -> list[str]:
    return [
        "head from",
        "torso from",
        titles(plan)[plan.setting.metric],
        "p99 ms",
        "USD a day",
        "cached",
        "judge",
        "student",
        "late",
    ]


def titles(plan: Plan) -> dict[str, str]:
    return column_titles(plan.quality.tiers) | {AGREEMENT: "agreement"}


def _table(plan: Plan) -> Table:
    table = Table(
        title="choices that no other one beats (expected)",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in headings(plan):
        table.add_column(heading, justify="right")
    for point, quality in shown_points(plan):
        cells = row(plan, point, quality)
        table.add_row(*(Text(cell, "bold") for cell in cells) if point is plan.chosen else cells)
    return table


def shown_points(plan: Plan) -> list[tuple[Point, Estimate]]:
    """Up to SHOWN points of the frontier, spread over it, and the chosen one; by cost."""
    last, count = len(plan.frontier) - 1, min(SHOWN, len(plan.frontier))
    places = sorted({round(place * last / max(count - 1, 1)) for place in range(count)})
    found = [(plan.frontier[place], plan.intervals[place]) for place in places]
    if all(point is not plan.chosen for point, _ in found):
        found.append((plan.chosen, plan.chosen_quality[plan.setting.metric]))
    return sorted(found, key=lambda one: (one[0].usd_per_day, one[0].quality))


def row(plan: Plan, point: Point, quality: Estimate) -> list[str]:
    shares = [f"{100 * share:.1f} %" for share in (point.coverage, point.by_judge, point.by_student, point.late)]
    return [*thresholds(plan, point), three(quality), number(point.p99_ms), number(point.usd_per_day), *shares]


def thresholds(plan: Plan, point: Point) -> list[str]:
    top = plan.traffic.least[-1]
    head = "no head" if point.head_from > top else f"{point.head_from:g}"
    return [head, "no tail" if point.torso_from == 0 else f"{point.torso_from:g}"]


def three(estimate: Estimate) -> str:
    ends = "" if not isfinite(estimate.low) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{ends}"


def number(value: float) -> str:
    """Three digits or more."""
    if value == 0 or not isfinite(value):
        return "0" if value == 0 else "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def headline(plan: Plan, machines: dict[str, int]) -> list[str]:
    """The proposal in sentences."""
    point, quality = plan.chosen, plan.chosen_quality[plan.setting.metric]
    head, torso = thresholds(plan, point)
    begins = "Nothing is labelled beforehand." if head == "no head" else f"The head begins at {head} searches."
    tail = "The judge answers nobody live." if torso == "no tail" else f"The tail ends at {torso} searches."
    parts = f"{point.usd_labels:,.2f} labels, {point.usd_live:,.2f} live judge, {point.usd_student:,.2f} student"
    busy = " and ".join(f"{count:,} of the {name}" for name, count in machines.items())
    return [
        f"Proposed: {plan.why.replace(plan.setting.metric, titles(plan)[plan.setting.metric])}. {begins} {tail}",
        f"Expected: {titles(plan)[plan.setting.metric]} {three(quality)}, p99 {number(point.p99_ms)} ms, "
        f"{point.usd_per_day:,.2f} USD a day ({parts}), {100 * point.coverage:.1f} % from the cache. "
        f"{point.label_pairs:,.0f} pairs to label before the start, then {number(point.label_pairs_per_day)} a day. "
        f"Machines at the busiest time: {busy}.",
    ]


def remarks(plan: Plan) -> list[str]:
    """What the numbers rest on."""
    return [
        *(f"! {remark}" for remark in plan.quality.remarks),
        "Quality rests on measured verdicts, weighted to the log's traffic; its 95 % interval is over test queries. The share that "
        "the cache answers, late answers, p99 and cost are estimated from the numbers above; queues are not modelled.",
    ]


def route(plan: Plan, frequencies: str, *, judge: bool = True) -> dict[str, Any]:
    """The route section of the recipe. judge: whether the tail may ask the judge."""
    point = plan.chosen
    live = judge and point.torso_from > 0
    section = {
        "frequencies": frequencies,
        "head_from": point.head_from,
        "torso_from": point.torso_from,
        "head": ["cache", "student"],
        "torso": ["cache", "student"],
        "tail": ["cache", "judge", "student"] if live else ["cache", "student"],
    }
    RouteSection.model_validate(section)
    return section


def recipe_text(plan: Plan, frequencies: str) -> str:
    """The sections of the recipe of the service that the plan decides."""
    section = yaml.safe_dump({"route": route(plan, frequencies)}, sort_keys=False, default_flow_style=None, allow_unicode=True)
    line = headline(plan, {})[0]
    return f"{RECIPE_MARK}: sections of a recipe of stage online.\n# {line}\n{section}"


def to_json(plan: Plan, inputs: Inputs, machines: dict[str, int], frequencies: str) -> dict[str, Any]:
    frontier = [{**point.to_json(), "quality": plan.intervals[at].to_json()} for at, point in enumerate(plan.frontier)]
    setting = plan.setting
    return {
        "lore": "plan",
        "log": summary(plan),
        "inputs": {name: one.to_json() for name, one in inputs.items()},
        "setting": {
            name: getattr(setting, name)
            for name in ("metric", "relabel_days", "judge_days", "deadline_ms", "peak", "utilization", "seed")
        },
        "quality": {"from": plan.quality.source, "tiers": plan.quality.tiers, "basis": "measured", "remarks": plan.quality.remarks},
        "chosen": {
            **plan.chosen.to_json(),
            "why": plan.why,
            "basis": "estimated",
            "quality": {name: estimate.to_json() for name, estimate in plan.chosen_quality.items()},
            "bands": {
                band: {who: {name: one.to_json() for name, one in values.items()} for who, values in found.items()}
                for band, found in plan.bands.items()
            },
            "machines": machines,
        },
        "route": route(plan, frequencies),
        "frontier": frontier,
    }


def save(plan: Plan, inputs: Inputs, machines: dict[str, int], folder: Path) -> None:
    """Writes plan.json, plan.html and online.yaml."""
    frequencies = str(folder / FREQUENCIES)
    content = to_json(plan, inputs, machines, frequencies)
    write_atomic(folder / JSON, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(folder / RECIPE, recipe_text(plan, frequencies))
    write_atomic(folder / HTML, html(plan, inputs, machines))


def html(plan: Plan, inputs: Inputs, machines: dict[str, int]) -> str:
    log = summary(plan)
    return page_template(Path(__file__).parent, "plan.html.jinja").render(
        mark=Markup(HTML_MARK),
        style=Markup(page_style()),
        headline=headline(plan, machines),
        log={
            "searches": f"{log['searches']:,.0f} in {log['days']:g} days ({log['searches_per_day']:,.0f} a day)",
            "queries": f"{log['queries']:,.0f}",
            "pairs": "not in the log" if log["pairs"] is None else f"{log['pairs']:,.0f}",
            "a search is": log["counted"],
        },
        plot=Markup(plot(plan)),
        marks=TEXT_MARKS,
        limits=[name for name, _ in limits(plan)],
        columns=headings(plan),
        rows=[{"cells": row(plan, point, quality), "chosen": point is plan.chosen} for point, quality in shown_points(plan)],
        bands=[
            {
                "name": f"{band}, {who}",
                "share": f"{100 * getattr(plan.chosen, band):.1f} %",
                "cells": [three(values[name]) for name in (*METRICS, AGREEMENT)],
            }
            for band, found in plan.bands.items()
            for who, values in found.items()
        ],
        metric=titles(plan)[plan.setting.metric],
        of_bands=[titles(plan)[name] for name in (*METRICS, AGREEMENT)],
        metrics={titles(plan)[name]: three(plan.chosen_quality[name]) for name in (*METRICS, AGREEMENT)},
        inputs=[
            {"name": name, "value": number(one.value), "basis": one.basis, "source": one.source} for name, one in inputs.items()
        ],
        quality=plan.quality.source,
        remarks=remarks(plan),
    )


def limits(plan: Plan) -> list[tuple[str, float]]:
    """Latency limits of the plot's lines: none, and the middle of the frontier's p99."""
    ms = sorted(point.p99_ms for point in plan.frontier)
    middle = ms[len(ms) // 2]
    found = [("any p99", float("inf"))]
    return found if middle >= ms[-1] else [*found, (f"p99 up to {number(middle)} ms", middle)]


def plot(plan: Plan) -> str:
    """Quality over cost: all choices, and the best ones for a latency limit."""
    lines = []
    for series, (_, limit) in enumerate(limits(plan)):
        best: list[Point] = []
        for point in sorted((one for one in plan.frontier if one.p99_ms <= limit), key=lambda one: (one.usd_per_day, -one.quality)):
            if not best or point.quality > best[-1].quality:
                best.append(point)
        lines.append(Line([one.usd_per_day for one in best], [one.quality for one in best], series=series))
    return frontier_chart(
        ([one.usd_per_day for one in plan.points], [one.quality for one in plan.points]),
        lines,
        (plan.chosen.usd_per_day, plan.chosen.quality),
        "expected quality over cost a day",
        xlabel="USD a day",
        ylabel=titles(plan)[plan.setting.metric],
    )
