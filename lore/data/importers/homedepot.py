"""Home Depot product search relevance (Kaggle, 2016): train.csv, product_descriptions.csv and attributes.csv, joined
on disk.

The label is the mean rating between 1 and 3; the rubric maps it to the nearest tier. Kaggle's train.csv is Latin-1, the other two
files are UTF-8. Ids that pandas wrote as floats (100001.0) are the same ids.
"""

from collections.abc import Iterator
from pathlib import Path

from lore.data.rejected_rows import Rejection
from lore.data.source import SourceRow, missing_file
from lore.data.tables.csv import csv_records
from lore.data.tables.ids import JoinCount, id_text
from lore.data.tables.text_tables import DiskIndex, is_utf8

RUBRIC = "homedepot"
WHERE = (
    "train.csv, product_descriptions.csv and attributes.csv come from the Kaggle competition home-depot-product-search-relevance."
)
BRAND = "MFG Brand Name"


def files(path: Path) -> list[Path]:
    """`path`: the folder of the three files, or train.csv with the other two in the same folder."""
    train = path / "train.csv" if path.is_dir() or not path.suffix else path
    found = [train, train.with_name("product_descriptions.csv"), train.with_name("attributes.csv")]
    for file in found:
        if not file.is_file():
            raise missing_file(file, WHERE)
    return found


def read(path: Path, encoding: str | None = None) -> Iterator[SourceRow | Rejection]:
    """`encoding` applies to all three files. Unreadable rows of the product files are also rejections."""
    train, descriptions, attributes = files(path)
    unreadable: list[Rejection] = []
    described, attributed = JoinCount(descriptions.name, "product_uid"), JoinCount(attributes.name, "product_uid")

    def keyed(file: Path, columns: tuple[str, ...], join: JoinCount) -> Iterator[tuple[str, list[str]]]:
        for record in csv_records(file, ("product_uid", *columns), encoding=encoding or _encoding(file)):
            if isinstance(record, Rejection):
                unreadable.append(record)
            else:
                yield join.has(id_text(record[1]["product_uid"])), [record[1][name] for name in columns]

    with (
        DiskIndex(keyed(descriptions, ("product_description",), described)) as description_of,
        DiskIndex(keyed(attributes, ("name", "value"), attributed)) as attributes_of,
    ):
        yield from unreadable
        for record in csv_records(
            train, ("id", "product_uid", "product_title", "search_term"), encoding=encoding or _encoding(train)
        ):
            if isinstance(record, Rejection):
                yield record
                continue
            row, cells = record
            product = id_text(cells["product_uid"])
            facts, texts = attributes_of.get(product), description_of.get(product)
            attributed.looked_up(product, bool(facts))
            described.looked_up(product, bool(texts))
            values = {
                "pair_id": cells["id"],
                "query": cells["search_term"],
                "title": cells["product_title"],
                "item_id": product,
                "description": next((text for (text,) in texts), None),
                "brand": next((value for name, value in facts if name == BRAND), None),
                "attributes": [(name, value) for name, value in facts if name != BRAND],
                "label": cells.get("relevance"),
            }
            yield SourceRow(str(train), row, values)
        described.check()
        attributed.check()


def _encoding(file: Path) -> str:
    return "utf-8" if is_utf8(file) else "latin-1"
