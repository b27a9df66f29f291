"""report.html: one file that needs nothing else. Summary, calibration, confusion, slices, and the mistakes worth
reading.

Item text, photos and rationales were written by strangers: the template escapes everything, the page's policy forbids
scripts and loads, and photos are decoded and written again as small JPEGs. Lists, texts and photos are bounded, so the
file stays at a few megabytes.
"""

import base64
import io
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from lore.eval.measures.bootstrap import Estimate, two_digits
from lore.eval.measures.metrics import NO_VERDICT
from lore.eval.page.plots import reliability_svg
from lore.eval.predictions import Verdict
from lore.eval.scorecard import Answers, Part, Scorecard
from lore.eval.sections import ReportSection
from lore.eval.table import best_value, column_titles, shown_columns
from lore.eval.testset import EvalData, Labelled, read_chosen
from lore.pairs import ImageError, Pair, load_image

MAX_SLICES = 24
MAX_FAILURES = 8
MAX_CHARS = {
    "query": 300,
    "title": 300,
    "rationale": 1200,
    "gold_rationale": 1200,
    "rules": 300,
    "mismatch": 80,
    "text": 800,
    "pair_id": 80,
    "verdict": 80,
}
PHOTO_NOTES = {"failed": "photo unreadable, judged as text", "hidden": "photo not shown to this judge"}


@dataclass
class Mistake:
    """Where to look: which pair, its label, and why it is shown."""

    pair_id: str
    label: str
    why: str
    confidence: float | None


def choose_mistakes(answers: Answers, test: Labelled, tier_ids: list[str], limit: int) -> list[Mistake]:
    """The most distant wrong verdicts, the most confident others, and format failures: `limit` of each, no pair
    twice."""
    confidence = answers.confidence()
    sure = np.zeros(len(test)) if confidence is None else confidence
    distance = np.abs(answers.predicted - test.gold)
    wrong = np.flatnonzero((answers.predicted != test.gold) & (answers.predicted != NO_VERDICT))
    farthest = wrong[np.lexsort((-sure[wrong], -distance[wrong]))][:limit].tolist()
    chosen = {index: f"{distance[index]} tier{'s' * bool(distance[index] > 1)} off" for index in farthest}
    if confidence is not None:
        surest = wrong[np.argsort(-sure[wrong], kind="stable")].tolist()
        chosen |= dict.fromkeys([index for index in surest if index not in chosen][:limit], "sure and wrong")
    mistakes = [
        Mistake(test.pair_ids[index], tier_ids[test.gold[index]], why, None if confidence is None else sure[index])
        for index, why in chosen.items()
    ]
    failed = np.flatnonzero(answers.predicted == NO_VERDICT)[:limit].tolist()
    return mistakes + [
        Mistake(test.pair_ids[index], tier_ids[test.gold[index]], "no verdict", None) for index in failed
    ]


def write_report(
    path: Path,
    *,
    title: str,
    cards: list[Scorecard],
    verdicts: dict[str, dict[str, Verdict]],
    data: EvalData,
    options: ReportSection,
    facts: dict[str, str],
) -> None:
    """Writes the report. verdicts: judge name to its verdicts by pair_id; facts: what the page says about data and
    settings."""
    rubric, test = data.rubric, data.test
    explained = [card.name for card in cards if card.kind in ("model", "predictions")]
    explained = explained or [card.name for card in cards if card.kind == "lexical"]
    tier_ids = rubric.tier_ids
    chosen = {
        name: choose_mistakes(Answers.of(verdicts[name], test, rubric), test, tier_ids, options.mistakes)
        for name in explained
    }
    pairs, photos = {}, {}
    wanted = {mistake.pair_id for mistakes in chosen.values() for mistake in mistakes}
    for pair in read_chosen(data.path, test.split, wanted) if wanted else ():
        photos[pair.pair_id] = thumbnail(pair, options.thumbnail_pixels)
        pairs[pair.pair_id], pair.image = pair, None
    names = {tier.id: tier.id if tier.name == tier.id else f"{tier.id} {tier.name}" for tier in rubric.tiers}
    sections = []
    for card in cards:
        shown = [
            shown_mistake(m, pairs[m.pair_id], verdicts[card.name][m.pair_id], names) | {"photo": photos[m.pair_id]}
            for m in chosen.get(card.name, [])
        ]
        sections.append(judge_section(card, tier_ids) | {"mistakes": shown})
    tables = [("Summary", summary_table({card.name: card.whole for card in cards}, rubric.tier_ids))]
    if cards[0].natural is not None:
        tables.append(
            ("Under the given prior", summary_table({card.name: card.natural for card in cards}, rubric.tier_ids))
        )
    shares = np.bincount(test.gold, minlength=len(rubric.tier_ids)) / max(len(test), 1)
    html = _template().render(
        title=title,
        facts=facts,
        tables=tables,
        sections=sections,
        slices=slice_rows(cards),
        slice_metric=column_titles(rubric.tier_ids)["acc_k"],
        tiers=[
            {"id": tier.id, "name": names[tier.id], "share": float(share)}
            for tier, share in zip(rubric.tiers, shares, strict=True)
        ],
    )
    part = path.with_name(f".{path.name}.part")
    part.write_text(html, encoding="utf-8")
    part.replace(path)


