"""Plots of the report as inline SVG that takes its colours from the page, so that they read in light and dark.

Legends are left to the page, where long names wrap; a series has the same colour and mark in every plot and table.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("svg")

from matplotlib.axes import Axes  # noqa: E402  the backend has to be chosen first
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402

INK, ACCENT, FAINT, SOFT = "#010203", "#040506", "#070809", "#0a0b0c"  # stand for the page's colours until the SVG is written
SERIES = [f"#0d0e{number:02x}" for number in range(16, 22)]
PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", FAINT: "var(--line)", SOFT: "var(--soft)"}
PAGE_COLOURS |= {colour: f"var(--s{number})" for number, colour in enumerate(SERIES)}
MARKS = ["o", "s", "^", "D", "v", "P"]
TEXT_MARKS = ["●", "■", "▲", "◆", "▼", "✚"]
"""How the page writes the marks of the series."""


@dataclass(frozen=True)
class Line:
    """One series of a chart; low and high draw a band around it."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    series: int = 0


def line_chart(
    lines: list[Line],
    title: str,
    *,
    xlabel: str,
    ylabel: str,
    ylim: tuple[float, float],
    xticks: Sequence[float] | None = None,
    log_x: bool = False,
    ceiling: float | None = None,
) -> str:
    """Lines over one pair of axes, with the raters' ceiling across it where it is known. title: what readers who cannot
    see it are told."""
    figure = Figure(figsize=(4.3, 3.1))
    axes = figure.subplots()
    if log_x:
        axes.set_xscale("log", base=2)
    for line in lines:
        number = line.series % len(SERIES)
        style = "-" if line.series < len(SERIES) else "--"
        marked = MARKS[number] if len(line.x) <= 12 else None
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=SERIES[number], alpha=0.13, linewidth=0)
        axes.plot(line.x, line.y, style, color=SERIES[number], marker=marked, markersize=4, linewidth=1.6)
    axes.set(ylim=ylim, xlabel=xlabel, ylabel=ylabel)
    if xticks is not None:
        axes.set_xticks(xticks, [f"{tick:g}" for tick in xticks])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, 1)
    _ceiling_line(axes, ceiling)
    _dress(axes)
    figure.tight_layout()
    return page_svg(figure, title)


def reliability_svg(
    rows: list[dict[str, float | None]],
    calibrated: list[dict[str, float | None]] | None,
    title: str,
    *,
    ceiling: float | None = None,
) -> str:
    """Reliability diagram: accuracy against confidence, the share of the pairs in each bin as bars below and as the
    size of the points. ceiling: the accuracy of a single rater."""
    figure = Figure(figsize=(3.6, 3.9))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2)
    whole = sum(row["weight"] for row in rows) or 1
    for table, style, colour in ((rows, "-", ACCENT), (calibrated, "--", INK)):
        filled = [row for row in table or [] if row["confidence"] is not None]
        if filled:
            points = [row["confidence"] for row in filled], [row["accuracy"] for row in filled]
            sizes = [4 + 110 * row["weight"] / whole for row in filled]
            upper.plot(*points, style, linewidth=1.1, color=colour)
            upper.scatter(*points, s=sizes, color=colour, linewidth=0, zorder=3, clip_on=False)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    _ceiling_line(upper, ceiling)
    lower.bar(
        [row["low"] for row in rows],
        [row["weight"] / whole for row in rows],
        width=[0.86 * (row["high"] - row["low"]) for row in rows],
        align="edge",
        color=ACCENT,
        edgecolor="none",
        alpha=0.7,
    )
    lower.set(xlabel="confidence", ylabel="share")
    for axes in (upper, lower):
        _dress(axes)
    figure.align_ylabels()
    figure.tight_layout()
    return page_svg(figure, title)


def _ceiling_line(axes: Axes, ceiling: float | None) -> None:
    """A single rater's value, named beside the axes, where no curve can cross the name."""
    if ceiling is None:
        return
    axes.axhline(ceiling, color=SOFT, linewidth=1.1, linestyle=(0, (2, 2)))
    beside = axes.get_yaxis_transform()
    axes.text(1.02, ceiling, f"rater\n{ceiling:.2f}", transform=beside, ha="left", va="center", fontsize=8.5, color=SOFT)


def _dress(axes: Axes) -> None:
    """The page's ink and thin lines."""
    axes.patch.set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def page_svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element without ids, size or colours of its own. `title` is for readers who cannot see
    it."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = re.sub(r'font-family: [^;"]*', "font-family: inherit", svg)
    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL
    )  # its rule would reach the whole page
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    for marker, colour in PAGE_COLOURS.items():
        svg = svg.replace(marker, colour)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
