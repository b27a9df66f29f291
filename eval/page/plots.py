"""Plots of the report as inline SVG that takes its colours from the page, so that they read in light and dark."""

import io
import re

import matplotlib

matplotlib.use("svg")

from matplotlib.figure import Figure  # noqa: E402  the backend has to be chosen first

INK, ACCENT, FAINT = "#010203", "#040506", "#070809"  # stand for the page's colours until the SVG is written
PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", FAINT: "var(--line)"}


def reliability_svg(
    rows: list[dict[str, float | None]], calibrated: list[dict[str, float | None]] | None, title: str
) -> str:
    """Reliability diagram: accuracy against confidence, the share of the pairs in each bin as bars below."""
    figure = Figure(figsize=(3.6, 3.9))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2)
    for table, style, label in ((rows, "-", "as given"), (calibrated, "--", "after temperature")):
        filled = [row for row in table or [] if row["confidence"] is not None]
        if filled:
            points = [row["confidence"] for row in filled], [row["accuracy"] for row in filled]
            upper.plot(
                *points,
                style,
                marker="o",
                markersize=3.5,
                linewidth=1.4,
                color=ACCENT if style == "-" else INK,
                label=label,
            )
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    legend = upper.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)
    legend.set_in_layout(False)
    whole = sum(row["weight"] for row in rows) or 1
    lower.bar(
        [row["low"] for row in rows],
        [row["weight"] / whole for row in rows],
        width=[row["high"] - row["low"] for row in rows],
        align="edge",
        color=ACCENT,
        edgecolor="none",
        alpha=0.7,
    )
    lower.set(xlabel="confidence", ylabel="share")
    for axes in (upper, lower):
        axes.patch.set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(FAINT)
    figure.align_ylabels()
    figure.tight_layout()
    return page_svg(figure, title)


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
    for marker, colour in PAGE_COLOURS.items():
        svg = svg.replace(marker, colour)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
