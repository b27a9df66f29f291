"""The files that an input of a run consists of, and whether they are the same as before.

A file with the recorded size, modification time and change time (ctime) counts as unchanged and is not read. Otherwise all of its
bytes are hashed. `cp -p`, `touch -r` and rsync preserve modification times but not change times, so a file that they replace is
read again. Not seen: bytes that are changed below the file system, and a change while the clock was set back.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lore.support.errors import LoreError
from lore.support.fingerprint import file_digest, files_fingerprint, model_fingerprint
from lore.support.processes import say

WHOLE = "blake2b:"
"""Prefix of fingerprints over whole files. Manifests of earlier versions hold sampled ones, without it."""
ABSENT = "absent"
RECENT_NS = 2_000_000_000
"""A file that changed this recently may change again without another time: file systems store times in steps of up to 2 s."""
TOLD_BYTES = 2e9
NOT_LOADED = re.compile(
    r"\..*|.*\.(?:md|png|jpe?g|gif|svg)|(?:optimizer|scheduler|scaler|rng_state|trainer_state|training_args|global_step).*|complete"
)
"""Files and folders of a checkpoint that do not change what is loaded from it."""


class Row(NamedTuple):
    """One file as it was read. digest: ABSENT for a file that was not there."""

    name: str
    path: str
    size: int
    modified_ns: int
    changed_ns: int
    digest: str


Known = Mapping[str, Row]
"""Rows by path."""


@dataclass(frozen=True)
class InputFiles:
    """One input: the names that identify its files, and their paths, in order. Both are listed when they are needed.

    listed: raises LoreError for missing files. photos: files that the input names; a missing one is no error. sampled: the
    fingerprint by the rule of earlier versions.
    """

    listed: Callable[[], list[tuple[str, Path]]]
    sampled: Callable[[], str]
    photos: Callable[[], list[Path]] = list


def input_files(files: Callable[[], Iterable[str | Path]], photos: Callable[[], list[Path]] | None = None) -> InputFiles:
    """Files that are identified by their names, wherever they lie. photos: by default those that Parquet files name."""
    return InputFiles(
        lambda: [(Path(file).name, Path(file)) for file in files()],
        lambda: files_fingerprint(files()),
        photos or (lambda: photos_of(map(Path, files()))),
    )


def model_files(folder: str) -> InputFiles:
    """Everything in the folder of a checkpoint, adapter or tokenizer that may be loaded."""

    def listed() -> list[tuple[str, Path]]:
        found = []
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not NOT_LOADED.fullmatch(name))
            found += [Path(place, name) for name in sorted(files) if not NOT_LOADED.fullmatch(name)]
        return [(path.relative_to(folder).as_posix(), path) for path in found]

    return InputFiles(listed, lambda: model_fingerprint(folder))


def photos_of(files: Iterable[Path]) -> list[Path]:
    """Paths in the column image {bytes, path} of Parquet files, of rows without bytes. Each path once, in order."""
    found: dict[str, None] = {}
    for file in files:
        if file.suffix == ".parquet":
            found |= dict.fromkeys(_photos_of(file))
    return [Path(os.path.abspath(path)) for path in found if path and "://" not in path]


def _photos_of(file: Path) -> list[str]:
    import pyarrow as pa  # only where a run reads Parquet: every recipe loads this module
    import pyarrow.parquet as pq

    paths: list[str] = []
    try:
        with pq.ParquetFile(file) as parquet:
            leaves = {parquet.schema.column(i).path: i for i in range(len(parquet.schema))}
            if not {"image.path", "image.bytes"} <= leaves.keys():
                return []
            for group in range(parquet.num_row_groups):
                held = parquet.metadata.row_group(group).column(leaves["image.bytes"]).statistics
                if held is not None and held.has_null_count and held.null_count == 0:
                    continue  # every row has its bytes, which belong to the file
                none = held is not None and held.has_null_count and held.null_count == parquet.metadata.row_group(group).num_rows
                columns = ["image.path"] if none else ["image.path", "image.bytes"]
                for batch in parquet.iter_batches(row_groups=[group], columns=columns):
                    image = batch.column(0)
                    named = image.field("path").to_pylist()
                    given = [False] * len(named) if none else image.field("bytes").is_valid().to_pylist()
                    paths += [path for path, bytes_there in zip(named, given, strict=True) if path and not bytes_there]
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return []  # a damaged file is reported by what reads it
    return paths


def rows_of(files: list[tuple[str, Path]], known: Known, *, keep_deleted: bool = False) -> list[Row]:
    """The present state of files. Reads only those whose size or times are not the known ones.

    keep_deleted: a file that was there and is gone keeps its known row.
    """
    now = time.time_ns()
    rows: list[Row | None] = []
    to_read: list[int] = []
    size = 0
    for name, path in files:
        before = known.get(os.path.abspath(path))
        try:
            state = path.stat()
        except OSError:
            gone = Row(name, os.path.abspath(path), 0, 0, 0, ABSENT)
            rows.append(before if keep_deleted and before is not None else gone)
            continue
        times = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if before is not None and before[2:5] == times:
            rows.append(before._replace(name=name))
            continue
        if not path.is_file():  # a folder or device is no photo
            rows.append(Row(name, os.path.abspath(path), 0, 0, 0, ABSENT))
            continue
        if now - max(times[1:]) < RECENT_NS:
            times = (state.st_size, 0, 0)  # read again at the next start
        to_read.append(len(rows))
        rows.append(Row(name, os.path.abspath(path), *times, ""))
        size += state.st_size
    if size > TOLD_BYTES:
        say(f"hashing {size / 1e9:.1f} GB of inputs; unchanged files are not read again")
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        digests = threads.map(lambda place: file_digest(Path(rows[place].path))[:32], to_read)
        for place, digest in zip(to_read, digests, strict=True):
            rows[place] = rows[place]._replace(digest=digest)
    return rows


def whole_fingerprint(rows: Iterable[Row]) -> str:
    """Fingerprint over the names and all bytes of files, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(f"{row.name}\0{row.digest}\0".encode("utf-8", "surrogateescape"))
    return f"{WHOLE}{digest.hexdigest()}"


def changed_names(rows: Iterable[Row], known: Known) -> list[str]:
    """Names of the files whose bytes are not the known ones."""
    return [row.name for row in rows if row.path in known and known[row.path].digest != row.digest]


def rows_from(value: object) -> list[Row]:
    """Rows from JSON. Raises LoreError for anything else."""
    try:
        rows = [Row(*row) for row in value]
    except TypeError as error:
        raise LoreError(f"no rows of files: {error}") from error
    kinds = (str, str, int, int, int, str)
    if any(type(part) is not kind for row in rows for part, kind in zip(row, kinds, strict=True)):
        raise LoreError("no rows of files: a value has another type")
    return rows
