"""RAIR (arXiv 2512.24943): Chinese queries and items with photos and labels L1 to L4, from the Hugging Face hub or from local
Parquet and jsonl files.

`rule_list` contains the rules used for labeling and can leak the label, so it is never read. `vqa_result` is a caption of the photo
by another model. It is only read with `caption`, because a judge that reads it does not judge the photo itself.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lore.data.images import ImageError, decode_base64
from lore.data.rejected_rows import Rejection, short
from lore.data.source import SourceRow, missing_file
from lore.data.tables.any_table import other_format, suffix_of
from lore.data.tables.text_tables import jsonl_records, parquet_records
from lore.support.errors import LoreError
from lore.support.untrusted_json import parse_json

RUBRIC = "rair"
HUB = "chenJi/RAIR"
CONFIGS = ("General_Subset", "Hard_Subset", "Visual_Subset")
WHERE = (
    f"RAIR is on the Hugging Face hub, data set {HUB} (71 GB, academic use): use hub:{HUB} as the path to stream it, "
    "or download its files."
)
REQUIRED = ("query", "title", "groundtruth")
OPTIONAL = ("item_id", "shop_name", "cpv_sku", "subset", "image_base64")
CAPTION = "photo caption"
KINDS = (".parquet", ".jsonl")
MAX_BAD_TEXT = 1000


def files(path: Path | str) -> list[Path]:
    """`path`: hub:chenJi/RAIR, a .parquet or .jsonl file, or a folder of them."""
    if str(path).startswith("hub:"):
        return []
    if path.is_file():
        if suffix_of(path) not in KINDS:
            raise other_format(path, KINDS)
        return [path]
    found = sorted(file for kind in KINDS for file in path.rglob("*") if suffix_of(file) == kind) if path.is_dir() else []
    if not found:
        raise missing_file(path, WHERE)
    return found


def read(
    path: Path | str, encoding: str | None = None, *, config: str | None = None, caption: bool = False
) -> Iterator[SourceRow | Rejection]:
    """config: General_Subset, Hard_Subset, Visual_Subset or several separated by commas (only for hub:, default all)."""
    columns = (*OPTIONAL, "vqa_result") if caption else OPTIONAL
    if config is not None and files(path):
        raise LoreError(
            f"RAIR's config {config!r} selects a part of the hub data set, but {path} is local: name the files of "
            "that part instead."
        )
    for name, record in _hub(str(path), config, columns) if not files(path) else _local(files(path), encoding, columns):
        if isinstance(record, Rejection):
            yield record
            continue
        row, cells = record
        yield _row(name, row, cells, caption)


def _row(name: str, row: int, cells: dict[str, Any], caption: bool) -> SourceRow | Rejection:
    values = {
        "query": cells.get("query"),
        "title": cells.get("title"),
        "item_id": cells.get("item_id"),
        "shop": cells.get("shop_name"),
        "label": cells.get("groundtruth"),
        "slices": [cells["subset"]] if cells.get("subset") else [],
    }
    try:
        values["attributes"] = attributes_of(cells.get("cpv_sku"))
        values["image"] = _photo(cells.get("image_base64"))
    except ImageError as error:
        return Rejection(name, row, "image_base64", error.reason, error.found, error.expected, short(values))
    except (ValueError, RecursionError) as error:
        found = f"{short(cells.get('cpv_sku'))} ({error})"
        return Rejection(name, row, "cpv_sku", "field_type", found, "a JSON object of names and values", short(values))
    if caption and cells.get("vqa_result"):
        values["attributes"].append((CAPTION, cells["vqa_result"]))
    return SourceRow(name, row, values)


def attributes_of(cpv_sku: Any) -> list[tuple[str, str]]:
    """Names and values of a cpv_sku JSON object. Nested objects are flattened and lists are joined. Raises ValueError for other
    types.
    """
    if isinstance(cpv_sku, str):
        if not cpv_sku.strip():
            return []
        cpv_sku = parse_json(cpv_sku, long_integer=str)  # the number of an item stays as it is
    if cpv_sku is None:
        return []
    if not isinstance(cpv_sku, dict):
        raise ValueError(f"a {type(cpv_sku).__name__}")
    return list(_flatten(cpv_sku, ""))


def _flatten(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for item in value:
            yield from _flatten(item, name)
    elif isinstance(value, list):
        yield name, ", ".join(str(item) for item in value if item is not None)
    elif value is not None:
        yield name, str(value)


def _photo(text: Any) -> dict[str, Any] | None:
    if not text:
        return None
    if not isinstance(text, str):
        raise ImageError("image_corrupt", f"a {type(text).__name__}", "base64 text")
    try:
        return {"bytes": decode_base64(text), "path": None}
    except ImageError:
        # Keep the text as it is: decoding it will fail, and the settings of the import decide what happens to the row.
        return {"bytes": text[:MAX_BAD_TEXT].encode(errors="replace"), "path": None}


def _local(found: list[Path], encoding: str | None, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for file in found:
        if suffix_of(file) == ".parquet":
            # Photos can take a megabyte, so read few rows at a time. Columns that are not listed, such as rule_list, are not read.
            records = parquet_records(file, REQUIRED, list(columns), batch_rows=32)
        else:
            records = jsonl_records(file, REQUIRED, encoding=encoding, settable=True)
        for record in records:
            yield str(file), record


def _hub(path: str, config: str | None, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    import datasets  # loads torch: only for data of the hub

    repository = path.removeprefix("hub:")
    for name in [part.strip() for part in (config or ",".join(CONFIGS)).split(",")]:
        if name not in CONFIGS:
            raise LoreError(f"RAIR has no config {name!r}; expected one or more of {','.join(CONFIGS)}.")
        try:
            rows = datasets.load_dataset(repository, name, split="train", streaming=True)
            rows = rows.select_columns([*REQUIRED, *columns])
            for row, cells in enumerate(rows, 1):
                cells["subset"] = cells["subset"] or name
                yield f"{path}/{name}", (row, cells)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise LoreError(
                f"{repository} ({name}) could not be read from the hub: {type(error).__name__}: "
                f"{str(error)[:300]}.\n"
                "Streaming needs a network, and a login (`hf auth login` or HF_TOKEN) if the data set requires one. "
                "Downloaded Parquet or jsonl files need neither."
            ) from error
