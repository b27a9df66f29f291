"""The `data` section of recipes: the pairs that a run reads and their source. lore.data.pair_source imports and reads them.

Stages that train or evaluate a judge use `JudgedDataSection`, which names the rubric of the labels. Stages that need no rubric use
`DataSection`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from lore.config.sections import Conflict, StrictModel
from lore.data.importers import SOURCES, open_source, source_files, source_options
from lore.data.rejected_rows import Rejection
from lore.data.tables.text_tables import check_encoding
from lore.support.bounds import MAX_COUNT
from lore.support.errors import LoreError
from lore.support.input_files import InputFiles, input_files, photos_of
from lore.support.nearest import nearest

if TYPE_CHECKING:  # loads the rubric's models: only for data with a rubric
    from lore.rubric.rubric import Rubric


class DataSection(StrictModel):
    path: str = Field(min_length=1)
    """File, folder or glob of the data. ${LORE_DATA} is the folder of public data (default data/)."""
    source: str = "pairs"
    """Importer of a public format or of a table, or `pairs` for files written by `lore data import`."""
    split: str | None = None
    """Use only the pairs of this split. null: all pairs."""
    limit: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Use only this many pairs, from the start of the data. null: all pairs."""
    encoding: str = "utf-8"
    """Text encoding of csv and jsonl sources. With utf-8 it is detected: UTF-8, UTF-16, csv files of Excel."""
    split_fractions: dict[str, float] = {"train": 0.7, "dev": 0.1, "test": 0.2}
    """Share of the queries in each split, for pairs without a split of their own, whatever the source. Must sum to 1."""
    slices: list[str] | None = None
    """Use only pairs that are in at least one of these slices. null: all pairs."""
    image_root: str | None = None
    """Folder below which photos may lie, besides the folder of the data. Relative paths of photos start here first. null: none."""
    options: dict[str, Any] = {}
    """Options of the importer, such as the column map or the locale."""

    @field_validator("split_fractions")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(v < 0 for v in value.values()) or abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"non-negative shares that sum to 1, these sum to {sum(value.values()):g}")
        return value

    def conflicts(self) -> Iterator[Conflict]:
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
        """The data files. Raises LoreError if a file is missing; the message says where to get it."""
        if self.source == "pairs":
            from lore.data.parquet import pair_files  # imported here because loading pyarrow would slow down every start

            return pair_files(self.path)
        return source_files(self.source, self.path)

    def load_rubric(self) -> Rubric | None:
        """The rubric of the labels, or None for data without a rubric."""
        return None

    def metadata(self) -> dict[str, str]:
        """Metadata entries of a pairs file that is imported from this data."""
        return {}

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        photos = {"table": self.photos, "pairs": lambda: photos_of(self.files())}.get(self.source)
        return {"path": input_files(self.files, photos and (lambda: [*photos(), *self.rule_books()]))}

    def rule_books(self) -> list[Path]:
        """The rule books that pairs name, as far as they are there. Whoever reads the pairs reports damaged ones."""
        from lore.data.parquet import column_values  # imports pyarrow: only where the inputs are compared
        from lore.data.rule_books import book_files

        names: list[str] = []
        with suppress(LoreError):
            cells = self._cells("rubric") if self.source == "table" else column_values(self.path, "rubric")
            names = sorted({name.strip() for name in cells if isinstance(name, str)})
        folders = list(dict.fromkeys(file.parent for file in self.files()))
        return [path for name in names for path in book_files(folders, name)]

    def photos(self) -> list[Path]:
        """The photos that a table names by path, as far as they are there. Reads the table if it may have a column of photos."""
        named = self._cells("image")
        paths = [image.get("path") if isinstance(image, dict) and not image.get("bytes") else image for image in named]
        found = dict.fromkeys(path.strip() for path in paths if isinstance(path, str) and "://" not in path and "\0" not in path)
        return [Path(os.path.abspath(self.files()[0].parent / path)) for path in found if path]

    def _cells(self, field: str) -> Iterator[Any]:
        """The cells of a field in a table; none if it seems to have no such column."""
        from lore.data.importers.table import may_name  # imports pyarrow: only where the inputs are compared

        if not may_name(field, self.files()[0], self.options.get("map")):
            return
        encoding = None if self.encoding.lower() in ("utf-8", "utf8") else self.encoding
        options = {key: value for key, value in self.options.items() if key in source_options(self.source)}
        source = open_source(self.source, self.path, encoding=encoding, options=options)
        yield from (row.values.get(field) for row in source.rows if not isinstance(row, Rejection))

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if self.image_root is not None and not Path(self.image_root).expanduser().is_dir():
            yield "image_root", f"{self.image_root} is no folder."
        if self.path.startswith("hub:"):
            return
        if self.source == "pairs":
            if not (Path(self.path).exists() or glob.glob(self.path)):
                yield "path", f"{self.path} does not exist. `lore data import` writes pairs."
            return
        try:
            source_files(self.source, self.path)
        except LoreError as error:
            yield "path", " ".join(str(error).split())


class JudgedDataSection(DataSection):
    """Pairs whose labels are tiers of a rubric."""

    rubric: str
    """Name of a shipped rubric (lore/rubric/rubrics) or path of a rubric file."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        try:
            self.load_rubric()
        except LoreError as error:
            yield Conflict(("rubric",), self.rubric, str(error))

    def load_rubric(self) -> Rubric:
        from lore.rubric.rubric import load_rubric  # only for data with a rubric

        return load_rubric(self.rubric)

    def metadata(self) -> dict[str, str]:
        from lore.rubric.rubric import rubric_metadata  # only for data with a rubric

        return rubric_metadata(self.rubric, self.load_rubric())

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        return {**super().input_fingerprints(), "rubric": lambda: self.load_rubric().hash}
