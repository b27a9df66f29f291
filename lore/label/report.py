"""Writes report.html of a label folder: what was labelled, tiers by query frequency and slice, drift, failures, cost, random pairs.

The page is self-contained. Queries, items and rationales are untrusted text, so the template escapes everything and the page's
content security policy allows no script and no external resource.
"""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lore.eval.report.mistakes import rules_with_principles, tier_names
from lore.label.drift import LOG_ODDS
from lore.label.summary import BandDrift, RunTotals, Summary, band_title
from lore.label.tally import ALL
from lore.rubric.rubric import Rubric
from lore.support.atomic_files import write_atomic
from lore.support.html import page_style, page_template

REPORT = "report.html"
FOLDER = Path(__file__).parent
MOVED = ("some drift", "large drift")
RELEVANCE_NAMES = ("below .01", ".01 to .1", ".1 to .5", ".5 to .9", ".9 to .99", "above .99")
RELEVANCE_EDGES = (-4.6, -2.2, 0.0, 2.2, 4.6)
"""Log-odds of .01, .1, .5, .9 and .99, as edges of the histogram."""
RELEVANCE_COLORS = (("wrong", 0.6), ("wrong", 0.4), ("wrong", 0.2), ("good", 0.2), ("good", 0.4), ("good", 0.6))
LABELLED_FROM = 9.0  # percent: a narrower segment has no room for its number


def write_report(folder: Path, summary: Summary, rubric: Rubric, described: str) -> None:
    """Writes report.html into the label folder. described: one line on the judge and how it is asked."""
    colors = [_color(rubric, tier) for tier in rubric.tier_ids]
    html = page_template(FOLDER, "report.html.jinja").render(
        title=f"Labels in {folder.name or folder}: {rubric.name}",
        style=Markup(page_style()),
        headline=headline(summary, rubric),
        facts=facts(summary, described),
        tiers=[{"name": name, "color": _color(rubric, tier)} for tier, name in tier_names(rubric).items()],
        stacks=[_stack(band_title(name, summary), band.tiers, colors) for name, band in summary.bands.items()],
        bands=_band_rows(summary),
        tier_ids=summary.tiers,
        head_from=summary.head_from,
        slices=[_stack(name, tiers, colors) for name, tiers in summary.slices.items()],
        more_slices=summary.more_slices,
        relevance=_relevance(summary),
        drift=_drift(summary, rubric),
        no_drift=summary.no_drift,
        failures=summary.failures,
        costs=costs(summary.totals) if summary.totals is not None and summary.totals.pairs else {},
        examples=[_example(one, rubric) for one in summary.examples],
    )
    write_atomic(folder / REPORT, html)


def headline(summary: Summary, rubric: Rubric) -> list[str]:
    """How much is labelled, how much of it is relevant, and whether it has drifted."""
    pairs = summary.pairs
    if not pairs:
        return ["No pair is labelled yet."]
    good = [tier.id for tier in rubric.tiers if tier.relevant]
    relevant = _share(sum(summary.bands[ALL].tiers[tier] for tier in good), pairs)
    said = [f"{pairs:,} pairs of {summary.queries:,} queries are labelled; {relevant} are relevant ({', '.join(good)})."]
    if lost := summary.pending + summary.final:
        said.append(f"{lost:,} have no verdict: {summary.pending:,} are asked again at the next start, {summary.final:,} never.")
    if summary.drift is not None:
        drifted = [
            f"{name} ({one.tiers_reading if one.tiers_reading in MOVED else one.relevance_reading})"
            for name, one in summary.drift.bands.items()
            if one.tiers_reading in MOVED or one.relevance_reading in MOVED
        ]
        against = "the last run" if drifted else f"the last run ({summary.drift.against})"
        said.append(f"Drift against {against}: {', '.join(drifted)}." if drifted else f"No drift against {against}.")
    return said


def facts(summary: Summary, described: str) -> dict[str, str]:
    """What was labelled, and by whom."""
    found = {
        "judge": described,
        "rubric": summary.rubric,
        "pairs": f"{summary.pairs:,} with a verdict, of {summary.queries:,} queries",
        "answers from": _counted(summary.sources, summary.pairs),
        "photos": _counted(summary.photos, summary.pairs),
        "judge ids": _counted(summary.judges, summary.pairs),
        "generated tokens": f"{summary.generated_tokens:,}" if summary.generated_tokens else "",
    }
    return {name: value for name, value in found.items() if value}


def costs(totals: RunTotals) -> dict[str, str]:
    """Speed, cache hits and cost of this start."""
    rate = totals.pairs / totals.seconds if totals.seconds else 0.0
    cached = _share(totals.cached_tokens, totals.prompt_tokens)
    found = {"labelled in this start": f"{totals.pairs:,} pairs in {duration(totals.seconds)}"}
    if rate:
        found["speed"] = f"{rate:,.1f} pairs/s, {1e6 / rate / 3600:,.1f} hours per million pairs"
    if totals.prompt_tokens:
        found["prompt tokens"] = f"{totals.prompt_tokens:,}, {totals.prompt_tokens / totals.pairs:,.0f} per pair"
        found["prefix cache"] = f"{cached} of the prompt tokens were not processed again"
    if totals.generated_tokens:
        found["generated tokens"] = f"{totals.generated_tokens:,}, {totals.generated_tokens / totals.pairs:,.1f} per pair"
    if totals.usd is not None:
        found["cost"] = f"{totals.usd:,.2f} USD, {1000 * totals.usd / totals.pairs:,.4f} USD per 1,000 pairs"
    return found