def judge_section(card: Scorecard, tier_ids: list[str]) -> dict[str, Any]:
    """Calibration, confusion and what went wrong for one judge."""
    diagram = None
    if card.reliability:
        diagram = reliability_svg(card.reliability, card.reliability_calibrated, f"Reliability of {card.name}")
    failures = [f"{bounded(reason, 60)} {times}" for reason, times in list(card.failures.items())[:MAX_FAILURES]]
    photos = [f"{state} {times}" for state, times in card.photos.items()]
    return {
        "card": card,
        "failures": ", ".join(failures),
        "photos": ", ".join(photos),
        "reliability": diagram,
        "confusion": confusion_rows(card.confusion, tier_ids),
    }


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.jinja")


def summary_table(parts: dict[str, Part], tier_ids: list[str]) -> dict[str, Any]:
    """Column titles, and per judge a value, its interval and whether it is the best of its column."""
    titles = shown_columns(list(parts.values()), tier_ids)
    best = {name: best_value(name, parts) for name in titles}
    rows = []
    for judge, part in parts.items():
        cells = []
        for name in titles:
            value = part.metrics.get(name, Estimate(float("nan")))
            cells.append(_cell(value) | {"best": value.value == best[name]})
        rows.append({"judge": judge, "cells": cells})
    return {"titles": list(titles.values()), "rows": rows}


def slice_rows(cards: list[Scorecard]) -> list[dict[str, Any]]:
    """The largest slices with every judge's bar, positions in percent."""
    rows = []
    for name, part in list(cards[0].slices.items())[:MAX_SLICES]:
        bars = []
        for card in cards:
            value = card.slices[name].metrics["acc_k"]
            bars.append({"judge": card.name} | _cell(value) | _percentages(value))
        rows.append({"name": bounded(name, 80), "pairs": part.pairs, "queries": part.queries, "bars": bars})
    return rows


def confusion_rows(confusion: np.ndarray, tier_ids: list[str]) -> dict[str, Any]:
    """Rows of the confusion matrix with counts and row shares; the failure column only where there are failures."""
    columns = list(tier_ids)
    if confusion[:, -1].any():
        columns.append("none")
    rows = []
    for index, tier in enumerate(tier_ids):
        whole = confusion[index].sum()
        cells = [
            {
                "count": f"{confusion[index, j]:g}",
                "share": float(confusion[index, j] / whole) if whole else 0.0,
                "hit": index == j,
            }
            for j in range(len(columns))
        ]
        rows.append({"tier": tier, "cells": cells})
    return {"columns": columns, "rows": rows}


def shown_mistake(mistake: Mistake, pair: Pair, verdict: Verdict, names: dict[str, str]) -> dict[str, Any]:
    """What the page says about one mistake, every text bounded. names: tier id to how the page writes it."""
    texts = {
        "query": pair.query,
        "title": pair.title,
        "rationale": verdict.rationale,
        "gold_rationale": pair.rationale or "",
        "rules": " ".join(verdict.rules),
        "mismatch": verdict.mismatch or "",
        "text": (verdict.text or "") if verdict.tier is None else "",
        "pair_id": pair.pair_id,
        "verdict": f"none ({verdict.failure})" if verdict.tier is None else names[verdict.tier],
    }
    return {name: bounded(text, MAX_CHARS[name]) for name, text in texts.items()} | {
        "why": mistake.why,
        "confidence": None if mistake.confidence is None else f"{mistake.confidence:.0%}",
        "label": names[mistake.label],
        "photo_note": PHOTO_NOTES.get(verdict.photo, ""),
    }


def bounded(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def thumbnail(pair: Pair, pixels: int) -> str | None:
    """The photo as a small JPEG data URI; None when there is none or it cannot be read."""
    if pair.image is None:
        return None
    try:
        image = load_image(pair.image)
    except ImageError:
        return None
    image.thumbnail((pixels, pixels))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _cell(value: Estimate) -> dict[str, str]:
    return {"value": two_digits(value.value), "interval": value.interval}


def _percentages(value: Estimate) -> dict[str, float]:
    if isnan(value.value):
        return {"width": 0.0, "low": 0.0, "span": 0.0}
    low, high = (value.value, value.value) if isnan(value.low) else (value.low, value.high)
    return {"width": round(100 * value.value, 2), "low": round(100 * low, 2), "span": round(100 * (high - low), 2)}
