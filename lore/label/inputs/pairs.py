"""Pair objects from question rows."""

import pyarrow as pa

from lore.data.pair import Pair
from lore.data.parquet import to_pairs
from lore.label.schema import QUESTION_FIELDS


def pairs_of(table: pa.Table) -> list[Pair]:
    """The pairs of rows of QUESTION_SCHEMA, in order. The photo of each is ready to be opened, see lore.label.inputs."""
    return [pair for batch in table.to_batches() for pair in to_pairs(batch, QUESTION_FIELDS, "questions")]
