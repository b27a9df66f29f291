"""`lore monitor`: has the shop changed, the judge, or the student? Imports inside functions keep `lore --help` fast.

lore monitor probe pairs.parquet -o probe/
lore monitor report shadow/ --labels shadow_labels/ --probe probe/ --probe-judge probe_judge/ -o monitor/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from lore.cli.options import FORCE
from lore.support.bounds import MAX_MEASURE, MAX_SEED
from lore.support.errors import LoreError
from lore.support.terminal import print_line

CHANGED = 3
"""Exit status of --check when something has changed."""
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Watch a service: agreement, drift and a frozen probe set.",
)


@app.command()
def probe(
    pairs: str = typer.Argument(..., help="Pairs to draw from: a Parquet file, a folder of them, or a glob."),
    count: int = typer.Option(500, "--pairs", min=1, max=100_000, help="Number of pairs to freeze."),
    frequencies: Path = typer.Option(
        None, metavar="FILE", help="Table of query frequencies of `lore plan`. Default: query_frequency of the pairs."
    ),
    head_from: float = typer.Option(100.0, min=0, max=MAX_MEASURE, help="route.head_from of the service."),
    torso_from: float = typer.Option(10.0, min=0, max=MAX_MEASURE, help="route.torso_from of the service."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of the draw."),
    out: str = typer.Option(..., "-o", "--out", metavar="FOLDER", help="Folder of the probe set."),
    force: bool = FORCE,
) -> None:
    """Freeze pairs that are answered again every night.

    Judge and student answer them. They are drawn in equal parts from all bands and tiers.
    """
    from lore.online.answer import band_of
    from lore.online.frequencies import Frequencies
    from lore.online.monitor.probe import freeze, outputs
    from lore.support.outputs import checked_folder, checked_outputs, output_path

    if torso_from > head_from:
        raise LoreError(f"--torso-from {torso_from:g} is above --head-from {head_from:g}. Set it to at most --head-from.")
    given = [pairs, *([frequencies] if frequencies else [])]
    folder = checked_folder(output_path(out, "--out", folder=True), given)
    checked_outputs(outputs(folder), given, force=force)
    table = None if frequencies is None else Frequencies.open(frequencies)

    def band(pair: Any) -> str:
        known = pair.query_frequency if table is None else table.of(pair.query, pair.slices)
        return band_of(known or 0.0, head_from, torso_from)

    about = freeze(pairs, folder, count, band, seed=seed)
    print_line(f"{about['pairs']:,} frozen pairs: {folder} ({about['fingerprint']})")
    for one in about["strata"]:
        print_line(f"  {one['band']}, {one['tier']}: {one['pairs']:,} of {one['of']:,}")


@app.command()
def report(
    shadow: Path = typer.Argument(..., help="shadow.folder of the service."),
    labels: Path = typer.Option(None, metavar="FOLDER", help="Folder of `lore label`, or a folder of such folders, one a day."),
    probe: Path = typer.Option(None, metavar="FOLDER", help="Probe set of `lore monitor probe`."),
    probe_judge: Path = typer.Option(None, metavar="FOLDER", help="Label folders of the judge on the probe set, one a night."),
    probe_student: Path = typer.Option(None, metavar="FOLDER", help="Label folders of the student on the probe set."),
    rated: Path = typer.Option(None, metavar="FILE", help="Raters' labels of pairs of the shadow folder, for GoodRate."),
    rubric: str = typer.Option(None, help="Rubric that says which tiers are good. Default: that of the labels."),
    since: str = typer.Option(None, metavar="DAY", help="First day of the reference, such as 2026-11-30. Default: the first day."),
    reference_days: int = typer.Option(28, min=5, max=3650, help="Days of the reference."),
    horizon_days: int = typer.Option(200, min=1, max=3650, help="Days for which the chance of a false alarm holds."),
    false_alarms: float = typer.Option(
        0.05, min=0.002, max=0.5, help="Chance of any false alarm in these days, of all numbers together."
    ),
    probe_noise: float = typer.Option(
        0.005, min=0, max=0.5, help="Share of frozen pairs that may flip because of batches and machines alone."
    ),
    check: bool = typer.Option(False, "--check", help=f"Exit with status {CHANGED} if something has changed."),
    out: str = typer.Option("monitor", "-o", "--out", metavar="FOLDER", help="Folder to write."),
    force: bool = FORCE,
) -> None:
    """Report what has changed: shop, judge or student.

    Shows agreement, drift and GoodRate over days.
    """
    from lore.online.monitor.days import day_of, read_days
    from lore.online.monitor.output import HTML, outputs, save, show
    from lore.online.monitor.probe import open_probe, read_probe_line
    from lore.online.monitor.report import JUDGE, STUDENT, goodrates, report_of, rubric_of, watch_of
    from lore.support.console import Console
    from lore.support.outputs import checked_folder, checked_outputs, output_path

    begins = None if since is None else day_of(since)
    if since is not None and begins is None:
        raise LoreError(f"--since {since[:40]!r} is no day. Write it as 2026-11-30.")
    nights = {JUDGE: probe_judge, STUDENT: probe_student}
    if probe is None and any(nights.values()):
        raise LoreError("--probe-judge and --probe-student are nights of a probe set. Name it with --probe.")
    given = [one for one in (shadow, labels, probe, rated, *nights.values()) if one is not None]
    folder = checked_folder(output_path(out, "--out", folder=True), given)
    checked_outputs(outputs(folder), given, force=force)
    rows = read_days(shadow, labels, since=begins)
    lines = {who: path for who, path in nights.items() if path is not None}
    watch = watch_of(rows, reference_days=reference_days, horizon=horizon_days, chance=false_alarms, probes=len(lines))
    probes = []
    if probe is not None:
        frozen = open_probe(probe)
        chance = watch.chance_of_one / horizon_days
        probes = [read_probe_line(who, frozen, path, noise=probe_noise, chance=chance, since=begins) for who, path in lines.items()]
    found = report_of(rows, probes, watch)
    if labels is not None:
        rates, remarks = goodrates(rows, rubric_of(rows, rubric), rated)
        found.remarks += remarks
        for one in found.days:
            one.goodrate = rates.get(one.day)
    show(found, Console())
    save(found, folder)
    print_line(f"report: {folder / HTML}")
    if check and found.changes:
        raise typer.Exit(CHANGED)
