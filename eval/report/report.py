"""Writes report.html: one self-contained file for the team that chooses a judge.

It shows a headline, tables with intervals, slices, confusion matrices, calibration, risk against coverage, sampled answers,
agreement with raters, capabilities, robustness, and mistakes with filters. Sections without measurements are left out.

Item texts, photos and rationales are untrusted input. The template escapes everything. The page's policy allows only the page's
own script (by its hash) and loads nothing, and photos are decoded and re-encoded as small JPEGs. Lists, texts and photos are
bounded, so the file has a few megabytes. Without JavaScript the page is complete, but the filters are hidden.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lore.eval.report.charts import reliabilities, risk_section, sample_section
from lore.eval.report.headline import BASELINES, headline
from lore.eval.report.mistakes import mistake_cards, tier_names
from lore.eval.report.tables import (
    agreement_rows,
    ceiling_row,
    condition_groups,
    confusion_rows,
    flip_groups,
    slice_views,
    summary_table,
)
from lore.eval.scorecard import Scorecard, unanswered_text, unreadable_text
from lore.eval.sections import MetricsSection, ReportSection
from lore.eval.testset import EvalData
from lore.judge.verdict import Verdict
from lore.support.atomic_files import write_atomic
from lore.support.html import page_style, page_template
from lore.support.svg_plots import TEXT_MARKS
from lore.support.text import shortened

FOLDER = Path(__file__).parent
MAX_FAILURES = 8


def write_report(
    path: Path,
    *,
    title: str,
    cards: list[Scorecard],
    verdicts: dict[str, dict[str, Verdict]],
    data: EvalData,
    options: ReportSection,
    details: dict[str, str],
    metrics: MetricsSection | None = None,
    seed: int = 0,
) -> None:
    """Writes the report. verdicts: by judge name, then pair_id; details: entries about data and settings; metrics, seed: the
    settings of the cards, reused for the differences in the headline."""
    rubric, test = data.rubric, data.test
    metrics = metrics or MetricsSection()
    explained = [card.name for card in cards if card.kind not in BASELINES]
    explained = explained or [card.name for card in cards if card.kind == "lexical"]
    names = tier_names(rubric)
    shares = np.bincount(test.gold, minlength=len(rubric.tier_ids)) / max(len(test), 1)
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    html = page_template(FOLDER, "report.html.jinja").render(
        title=title,
        script=Markup(script),
        script_hash=script_hash(script),
        style=Markup(page_style()),
        headline=headline(
            cards,
            verdicts,
            data,
            label_weights=metrics.label_weights,
            samples=metrics.bootstrap_samples,
            seed=seed,
        ),
        details=details,
        judges=[judge_details(card) for card in cards],
        series={card.name: number % len(TEXT_MARKS) for number, card in enumerate(cards)},
        marks=TEXT_MARKS,
        tables=summaries(cards, rubric.tier_ids, metrics.shown),
        tiers=[
            {"name": names[tier], "share": float(share)} for tier, share in zip(rubric.tier_ids, shares, strict=True)
        ],
        views=slice_views(cards, rubric.tier_ids, data.ceiling),
        confusions=[{"judge": card.name} | confusion_rows(card.confusion, rubric.tier_ids) for card in cards],
        reliabilities=reliabilities(cards, data),
        risk=risk_section(cards, data),
        samples=sample_section(cards, data),
        agreement=agreement_rows(cards),
        ceiling=ceiling_row(data.ceiling) if data.ceiling else None,
        acc_k=f"Acc@{len(rubric.tier_ids)}",
        conditions=condition_groups(cards),
        flips=flip_groups(cards),
        mistakes=mistake_cards(explained, verdicts, data, options.mistakes, options.thumbnail_pixels),
    )
    write_atomic(path, html)


def script_hash(script: str) -> str:
    """The script's hash in the form of the Content-Security-Policy header."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def summaries(cards: list[Scorecard], tier_ids: list[str], chosen: list[str] | None) -> list[tuple[str, dict[str, Any]]]:
    """The summary table, and a second one under the recipe's prior if there is one. chosen: metrics.shown."""
    tables = [("Summary", summary_table({card.name: card.whole for card in cards}, tier_ids, chosen))]
    if all(card.natural is not None for card in cards):
        parts = {card.name: card.natural for card in cards}
        tables.append(("Under the given prior", summary_table(parts, tier_ids, chosen)))
    return tables


def judge_details(card: Scorecard) -> dict[str, Any]:
    """How the judge was run, and its failures."""
    failures = [f"{shortened(reason, 60)} {times}" for reason, times in list(card.failures.items())[:MAX_FAILURES]]
    return {
        "name": card.name,
        "baseline": card.kind in BASELINES,
        "how": card.how,
        "temperature": "" if card.temperature is None else f"{card.temperature:.2f}",
        "failures": ", ".join(failures),
        "unanswered": shortened(". ".join(filter(None, (unanswered_text(card), unreadable_text(card)))), 800),
        "photos": ", ".join(f"{state} {times}" for state, times in card.photos.items()),
    }
