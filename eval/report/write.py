"""Writes the results of an evaluation: console tables, metrics.json, predictions.parquet, report.html and the run's summary."""

import json
from pathlib import Path

import pyarrow as pa

from lore.data.tables.parquet_files import write_table
from lore.eval.config import EvaluateRecipe
from lore.eval.probes.capability import print_capability
from lore.eval.probes.robustness import print_robustness
from lore.eval.report.console import print_samples, print_slices, print_table, shown_columns
from lore.eval.report.report import write_report
from lore.eval.scorecard import Scorecard, unanswered_text, unread_photos_text, unreadable_text
from lore.eval.testset import EvalData, Labeled
from lore.judge.verdict import Verdict, to_row, verdict_schema
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.console import Console


def save(
    recipe: EvaluateRecipe,
    folder: RunFolder,
    data: EvalData,
    verdicts: dict[str, dict[str, Verdict]],
    cards: list[Scorecard],
    *,
    console: Console,
) -> None:
    """Writes and prints all results, then marks the run as finished."""
    metrics_path, predictions_path, report_path = (
        folder / "metrics.json",
        folder / "predictions.parquet",
        folder / "report.html",
    )
    rubric, test = data.rubric, data.test
    write_predictions(predictions_path, verdicts, test, rubric)
    content = {
        "rubric": {
            "name": rubric.name,
            "hash": rubric.hash,
            "tiers": rubric.tier_ids,
            "relevant": rubric.relevant_mask,
        },
        "data": data_summary(data, folder),
        "prior": recipe.metrics.prior,
        "ceiling": data.ceiling.to_json() if data.ceiling else None,
        "benchmark": recipe.benchmark,
        "judges": {card.name: card.to_json() for card in cards},
    }
    write_atomic(metrics_path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_report(
        report_path,
        title=f"{recipe.run}: {rubric.name}",
        cards=cards,
        verdicts=verdicts,
        data=data,
        options=recipe.report,
        details=report_details(recipe, data),
        metrics=recipe.metrics,
        seed=recipe.seed,
    )

    print_table(
        cards,
        rubric.tier_ids,
        f"{recipe.run}: {len(test)} pairs, {test.n_queries} queries, 95 % intervals over queries",
        console=console,
        shown=recipe.metrics.shown,
    )
    if cards[0].natural is not None:
        under = "the same under metrics.prior"
        print_table(cards, rubric.tier_ids, under, console=console, natural=True, shown=recipe.metrics.shown)
    print_slices(cards, rubric.tier_ids, console=console)
    if sampled := {card.name: card.samples for card in cards if card.samples}:
        print_samples(sampled, console=console)
    if flipped := {card.name: card.flips for card in cards if card.flips}:
        print_robustness(flipped, console)
    print_capability({card.name: card.conditions for card in cards if card.conditions}, console)
    for what, path in (("predictions", predictions_path), ("metrics", metrics_path), ("report", report_path)):
        console.print(f"{what}: {path}", soft_wrap=True)
    for card in cards:
        for lost in filter(None, (unanswered_text(card), unreadable_text(card), unread_photos_text(card))):
            console.print(f"{card.name}: {lost}", soft_wrap=True)
    titles = shown_columns([card.whole for card in cards], rubric.tier_ids, recipe.metrics.shown)
    summary = {
        card.name: {
            title: list(card.whole.metrics[name].to_json().values()) for name, title in titles.items() if name in card.whole.metrics
        }
        | ({"no answer": lost} if (lost := unanswered_text(card)) else {})
        | ({"unreadable": lost} if (lost := unreadable_text(card)) else {})
        for card in cards
    }
    folder.finish(summary | {"report": str(report_path)})


def write_predictions(path: Path, verdicts: dict[str, dict[str, Verdict]], test: Labeled, rubric: Rubric) -> None:
    """Writes one row per judge and test pair."""
    rows = []
    for judge, answered in verdicts.items():
        for index, pair_id in enumerate(test.pair_ids):
            about = {
                "judge": judge,
                "query": test.queries[index],
                "label": rubric.tier_ids[test.gold[index]],
                "slices": test.slices[index],
            }
            rows.append(about | to_row(answered[pair_id], rubric.tier_ids))
    own = pa.schema(
        [
            ("judge", pa.string()),
            ("pair_id", pa.string()),
            ("query", pa.string()),
            ("label", pa.string()),
            ("slices", pa.list_(pa.string())),
        ]
    )
    said = [column for column in verdict_schema(rubric.tier_ids) if column.name not in own.names]
    write_table(path, rows, pa.schema([*own, *said]))


def data_summary(data: EvalData, folder: RunFolder) -> dict:
    return {
        "path": str(data.path),
        "fingerprint": folder.fingerprints.get("data_fingerprint"),
        "split": data.test.split,
        "pairs": len(data.test),
        "queries": data.test.n_queries,
        "unlabeled": data.test.unlabeled,
        "repeated": data.test.repeated,
        "calibration_split": data.dev.split if data.dev else None,
        "calibration_pairs": len(data.dev) if data.dev else 0,
    }


def report_details(recipe: EvaluateRecipe, data: EvalData) -> dict[str, str]:
    """Entries of the report's section about the test."""
    rubric = data.rubric
    prior = recipe.metrics.prior
    return {
        "data": f"{data.path}: {data.test}",
        "rubric": f"{rubric.name} {rubric.version}, tiers worst first: {', '.join(rubric.tier_ids)}",
        "intervals": f"95 %, {recipe.metrics.bootstrap_samples} resamples of the queries, seed {recipe.seed}",
        "calibration": f"temperature fitted on {data.dev}" if data.dev else "none",
        "weights": "label_weight of each pair" if recipe.metrics.label_weights else "every pair counts once",
        **({"given prior": ", ".join(f"{tier} {share:.0%}" for tier, share in prior.items())} if prior else {}),
    }
