"""`lore plan`: what the service would cost, before it is built. Imports inside functions keep `lore --help` fast.

lore plan log.parquet --quality runs/distill --student student/ --labels labels/ -o plan/
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from lore.cli.options import FORCE
from lore.support.bounds import MAX_MEASURE, MAX_SECONDS, MAX_SEED
from lore.support.errors import LoreError
from lore.support.terminal import print_line

MAX_MS = MAX_SECONDS * 1000


def plan(
    log: str = typer.Argument(
        None, metavar="[LOG]", help="Search log: a file, a folder or a glob with query, item_id and what counts searches."
    ),
    quality: Path = typer.Option(
        ..., metavar="RUN", help="Run of stage distill or evaluate with the verdicts of judge and student on the same test pairs."
    ),
    out: str = typer.Option("plan", "--out", "-o", metavar="FOLDER", help="Folder to write."),
    student: Path = typer.Option(
        None, metavar="FOLDER", help="Student to time on this machine, such as one of lore export student."
    ),
    pairs: Path = typer.Option(None, metavar="FILE", help="Pairs to time it on. Default: those in the folder of an exported one."),
    labels: Path = typer.Option(None, metavar="FOLDER", help="Label folder of the judge, which says how fast it is."),
    cache: str = typer.Option(None, metavar="STORE", help="Cache to time, as in cache.store of a recipe. Needs --labels."),
    judge_name: str = typer.Option("judge", help="Name of the judge in the run."),
    student_name: str = typer.Option("student", help="Name of the student in the run."),
    columns: str = typer.Option(None, "--map", metavar="FIELD=COLUMN,...", help="Columns of LOG, such as query=search_term."),
    ubi_queries: str = typer.Option(None, help="ubi_queries of User Behavior Insights, in place of LOG."),
    ubi_events: str = typer.Option(None, help="ubi_events of User Behavior Insights."),
    days: float = typer.Option(30.0, min=0.001, max=36_500, help="Days that the log covers."),
    candidates: int = typer.Option(None, min=1, max=10_000, help="Pairs that a search asks about. Default: 50, an estimate."),
    new_items_per_day: float = typer.Option(
        None, min=0, max=0.99, help="Share of the shown items that a day replaces. Default: 0.01, an estimate."
    ),
    new_queries: float = typer.Option(
        None, min=0, max=1, help="Share of searches with a query that the log does not have. Default: estimated from the log."
    ),
    relabel_days: float = typer.Option(7.0, min=0.01, max=36_500, help="Days between two labellings of the head."),
    judge_days: float = typer.Option(90.0, min=0.01, max=36_500, help="Days until the judge is replaced, with all its verdicts."),
    deadline_ms: float = typer.Option(1000.0, min=0.001, max=MAX_MS, help="Longest wait for the judge."),
    judge_ms: str = typer.Option(None, metavar="P50,P99", help="Latency of the judge for the candidates of a search."),
    cache_ms: str = typer.Option(None, metavar="P50,P99", help="Latency of a search that the cache answers, HTTP included."),
    student_ms: str = typer.Option(None, metavar="P50,P99", help="Latency of the student for the candidates of a search."),
    student_usd_per_hour: float = typer.Option(None, min=0, max=MAX_MEASURE, help="Price of one machine of the student."),
    judge_usd_per_hour: float = typer.Option(None, min=0, max=MAX_MEASURE, help="Price of one machine or GPU of the judge."),
    usd_per_million_prompt_tokens: float = typer.Option(None, min=0, max=MAX_MEASURE, help="Price of a judge paid by tokens."),
    usd_per_million_completion_tokens: float = typer.Option(None, min=0, max=MAX_MEASURE, help="Price of a judge paid by tokens."),
    cache_usd_per_day: float = typer.Option(None, min=0, max=MAX_MEASURE, help="Price of the cache. Default: 0."),
    utilization: float = typer.Option(0.5, min=0.01, max=1, help="Share of a machine's peak that it is used at, on average."),
    peak: float = typer.Option(2.0, min=1, max=1000, help="Traffic of the busiest time over the mean, for the number of machines."),
    metric: Literal["macro_f1", "acc_2", "acc_k", "agreement"] = typer.Option(
        "macro_f1", help="Quality to plan for; agreement: with the judge."
    ),
    target_quality: float = typer.Option(None, min=0, max=1, help="Take the cheapest choice of at least this quality."),
    max_cost_per_day: float = typer.Option(None, min=0, max=MAX_MEASURE, help="Limit in USD."),
    max_p99_ms: float = typer.Option(None, min=0, max=MAX_MS, help="Limit of the expected p99."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of the bootstrap and of the simulated searches."),
    force: bool = FORCE,
) -> None:
    """Plan the service: its quality, latency and cost from a log.

    Writes the table of query frequencies, plan.html, plan.json and online.yaml, the route section of the recipe.
    """
    from lore.data.importers.table import column_map
    from lore.label.config import InputSection, UbiSection
    from lore.online.plan.make import Choices, make
    from lore.support.outputs import checked_folder, checked_outputs, output_path

    if (log is None) == (ubi_queries is None):
        raise LoreError("Name one log: lore plan log.parquet, or --ubi-queries FILE for User Behavior Insights.")
    if cache is not None and labels is None:
        raise LoreError("--cache is timed with verdicts that it holds. Name their folder with --labels, or give --cache-ms.")
    section = InputSection(
        path=log,
        map=column_map(columns, (), None) if columns else {},
        ubi=None if ubi_queries is None else UbiSection(queries=ubi_queries, events=ubi_events),
    )
    from lore.online.plan.output import outputs

    given = [one for one in (log, ubi_queries, ubi_events, quality, student, pairs, labels) if one is not None]
    folder = checked_folder(output_path(out, "--out", folder=True), given)
    checked_outputs(outputs(folder), given, force=force)
    make(
        section,
        folder,
        Choices(
            quality=quality,
            judge_name=judge_name,
            student_name=student_name,
            student=student,
            pairs=pairs,
            labels=labels,
            cache=cache,
            days=days,
            candidates=candidates,
            new_items_per_day=new_items_per_day,
            new_queries=new_queries,
            relabel_days=relabel_days,
            judge_days=judge_days,
            deadline_ms=deadline_ms,
            judge_ms=two_numbers(judge_ms, "--judge-ms"),
            cache_ms=two_numbers(cache_ms, "--cache-ms"),
            student_ms=two_numbers(student_ms, "--student-ms"),
            student_usd_per_hour=student_usd_per_hour,
            judge_usd_per_hour=judge_usd_per_hour,
            usd_per_million=(usd_per_million_prompt_tokens, usd_per_million_completion_tokens),
            cache_usd_per_day=cache_usd_per_day,
            utilization=utilization,
            peak=peak,
            metric=metric,
            target_quality=target_quality,
            max_usd_per_day=max_cost_per_day,
            max_p99_ms=max_p99_ms,
            seed=seed,
        ),
    )
    print_line(f"plan: {folder}")


def two_numbers(text: str | None, option: str) -> tuple[float, float] | None:
    """p50 and p99 of an option."""
    if text is None:
        return None
    try:
        one, other = (float(part) for part in text.split(","))
    except ValueError:
        one, other = 0.0, 0.0
    if not 0 < one <= other <= MAX_MS:
        raise LoreError(f"{option} {text[:80]} is no latency. Write p50,p99 in ms, the p99 not below the p50, such as 20,80.")
    return one, other
