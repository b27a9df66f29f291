"""Shopping Queries / ESCI (Amazon, 2022): shopping_queries_dataset_examples.parquet and ..._products.parquet, joined
on disk.

There are 2.6 million examples and 1.8 million products. The products of the selected locales are indexed in $TMPDIR (about 4 GB for
all locales).
"""

from collections.abc import Iterator
from pathlib import Path

from lore.data.rejected_rows import Rejection
from lore.data.source import SourceRow, missing_file
from lore.data.tables.ids import JoinCount, id_text
from lore.data.tables.parquet_files import open_parquet
from lore.data.tables.text_tables import DiskIndex, parquet_records
from lore.support.errors import LoreError

RUBRIC = "esci"
EXAMPLES, PRODUCTS = "shopping_queries_dataset_examples.parquet", "shopping_queries_dataset_products.parquet"
WHERE = (
    f"{EXAMPLES} and {PRODUCTS} come from github.com/amazon-science/esci-data, folder shopping_queries_dataset (Git "
    "LFS: run `git lfs pull`)."
)
LOCALES = ("us", "es", "jp")
EXAMPLE = (
    "example_id",
    "query",
    "product_id",
    "product_locale",
    "esci_label",
    "small_version",
    "large_version",
    "split",
)
PRODUCT = ("product_title", "product_description", "product_bullet_point", "product_brand", "product_color")


def files(path: Path) -> list[Path]:
    """`path`: the folder of the two files, the repository, or the examples file with the products file in the same folder."""
    folder = path.parent if path.suffix == ".parquet" else path
    if (folder / "shopping_queries_dataset").is_dir():
        folder = folder / "shopping_queries_dataset"
    found = [folder / EXAMPLES, folder / PRODUCTS]
    for file in found:
        if not file.is_file():
            raise missing_file(file, WHERE)
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
    # Only where data are read: a dry run asks this module for its options.
    import pyarrow as pa
    import pyarrow.compute as pc

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

    def in_locale(batch: pa.RecordBatch) -> pa.Array:
        return pc.is_in(batch.column("product_locale"), pa.array(locales))

    def wanted(batch: pa.RecordBatch) -> pa.Array:
        """All but the rows that the options leave out: a row that does not say its locale or version is rejected, never dropped."""
        others = pa.array([name for name in LOCALES if name not in locales], pa.string())
        mask = pc.invert(pc.is_in(batch.column("product_locale"), others))
        return pc.and_(mask, pc.fill_null(pc.equal(batch.column(f"{version}_version"), 1), True)) if version else mask

    stored = parquet_records(products, ("product_id", "product_locale", *PRODUCT), [], keep=in_locale)
    join = JoinCount(PRODUCTS, "product_id")
    with DiskIndex((join.has(_key(cells)), [cells[name] for name in PRODUCT]) for _, cells in stored) as product_of:
        for row, cells in parquet_records(examples, EXAMPLE, [], keep=wanted):
            if cells["product_locale"] not in LOCALES:
                found = f"locale {cells['product_locale']!r}"
                yield Rejection(str(examples), row, "product_locale", "unknown_locale", found, f"one of {','.join(LOCALES)}", cells)
                continue
            if version and cells[f"{version}_version"] is None:
                yield Rejection(str(examples), row, f"{version}_version", "unknown_version", "no value", "0 or 1", cells)
                continue
            product = product_of.get(_key(cells))
            join.looked_up(_key(cells), bool(product))
            if not product:
                found = f"product {cells['product_id']} ({cells['product_locale']}), which is not in {PRODUCTS}"
                yield Rejection(str(examples), row, "title", "title_empty", found, "a product of that file", cells)
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
                "split": cells["split"],
                "slices": [f"locale:{cells['product_locale']}", *_tasks(cells)],
            }
            yield SourceRow(str(examples), row, values)
        join.check()


def _tasks(cells: dict) -> list[str]:
    """Slices for the published tasks of a row: task 1 (ranking) uses the small version, task 2 (classification) the large one."""
    return ["task:1"] * (cells["small_version"] == 1) + ["task:2"] * (cells["large_version"] == 1)


def _key(cells: dict) -> str:
    return f"{cells['product_locale']} {id_text(cells['product_id'])}"
