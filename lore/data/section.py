"""The `data` section of recipes: which pairs a run reads, from which source, and where they are imported to.

`DataSection` is enough for a stage that reads pairs or tables and no labels by a rule book; a stage that trains or measures a
judge takes `JudgedDataSection`, which names the rubric of the labels.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from lore.config.sections import Conflict, StrictModel
from lore.data.importers import IMPORT_VERSION, open_source
from lore.support.errors import LoreError
from lore.support.fingerprint import files_fingerprint
from lore.support.nearest import nearest

if TYPE_CHECKING:  # at start-up nothing here needs pyarrow
    from lore.data.pair import Pair
    from lore.rubric.rubric import Rubric


class DataSection(StrictModel):
    path: str = Field(min_length=1)
    """File, folder or glob; ${LORE_DATA} is the folder of public data (default data/)."""
    source: str = "pairs"
    """Importer of a public format, or pairs for a file written by `lore data import`."""
    split: str | None = None
    """Only the pairs of this split."""
    limit: int | None = Field(None, ge=1)
    """At most this many pairs, from the start."""
    encoding: str = "utf-8"
    """Text encoding of csv and jsonl sources."""
    split_fractions: dict[str, float] = {"train": 0.7, "dev": 0.1, "test": 0.2}
    """Shares of the queries per split, for sources that have none of their own."""
    slices: list[str] | None = None
    """Only the pairs of these slices."""
    options: dict[str, Any] = {}
    """Switches of the importer (column map, locale, ...)."""

    @field_validator("split_fractions")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(v < 0 for v in value.values()) or abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"shares that are not negative and sum to 1, these sum to {sum(value.values()):g}")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        from lore.data.importers import SOURCES, source_options
        from lore.data.tables.text_tables import check_encoding

        sources = ("pairs", *SOURCES)
        if self.source not in sources:
            yield Conflict(("source",), self.source, f"one of: {', '.join(sources)}", nearest(self.source, sources))
        else:
            known = [] if self.source == "pairs" else [*source_options(self.source), "drop_duplicates", "keep_bad_photos"]
            for option in self.options:
                if option not in known:
                    expected = f"an option of source {self.source}: {', '.join(known) or 'it has none'}"
                    yield Conflict((f"options.{option}",), "unknown option", expected, nearest(option, known))
        try:
            check_encoding(self.encoding)
        except LoreError as error:
            yield Conflict(("encoding",), self.encoding, str(error))

    def files(self) -> list[Path]:
        """The files that hold the data. Raises LoreError where there are none, with where a user gets them."""
        if self.source == "pairs":
            from lore.data.parquet import pair_files  # loads pyarrow, which a start does without

            return pair_files(self.path)
        return open_source(self.source, self.path).files

    def load_rubric(self) -> Rubric | None:
        """The rule book of the labels; none for data that are read without one."""
        return None

    def metadata(self) -> dict[str, str]:
        """What a pairs file that is imported from these data says of them."""
        return {}

    def input_fingerprints(self) -> dict[str, Callable[[], str]]:
        return {"path": lambda: files_fingerprint(self.files())}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if self.path.startswith("hub:"):
            return
        if self.source == "pairs":
            if not (Path(self.path).exists() or glob.glob(self.path)):
                yield "path", f"{self.path} does not exist. `lore data import` writes pairs."
            return
        try:
            importlib.import_module(f"lore.data.importers.{self.source}").files(Path(self.path).expanduser())
        except LoreError as error:
            yield "path", " ".join(str(error).split())


class JudgedDataSection(DataSection):
    """Pairs whose labels are tiers of a rubric."""

    rubric: str
    """Name of a rubric in lore/rubric/rubrics or path of a rubric file."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        try:
            self.load_rubric()
        except LoreError as error:
            yield Conflict(("rubric",), self.rubric, str(error))

    def load_rubric(self) -> Rubric:
        from lore.rubric.rubric import load_rubric

        return load_rubric(self.rubric)

    def metadata(self) -> dict[str, str]:
        from lore.rubric.rubric import rubric_metadata

        return rubric_metadata(self.rubric, self.load_rubric())

    def input_fingerprints(self) -> dict[str, Callable[[], str]]:
        return {**super().input_fingerprints(), "rubric": lambda: self.load_rubric().hash}


def labelled(section: Any, path: str | Path, *, columns: list[str] | None = None) -> Iterator[Pair]:
    """The pairs of a data section that have a label, in file order; path: of `materialise`. section: .split .slices .limit;
    columns: of `read_pairs`, the label and the slices among them."""
    from lore.data.parquet import read_pairs

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
    from lore.rubric.rubric import rubric_change

    options = dict(section.options)
    rubric = section.load_rubric()
    if section.source == "pairs":
        from lore.data.parquet import pair_files, read_metadata

        if options:
            raise LoreError(
                f"data.options {options} belong to an importer, but data.source is pairs, which is read as it is. Remove them."
            )
        pair_files(section.path)
        warning = rubric and rubric_change(read_metadata(section.path), rubric, section.path)
        if warning and int(os.environ.get("RANK") or 0) == 0:
            print(f"warning: {warning}", file=sys.stderr)
        return Path(section.path)
    from lore.data.import_pairs import import_pairs

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
        rubric and rubric.hash,
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
                metadata={"lore.key": key, **section.metadata()},
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
    from lore.data.parquet import read_metadata

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
