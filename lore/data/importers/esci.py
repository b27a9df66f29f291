"""Shopping Queries / ESCI (Amazon, 2022): shopping_queries_dataset_examples.parquet and ..._products.parquet, joined
on disk.

There are 2.6 million examples and 1.8 million products. The products of the selected locales are indexed in $TMPDIR (about 4 GB for
all locales).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lore.data.rejected_rows import Rejection, short
from lore.data.source import SourceRow, missing_file
from lore.data.tables.ids import JoinCount, id_text
from lore.data.tables.parquet_files import open_parquet
from lore.data.tables.text_tables import DiskIndex, Unreadable, parquet_records
from lore.support.errors import LoreError

RUBRIC = "esci"
EXAMPLES, PRODUCTS = "shopping_queries_dataset_examples.parquet", "shopping_queries_dataset_products.parquet"
WHERE = (
    f"{EXAMPLES} and {PRODUCTS} come from github.com/amazon-science/esci-data, folder shopping_queries_dataset (Git "
    "LFS: run `git lfs pull`)."
)
LOCALES = ("us", "es", "jp")
EXAMPLE = ("example_id", "query", "product_id", "product_locale", "esci_label")
VERSIONS = ("small_version", "large_version")
PRODUCT = ("product_id", "product_locale", "product_title")
FACTS = ("product_description", "product_bullet_point", "product_brand", "product_color")
GIVES = {EXAMPLES: "the queries and labels", PRODUCTS: "the titles of the products"}


def files(path: Path) -> list[Path]:
    """`path`: the folder of the two files, the repository, or the examples file with the products file in the same folder."""
    folder = path.parent if path.suffix.lower() == ".parquet" else path
    if (folder / "shopping_queries_dataset").is_dir():
        folder = folder / "shopping_queries_dataset"
    found = [folder / EXAMPLES, folder / PRODUCTS]
    absent = [file for file in found if not file.is_file()]
    if absent:
        gives = " and ".join(f"{file.name} has {GIVES[file.name]}" for file in absent)
        raise missing_file(absent[0], f"No pair can be made without it: {gives}.\n{WHERE}")
    return found


def count(found: list[Path]) -> int:
    with open_parquet(found[0]) as parquet:
        return parquet.metadata.num_rows


def read(
    path: Path, encoding: str | None = None, *, locale: str | None = None, version: str | None = None
) -> Iterator[SourceRow | Rejection]:
    """locale: us, es, jp or several separated by commas (default all). version: small (the ranking task) or large (default all
    rows).
    """
    locales = [name.strip() for name in (locale or ",".join(LOCALES)).split(",")]
    wrong = [name for name in locales if name not in LOCALES]
    if wrong or version not in (None, "small", "large"):
        what = (
            f"locale {wrong[0]!r}; expected some of {','.join(LOCALES)}"
            if wrong
            else f"version {version!r}; expected small or large"
        )
        raise LoreError(f"ESCI has no {what}.")
    examples, products = files(path)

    unreadable: list[Rejection] = []

    def stored() -> Iterator[tuple[str, list[Any]]]:
        for row, cells in parquet_records(products, PRODUCT, FACTS):
            cells = _texts(cells)
            if cells["product_locale"] not in locales:
                continue
            if bad := [name for name, cell in cells.items() if isinstance(cell, Unreadable)]:
                found = str(cells[bad[0]])
                unreadable.append(Rejection(str(products), row, bad[0], "field_type", found, "text", short(cells)))
                continue
            yield join.has(_key(cells)), [cells.get(name) for name in (*PRODUCT[2:], *FACTS)]

    join = JoinCount(PRODUCTS, "product_id")
    columns = ("split", *VERSIONS)
    with open_parquet(examples) as parquet:
        there = parquet.schema_arrow.names
    if version and f"{version}_version" not in there:
        raise LoreError(f"{examples} has no column {version}_version, so that version is unknown. Import all rows.\n{WHERE}")
    with DiskIndex(stored()) as product_of:
        yield from unreadable
        for row, cells in parquet_records(examples, EXAMPLE, columns):
            cells = _texts(cells)
            locale, asked = cells["product_locale"], cells.get(f"{version}_version")
            if locale in LOCALES and locale not in locales:
                continue
            if version and asked is not None and not _is_one(asked):
                continue
            # A row that does not say its locale or version is rejected, never dropped.
            if locale not in LOCALES:
                found, expected = f"locale {locale!r}", f"one of {','.join(LOCALES)}"
                yield Rejection(str(examples), row, "product_locale", "unknown_locale", found, expected, short(cells))
                continue
            if version and asked is None:
                yield Rejection(str(examples), row, f"{version}_version", "unknown_version", "no value", "0 or 1", short(cells))
                continue
            product = product_of.get(_key(cells))
            join.looked_up(_key(cells), bool(product))
            if not product:
                found = f"product {cells['product_id']} ({locale}), which is not in {PRODUCTS}"
                yield Rejection(str(examples), row, "title", "title_empty", found, "a product of that file", short(cells))
                continue
            title, description, bullets, brand, color = product[0]
            values = {
                "pair_id": cells["example_id"],
                "query": cells["query"],
                "title": title,
                "item_id": cells["product_id"],
                "description": description,
                "brand": brand,
                "attributes": {"color": color, "bullet points": bullets},
                "label": cells["esci_label"],
                "split": cells.get("split"),
                "slices": [f"locale:{locale}", *_tasks(cells)],
            }
            yield SourceRow(str(examples), row, values)
        join.check()


def _texts(cells: dict[str, Any]) -> dict[str, Any]:
    """The cells with bytes, dates and other values as texts, and lists as lines of text."""
    return {name: _text(cell) for name, cell in cells.items()}


def _text(cell: Any) -> Any:
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    if isinstance(cell, list):
        return "\n".join(str(_text(item)) for item in cell)
    return cell if cell is None or isinstance(cell, str | int | float | Unreadable) else str(cell)


def _is_one(cell: Any) -> bool:
    return cell is True or id_text(cell) in ("1", "true", "True")


def _tasks(cells: dict) -> list[str]:
    """Slices for the published tasks of a row: task 1 (ranking) uses the small version, task 2 (classification) the large one."""
    return [f"task:{number}" for number, name in enumerate(VERSIONS, 1) if _is_one(cells.get(name))]


def _key(cells: dict) -> str:
    return f"{cells['product_locale']} {id_text(cells['product_id'])}"
