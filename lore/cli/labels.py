"""`lore labels`: what label folders and the verdict store hold, and what can go. Imports inside functions keep `lore --help` fast.

lore labels stats labels/
lore labels stats
lore labels gc --unused-days 90 --keep labels/ --dry-run
lore labels gc labels/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer

from lore.support.bounds import MAX_COUNT
from lore.support.terminal import print_json, print_line
from lore.support.text import counted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Count and clear label folders and stored verdicts.",
)
STORE = typer.Option(None, metavar="FILE", help="The verdict store; default: $LORE_CACHE/verdicts.sqlite.")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@app.command()
def stats(
    folder: Path = typer.Argument(None, help="Folder of `lore label`; default: the verdict store."),
    store: str = STORE,
    as_json: bool = typer.Option(False, "--json", help="Print JSON for programs."),
) -> None:
    """Count the labels of a folder, or the verdicts of the store."""
    if folder is not None:
        _folder_stats(folder, as_json)
        return
    from lore.cli.runs import shown_bytes
    from lore.run.summary import print_table

    found = _store(store).stats()
    rows = [{"judge": one.name, "verdicts": one.verdicts, "used": _day(one.used)} for one in found.judges]
    if as_json:
        print_json({"path": str(found.path), "bytes": found.bytes, "judges": rows})
        return
    total = sum(one.verdicts for one in found.judges)
    print_line(f"{found.path}: {counted(total, 'verdict')} of {counted(len(rows), 'judge')}, {shown_bytes(found.bytes)}")
    if rows:
        print_table("", ["judge", "verdicts", "last used"], [[row["judge"], f"{row['verdicts']:,}", row["used"]] for row in rows])


def _folder_stats(folder: Path, as_json: bool) -> None:
    from lore.cli.runs import shown_bytes
    from lore.label.folder_stats import folder_stats

    found = folder_stats(folder)
    if as_json:
        print_json(asdict(found))
        return
    tiers = ", ".join(f"{tier} {count:,}" for tier, count in found.tiers.items())
    unreadable = f", no readable tier {found.unreadable:,}" if found.unreadable else ""
    print_line(f"{folder}: {counted(found.pairs, 'pair')} labelled by {found.judge or 'an unknown judge'}")
    print_line(f"tiers: {tiers}{unreadable}")
    print_line(f"without an answer: {found.pending:,} are asked again, {found.final:,} are not")
    asked = (f"{counted(pairs, 'pair')} {counted(times, 'time')}" for times, pairs in found.attempts.items())
    print_line(f"asked: {', '.join(asked)}")
    print_line(f"doubled pair ids: {found.doubled:,}")
    print_line(f"{counted(found.files, 'file')}, {shown_bytes(found.bytes)}")


@app.command()
def gc(
    folder: Path = typer.Argument(None, help="Folder of `lore label` to clean; default: the verdict store."),
    unused_days: int = typer.Option(90, min=0, max=MAX_COUNT, help="Store: remove judges that were not used for so many days."),
    keep: list[Path] = typer.Option(
        None, metavar="FOLDER", help="Store: keep the judges of this label folder or run folder. May be given several times."
    ),
    store: str = STORE,
    dry_run: bool = typer.Option(False, "--dry-run", help="Print what would be removed, and remove nothing."),
) -> None:
    """Remove verdicts of unused judges, or left-overs of a folder.

    Labels stay. Of a label folder, the plan and temporary files go, unless a run uses it.
    """
    from lore.cli.runs import shown_bytes

    would = "would be removed" if dry_run else "removed"
    if folder is not None:
        from lore.label.folder_stats import clean_folder

        paths, size = clean_folder(folder, dry_run=dry_run)
        for path in paths:
            print_line(f"{would}: {path}")
        what = "file or folder" if len(paths) == 1 else "files and folders"
        print_line(f"{folder}: {len(paths):,} left-over {what} {would}, {shown_bytes(size)}")
        return
    opened = _store(store)
    found = opened.gc(unused_days, _keeps(keep or []), dry_run=dry_run)
    for judge in found.judges:
        print_line(f"{would}: {judge.name}: {counted(judge.verdicts, 'verdict')}, last used {_day(judge.used)}")
    freed = "" if dry_run else f", {shown_bytes(found.bytes)} freed"
    print_line(f"{found.path}: {counted(len(found.judges), 'judge')} {would}{freed}")


def _store(given: str | None):
    """The store to look into; one that the environment turns off has no verdicts to show."""
    from lore.label.store import CACHE, VerdictStore, store_path
    from lore.support.errors import LoreError

    path = store_path(given)
    if path is None:
        raise LoreError(
            f"The verdict store is turned off (--store or {CACHE} is none), so there is none to look into. Name its file."
        )
    if given is not None and not path.is_file():
        raise LoreError(f"{path} does not exist, so there is no verdict store to look into. Correct --store.")
    return VerdictStore(path)


def _keeps(folders: list[Path]) -> Callable[[str], bool]:
    """Whether a judge of the store belongs to one of the folders: a label folder by its label files, a trained judge by its
    weights, rubric and renderer."""
    from lore.judge.card import judge_id
    from lore.judge.trained import trained_judge
    from lore.label.judge import is_stamp_of
    from lore.label.read import opened_labels
    from lore.label.schema import VERDICTS

    kept = []
    for folder in folders:
        if (folder / VERDICTS).is_dir():
            kept.append(opened_labels(folder).stamp)
        else:
            judge = trained_judge(folder)
            kept.append(judge_id(judge.weights, judge.rubric.hash, judge.renderer))
    return lambda name: any(is_stamp_of(name, one) for one in kept)


def _day(day: int) -> str:
    return (EPOCH + timedelta(days=day)).date().isoformat()
