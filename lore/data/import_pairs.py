"""Validates the raw rows of a source and writes a pairs file, a file of rejected rows and a report. Used by `lore data import`,
`lore data check` and recipes.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from lore.data.duplicates import Duplicates, Seen
from lore.data.import_report import SHOWN_PER_REASON, Report
from lore.data.pair import FIELDS, REQUIRED, Pair
from lore.data.parquet import PairWriter, is_pairs_file, pair_files, read_metadata, read_pairs
from lore.data.photo_places import common_folder, refuse_photo
from lore.data.rejected_rows import RejectedWriter, Rejection, is_rejected_file, rejected_path
from lore.data.row_validation import RowChecker
from lore.data.source import Source, SourceRow
from lore.data.splits import deal
from lore.data.tables.parquet_files import open_parquet
from lore.data.tables.text_tables import parquet_records
from lore.rubric.rubric import Rubric, rubric_metadata
from lore.support.atomic_files import replace_file, scratch_folder
from lore.support.outputs import Output, checked_outputs
from lore.support.progress import track


def import_pairs(
    source: Source,
    out: Path | None,
    rubric: Rubric | None,
    *,
    strict: bool = False,
    tier_ids_only: bool = False,
    embed_images: bool = False,
    image_roots: Sequence[str | Path] = (),
    split_fractions: dict[str, float] | None = None,
    seed: int = 0,
    drop_duplicates: bool = False,
    keep_bad_photos: bool = False,
    metadata: dict[str, str] | None = None,
    inputs: Sequence[str | Path] = (),
    force: bool = False,
) -> Report:
    """Validates every row. With `out`, writes valid pairs to `out` and rejected rows to `<name of out>.rejected.jsonl`.

    image_roots: folders below which photos may lie, besides the folder of the table.
    inputs: what is read besides the files of the source, such as the rubric, and must not be overwritten. force: replace files that
    are no earlier output. A single pairs file that is checked may be replaced by its valid rows.

    Duplicates and conflicting labels are counted and kept. drop_duplicates: keep the first pair and reject the later ones.
    keep_bad_photos: keep a row with an unreadable photo, judge it as text and report it. split_fractions: assign pairs without a
    split by the hash of their query. If no row is valid, an existing `out` is not replaced. Memory grows by 28 bytes per pair.
    """
    named, listed = out, None
    if out:
        own = source.files[0] if source.name == "pairs" and len(source.files) == 1 else None
        files = [Output(out, is_pairs_file), Output(rejected_path(out), is_rejected_file)]
        out, listed = checked_outputs(files, [*source.files, *inputs], force=force, in_place=own)
    checker = RowChecker(
        rubric,
        strict=strict,
        tier_ids_only=tier_ids_only,
        image_folder=source.image_folder,
        image_roots=image_roots,
        embed_images=embed_images,
        keep_bad_photos=keep_bad_photos,
    )
    report, seen, places = Report(), Seen(), _Places()
    info = {
        "lore.source": source.name,
        **(rubric_metadata(rubric.name, rubric) if rubric else {}),
        **(metadata or {}),
    }
    rows = source.rows
    if out and force and out.exists():  # otherwise it carries the mark of pairs, and is no photo
        rows = _keep_photos(rows, image_roots, out)
    with ExitStack() as stack:
        rejected = stack.enter_context(RejectedWriter(out, listed)) if out else None
        first_out = stack.enter_context(scratch_folder(out)) / "all.parquet" if out and drop_duplicates else out
        writing = ExitStack()
        with writing:
            writer = writing.enter_context(PairWriter(first_out, metadata=info)) if first_out else None
            for pair in _checked(track(rows, f"{source.name}", total=source.total), source.name, checker, report, rejected, places):
                if split_fractions:
                    deal(pair, split_fractions, seed)
                seen.add(pair)
                if out:
                    report.photos_elsewhere = common_folder(pair.image, out, report.photos_elsewhere)
                report.unlabeled += pair.label is None
                report.distributions += pair.label_distribution is not None
                report.unsplit += pair.split is None
                if writer:
                    writer.write(pair)
            if writer and not len(seen):
                writer.discard()
            if rejected and not drop_duplicates:
                rejected.publish()
        found = seen.result()
        report.kept, report.duplicates, report.conflicting = len(seen), found.same_label, found.conflicts
        report.repairs, report.repeats = checker.repairs, _shown_repeats(found, places)
        report.bad_photos = checker.bad_photos
        report.extra_columns = source.extra_columns()
        if out and drop_duplicates and len(seen):
            report.dropped = len(found.repeats)
            if report.dropped:
                _drop(first_out, out, found, places, rejected, info)
                report.kept -= report.dropped
            else:
                rejected.publish()
                replace_file(first_out, out)
    if out:
        report.out = str(named) if report.kept else None
        report.rejected = str(rejected_path(named)) if rejected.count else None
    return report


def _keep_photos(
    rows: Iterator[SourceRow | Rejection], image_roots: Sequence[str | Path], out: Path
) -> Iterator[SourceRow | Rejection]:
    """The rows. Raises LoreError if one names the file to write as its photo."""
    for row in rows:
        image = None if isinstance(row, Rejection) else row.values.get("image")
        path = image.get("path") if isinstance(image, dict) else image
        refuse_photo(out, path, (*image_roots, Path(row.file).parent), f"{row.file} row {row.row}")
        yield row


def _shown_repeats(found: Duplicates, places: "_Places") -> list[str]:
    shown, counts = [], Counter()
    for index, first, conflicting in zip(found.repeats, found.first, found.conflicting, strict=True):
        counts[bool(conflicting)] += 1
        if counts[bool(conflicting)] <= SHOWN_PER_REASON:
            (file, row), (first_file, first_row) = places[index], places[first]
            what = "has another label than" if conflicting else "repeats"
            shown.append(f"{file} row {row} {what} {'' if file == first_file else f'{first_file} '}row {first_row}")
        if min(counts[True], counts[False]) >= SHOWN_PER_REASON:
            break
    return shown


def _checked(
    rows: Iterator[SourceRow | Rejection],
    name: str,
    checker: RowChecker,
    report: Report,
    rejected: RejectedWriter | None,
    places: "_Places",
) -> Iterator[Pair]:
    """Yields the valid pairs. Counts the rejected rows and, with a writer, writes them."""
    for row in rows:
        report.rows += 1
        if isinstance(row, Rejection):
            problems = [row]
        else:
            if name != "pairs":
                row.values.setdefault("source", name)
            pair, problems = checker.check(row.values, row.file, row.row)
            if pair is not None:
                places.add(row.file, row.row)
                yield pair
                continue
        report.reject(problems, rejected)


class _Places:
    """File and row of every valid pair, 8 bytes each."""

    def __init__(self):
        self._files: dict[str, int] = {}
        self._file, self._row = array("I"), array("I")

    def add(self, file: str, row: int) -> None:
        self._file.append(self._files.setdefault(file, len(self._files)))
        self._row.append(row)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return list(self._files)[self._file[index]], self._row[index]


def _drop(path: Path, out: Path, found: Duplicates, places: _Places, rejected: RejectedWriter, info: dict[str, str]) -> None:
    """Copies the pairs that do not repeat an earlier one. The others are rejected."""
    repeats = iter(zip(found.repeats.tolist(), found.first.tolist(), found.conflicting.tolist(), strict=True))
    index, first, conflicting = next(repeats)
    with PairWriter(out, metadata=info) as writer:
        for number, pair in enumerate(track(read_pairs(path), "dropping duplicates", total=len(places._row))):
            if number != index:
                writer.write(pair)
                continue
            file, row = places[index]
            first_file, first_row = places[first]
            reason = "conflicting_label" if conflicting else "duplicate_pair"
            other = f"the same pair as {first_file} row {first_row}" + (f", but with label {pair.label}" if conflicting else "")
            record = {"pair_id": pair.pair_id, "query": pair.query, "title": pair.title[:300], "label": pair.label}
            rejected.write(
                Rejection(file, row, "label" if conflicting else "pair_id", reason, other, "each query and item once", record)
            )
            index, first, conflicting = next(repeats, (-1, -1, False))
        rejected.publish()


def open_pairs(path: str | Path) -> tuple[Source, dict[str, str]]:
    """A pairs file as a source of raw rows for `lore data check`, and its metadata."""
    files, extra, total = pair_files(path), [], 0
    for file in files:
        with open_parquet(file) as parquet:
            total += parquet.metadata.num_rows
            extra += [name for name in parquet.schema_arrow.names if name not in FIELDS and name not in extra]
    rows = (SourceRow(str(file), row, values) for file in files for row, values in parquet_records(file, REQUIRED, list(FIELDS)))
    return Source("pairs", None, rows, files, total, extra_columns=lambda: extra), read_metadata(files[0])
