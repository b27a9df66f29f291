"""Home Depot product search relevance (Kaggle, 2016): train.csv, product_descriptions.csv and attributes.csv, joined
on disk. Only train.csv is needed: without the others, items have titles only.

The label is the mean rating between 1 and 3; the rubric maps it to the nearest tier. Kaggle's train.csv is Latin-1, the other two
files are UTF-8. Ids that pandas wrote as floats (100001.0) are the same ids.
"""

from collections.abc import Iterator
from pathlib import Path

from lore.data.rejected_rows import Rejection
from lore.data.source import SourceRow, missing_file, packed_hint
from lore.data.tables.csv import csv_records
from lore.data.tables.ids import JoinCount, id_text
from lore.data.tables.text_tables import DiskIndex, is_utf8, is_wide, say_aside

RUBRIC = "homedepot"
WHERE = (
    "train.csv, product_descriptions.csv and attributes.csv come from the Kaggle competition home-depot-product-search-relevance."
)
BRAND = "MFG Brand Name"
REQUIRED = ("id", "product_uid", "product_title", "search_term")
COMPANIONS = {
    "product_descriptions.csv": "items have no description",
    "attributes.csv": "items have no brand and no attributes, so a judge can check sizes, materials and brands only in titles",
}


def files(path: Path) -> list[Path]:
    """`path`: the folder of the files, or train.csv. The other two are read from the folder of train.csv where they are there."""
    train = path / "train.csv" if path.is_dir() or not path.suffix else path
    if not train.is_file():
        raise missing_file(train, WHERE)
    return [train, *(file for name in COMPANIONS if (file := train.with_name(name)).is_file())]


def read(path: Path, encoding: str | None = None) -> Iterator[SourceRow | Rejection]:
    """`encoding` applies to all files. Unreadable rows of the product files are also rejections."""
    train, *others = files(path)
    there = {file.name: file for file in others}
    for name, cost in COMPANIONS.items():
        if name not in there:
            path = train.with_name(name)
            say_aside(f"note: {path} does not exist, so {cost}.{packed_hint(path) or f' {WHERE}'}")
    descriptions, attributes = (there.get(name) for name in COMPANIONS)
    unreadable: list[Rejection] = []
    described, attributed = (JoinCount(name, "product_uid") for name in COMPANIONS)

    def keyed(file: Path | None, columns: tuple[str, ...], join: JoinCount) -> Iterator[tuple[str, list[str]]]:
        if file is None:
            return
        for record in csv_records(file, ("product_uid", *columns), columns, encoding=encoding or _encoding(file), settable=True):
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
            train,
            REQUIRED,
            ("relevance",),
            encoding=encoding or _encoding(train),
            settable=True,
            is_number="relevance".__eq__,
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
        for file, join in ((descriptions, described), (attributes, attributed)):
            if file is not None:
                join.check()


def _encoding(file: Path) -> str | None:
    return None if is_utf8(file) or is_wide(file) else "latin-1"
