"""Label folders for the tests, as `lore label` writes them."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.pair import make_pair_id
from lore.label.ledger import STAMP
from lore.label.schema import VERDICTS, label_schema

TIERS = ["L1", "L2", "L3", "L4"]


def label_row(query: str, item: str, tier: str | None, **more: Any) -> dict[str, Any]:
    """A label row; probabilities: .7 for the tier and .1 for each other, unless given."""
    row: dict[str, Any] = dict.fromkeys(label_schema(TIERS).names)
    row |= {f"p_{name}": 0.7 if name == tier else 0.1 for name in TIERS if tier}
    row |= {
        "pair_id": make_pair_id(query, item),
        "tier": tier,
        "rationale": "",
        "rules": [],
        "photo": "none",
        "judge_id": "weights:rubric:renderer",
        "tokens": 5,
        "source": "judge",
        "seconds": 0.5,
        "query": query,
        "item_id": item,
        "slices": [],
        "content": hashlib.blake2b(f"{query} {item}".encode(), digest_size=16).digest(),
        "attempts": 1,
    }
    return row | more


def write_labels(
    folder: Path, rows: list[dict[str, Any]], *, kind: str = VERDICTS, files: int = 1, stamp: str | None = None
) -> Path:
    """Writes the rows into label files, which they share evenly. stamp: names the judge."""
    (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        schema = label_schema(TIERS).with_metadata(None if stamp is None else {STAMP: stamp})
        table = pa.Table.from_pylist(rows[number::files], schema=schema)
        pq.write_table(table, folder / kind / f"00-0000-{number:020x}.parquet", row_group_size=50)
    return folder
