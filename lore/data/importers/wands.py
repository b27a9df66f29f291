"""WANDS (Wayfair, ECIR 2022): tab-separated query.csv, product.csv and label.csv; or the binary form, pairs.csv with query, name
and target.

The class of a query becomes a slice and never appears in the prompt: it is an annotation that a shop does not have for its queries.
Ratings and review counts are ignored, because they are unrelated to relevance.
"""

from collections.abc import Iterator
from pathlib import Path

from lore.data.rejected_rows import Rejection
from lore.data.source import SourceRow, missing_file
from lore.data.tables.csv import csv_records
from lore.data.tables.ids import JoinCount, id_text
from lore.data.tables.text_tables import DiskIndex

RUBRIC = "wands"
WHERE = "query.csv, product.csv and label.csv come from github.com/wayfair/WANDS, folder dataset."
PRODUCT = ("product_id", "product_name")
OPTIONAL = ("product_class", "category hierarchy", "product_description", "product_features")
GIVES = {"label.csv": "the labels", "query.csv": "the text of the queries", "product.csv": "the titles of the products"}


def files(path: Path) -> list[Path]:
    """`path`: the folder of the files, or the repository with its `dataset` folder."""
    if path.is_file():
        path = path.parent
    if (path / "dataset").is_dir():
        path = path / "dataset"
    if (path / "pairs.csv").is_file() and not (path / "label.csv").exists():
        return [file for file in (path / "pairs.csv", path / "query.csv") if file.is_file()]
    found = [path / name for name in GIVES]
    absent = [file for file in found if not file.is_file()]
    if absent:
        gives = " and ".join(f"{file.name} has {GIVES[file.name]}" for file in absent)
        raise missing_file(absent[0], f"No pair can be made without it: {gives}.\n{WHERE}")
    return found


def read(path: Path, encoding: str | None = None) -> Iterator[SourceRow | Rejection]:
    found = files(path)
    return _binary(found, encoding) if found[0].name == "pairs.csv" else _graded(found, encoding)


def _graded(found: list[Path], encoding: str | None) -> Iterator[SourceRow | Rejection]:
    labels, query_file, products = found
    unreadable: list[Rejection] = []

    def rows(file: Path, columns: tuple[str, ...], optional: tuple[str, ...]) -> Iterator[dict[str, str]]:
        for record in csv_records(file, columns, optional, encoding=encoding, delimiter="\t", settable=True):
            if isinstance(record, Rejection):
                unreadable.append(record)
            else:
                yield record[1]

    of_query, of_product = JoinCount(query_file.name, "query_id"), JoinCount(products.name, "product_id")
    asked = rows(query_file, ("query_id", "query"), ("query_class",))
    queries = {of_query.has(id_text(cells["query_id"])): cells for cells in asked}
    stored = (
        (of_product.has(id_text(cells["product_id"])), [cells.get(name, "") for name in (*PRODUCT[1:], *OPTIONAL)])
        for cells in rows(products, PRODUCT, OPTIONAL)
    )
    with DiskIndex(stored) as product_of:
        yield from unreadable
        needed = ("id", "query_id", "product_id", "label")
        for record in csv_records(labels, needed, (), encoding=encoding, delimiter="\t", settable=True):
            if isinstance(record, Rejection):
                yield record
                continue
            row, cells = record
            query_id, product_id = id_text(cells["query_id"]), id_text(cells["product_id"])
            query, product = queries.get(query_id), product_of.get(product_id)
            of_query.looked_up(query_id, query is not None)
            of_product.looked_up(product_id, bool(product))
            if query is None or not product:
                name, of = ("query_id", query_file) if query is None else ("product_id", products)
                field = "query" if query is None else "title"
                yield Rejection(
                    str(labels),
                    row,
                    field,
                    f"{field}_empty",
                    f"{name} {cells[name]}, which is not in {of.name}",
                    "an id of that file",
                    cells,
                )
                continue
            title, kind, hierarchy, description, features = product[0]
            values = {
                "pair_id": cells["id"],
                "query": query["query"],
                "title": title,
                "item_id": product_id,
                "category": hierarchy or kind,
                "description": description,
                "attributes": list(_features(features)),
                "label": cells["label"],
                "slices": _slices(query.get("query_class")),
            }
            yield SourceRow(str(labels), row, values)
        of_query.check()
        of_product.check()


def _features(text: str) -> Iterator[tuple[str, str]]:
    """Parses `name : value|name:value`. A part without a colon continues the previous value."""
    name, value = "", ""
    for part in text.split("|"):
        head, colon, tail = part.partition(":")
        if not colon:
            value = f"{value} | {part.strip()}" if value else part.strip()
            continue
        if value:
            yield name, value
        name, value = head.strip(), tail.strip()
    if value:
        yield name, value


def _binary(found: list[Path], encoding: str | None) -> Iterator[SourceRow | Rejection]:
    pairs, classes = found[0], {}
    for record in (
        csv_records(found[1], ("query_id", "query", "query_class"), (), encoding=encoding, delimiter="\t", settable=True)
        if len(found) > 1
        else ()
    ):
        if isinstance(record, Rejection):
            yield record
        else:
            classes[record[1]["query"]] = record[1]["query_class"]
    for record in csv_records(pairs, ("query", "name", "target"), (), encoding=encoding, settable=True):
        if isinstance(record, Rejection):
            yield record
            continue
        row, cells = record
        values = {
            "query": cells["query"],
            "title": cells["name"],
            "label": cells["target"],
            "slices": _slices(classes.get(cells["query"])),
        }
        yield SourceRow(str(pairs), row, values)


def _slices(query_class: str | None) -> list[str]:
    return [f"query_class:{query_class}"] if query_class else []
