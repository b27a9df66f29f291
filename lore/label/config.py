"""Recipe of batch labelling. Nothing here imports torch."""

from __future__ import annotations

from pydantic import Field

from lore.config.sections import StrictModel


class UbiSection(StrictModel):
    """User Behavior Insights: the two indexes of a search engine, exported as jsonl or Parquet."""

    queries: str = Field(min_length=1)
    """File, folder or glob of ubi_queries."""
    events: str | None = Field(None, min_length=1)
    """File, folder or glob of ubi_events. null: only the items of query_response_hit_ids."""


class InputSection(StrictModel):
    """The pairs to label: pairs files, any table, or a search log (or User Behavior Insights) with a catalogue."""

    path: str | None = Field(None, min_length=1)
    """Parquet, csv or jsonl: a file, a folder or a glob; or hub:NAME for a data set of the Hugging Face hub. With a catalogue: the
    search log, with the columns query and item_id."""
    map: dict[str, str] = {}
    """Columns of the fields of a pair, such as {query: search_term}, as in `lore data import table`. {}: the columns have the names
    of the fields."""
    catalogue: str | None = Field(None, min_length=1)
    """Table of the items, with the columns item_id and title. null: the rows of path hold their items."""
    catalogue_map: dict[str, str] = {}
    """The same as map, for the catalogue."""
    ubi: UbiSection | None = None
    """User Behavior Insights in place of path. Needs a catalogue."""
    encoding: str | None = Field(None, min_length=1)
    """Text encoding of csv and jsonl files. null: detected."""
    delimiter: str | None = Field(None, min_length=1)
    """Column delimiter of csv files. null: told by the header."""
    image_root: str | None = Field(None, min_length=1)
    """Folder below which photos may lie, besides the folder of their table. null: none."""
    hub_config: str | None = Field(None, min_length=1)
    """Configuration of a data set of the hub. null: its default."""
    hub_split: str = Field("train", min_length=1)
    """Split of a data set of the hub."""
