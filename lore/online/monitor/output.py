"""Output of a report: a table for people, monitor.json for programs, monitor.html with the plots."""

import json
from math import isfinite
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.box import SIMPLE_HEAD

from lore.eval.goodrate.estimate import Rate
from lore.eval.measures.bootstrap import Estimate
from lore.online.monitor.charts import Chart
from lore.online.monitor.days import BANDS
from lore.online.monitor.report import ALL, Day, Report
from lore.online.shadow import day_name
from lore.support.atomic_files import write_atomic
from lore.support.console import Console, Table, Text, with_room
from lore.support.html import page_style, page_template
from lore.support.outputs import Output, begins_with
from lore.support.svg_plots import TEXT_MARKS, Line, line_chart
from lore.support.text import counted

JSON, HTML = "monitor.json", "monitor.html"
JSON_MARK, HTML_MARK = '{\n "lore": "monitor",', "<!doctype html>\n<!-- lore monitor -->"
SHOWN_DAYS, WIDTH, TICKS = 14, 132, 6


def outputs(folder: Path) -> list[Output]:
    """The files of a report."""
    return [Output(folder / JSON, begins_with(JSON_MARK)), Output(folder / HTML, begins_with(HTML_MARK))]


def save(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / JSON, json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(folder / HTML, html(report))


def show(report: Report, console: Console) -> None:
    for line in report.headline:
        console.print(Text(line, "bold"), soft_wrap=True)
    table = Table(title="what is watched", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in CHART_COLUMNS:
        table.add_column(name, justify="left" if name in ("", "state") else "right")
    for chart in report.charts:
        table.add_row(*chart_cells(chart))
    with_room(console, WIDTH).print(table)
    days = Table(title=f"the last {SHOWN_DAYS} days", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in day_columns(report):
        days.add_column(name, justify="right")
    for cells in day_rows(report)[-SHOWN_DAYS:]:
        days.add_row(*cells)
    with_room(console, WIDTH).print(days)
    for line in [*probe_lines(report), *report.remarks]:
        console.print(Text(line), soft_wrap=True)


CHART_COLUMNS = ("", "reference", "last day", "95 %", "pairs", "design effect", "sum", "threshold", "state")


def chart_cells(chart: Chart) -> list[str]:
    at = len(chart.days) - 1
    is_share = chart.kind == "agreement"
    value = percent if is_share else three
    around = f"{value(chart.low[at])} to {value(chart.high[at])}" if is_share else f"to {value(chart.high[at])}"
    known = [one for one in chart.sums if isfinite(one)]
    return [
        chart.name if is_share else f"PSI of {chart.name}",
        percent(chart.reference) if is_share else "",
        value(chart.values[at]),
        around if isfinite(chart.high[at]) else "–",
        f"{chart.pairs[at]:,}",
        f"{chart.design_effect:.2f}",
        one_digit(known[-1] if known else float("nan")),
        one_digit(chart.threshold),
        state(chart),
    ]


def state(chart: Chart) -> str:
    if chart.why_not is not None:
        return f"not watched: {chart.why_not}"
    if chart.alarm is None:
        return "no alarm"
    return f"alarm on {day_name(chart.alarm)}, {'rises' if chart.rises else 'falls'} since about {day_name(chart.began)}"


def day_columns(report: Report) -> list[str]:
    agreement = [f"agree {name}" for name in (ALL, *BANDS) if _chart(report, name) is not None]
    return ["day", "pairs", "judged", *agreement, "PSI scores", "PSI tiers", "GoodRate", *report.tier_ids]


def day_rows(report: Report) -> list[list[str]]:
    named = [chart for name in (ALL, *BANDS) if (chart := _chart(report, name)) is not None]
    mixes = [chart for chart in report.charts if chart.kind == "mix"]
    rows = []
    for one in report.days:
        shares = [f"{count / one.pairs:.0%}" for count in one.tiers]
        values = [*(percent(_on(chart, one.day)) for chart in named), *(three(_on(chart, one.day)) for chart in mixes)]
        rows.append([day_name(one.day), f"{one.pairs:,}", f"{one.judged:,}", *values, goodrate(one), *shares])
    return rows


def goodrate(day: Day) -> str:
    if day.goodrate is None:
        return "–"
    found = _estimate(day.goodrate)
    ends = f" [{percent(found.low)}, {percent(found.high)}]" if isfinite(found.low) else ""
    return f"{percent(found.value)}{ends}"


def _estimate(rate: Rate) -> Estimate:
    """With the raters' labels, where there are some."""
    return rate.estimate.powered if rate.rated > 0 else rate.estimate.judge


def probe_lines(report: Report) -> list[str]:
    found = []
    for line in report.probes:
        if not line.nights:
            found.append(f"Probe of the {line.who}: no nights.")
            continue
        last = line.nights[-1]
        rated = f"; {percent(last.accuracy)} [{percent(last.low)}, {percent(last.high)}] have the raters' tier"
        found.append(
            f"Probe of the {line.who}: {counted(len(line.nights), 'night')}; on {day_name(last.day)} {last.flips} of {last.pairs} "
            f"frozen pairs have another tier than on {day_name(line.nights[0].day)}{rated if isfinite(last.accuracy) else ''}. "
            + ("It stands still." if line.changed is None else f"It has changed on {day_name(line.changed)}: {line.why}.")
        )
    return found


def to_json(report: Report) -> dict[str, Any]:
    watch = report.watch
    return {
        "lore": "monitor",
        "headline": report.headline,
        "changes": [{"who": one.who, "day": day_name(one.day), "why": one.why} for one in report.changes],
        "setting": {
            "reference": [day_name(day) for day in sorted(watch.reference)],
            "horizon_days": watch.horizon,
            "false_alarms": watch.chance,
            "charts": watch.charts,
        },
        "charts": [
            {
                "name": chart.name,
                "kind": chart.kind,
                "reference": finite(chart.reference),
                "design_effect": chart.design_effect,
                "threshold": finite(chart.threshold),
                "alarm": chart.alarm and day_name(chart.alarm),
                "began": chart.began and day_name(chart.began),
                "state": state(chart),
                "days": [
                    {
                        "day": day_name(int(day)),
                        "pairs": int(chart.pairs[at]),
                        "value": finite(chart.values[at]),
                        "low": finite(chart.low[at]),
                        "high": finite(chart.high[at]),
                        "sum": finite(chart.sums[at]),
                    }
                    for at, day in enumerate(chart.days)
                ],
            }
            for chart in report.charts
        ],
        "days": [
            {
                "day": day_name(one.day),
                "pairs": one.pairs,
                "judged": one.judged,
                "unanswered": one.unanswered,
                "tiers": dict(zip(report.tier_ids, one.tiers, strict=True)),
                "bands": dict(zip(BANDS, one.bands, strict=True)),
                "goodrate": one.goodrate
                and {
                    "rated": one.goodrate.rated,
                    **{name: getattr(one.goodrate.estimate, name).to_json() for name in ("judge", "rated", "powered")},
                },
            }
            for one in report.days
        ],
        "probes": [
            {
                "who": line.who,
                "changed": line.changed and day_name(line.changed),
                "why": line.why,
                "nights": [
                    {
                        "day": day_name(night.day),
                        "judge_ids": night.judge_ids,
                        "answered": night.answered,
                        "flips": night.flips,
                        "pairs": night.pairs,
                        "chance": night.chance,
                        "moved": finite(night.moved),
                        "accuracy": finite(night.accuracy),
                    }
                    for night in line.nights
                ],
            }
            for line in report.probes
        ],
        "remarks": report.remarks,
    }


def html(report: Report) -> str:
    bands = [name for name in (ALL, *BANDS) if _chart(report, name) is not None]
    return page_template(Path(__file__).parent, "monitor.html.jinja").render(
        mark=Markup(HTML_MARK),
        style=Markup(page_style()),
        headline=report.headline,
        charts=[dict(zip(CHART_COLUMNS, chart_cells(chart), strict=True)) for chart in report.charts],
        chart_columns=CHART_COLUMNS,
        agreement=Markup(_agreement_plot(report, bands)) if bands else None,
        bands=bands,
        mixes=Markup(_mix_plot(report)),
        rates=Markup(plot) if (plot := _goodrate_plot(report)) else None,
        marks=TEXT_MARKS,
        day_columns=day_columns(report),
        days=day_rows(report),
        probes=probe_lines(report),
        remarks=report.remarks,
        watch=report.watch,
        reference=[day_name(day) for day in sorted(report.watch.reference)],
        chance=f"{report.watch.chance:.0%}",
    )


def _ticks(report: Report) -> tuple[list[float], list[str]]:
    days = [one.day for one in report.days]
    step = max(1, (len(days) + TICKS - 1) // TICKS)
    shown = days[::step]
    return [float(day) for day in shown], [day_name(day)[5:] for day in shown]


def _agreement_plot(report: Report, bands: list[str]) -> str:
    lines, lowest = [], 1.0
    for series, name in enumerate(bands):
        chart = _chart(report, name)
        lines.append(Line(chart.days, chart.values, chart.low, chart.high, series))
        lowest = min(lowest, float(chart.low.min()))
    ticks, labels = _ticks(report)
    return line_chart(
        lines,
        "agreement by band over days",
        xlabel="day",
        ylabel="agreement with the judge",
        ylim=(max(0.0, lowest - 0.02), 1.01),
        xticks=ticks,
        xlabels=labels,
    )


def _mix_plot(report: Report) -> str:
    lines, most = [], 0.05
    for series, chart in enumerate(chart for chart in report.charts if chart.kind == "mix"):
        lines.append(Line(chart.days, chart.values, series=series))
        most = max(most, *(value for value in chart.values if isfinite(value)), 0.0)
    ticks, labels = _ticks(report)
    title = "PSI against the reference over days"
    return line_chart(lines, title, xlabel="day", ylabel="PSI", ylim=(0.0, 1.1 * most), xticks=ticks, xlabels=labels)


def _goodrate_plot(report: Report) -> str | None:
    known = [(one.day, one.goodrate) for one in report.days if one.goodrate is not None]
    if not known:
        return None
    found = [_estimate(rate) for _, rate in known]
    low = [one.low if isfinite(one.low) else one.value for one in found]
    high = [one.high if isfinite(one.high) else one.value for one in found]
    line = Line([float(day) for day, _ in known], [one.value for one in found], low, high)
    ticks, labels = _ticks(report)
    ylim = (max(0.0, min(low) - 0.02), min(1.01, max(high) + 0.02))
    return line_chart([line], "GoodRate over days", xlabel="day", ylabel="GoodRate", ylim=ylim, xticks=ticks, xlabels=labels)


def _chart(report: Report, band: str) -> Chart | None:
    return next((chart for chart in report.charts if chart.name == f"agreement, {band}"), None)


def _on(chart: Chart, day: int) -> float:
    at = chart.days.searchsorted(day)
    return float(chart.values[at]) if at < len(chart.days) and chart.days[at] == day else float("nan")


def finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None


def percent(value: float) -> str:
    return f"{100 * value:.1f} %" if isfinite(value) else "–"


def three(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else "–"


def one_digit(value: float) -> str:
    return f"{value:.1f}" if isfinite(value) else "–"
