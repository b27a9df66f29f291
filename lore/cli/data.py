"""`lore data`: import, check, count and split rated pairs; import catalogues and logs of events. Imports inside functions keep
`lore --help` fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from lore.cli.options import FORCE
from lore.support.bounds import MAX_SEED
from lore.support.errors import LoreError
from lore.support.terminal import print_json, print_line, print_note
from lore.support.text import printable

SHOWN_COLUMNS = 40
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Import, check, count and split rated pairs.",
)

JSON = typer.Option(False, "--json", help="Print one JSON object instead of tables.")
STRICT = typer.Option(False, "--strict", help="Reject rows with HTML instead of converting it to plain text.")
IMAGE_ROOT = typer.Option(
    None, "--image-root", help="Folder below which photos may lie besides the table's own; relative paths start here first."
)
DROP = typer.Option(False, "--drop-duplicates", help="Keep the first of equal pairs; write the others to the rejected file.")


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (LoreError, OSError) as error:  # OSError: disk full, no permission, a folder instead of a file
        from lore.run.runner import report_error

        report_error(error if isinstance(error, LoreError) else LoreError(str(error)))
        raise typer.Exit(1) from error


@app.command("import")
def import_(
    source: str = typer.Argument(..., help="Pairs: crowdflower, homedepot, wands, esci, rair or table. Also: items or events."),
    path: str = typer.Argument(..., help="File or folder of the source; hub:chenJi/RAIR streams rair from the Hugging Face hub."),
    out: str = typer.Option(
        ...,
        "-o",
        "--out",
        metavar="FILE",
        help="Parquet file to write; rejected rows go to <name>.rejected.jsonl in the same folder.",
    ),
    rubric: str = typer.Option(None, help="Name or path of the rubric of the labels; default: the rubric of the source."),
    encoding: str = typer.Option(
        None, help="Text encoding of csv and jsonl files, such as latin-1; default: detected (UTF-8, UTF-16, csv files of Excel)."
    ),
    map: list[str] = typer.Option(
        None,
        "--map",
        help="table, items, events: field=column,... ; attributes.<name>=column; table: locale=column for the market. Repeatable.",
    ),
    delimiter: str = typer.Option(None, help="Column delimiter of a csv file, such as ';'; default: told by the header."),
    locale: str = typer.Option(None, help="esci: us, es, jp, or several separated by commas; default all."),
    small: bool = typer.Option(
        None, "--small-version/--large-version", help="esci: only rows of the small (ranking) or the large version; default all."
    ),
    config: str = typer.Option(None, help="rair from the hub: General_Subset, Hard_Subset, Visual_Subset; default all."),
    caption: bool = typer.Option(False, help="rair: add the photo's caption (vqa_result) to the attributes."),
    embed_images: bool = typer.Option(
        False, help="Store the photos inside the output file, so that it does not depend on image files."
    ),
    image_root: Path = IMAGE_ROOT,
    strict: bool = STRICT,
    drop_duplicates: bool = DROP,
    keep_bad_photos: bool = typer.Option(
        False, "--keep-bad-photos", help="Keep rows with an unreadable photo, without the photo, and list them."
    ),
    force: bool = FORCE,
    as_json: bool = JSON,
) -> None:
    """Convert a public format or any table to pairs, items or events."""
    with _errors():
        if source in ("items", "events"):
            photos = {"image_roots": _roots(image_root), "embed_images": embed_images, "keep_bad_photos": keep_bad_photos}
            others = {"--rubric": rubric, "--locale": locale, "--config": config, "--small-version": small, "--caption": caption}
            others |= {"--drop-duplicates": drop_duplicates}
            others |= {"--strict": strict, "--image-root": image_root, **photos} if source == "events" else {}
            if unused := [f"--{name.lstrip('-').replace('_', '-')}" for name, value in others.items() if value]:
                raise LoreError(f"{source} has no option {unused[0]}. Leave it out.")
            given = {"map": ",".join(map or []), "encoding": encoding, "delimiter": delimiter, "force": force}
            given |= {"strict": strict, **photos} if source == "items" else {}
            _import_for_recommendations(source, path, out, as_json, given)
            return
        from lore.data.import_pairs import import_pairs
        from lore.data.importers import open_source
        from lore.rubric.rubric import load_rubric, rubric_file, rubric_metadata
        from lore.support.outputs import output_path

        target = output_path(out)
        version = None if small is None else "small" if small else "large"
        given = {
            "map": ",".join(map or []),
            "delimiter": delimiter,
            "locale": locale,
            "version": version,
            "config": config,
            "caption": caption,
        }
        opened = open_source(source, path, encoding=encoding, options={name: value for name, value in given.items() if value})
        chosen = rubric or opened.rubric
        if chosen is None:
            raise LoreError(
                f"Source {source} has no default rubric, so its labels cannot be checked. Pass --rubric with the name of a "
                "shipped rubric or the path of a file."
            )
        loaded = load_rubric(chosen)
        report = import_pairs(
            opened,
            target,
            loaded,
            strict=strict,
            embed_images=embed_images,
            image_roots=_roots(image_root),
            drop_duplicates=drop_duplicates,
            keep_bad_photos=keep_bad_photos,
            metadata=rubric_metadata(chosen, loaded),
            inputs=[path, rubric_file(chosen)],
            force=force,
        )
        show_report(report, as_json)
        _need_pairs(report, target)
        _say_photos_elsewhere(report, target, " --embed-images stores the photos in the file.")


@app.command()
def check(
    path: str = typer.Argument(..., help="Pairs file, folder or glob."),
    out: str = typer.Option(
        None, "-o", "--out", metavar="FILE", help="Write valid pairs to this file and rejected rows to <name>.rejected.jsonl."
    ),
    rubric: str = typer.Option(
        None, help="Name or path of the rubric of the labels; default: the rubric that the file was imported with."
    ),
    strict: bool = STRICT,
    drop_duplicates: bool = DROP,
    image_root: Path = IMAGE_ROOT,
    force: bool = FORCE,
    as_json: bool = JSON,
) -> None:
    """Check a pairs file row by row, including photos. Exits with status 1 if rows are invalid and -o is not given. (`lore check`
    checks recipes.)
    """
    with _errors():
        from lore.data.import_pairs import import_pairs, open_pairs
        from lore.rubric.rubric import load_rubric, rubric_change, rubric_file, rubric_metadata
        from lore.support.outputs import output_path

        target = None if out is None else output_path(out)
        if drop_duplicates and out is None:
            raise LoreError("--drop-duplicates writes a new file: name it with -o, such as -o clean.parquet.")
        source, metadata = open_pairs(path)
        chosen = rubric or metadata.get("lore.rubric")
        loaded = load_rubric(chosen) if chosen else None
        kept = {key: value for key, value in metadata.items() if key.startswith("lore.") and key != "lore.key"}
        if loaded:
            kept |= rubric_metadata(chosen, loaded)
        report = import_pairs(
            source,
            target,
            loaded,
            strict=strict,
            tier_ids_only=True,
            image_roots=_roots(image_root),
            drop_duplicates=drop_duplicates,
            metadata=kept,
            inputs=[path, *([rubric_file(chosen)] if chosen else [])],
            force=force,
        )
        show_report(report, as_json)
        if chosen is None:
            print_note("Labels were not checked, because the file names no rubric. Pass --rubric.")
        elif chosen == metadata.get("lore.rubric") and (warning := rubric_change(metadata, loaded, path)):
            print_note(f"warning: {warning}")
        _need_pairs(report, target)
        _say_photos_elsewhere(report, target)
        if report.rejected_rows and out is None:
            raise typer.Exit(1)


@app.command()
def stats(path: str = typer.Argument(..., help="Pairs file, folder or glob."), as_json: bool = JSON) -> None:
    """Count tiers, slices, duplicates and conflicting labels. Also shows field lengths and the queries that splits share."""
    with _errors():
        from lore.data.statistics import pair_stats

        _show_stats(pair_stats(path), as_json)


@app.command()
def split(
    path: str = typer.Argument(..., help="Pairs file, folder or glob."),
    out: str = typer.Option(None, "-o", "--out", metavar="FILE", help="File to write; default: replace the input file."),
    by: str = typer.Option("query", help="query: all pairs of a query get the same split; item: all pairs of an item do."),
    fractions: str = typer.Option("train=0.7,dev=0.1,test=0.2", help="Shares that sum to 1."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of the hash; another seed gives other splits."),
    replace: bool = typer.Option(False, "--replace", help="Reassign pairs that already have a split."),
    force: bool = FORCE,
    as_json: bool = JSON,
) -> None:
    """Assign train, dev and test by a hash of the query or item. Each query or item gets one split, also in data added later."""
    with _errors():
        from lore.data.parquet import pair_files
        from lore.data.splits import split_pairs
        from lore.support.outputs import output_path

        if out is None and not Path(path).is_file():
            raise LoreError(
                f"{path} matches {len(pair_files(path))} files, and only a single file can be replaced: pass -o split.parquet."
            )
        target = Path(path) if out is None else output_path(out)
        shares = _shares(fractions)
        counts = split_pairs(path, target, by=by, fractions=shares, seed=seed, replace=replace, force=force)
        if as_json:
            print_json({"out": str(target), "pairs": dict(counts)})
        else:
            _table(
                f"{target}, by {by}",
                ["split", "pairs", "share"],
                [[name, f"{count:,}", f"{count / counts.total():.1%}"] for name, count in counts.items()],
            )
        for name in shares:
            if not counts[name]:
                print_note(f"{name} is empty, because {by} has too few values. Change --seed or --fractions.")


def _import_for_recommendations(source: str, path: str, out: str, as_json: bool, options: dict[str, Any]) -> None:
    from lore.recommend.importers import import_events, import_items
    from lore.support.outputs import output_path

    report = (import_items if source == "items" else import_events)(path, output_path(out), **options)
    show_report(report, as_json)
    if not as_json:
        _say_photos_elsewhere(report, Path(report.out), " --embed-images stores the photos in the file.")


def _need_pairs(report: Any, out: Path | None) -> None:
    if out is not None and not report.kept:
        kept = f"; the existing {out} is kept" if out.exists() else ""
        reasons = f" See {report.rejected} for the reasons." if report.rejected else ""
        raise LoreError(f"No row is a valid pair, so {out} was not written{kept}.{reasons}")


def _say_photos_elsewhere(report: Any, out: Path | None, more: str = "") -> None:
    from lore.data.photo_places import stay_elsewhere

    if report.photos_elsewhere:
        print_note(stay_elsewhere(report.photos_elsewhere, out) + more)


def _roots(image_root: Path | None) -> list[Path]:
    if image_root is None:
        return []
    if not image_root.expanduser().is_dir():
        raise LoreError(f"--image-root {image_root} is no folder. Name the folder below which the photos lie.")
    return [image_root.expanduser()]


def _shares(text: str) -> dict[str, float]:
    try:
        shares = [(name.strip(), float(share)) for name, share in (part.split("=") for part in text.split(","))]
        if len(dict(shares)) < len(shares):
            raise ValueError("a name occurs twice")
        return dict(shares)
    except ValueError as error:
        raise LoreError(f"--fractions is {text!r}; expected name=share,name=share, such as train=0.7,dev=0.1,test=0.2.") from error


def show_report(report: Any, as_json: bool) -> None:
    """Prints what an import found (lore.data.import_report)."""
    if as_json:
        print_json(report.as_json())
        return
    left = report.dropped
    lines = [
        ["rows read", report.rows],
        [report.what, report.kept],
        *([name, count] for name, count in report.counts.items()),
        *([["pairs without a label", report.unlabeled]] if report.unlabeled else []),
        *([[f"left out: {'no place' if report.what == 'town' else 'about no item'}", report.left_out]] if report.left_out else []),
        ["rows rejected", report.rejected_rows],
        *([f"  {reason}", count] for reason, count in report.reasons.most_common()),
        *([f"repaired: {name}", count] for name, count in report.repairs.most_common()),
        [f"duplicates{' (dropped)' if left else ''}", report.duplicates],
        *([[f"conflicting labels{' (dropped)' if left else ''}", report.conflicting]] if report.what == "pairs" else []),
    ]
    _table(None, ["what", "count"], [[name, f"{count:,}"] for name, count in lines])
    for example in [*report.examples, *report.repeats]:
        print_line(f"  {example}")
    if report.out:
        read = ", ".join(f"{name} from {' or '.join(columns)}" for name, columns in report.columns.items())
        print_line(f"{report.what.capitalize()}: {report.out}{f' ({printable(read)})' if read else ''}")
        if said := _about_splits(report):
            print_line(said)
        if report.distributions:
            print_line(
                f"label_distribution: {report.distributions:,} pairs have a probability per tier, from a mean, a spread or a "
                "column. Training and evaluation use the single label."
            )
    if report.rejected:
        print_line(f"Rejected rows with their reasons: {report.rejected}")
    if report.extra_columns:
        more = f" and {len(report.extra_columns) - SHOWN_COLUMNS:,} more" if len(report.extra_columns) > SHOWN_COLUMNS else ""
        print_line(f"Columns that are not read: {', '.join(report.extra_columns[:SHOWN_COLUMNS])}{more}")
    if "rubric" in report.extra_columns:
        print_line("All labels count as rated under --rubric. If the column rubric names rule books, add rubric=rubric to --map.")


def _about_splits(report: Any) -> str | None:
    from lore.data.splits import FRACTIONS, dealt_as

    if not report.unsplit:
        return None
    which = "none yet" if report.unsplit >= report.kept else f"none yet for {report.unsplit:,} of {report.kept:,} pairs"
    return f"split: {which}; a recipe deals {dealt_as(FRACTIONS)}, as `lore data split` does"


def _show_stats(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    plain = ("pairs", "labeled", "with_photo", "mean_label_weight", "queries", "duplicates", "conflicting_labels")
    _table(
        found["file"],
        ["what", "count"],
        [[name.replace("_", " "), f"{found[name]:,}" if found[name] is not None else "-"] for name in plain],
    )
    labels = list(dict.fromkeys(label for counts in found["tiers"].values() for label in counts))
    rows = [
        [split, *(f"{counts.get(label, 0):,}" for label in labels), f"{found['queries_by_split'][split]:,}"]
        for split, counts in found["tiers"].items()
    ]
    _table("Tiers by split", ["split", *labels, "queries"], rows)
    if found["slices"]:
        most = list(found["slices"].items())
        _table(f"Slices ({len(most)})", ["slice", "pairs"], [[name, f"{count:,}"] for name, count in most[:30]])
    if found["pooled"]:
        print_line(f"Too many values to list, so the rest is counted as {found['pooled_as']}: {', '.join(found['pooled'])}.")
    _table(
        "Lengths in characters",
        ["field", "pairs", "p50", "p95", "max"],
        [[name, *(f"{spread[key]:,}" for key in ("pairs", "p50", "p95", "max"))] for name, spread in found["lengths"].items()],
    )
    if found["queries_shared_by_splits"]:
        _table(
            "Queries shared by splits",
            ["splits", "queries"],
            [[name, f"{count:,}"] for name, count in found["queries_shared_by_splits"].items()],
        )


def _table(title: str | None, columns: list[str], rows: list[list[str]]) -> None:
    from lore.support.console import Console, Table

    table = Table()
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    if title:
        print_line(title)
    Console().print(table)
