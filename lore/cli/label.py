"""`lore label`: label every pair of an input with a judge, and export the labels. Imports inside functions keep `lore --help` fast.

lore label pairs/ --judge runs/grpo -o labels/
lore label log.parquet --catalogue items.parquet --judge runs/grpo -o labels/ --dry-run
lore label export labels/ --format qrels -o labels.qrels
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import typer

from lore.cli.options import FORCE, WithDefault
from lore.support.bounds import MAX_COUNT, MAX_MEASURE
from lore.support.terminal import print_line, print_note


class LabelByDefault(WithDefault):
    default = "run"


app = typer.Typer(
    cls=LabelByDefault,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Label every pair of an input with a judge. `lore label INPUT ...` is short for `lore label run INPUT ...`; write an "
    "input that is called run or export as ./run.",
)


@app.command("run")
def label(
    arguments: list[str] = typer.Argument(
        None,
        metavar="[INPUT] [KEY=VALUE]...",
        help="Pairs or a search log: a file, a folder or a glob. KEY=VALUE sets any other key of the label recipe.",
    ),
    judge: str = typer.Option(None, help="Folder of a trained judge or student, such as runs/grpo."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder of the labels. The same command resumes in it."),
    mode: Literal["auto", "verdict", "rationale", "cascade"] = typer.Option(
        None,
        help="verdict: tier probabilities without decoding; rationale: with a reason; cascade: a student first; auto (default): "
        "rationale for a judge that reasons first, else verdict.",
    ),
    catalogue: str = typer.Option(None, help="Table of the items, for a log that has only item ids."),
    ubi_queries: str = typer.Option(None, help="ubi_queries of User Behavior Insights, in place of INPUT."),
    ubi_events: str = typer.Option(None, help="ubi_events of User Behavior Insights."),
    columns: str = typer.Option(None, "--map", metavar="FIELD=COLUMN,...", help="Columns of INPUT, such as query=search_term."),
    endpoint: str = typer.Option(None, metavar="URL", help="Ask a judge that a server runs (lore serve judge)."),
    engine: Literal["auto", "vllm", "transformers"] = typer.Option(
        None, help="What runs the judge in this process. auto: vLLM where it is installed and a GPU is there."
    ),
    ray: str = typer.Option(None, metavar="ADDRESS", help="Label on a Ray cluster: auto, or its address."),
    workers: int = typer.Option(None, min=1, max=65_536, help="Largest number of workers on the cluster."),
    gpus_per_worker: float = typer.Option(None, min=0, max=1024, help="GPUs per worker on the cluster."),
    student: str = typer.Option(None, help="First to answer in mode cascade: a student, a judge, or pairs for a lexical one."),
    agreement: float = typer.Option(None, min=0.5, max=1, help="Share of pairs that must get the judge's tier in mode cascade."),
    shard_pairs: int = typer.Option(None, min=1, max=1_000_000, help="Pairs per shard, the unit that is committed together."),
    store: str = typer.Option(None, metavar="FILE", help="Verdict store; default: $LORE_CACHE/verdicts.sqlite; none: no store."),
    compare: str = typer.Option(None, metavar="FOLDER", help="Label folder of the last run, for the drift in the summary."),
    limit: int = typer.Option(None, min=1, max=MAX_COUNT, help="Read only this many rows of the input."),
    usd_per_hour: float = typer.Option(None, min=0, max=MAX_MEASURE, help="Price of one worker per hour, for the cost."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Plan the input, answer 200 pairs and print tokens, time and cost, without labelling."
    ),
) -> None:
    """Label every pair of an input with a judge, each exactly once. Stop it, kill it, run it again: finished pairs stay."""
    from lore.config.stages import load_recipe
    from lore.config.yaml_text import RecipeError
    from lore.run.devices import leave
    from lore.run.run_folder import RunFolder
    from lore.run.runner import is_finished, run_in
    from lore.support.errors import LoreError
    from lore.support.text import named

    given = [named(argument, "An argument") for argument in arguments or []]
    paths = [argument for argument in given if "=" not in argument.split("/")[0]]
    if len(paths) > 1:
        raise LoreError(
            f"{len(paths)} inputs were given ({', '.join(paths[:3])}), and one is read.\nPut the files into one folder, or quote a "
            "glob: 'logs/*.parquet'."
        )
    values = {
        "input.path": paths[0] if paths else None,
        "judge.path": judge,
        "mode": mode,
        "input.catalogue": catalogue,
        "input.ubi.queries": ubi_queries,
        "input.ubi.events": ubi_events,
        "input.limit": limit,
        "judge.engine": engine,
        "ray.address": ray,
        "ray.max_workers": workers,
        "ray.gpus_per_worker": gpus_per_worker,
        "cascade.student": student,
        "cascade.agreement": agreement,
        "shard_pairs": shard_pairs,
        "store": store,
        "compare": compare,
        "cost.usd_per_hour": usd_per_hour,
    }
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value is not None]
    if columns is not None:
        from lore.data.importers.table import column_map

        overrides.append(f"input.map={json.dumps(column_map(columns, (), None), ensure_ascii=False)}")
    if endpoint is not None:
        overrides += endpoint_keys(endpoint, judge)
    overrides += [argument for argument in given if argument not in paths]
    if ray is None and (workers or gpus_per_worker is not None) and not any(one.startswith("ray.address=") for one in overrides):
        raise LoreError(
            "--workers and --gpus-per-worker are for labelling on Ray.\nAdd --ray local for this machine, or --ray auto for the "
            "cluster that it belongs to."
        )
    need_input_and_judge(overrides)
    command = Path(__file__).parent.parent / "label" / "command.yaml"
    try:
        recipe = load_recipe(command, overrides)
    except RecipeError as error:
        raise LoreError(re.sub(re.escape(str(command)) + r"(:\d+)?", "the options of lore label", str(error))) from error
    folder = RunFolder(out, recipe)
    recipe.check_packages()
    if dry_run:
        from lore.label.forecast import forecast
        from lore.support.console import Console

        folder.open(recipe)
        forecast(recipe, folder).print(Console())
        leave(0)
    if not is_finished(recipe, folder):
        run_in(recipe, folder, "lore label")
    leave(0)


def need_input_and_judge(overrides: list[str]) -> None:
    """Raises LoreError if no option and no override names an input, or none names a judge."""
    from lore.support.errors import LoreError

    keys = {override.split("=")[0] for override in overrides}
    if not any(key == "input" or key.startswith(("input.path", "input.ubi")) for key in keys):
        raise LoreError(
            "No input was named, so nothing can be labelled. Name it: lore label pairs.parquet --judge runs/grpo -o labels.\n"
            "User Behavior Insights come with --ubi-queries FILE."
        )
    if not any(key == "judge" or key.startswith(("judge.path", "judge.model", "judge.endpoint")) for key in keys):
        raise LoreError("No judge was named. Give --judge with the run folder of a trained judge, such as runs/grpo.")


def endpoint_keys(url: str, judge: str | None) -> list[str]:
    """Overrides for a served judge. `lore serve judge` serves it under a name with its hashes, so another judge is refused."""
    keys = [f"judge.endpoint.url={json.dumps(url)}"]
    if judge is not None:
        # Loads the rubric and the judge's card: only for a served judge.
        from lore.judge.served import served_name
        from lore.judge.trained import trained_judge

        keys.append(f"judge.endpoint.model={json.dumps(served_name(trained_judge(judge)))}")
    return keys


@app.command()
def export(
    folder: Path = typer.Argument(..., help="Folder of `lore label`."),
    to: Literal["qrels", "quepid", "opensearch"] = typer.Option(
        ..., "--format", help="TREC qrels, ratings for a Quepid case (csv), or judgments for OpenSearch (json)."
    ),
    out: str = typer.Option(..., "-o", "--out", metavar="FILE", help="File to write. qrels: also <name>.queries.csv beside it."),
    gains: str = typer.Option(
        None, metavar="TIER=GAIN,...", help="Gain of every tier, such as L4=3,L3=1,L2=0,L1=0; default: 0, 1, 2, ... from the worst."
    ),
    document: Literal["item_id", "pair_id"] = typer.Option("item_id", help="What names a document."),
    market: str = typer.Option(None, help="Only pairs of this market, such as locale:us; '' for pairs without one."),
    name: str = typer.Option(None, help="Name of the judgments in OpenSearch; default: the name of the folder."),
    force: bool = FORCE,
) -> None:
    """Write labels as judgments for search tools."""
    from lore.label.export import LARGE_BODY, export_labels
    from lore.support.outputs import output_path

    done = export_labels(folder, output_path(out), to, gains=gains, document=document, market=market, name=name, force=force)
    print_line(f"{done.pairs:,} pairs of {done.queries:,} queries: {', '.join(map(str, done.files))}")
    left = {"without a tier": done.without_tier, "of an item that its query has twice (the lower gain is kept)": done.doubled}
    for why, count in left.items():
        if count:
            print_line(f"left out: {count:,} pairs {why}")
    if done.escaped:
        print_note(
            f"note: {done.escaped:,} cells begin with an apostrophe now, because a spreadsheet program would run them as formulas. "
            "Quepid takes it for a part of the text."
        )
    if done.refused:
        print_note(
            f"note: {done.refused:,} lines have both a comma and a double quote in a text. Quepid's import dialog refuses a file "
            "with such lines, although they are valid; its command line takes them."
        )
    if to == "opensearch" and done.bytes > LARGE_BODY:
        print_note(
            f"note: the file has {done.bytes / 1e6:,.0f} MB, and OpenSearch takes bodies of 100 MB unless "
            "http.max_content_length is larger."
        )
