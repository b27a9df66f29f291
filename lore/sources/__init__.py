"""Importers of public formats, and of any table by column map.

A source is a module with RUBRIC (its scale), WHERE (how a user gets the data), `files(path)` (what it reads; raises
LoreError where a file is missing) and `read(path, encoding, **options)`, a generator of SourceRow and Rejection.
Importing this package is cheap; `materialise` and `open_source` load what they need.
"""

import glob
import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lore.errors import LoreError

if TYPE_CHECKING:
    from lore.rejected import Rejection
    from lore.schema import Pair

SOURCES = ("crowdflower", "homedepot", "wands", "esci", "rair", "table")
IMPORT_VERSION = "2"
"""Part of the key of an imported file: raise it when an importer gives other pairs for the same files."""


class SourceRow(NamedTuple):
    """One raw row: where it stands and its values, keyed as the fields of Pair."""

    file: str
    row: int
    values: dict[str, Any]


@dataclass
class Source:
    """An opened source, ready to stream once."""

    name: str
    rubric: str | None
    rows: "Iterator[SourceRow | Rejection]"
    files: list[Path]
    total: int | None = None
    image_folder: Path | None = None
    extra_columns: Callable[[], list[str]] = list
    """Looks up the columns that are not read."""


def open_source(name: str, path: str | Path, *, encoding: str | None = None, options: dict[str, Any] | None = None) -> Source:
    """Raises LoreError for an unknown source, a missing file (with where to get it) or an option that the source does
    not have.
    """
    from lore.sources.reading import nearest

    if name not in SOURCES:
        raise LoreError(
            f"There is no source {name!r}. Sources: {', '.join(SOURCES)}; pairs for a file that was "
            f"imported.{nearest(name, SOURCES)}"
        )
    module, known = importlib.import_module(f"lore.sources.{name}"), source_options(name)
    for option in options or {}:
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise LoreError(f"Source {name} has no option {option!r}; {takes}.{nearest(option, known)}")
    if not str(path).startswith("hub:"):
        path = Path(path).expanduser()
    elif name != "rair":
        raise LoreError(f"{path}: only source rair reads from the hub; {name} reads local files. {module.WHERE}")
    files = module.files(path)
    rows = module.read(path, encoding, **(options or {}))
    folder = files[0].parent if files else None
    total = module.count(files) if hasattr(module, "count") else None
    extra = partial(module.unmapped, path, encoding, **(options or {})) if hasattr(module, "unmapped") else list
    return Source(name, module.RUBRIC, rows, files, total, folder, extra)


