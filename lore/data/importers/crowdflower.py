"""CrowdFlower search results relevance (Kaggle, 2015): one csv with query, product title, description and the median rating from
1 to 4.

Disagreement between raters lowers the weight of a label: label_weight = 1 / (1 + relevance_variance).
"""

import math
from collections.abc import Iterator
from pathlib import Path

from lore.data.rejected_rows import Rejection
from lore.data.source import SourceRow, missing_file
from lore.data.tables.csv import csv_records

RUBRIC = "crowdflower"
WHERE = (
    "CrowdFlower's train.csv comes from the Kaggle competition crowdflower-search-relevance "
    "(kaggle.com/c/crowdflower-search-relevance/data)."
)
REQUIRED = ("id", "query", "product_title", "product_description")


def files(path: Path) -> list[Path]:
    path = path / "train.csv" if path.is_dir() else path
    if not path.is_file():
        raise missing_file(path, WHERE)
    return [path]


def read(path: Path, encoding: str | None = None) -> Iterator[SourceRow | Rejection]:
    """Reads train.csv with or without relevance_variance. test.csv has no median_relevance, so its pairs have no label."""
    (file,) = files(path)
    for record in csv_records(file, REQUIRED, encoding=encoding or "utf-8"):
        if isinstance(record, Rejection):
            yield record
            continue
        row, cells = record
        values = {
            "pair_id": cells["id"],
            "query": cells["query"],
            "title": cells["product_title"],
            "description": cells["product_description"],
            "label": cells.get("median_relevance"),
            "label_weight": _weight(cells.get("relevance_variance")),
        }
        yield SourceRow(str(file), row, values)


def _weight(variance: str | None) -> float | str | None:
    """The label weight. An invalid variance, such as a negative one or nan, is returned as text, and validation rejects the row."""
    if not variance:
        return None
    try:
        number = float(variance)
    except ValueError:
        return variance
    return 1 / (1 + number) if 0 <= number < math.inf else variance
