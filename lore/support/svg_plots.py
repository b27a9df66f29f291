"""Plots of the report as inline SVG. They take their colors from the page and so work in light and dark mode.

The page draws the legends, because long names wrap there. A series has the same color and marker in every plot and table.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("svg")

from matplotlib.axes import Axes  # noqa: E402  the backend must be set first
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

from lore.support.text import printable, printable_lines  # noqa: E402

INK, ACCENT, FAINT, SOFT = "#010203", "#040506", "#070809", "#0a0b0c"  # placeholders; page_svg replaces them with the page's colors
SERIES = [f"#0d0e{number:02x}" for number in range(16, 22)]
PAGE_COLORS = {INK: "currentColor", ACCENT: "var(--accent)", FAINT: "var(--line)", SOFT: "var(--soft)"}
PAGE_COLORS |= {color: f"var(--s{number})" for number, color in enumerate(SERIES)}
MARKS = ["o", "s", "^", "D", "v", "P"]
TEXT_MARKS = ["●", "■", "▲", "◆", "▼", "✚"]
"""The markers of the series as characters, for legends and tables of the page."""


@dataclass(frozen=True)
class Line:
    """One series of a chart. low and high: bounds of a band around the line."""

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
    xlabels: Sequence[str] | None = None,
    log_x: bool = False,
    ceiling: float | None = None,
) -> str:
    """A line chart as an <svg> element. title: the aria-label for screen readers. xlabels: of the ticks; None: their values.
    ceiling: value of a single rater, drawn as a horizontal line."""
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
        axes.set_xticks(xticks, [f"{tick:g}" for tick in xticks] if xlabels is None else xlabels)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, 1)
    _ceiling_line(axes, ceiling)
    _dress(axes)
    figure.tight_layout()
    return page_svg(figure, title)


def frontier_chart(
    points: tuple[Sequence[float], Sequence[float]],
    lines: list[Line],
    chosen: tuple[float, float],
    title: str,
    *,
    xlabel: str,
    ylabel: str,
) -> str:
    """All choices as faint points, the best ones as steps, and a ring around the chosen one, as an <svg> element. The horizontal
    axis is logarithmic if the points spread over more than a factor of ten."""
    figure = Figure(figsize=(4.8, 3.3))
    axes = figure.subplots()
    axes.scatter(*points, s=7, color=SOFT, alpha=0.35, linewidth=0)
    for line in lines:
        number = line.series % len(SERIES)
        style = {"color": SERIES[number], "marker": MARKS[number], "markersize": 4, "linewidth": 1.4, "drawstyle": "steps-post"}
        axes.plot(line.x, line.y, **style)
    axes.scatter(*([value] for value in chosen), s=90, facecolor="none", edgecolor=INK, linewidth=1.4, zorder=4)
    if 0 < 10 * min(points[0]) < max(points[0]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=xlabel, ylabel=ylabel)
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
    """Reliability diagram as an <svg> element: accuracy over confidence. Bars below and the point sizes show the share of pairs in
    each bin. ceiling: the accuracy of a single rater."""
    figure = Figure(figsize=(3.6, 3.9))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2)
    whole = sum(row["weight"] for row in rows) or 1
    for table, style, color in ((rows, "-", ACCENT), (calibrated, "--", INK)):
        filled = [row for row in table or [] if row["confidence"] is not None]
        if filled:
            points = [row["confidence"] for row in filled], [row["accuracy"] for row in filled]
            sizes = [4 + 110 * row["weight"] / whole for row in filled]
            upper.plot(*points, style, linewidth=1.1, color=color)
            upper.scatter(*points, s=sizes, color=color, linewidth=0, zorder=3, clip_on=False)
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
    """Draws the value of a single rater as a line. Its label is outside the axes, so that no curve crosses it."""
    if ceiling is None:
        return
    axes.axhline(ceiling, color=SOFT, linewidth=1.1, linestyle=(0, (2, 2)))
    at_right = axes.get_yaxis_transform()
    axes.text(1.02, ceiling, f"rater\n{ceiling:.2f}", transform=at_right, ha="left", va="center", fontsize=8.5, color=SOFT)


def _dress(axes: Axes) -> None:
    """Sets the page's text color, thin grid lines and two spines."""
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
    """The figure as an <svg> element without ids, size or fixed colors. title: the aria-label for screen readers."""
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
    )  # the style rule would apply to the whole page
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    for marker, color in PAGE_COLORS.items():
        svg = svg.replace(marker, color)
    label = printable(title).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = printable_lines(svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
