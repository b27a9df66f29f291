"""The `data` section of recipes that read histories. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from lore.config.sections import Conflict, StrictModel
from lore.data.tables.times import seconds_of
from lore.support.bounds import MAX_COUNT
from lore.support.errors import LoreError

if TYPE_CHECKING:  # loads pyarrow: only where histories are read
    from lore.data.pair import Pair
    from lore.recommend.histories import Histories


CODES, CODES_CARD, MODEL_CARD = "codes.parquet", "codes.json", "recommender.json"


class HistoriesSection(StrictModel):
    """Events, the catalogue, and which events are held out."""

    events: str = Field(min_length=1)
    """events.parquet, written by `lore data import events`."""
    items: str | None = Field(None, min_length=1)
    """items.parquet, written by `lore data import items`. null: the items of the events, which then have no text and no photo."""
    image_root: str | None = Field(None, min_length=1)
    """Folder below which photos may lie, besides the folder of the catalogue."""
    split: Literal["leave_one_out", "time", "given"] = "leave_one_out"
    """leave_one_out: the last event of each history is the test, the one before it validation. time: everything from valid_from
    on. given: the column split of the events."""
    by: Literal["user", "session"] = "user"
    """Whose events are one history."""
    min_events: int = Field(1, ge=1, le=MAX_COUNT)
    """Shorter histories are left out."""
    valid_from: str | None = None
    """split: time. Date such as 2018-06-01 (UTC) from which events are held out. null: when 80 % of the events have passed."""
    test_from: str | None = None
    """split: time. Date from which events are the test. null: when 90 % of the events have passed."""

    @field_validator("valid_from", "test_from")
    @classmethod
    def _is_a_date(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value

    def conflicts(self) -> Iterator[Conflict]:
        for key, date in (("valid_from", self.valid_from), ("test_from", self.test_from)):
            if date is not None and self.split != "time":
                yield Conflict((key,), f"{date} with split: {self.split}", "split: time, or no date")
        if self.valid_from and self.test_from and seconds_of(self.valid_from) > seconds_of(self.test_from):
            yield Conflict(("valid_from",), self.valid_from, f"a date before test_from ({self.test_from})")

    def input_files(self) -> dict[str, list[str]]:
        named = {"events": self.events, "items": self.items}
        return {key: [path] for key, path in named.items() if path is not None}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        yield from super().missing_inputs()
        if self.image_root is not None and not Path(self.image_root).expanduser().is_dir():
            yield "image_root", f"{self.image_root} is no folder."

    def histories(self) -> Histories:
        """Reads the events. Raises LoreError, see lore.recommend.tables.read_histories."""
        from lore.recommend.tables import read_histories  # loads pyarrow: only where histories are read

        cutoffs = [None if date is None else seconds_of(date) for date in (self.valid_from, self.test_from)]
        return read_histories(
            self.events,
            self.items,
            split=self.split,
            by=self.by,
            min_events=self.min_events,
            valid_from=cutoffs[0],
            test_from=cutoffs[1],
        )

    def catalogue(self) -> Iterator[Pair]:
        """The items in the order of their numbers, as pairs without a query; see lore.recommend.tables.read_items."""
        from lore.recommend.tables import read_items  # loads pyarrow: only where items are read

        if self.items is None:
            raise LoreError("data.items is missing, so the items have no text and no photo. Name the file of the catalogue.")
        return read_items(self.items, image_roots=[] if self.image_root is None else [Path(self.image_root).expanduser()])


def codes_file(path: str | Path) -> Path:
    """The file of the codes that a recipe names: a run folder of stage semantic_ids has codes.parquet; another path is the file."""
    return Path(path) / CODES if Path(path).is_dir() else Path(path)


def model_folder(path: str | Path) -> Path | None:
    """The folder of the model in a run folder of stage recommender or a model folder; None if there is none."""
    return next((folder for folder in (Path(path), Path(path) / "model") if (folder / MODEL_CARD).is_file()), None)
