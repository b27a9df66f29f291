"""The pairs of a recipe's data section: imported and hashed once per run, and readable any number of times.

    source = PairSource(recipe.data, folder)
    folder.note(data_fingerprint=source.fingerprint)
    for pair in source.labeled(columns=["label"]):
        ...

Sources other than `pairs` are imported into <run>/data/pairs.parquet. Pairs without a split are copied there with one, if the
run reads splits. <run>/data/inputs.json stores the digest, size and
modification time of each file, so that a restarted run and the other processes of a launch do not hash the files again. A file with
the stored size and modification time counts as unchanged. Another machine may have its own copy: its processes compare sizes only.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from lore.data.import_pairs import import_pairs
from lore.data.importers import IMPORT_VERSION, open_source
from lore.data.pair import Pair
from lore.data.parquet import PairWriter, count_pairs, count_unsplit, fingerprint, pair_files, read_metadata, read_pairs
from lore.data.rule_books import RuleBooks, under_one_rubric
from lore.data.section import DataSection
from lore.data.source import Source
from lore.data.splits import deal, dealt_as
from lore.rubric.rubric import Rubric, rubric_change
from lore.support.atomic_files import machine, write_atomic
from lore.support.errors import LoreError
from lore.support.fingerprint import content_fingerprint, known_digests, remember_digests
from lore.support.processes import is_main_process, rank, say
from lore.support.progress import track
from lore.support.terminal import print_note
from lore.support.untrusted_json import parse_object

POLL_SECONDS = 0.5
REPORT_EVERY_SECONDS = 30.0


class PairSource:
    """The pairs of one data section and one run folder. Create one per process and pass it on. Reads files only when needed."""

    def __init__(self, section: DataSection, folder: Any, *, splits: bool | None = None):
        """folder: the run folder, a RunFolder or a path. splits: whether the run reads splits; None: if the section names one."""
        self.section, self.folder = section, folder
        self._splits = section.split is not None if splits is None else splits

    @cached_property
    def rubric(self) -> Rubric | None:
        """The rubric of the labels. None for a section without a rubric."""
        return self.section.load_rubric()

    @cached_property
    def path(self) -> Path:
        """File, folder or glob of the pairs: the section's own path for source `pairs`, otherwise `folder`/data/pairs.parquet.

        The main process imports the pairs if the file is missing or was made from other rows, another importer or another rubric.
        The other processes wait for it. The hash of its query decides the split of a pair that has none, whatever the source; pairs
        of source `pairs` are then copied to `folder`/data/pairs.parquet too. Option
        drop_duplicates (true) keeps only the first of equal pairs; keep_bad_photos (true) keeps rows with unreadable photos. The
        import reports rejected rows and unreadable photos on stderr.
        """
        if self.section.source != "pairs":
            return self._imported() if is_main_process() else self._imported_by_the_main_process()
        if self.section.options:
            raise LoreError(
                f"data.options is {self.section.options}, but data.source is pairs, which has no importer and so no options. "
                "Remove the options."
            )
        if self._unsplit:
            say(f"{self.section.path}: {self._unsplit:,} pairs have no split; dealt {dealt_as(self.section.split_fractions)}")
        else:
            pair_files(self.section.path)
        if self.rubric is not None and is_main_process():
            if warning := rubric_change(read_metadata(self.section.path), self.rubric, self.section.path):
                print_note(f"warning: {warning}")
        if not self._unsplit:
            return Path(self.section.path)
        return self._imported() if is_main_process() else self._imported_by_the_main_process()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all bytes of the pairs files, in order. The path does not matter."""
        files = pair_files(self.path)
        self._recall()
        found = fingerprint(self.path)
        self._note(files)
        return found

    @cached_property
    def image_roots(self) -> tuple[Path, ...]:
        """Folders below which the photos of `path` may lie, besides its own: the section's image_root and the folders of the
        imported table or of the copied pairs."""
        roots = [Path(self.section.image_root).expanduser()] if self.section.image_root else []
        with suppress(LoreError):  # on a machine without the data
            if self.section.source != "pairs":
                roots += [file.parent for file in self.section.files()[:1]]
            elif self._unsplit:
                roots += dict.fromkeys(file.parent for file in pair_files(self.section.path))
        return tuple(roots)

    @property
    def dealt(self) -> dict[str, float] | None:
        """Shares for `read_split` of another file of the run, such as the probe's; None if the run reads no splits."""
        return self.section.split_fractions if self._splits else None

    @cached_property
    def _unsplit(self) -> int:
        """Number of pairs of source `pairs` that need a split."""
        return count_unsplit(self.section.path) if self._splits else 0

    @cached_property
    def books(self) -> RuleBooks:
        """The rule book of each pair, for a section with a rubric."""
        try:
            files = self.section.files()
        except LoreError:  # on a machine without the data
            files = pair_files(self.path)
        return RuleBooks(dict.fromkeys(file.parent for file in files), self.rubric)

    def labeled(self, *, columns: list[str] | None = None, any_book: bool = False) -> Iterator[Pair]:
        """The labeled pairs in file order, after the split, slices and limit of the section. columns: as in `read_pairs`; must
        include label, and slices if the section selects slices.

        any_book: the caller takes the rules of each pair from `books`. Otherwise raises LoreError at a pair with its own book.
        """
        wanted = set(self.section.slices or [])
        columns = columns and [*columns, "rubric"]
        pairs = read_pairs(self.path, split=self.section.split, columns=columns, image_roots=self.image_roots)
        chosen = (pair for pair in pairs if pair.label is not None and (not wanted or wanted & set(pair.slices)))
        return islice(chosen if any_book else under_one_rubric(chosen, self.section.path), self.section.limit)

    @property
    def _out(self) -> Path:
        return Path(self.folder / "data" / "pairs.parquet")

    @property
    def _notes_path(self) -> Path:
        return Path(self.folder / "data" / "inputs.json")

    @property
    def _encoding(self) -> str | None:
        # utf-8 is the section's default and may not be a deliberate choice, so the source uses its own default.
        return None if self.section.encoding.lower() in ("utf-8", "utf8") else self.section.encoding

    @property
    def _options(self) -> tuple[dict[str, Any], bool, bool]:
        """(options of the source, drop_duplicates, keep_bad_photos)"""
        options = dict(self.section.options)
        return options, options.pop("drop_duplicates", False), options.pop("keep_bad_photos", False)

    @property
    def _settings(self) -> list[Any]:
        """Everything except file contents that affects the imported pairs."""
        options, drop_duplicates, keep_bad_photos = self._options
        return [
            IMPORT_VERSION,
            self.section.source,
            self._encoding,
            options,
            drop_duplicates,
            *(["keep_bad_photos"] if keep_bad_photos else []),
            *([f"image_root={self.section.image_root}"] if self.section.image_root else []),
            self.section.split_fractions or None,
            self.rubric and self.rubric.hash,
        ]

    @property
    def _inputs(self) -> list[Any] | None:
        """Path of the data, and path, size and modification time of each of its files. None if this machine has no such files."""
        try:
            states = [(file, file.stat()) for file in self.section.files()]
        except (LoreError, OSError):
            return None
        return [self.section.path, *([str(file), state.st_size, state.st_mtime_ns] for file, state in states)]

    def _imported(self) -> Path:
        options, *_ = self._options
        source, files = None, []
        if self.section.source == "pairs":
            files = pair_files(self.section.path)
        else:
            source = open_source(self.section.source, self.section.path, encoding=self._encoding, options=options)
            source.extra_columns = list  # only the command line shows them, and finding them would open the file again
            files = source.files
        self._out.parent.mkdir(parents=True, exist_ok=True)
        with _lock(self._out.parent / ".import.lock"):
            self._recall()
            inputs = self._inputs  # before the files are read: a file that changes meanwhile does not count as imported
            # A data set on the hub has no local files, so its name is hashed.
            content = content_fingerprint(files, named=True) if files else _hash(self.section.path)
            key = _hash(json.dumps([*self._settings, content], sort_keys=True, default=str))
            if _key_of(self._out) != key:
                self._import(source, key) if source else self._deal(key)
            self._note(files, settings=self._settings, key=key, inputs=inputs, machine=machine())
        return self._out

    def _import(self, source: Source, key: str) -> None:
        path, (_, drop_duplicates, keep_bad_photos) = self.section.path, self._options
        report = import_pairs(
            source,
            self._out,
            self.rubric,
            split_fractions=self.section.split_fractions,
            drop_duplicates=drop_duplicates,
            keep_bad_photos=keep_bad_photos,
            metadata={"lore.key": key, **self.section.metadata()},
            image_roots=self.image_roots,
            force=True,  # the run folder is LORE's own
        )
        if not report.kept:
            raise LoreError(f"{path}: none of its {report.rows:,} rows is a valid pair. {' '.join(report.examples[:1])}")
        if report.rejected_rows:
            why = ", ".join(f"{reason} {times}" for reason, times in report.reasons.most_common(5))
            print_note(
                f"warning: {path}: {report.rejected_rows:,} of {report.rows:,} rows were rejected ({why}); see "
                f"{report.rejected}. First: {report.examples[0]}"
            )
        if photos := report.repairs["unreadable_photo"]:
            print_note(
                f"warning: {path}: {photos:,} photos cannot be read; their rows are kept and judged as text only. "
                f"First: {report.bad_photos[0]}"
            )

    def _deal(self, key: str) -> None:
        """Copies the pairs, and gives those without a split the one of their query."""
        path, fractions = self.section.path, self.section.split_fractions
        kept = {name: value for name, value in read_metadata(path).items() if name.startswith("lore.")}
        with PairWriter(self._out, metadata=kept | {"lore.key": key}) as writer:
            pairs = read_pairs(path, image_roots=self.image_roots)  # photos by relative path are found from the copy too
            for pair in track(pairs, "dealing splits", total=count_pairs(path)):
                deal(pair, fractions)
                writer.write(pair)

    def _imported_by_the_main_process(self) -> Path:
        """Waits for notes on the present input files, which the main process writes after the pairs. If it fails, the launcher ends
        this process. A process whose machine does not have the input files accepts the notes on any files."""
        settings = json.loads(json.dumps(self._settings, default=str))
        started = reported = time.monotonic()
        while True:
            notes = self._notes()
            inputs = self._inputs
            known = inputs is None or _same_inputs(inputs, notes)
            if known and notes.get("settings") == settings and _key_of(self._out) == notes.get("key"):
                return self._out
            if time.monotonic() - reported >= REPORT_EVERY_SECONDS:
                reported = time.monotonic()
                waited = f"waiting {reported - started:.0f} s for rank 0 to import {self._out}"
                must = "every machine must be able to read this folder"
                if inputs is not None:
                    must += f", and see {self.section.path} with the same sizes"
                print_note(f"rank {rank()}: {waited} ({must})")
            time.sleep(POLL_SECONDS)

    def _notes(self) -> dict[str, Any]:
        try:  # a damaged file costs time only: the inputs are hashed and imported again
            notes = parse_object(self._notes_path.read_bytes())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes.get("files", {}), dict) else {}

    def _recall(self) -> None:
        remember_digests(self._notes().get("files", {}))

    def _note(self, files: list[Path], **values: Any) -> None:
        if not is_main_process():
            return
        before = self._notes()
        notes = {**before, **values, "files": {**before.get("files", {}), **known_digests(files)}}
        notes = json.loads(json.dumps(notes, default=str))
        if notes != before:
            self._notes_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._notes_path, json.dumps(notes, indent=1) + "\n")


def _same_inputs(inputs: list[Any], notes: dict[str, Any]) -> bool:
    """Whether the notes are about these input files. On another machine, which may have its own copies, only sizes count."""
    noted = notes.get("inputs")
    if noted is None or notes.get("machine") == machine():
        return inputs == noted
    return [inputs[0], *(file[:2] for file in inputs[1:])] == [noted[0], *(file[:2] for file in noted[1:])]


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _key_of(path: Path) -> str | None:
    """Hash of the inputs and settings that a pairs file was imported with."""
    try:
        return read_metadata(path).get("lore.key") if path.is_file() else None
    except LoreError:  # damaged: it is imported again
        return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """File lock: one process at a time, on this machine or on a shared file system."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
