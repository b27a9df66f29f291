"""Rows of batch labelling: the questions that come in and the labels that go out, as Arrow schemas.

    labels/
      recipe.yaml, manifest.json, done    as in every run folder
      verdicts/*.parquet                  one file per labelled shard, in the columns of `label_schema`: one row per pair
      failures/*.parquet                  pairs without an answer, in the same columns; the next start asks them again
      rejected.jsonl                      rows of the input that are no pairs, with their reasons
      summary.json, report.html
      work/                               the plan: sorted pairs that are still to be asked
"""

import pyarrow as pa

from lore.data.pair import PAIR_SCHEMA
from lore.judge.verdict import verdict_schema

QUESTION_FIELDS = (
    "pair_id",
    "query",
    "title",
    "item_id",
    "attributes",
    "description",
    "category",
    "brand",
    "shop",
    "price",
    "image",
    "slices",
    "query_frequency",
)
"""The fields of a Pair that a judge sees or that the labels are grouped by."""
QUESTION_SCHEMA = pa.schema([PAIR_SCHEMA.field(name) for name in QUESTION_FIELDS])
"""One input row. pair_id, query and title are never null."""
CONTENT = pa.binary(16)
"""Digest of what the judge is asked about a pair: the normalized query, its market, and the item. See `lore.label.plan`."""

VERDICTS, FAILURES, WORK = "verdicts", "failures", "work"


def label_schema(tier_ids: list[str]) -> pa.Schema:
    """Columns of the label files: the Verdict row, then where it belongs. content: see CONTENT; attempts: how often the pair has
    been asked, 1 for a pair that got an answer at once."""
    more = [
        ("query", pa.string()),
        ("item_id", pa.string()),
        ("query_frequency", pa.float64()),
        ("slices", pa.list_(pa.string())),
        ("content", CONTENT),
        ("attempts", pa.int32()),
    ]
    return pa.schema([*verdict_schema(tier_ids), *(pa.field(name, kind) for name, kind in more)])