def duration(seconds: float) -> str:
    """Seconds as `12.3 s`, `4 min 05 s` or `3 h 07 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _counted(counts: dict[str, int], whole: int) -> str:
    shares = {name: f" ({_share(pairs, whole)})" if len(counts) > 1 else "" for name, pairs in counts.items()}
    return ", ".join(f"{name} {pairs:,}{shares[name]}" for name, pairs in counts.items())


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _color(rubric: Rubric, tier: str) -> str:
    """Irrelevant tiers in one hue and relevant ones in another, stronger towards the ends of the scale."""
    relevant = rubric.relevant_mask[rubric.index(tier)]
    side = [name for name, mask in zip(rubric.tier_ids, rubric.relevant_mask, strict=True) if mask == relevant]
    step = side.index(tier) + 1 if relevant else len(side) - side.index(tier)
    return f"rgba(var(--{'good' if relevant else 'wrong'}), {0.2 + 0.4 * step / len(side):.2f})"


def _stack(name: str, parts: dict[str, int], colors: list[str]) -> dict[str, Any]:
    """One stacked bar: a segment per part, in their order."""
    whole = sum(parts.values())
    segments = []
    for (part, pairs), color in zip(parts.items(), colors, strict=True):
        width = 100 * pairs / whole if whole else 0.0
        shown = f"{width:.0f} %" if width >= LABELLED_FROM else ""
        segments.append({"width": f"{width:.3f}", "color": color, "text": shown, "title": f"{part}: {pairs:,}"})
    told = ", ".join(f"{part} {_share(pairs, whole)}" for part, pairs in parts.items())
    return {"name": name, "pairs": f"{whole:,} pairs", "segments": segments, "told": f"{name}: {told}"}


def _band_rows(summary: Summary) -> list[dict[str, Any]]:
    rows = []
    for name, band in summary.bands.items():
        cells = [{"count": f"{band.tiers[tier]:,}", "share": _share(band.tiers[tier], band.pairs)} for tier in summary.tiers]
        means = ["–" if value is None else f"{value:.3f}" for value in (band.confidence, band.entropy)]
        row = {"name": band_title(name, summary), "pairs": f"{band.pairs:,}", "failed": f"{band.failed:,}"}
        rows.append(row | {"cells": cells, "means": means})
    return rows


def _relevance(summary: Summary) -> dict[str, Any] | None:
    """P(relevant) as stacked bars, now and in the last run; None if no verdict has probabilities."""
    bands = {"now": summary.bands[ALL]}
    if summary.drift is not None:
        bands = {"before": summary.drift.before[ALL]} | bands
    if not any(bands["now"].relevance):
        return None
    colors = [f"rgba(var(--{hue}), {strength})" for hue, strength in RELEVANCE_COLORS]
    starts = [0, *(int(np.searchsorted(LOG_ODDS, edge, side="right")) for edge in RELEVANCE_EDGES)]
    stacks = []
    for name, band in bands.items():
        parts = dict(zip(RELEVANCE_NAMES, np.add.reduceat(band.relevance, starts).tolist(), strict=True))
        stacks.append(_stack(name, parts, colors))
    legend = [{"name": name, "color": color} for name, color in zip(RELEVANCE_NAMES, colors, strict=True)]
    return {"stacks": stacks, "legend": legend}


def _drift(summary: Summary, rubric: Rubric) -> dict[str, Any] | None:
    drift = summary.drift
    if drift is None:
        return None
    colors = [_color(rubric, tier) for tier in rubric.tier_ids]
    stacks = [_stack("before", drift.before[ALL].tiers, colors), _stack("now", summary.bands[ALL].tiers, colors)]
    rows = [
        {"name": band_title(name, summary), "before": f"{one.before:,}", "now": f"{one.now:,}", "cells": _psi(one)}
        for name, one in drift.bands.items()
    ]
    changed = None
    if drift.changed is not None:
        found = drift.changed
        moves = sorted(((pairs, a, b) for a, to in found.moves.items() for b, pairs in to.items()), reverse=True)
        most = max((pairs for to in found.moves.values() for pairs in to.values()), default=1)
        changed = {
            "both": f"{found.both:,}",
            "changed": f"{found.changed:,}",
            "share": _share(found.changed, found.both),
            "most": ", ".join(f"{a} to {b} {pairs:,}" for pairs, a, b in moves[:3]),
            "rows": [
                {"tier": a, "cells": [{"pairs": found.moves.get(a, {}).get(b, 0), "same": a == b} for b in summary.tiers]}
                for a in summary.tiers
            ],
            "largest": most,
        }
    return {"against": drift.against, "stacks": stacks, "rows": rows, "changed": changed}


def _psi(one: BandDrift) -> list[dict[str, Any]]:
    cells = []
    for value, noise, said in (
        (one.tiers, one.tiers_noise, one.tiers_reading),
        (one.relevance, one.relevance_noise, one.relevance_reading),
    ):
        shown = "–" if value is None else f"{value:.3f}"
        cells.append({"value": shown, "noise": f"{noise:.3f}", "reading": said, "moved": said in MOVED})
    return cells


def _example(one: Any, rubric: Rubric) -> dict[str, Any]:
    names = tier_names(rubric)
    return one.model_dump() | {
        "tier": names[one.tier],
        "color": _color(rubric, one.tier),
        "probability": "" if one.probability is None else f"{one.probability:.2f}",
        "rules": rules_with_principles(one.rules, rubric),
    }