def source_options(name: str) -> list[str]:
    """The switches of a source of SOURCES."""
    parameters = inspect.signature(importlib.import_module(f"lore.sources.{name}").read).parameters
    return [option for option, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def missing_file(path: Path, where: str) -> LoreError:
    """The error for data that is not there: what was looked for, where a user gets it, how to point to it."""
    return LoreError(
        f"{path} does not exist.\n{where}\nPut it there, or set LORE_DATA to the folder that holds your data "
        f"(recipes use ${{LORE_DATA}}, default data/)."
    )


def missing_data(section: Any) -> str | None:
    """What the files of a recipe's data section lack, with where a user gets them; None where they are there."""
    if str(section.path).startswith("hub:"):
        return None
    if section.source == "pairs":
        there = Path(section.path).exists() or glob.glob(section.path)
        return None if there else f"{section.path} does not exist. `lore data import` writes pairs."
    try:
        importlib.import_module(f"lore.sources.{section.source}").files(Path(section.path).expanduser())
    except LoreError as error:
        return " ".join(str(error).split())
    return None


def labelled(section: Any, path: str | Path, *, columns: list[str] | None = None) -> "Iterator[Pair]":
    """The pairs of a data section that have a label, in file order; path: of `materialise`. section: .split .slices .limit;
    columns: of `read_pairs`, the label and the slices among them."""
    from lore.pairs import read_pairs

    wanted = set(section.slices or [])
    pairs = read_pairs(path, split=section.split, columns=columns)
    chosen = (pair for pair in pairs if pair.label is not None and (not wanted or wanted & set(pair.slices)))
    return islice(chosen, section.limit)


def materialise(section: Any, folder: Any) -> Path:
    """The pairs of a recipe's data section: the path itself for source `pairs`, else `folder`/data/pairs.parquet,
    imported once.

    section: .source .path .rubric .encoding .split_fractions .options. Pairs get a split by hash of their query where
    the source has none. The option drop_duplicates (true) keeps the first of equal pairs, keep_bad_photos (true) the rows
    whose photo cannot be read. What the import left out or kept without its photo is said on stderr. Safe to call from
    several processes.
    """
    from lore.rubric import load_rubric, rubric_change, rubric_metadata

    options = dict(section.options or {})
    rubric = load_rubric(section.rubric)
    if section.source == "pairs":
        from lore.pairs import pair_files, read_metadata

        if options:
            raise LoreError(
                f"data.options {options} belong to an importer, but data.source is pairs, which is read as it is. Remove them."
            )
        pair_files(section.path)
        warning = rubric_change(read_metadata(section.path), rubric, section.path)
        if warning and int(os.environ.get("RANK") or 0) == 0:
            print(f"warning: {warning}", file=sys.stderr)
        return Path(section.path)
    from lore.sources.importing import import_pairs

    drop_duplicates = options.pop("drop_duplicates", False)
    keep_bad_photos = options.pop("keep_bad_photos", False)
    # utf-8 is the section's default, so it cannot be told from a choice: the source's own default counts then.
    encoding = None if section.encoding.lower() in ("utf-8", "utf8") else section.encoding
    source = open_source(section.source, section.path, encoding=encoding, options=options)
    fractions = section.split_fractions or None
    settings = [
        IMPORT_VERSION,
        section.source,
        encoding,
        options,
        drop_duplicates,
        *(["keep_bad_photos"] if keep_bad_photos else []),
        fractions,
        rubric.hash,
        _content_key(source.files, section.path),
    ]
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
    out = Path(folder / "data" / "pairs.parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _lock(out.parent / ".import.lock"):
        if _key_of(out) != key:
            report = import_pairs(
                source,
                out,
                rubric,
                split_fractions=fractions or {},
                drop_duplicates=drop_duplicates,
                keep_bad_photos=keep_bad_photos,
                metadata={"lore.key": key, **rubric_metadata(section.rubric, rubric)},
            )
            if not report.pairs:
                raise LoreError(f"{section.path}: no row of {report.rows:,} became a pair. {' '.join(report.examples[:1])}")
            _say_what_was_lost(section.path, report)
    return out


def _say_what_was_lost(path: Any, report: Any) -> None:
    if report.rejected_rows:
        why = ", ".join(f"{reason} {times}" for reason, times in report.reasons.most_common(5))
        print(
            f"warning: {path}: {report.rejected_rows:,} of {report.rows:,} rows became no pair ({why}); they are kept with "
            f"their reasons in {report.rejected}. First: {report.examples[0]}",
            file=sys.stderr,
        )
    if photos := report.repairs["unreadable_photo"]:
        print(
            f"warning: {path}: {photos:,} photos cannot be read; their rows are kept and judged as text. "
            f"First: {report.bad_photos[0]}",
            file=sys.stderr,
        )


def _key_of(path: Path) -> str | None:
    from lore.pairs import read_metadata

    return read_metadata(path).get("lore.key") if path.is_file() else None


def _content_key(files: list[Path], path: Any) -> str:
    """Hash over the files' names, sizes and bytes; of files over 1 GiB the first and last MiB stand for the rest."""
    total = hashlib.blake2b(digest_size=16)
    if not files:
        total.update(str(path).encode())  # a hub data set is known by its name
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with open(file, "rb") as handle:
            if size <= 2**30:
                total.update(hashlib.file_digest(handle, "blake2b").digest())
            else:
                total.update(handle.read(2**20))
                handle.seek(-(2**20), 2)
                total.update(handle.read(2**20))
    return total.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process of the machine or of the shared file system at a time."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
