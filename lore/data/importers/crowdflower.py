"""CrowdFlower search results relevance (Kaggle, 2015): one csv with query, product title, description and the median rating from
1 to 4.

Disagreement between raters lowers the weight of a label: label_weight = 1 / (1 + relevance_variance). In spite of its name the
column holds standard deviations: every one of the 6,581 published rows at hand is the population standard deviation of 1 to 8
ratings with the published median, to three decimals (0.471 is that of 3, 4, 4). Median and deviation give the
label_distribution, see lore.data.label_distribution.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from lore.data.label_distribution import Spread
from lore.data.rejected_rows import Rejection
from lore.data.source import SourceRow, missing_file
from lore.data.tables.csv import csv_records

RUBRIC = "crowdflower"
WHERE = (
    "CrowdFlower's train.csv comes from the Kaggle competition crowdflower-search-relevance "
    "(kaggle.com/c/crowdflower-search-relevance/data)."
)
REQUIRED = ("id", "query", "product_title")
NUMBERS = ("median_relevance", "relevance_variance")
OPTIONAL = ("product_description", *NUMBERS)


def files(path: Path) -> list[Path]:
    path = path / "train.csv" if path.is_dir() else path
    if not path.is_file():
        test = path.with_name("test.csv")
        only = f" {test} has no labels; name that file to import its pairs for a judge to label." if test.is_file() else ""
        raise missing_file(path, f"{WHERE}{only}")
    return [path]


def read(path: Path, encoding: str | None = None) -> Iterator[SourceRow | Rejection]:
    """Reads train.csv with or without relevance_variance. test.csv has no median_relevance, so its pairs have no label."""
    (file,) = files(path)
    records = csv_records(file, REQUIRED, OPTIONAL, encoding=encoding, settable=True, is_number=NUMBERS.__contains__)
    for record in records:
        if isinstance(record, Rejection):
            yield record
            continue
        row, cells = record
        weight = _weight(cells.get("relevance_variance"))
        values = {
            "pair_id": cells["id"],
            "query": cells["query"],
            "title": cells["product_title"],
            "description": cells.get("product_description"),
            "label": cells.get("median_relevance"),
            "label_weight": weight,
            "label_distribution": Spread(cells["relevance_variance"]) if isinstance(weight, float) else None,
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
