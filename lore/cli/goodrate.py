"""`lore goodrate`: the GoodRate of a result log. Imports inside functions keep `lore --help` fast.

lore goodrate plan log.parquet --change 0.03 --verdicts runs/my_judge/predictions.parquet --rubric my_rubric.yaml
lore goodrate sample log.parquet --queries 40 -o rated.csv
lore goodrate estimate log.parquet --verdicts runs/my_judge/predictions.parquet --rated rated.csv --rubric my_rubric.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer
from typer.core import TyperGroup

from lore.cli.options import FORCE
from lore.support.bounds import MAX_COUNT, MAX_SEED
from lore.support.errors import LoreError
from lore.support.terminal import print_line

LOG = typer.Argument(
    ..., help="One row per shown item (.parquet, .jsonl, .csv): query, pair_id or item_id, page_id, position, system, impressions."
)
TOP = typer.Option(None, min=1, max=MAX_COUNT, help="Use only this many first positions of each page.")


class EstimateByDefault(TyperGroup):
    """Treats `lore goodrate log.parquet ...` as `lore goodrate estimate log.parquet ...`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in ("", "--help") and (first.startswith("-") or Path(first).suffix):
            args = ["estimate", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=EstimateByDefault,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Estimate the share of good items and pages in search results. "
    "`lore goodrate LOG --verdicts FILE` is short for `lore goodrate estimate LOG --verdicts FILE`.",
)


@app.command()
def estimate(
    log: Path = LOG,
    verdicts: Path = typer.Option(..., help="predictions.parquet of an evaluation, or a table of pair_id, tier and p_<tier>."),
    rated: Path = typer.Option(
        None, help="Human labels of a random sample: pair_id, label, and probability if it differs between pairs."
    ),
    rubric: str = typer.Option(None, help="Name or path of the rubric; default: the rubric of the rated pairs file."),
    judge: str = typer.Option(None, help="Judge to use, if the verdicts are of several judges."),
    top: int = TOP,
    target: Literal["log", "traffic"] = typer.Option(
        "log", help="Population of the intervals: this log, or all queries (traffic) of which the log is a random sample."
    ),
    out: str = typer.Option(
        None,
        "-o",
        "--out",
        metavar="FILE",
        help="JSON file to write; unreadable rows go to <name>.rejected.jsonl in the same folder.",
    ),
    force: bool = FORCE,
) -> None:
    """Estimate the share of shown items and pages that are good. From the judge alone, from raters alone, and from both together
    (prediction-powered inference).
    """
    from lore.eval.goodrate.estimate import goodrate as compute
    from lore.eval.goodrate.output import output_files, save, show
    from lore.rubric.rubric import rubric_file
    from lore.support.console import Console
    from lore.support.outputs import output_path

    name = rubric or _rubric_of(rated)
    read = [log, verdicts, rubric_file(name), *([rated] if rated else [])]
    if out is not None:
        out = output_path(out)
        output_files(out, read, force=force)
    found = compute(log, verdicts, name, rated_path=rated, judge=judge, top=top, target=target)
    console = Console()
    show(found, console)
    if out is not None:
        rejected = save(found, out, inputs=read, force=force)
        print_line(f"JSON: {out}")
        if rejected:
            print_line(f"unreadable rows: {rejected}")


@app.command()
def sample(
    log: Path = LOG,
    pairs: int = typer.Option(None, min=1, max=MAX_COUNT, help="Number of pairs to draw. Sufficient for the GoodRate of items."),
    queries: int = typer.Option(
        None,
        min=1,
        max=MAX_COUNT,
        help="Number of queries to draw, with all their shown items. Required for the GoodRate of pages.",
    ),
    bands: str = typer.Option(
        None, metavar="HEAD,TORSO,TAIL", help="Numbers of pairs to draw by traffic, as lore goodrate plan proposes them."
    ),
    top: int = TOP,
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of the sample."),
    out: str = typer.Option(..., "-o", "--out", metavar="FILE", help="csv file to write, with an empty label column."),
    force: bool = FORCE,
) -> None:
    """Draw pairs of the log for human rating. The probability of a pair is proportional to its impressions."""
    if sum(one is not None for one in (pairs, queries, bands)) != 1:
        raise LoreError("Pass one of --pairs, --bands and --queries: the sample is either single pairs or whole queries.")
    from lore.eval.goodrate.log import read_log
    from lore.eval.goodrate.plan import bands_of
    from lore.eval.goodrate.rated_sample import write_draw
    from lore.support.outputs import Output, checked_outputs, never, output_path

    target = output_path(out)
    checked_outputs([Output(target, never)], [log], force=True)
    if target.exists() and not force:
        raise LoreError(
            f"{target} exists and may contain labels, so it was not overwritten. Choose another name, or pass --force to "
            "replace it."
        )
    shown = read_log(log)
    if top is not None:
        shown = shown.only(shown.at_top(top))
    strata = None if bands is None else (bands_of(shown), three_counts(bands))
    count = write_draw(shown, target, pairs or queries or 0, "query" if queries else "pair", seed, strata=strata, force=force)
    print_line(f"{count:,} pairs to rate: {target}. Fill in the label column and do not change the probability column.")


@app.command()
def plan(
    log: Path = LOG,
    change: float = typer.Option(None, min=0.0001, max=1, help="Change of the GoodRate to see, from 0 to 1: 0.02 for 2 points."),
    ratings: int = typer.Option(None, min=1, max=MAX_COUNT, help="Number of ratings, in place of --change: what can they see?"),
    power: float = typer.Option(0.8, min=0.05, max=0.999, help="Probability with which the change is to be seen."),
    verdicts: Path = typer.Option(None, help="Verdicts of the judge whose help the GoodRate will have."),
    rated: Path = typer.Option(None, help="Ratings of a pilot: how much ratings vary, and how often the judge errs."),
    rubric: str = typer.Option(None, help="Name or path of the rubric; needed with --verdicts or --rated."),
    judge: str = typer.Option(None, help="Judge to use, if the verdicts are of several judges."),
    good_rate: float = typer.Option(0.5, min=0, max=1, help="Share of good items to expect, without verdicts and pilot."),
    top: int = TOP,
) -> None:
    """Plan how many pairs to rate to see a change of GoodRate.

    A change is between two samples of this size, such as those of two months.
    """
    if (change is None) == (ratings is None):
        raise LoreError("Pass one of --change and --ratings: either the ratings for a change are planned, or the change they see.")
    from lore.eval.goodrate.plan_output import planned, show_plan
    from lore.support.console import Console

    name = (rubric or _rubric_of(rated)) if verdicts or rated else None
    found = planned(log, verdicts, name, rated, judge, top, good_rate, change=change, ratings=ratings, power=power)
    show_plan(found, Console())


def three_counts(text: str) -> list[int]:
    """Numbers of head, torso and tail."""
    counts = [int(part) if part.strip().isdecimal() and len(part) < 10 else -1 for part in text.split(",")]
    if len(counts) != 3 or min(counts) < 0 or not sum(counts):
        raise LoreError(f"--bands {text[:80]} has no number for each of head, torso and tail. Write three: --bands 40,30,30.")
    return counts


def _rubric_of(rated: Path | None) -> str:
    if rated and rated.suffix.lower() == ".parquet":
        from lore.data.tables.parquet_files import open_parquet

        with open_parquet(rated) as parquet:
            name = (parquet.schema_arrow.metadata or {}).get(b"lore.rubric")
        if name:
            return name.decode()
    raise LoreError(
        "The rubric defines which tiers are good, but no rated pairs file names one. Pass its name or path with --rubric."
    )
