"""Semantic ids: a few codes per item, coarse to fine; items that share a prefix are alike. Imports no torch.

On disk they are codes.parquet (item_id, codes, relocated) with the card codes.json beside it. `read_codes` also reads the JSON in
which others publish theirs: {"<item_id>": ["<a_170>", "<b_224>", ...]}.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.tables.parquet_files import check_rows, open_parquet
from lore.recommend.section import CODES, CODES_CARD, codes_file
from lore.support.atomic_files import write_atomic, written_whole
from lore.support.errors import LoreError, reason
from lore.support.text import printable
from lore.support.untrusted_json import parse_object, read_object

MOST_LEVELS, MOST_CODES = 8, 65_536
MAX_BYTES = 2**30
ROW_BYTES = 16
"""Of an item's codes in memory, at least."""
_TOKEN = re.compile(r"<([a-zA-Z])_(\d{1,5})>\Z")


@dataclass(frozen=True)
class Codes:
    """Codes of a catalogue. values [V, L] int32, row of the item and level, each below `size`. fingerprint: of values and sizes."""

    values: np.ndarray
    size: int
    fingerprint: str

    @property
    def levels(self) -> int:
        return self.values.shape[1]

    def prefixes(self, length: int) -> np.ndarray:
        """Number of the prefix of this length per item [V]; equal numbers mean equal prefixes."""
        return np.unique(self.values[:, :length], axis=0, return_inverse=True)[1].reshape(-1)

    def shuffled(self, seed: int) -> Codes:
        """The control: the same codes, dealt to other items."""
        order = np.random.default_rng(seed).permutation(len(self.values))
        return Codes(self.values[order], self.size, f"{self.fingerprint}-shuffled-{seed}")


def make_codes(values: np.ndarray, size: int) -> Codes:
    """Codes of values [V, L]. Raises ValueError for values that are no codes below size."""
    values = np.ascontiguousarray(values, dtype=np.int32)
    if values.ndim != 2 or not 1 <= values.shape[1] <= MOST_LEVELS or not 1 <= size <= MOST_CODES:
        raise ValueError(f"codes {values.shape} below {size}; expected 1 to {MOST_LEVELS} levels of at most {MOST_CODES}")
    if values.size and not 0 <= values.min() <= values.max() < size:
        raise ValueError(f"codes from {values.min()} to {values.max()}; expected 0 to {size - 1}")
    digest = hashlib.blake2b(f"{values.shape} {size} ".encode() + values.tobytes(), digest_size=8)
    return Codes(values, size, digest.hexdigest())


def write_codes(folder: Path, item_ids: Sequence[str], codes: Codes, relocated: np.ndarray, card: dict[str, Any]) -> None:
    """Writes codes.parquet, then its card. relocated [V]: the item got other codes than the nearest, which another item has."""
    columns = {
        "item_id": pa.array(item_ids, pa.string()),
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.values.reshape(-1), pa.int32()), codes.levels),
        "relocated": pa.array(relocated, pa.bool_()),
    }
    with written_whole(folder / CODES) as file:
        pq.write_table(pa.table(columns), file, compression="zstd")
    known = {"kind": "codes", "items": len(item_ids), "levels": codes.levels, "size": codes.size, "fingerprint": codes.fingerprint}
    write_atomic(folder / CODES_CARD, json.dumps(known | card, indent=2, ensure_ascii=False) + "\n")


def read_codes(path: str | Path, item_ids: Sequence[str]) -> Codes:
    """The codes of a catalogue's items, in its order, from a run folder of stage semantic_ids, its codes.parquet, or a JSON file.

    Raises LoreError for a damaged file and for items without codes.
    """
    known, values, size, _ = read_codes_table(path)
    rows = {item: row for row, item in enumerate(known)}
    if len(rows) < len(known):
        raise LoreError(f"{path} names {len(known) - len(rows):,} items twice, so their codes are unknown. Name each item once.")
    missing = [item for item in item_ids if item not in rows]
    if missing:
        named = ", ".join(printable(item[:40]) for item in missing[:3])
        raise LoreError(
            f"{path} has no codes for {len(missing):,} of {len(item_ids):,} items ({named}), so a model could not read them.\n"
            "Run stage semantic_ids on this catalogue. Published codes go with the item ids of the data that they came with."
        )
    try:
        return make_codes(values[[rows[item] for item in item_ids]], size)
    except ValueError as error:
        raise LoreError(f"{path} has {reason(error)}.\nMake the codes again.") from error


def read_codes_table(path: str | Path) -> tuple[list[str], np.ndarray, int, np.ndarray]:
    """(item ids, codes [N, L], codes per level, relocated [N]) of whatever `read_codes` reads."""
    path = codes_file(path)
    if not path.is_file():
        raise LoreError(f"{path} does not exist, so the items have no codes.\nName a run of stage semantic_ids, or a JSON file.")
    return _from_json(path) if path.suffix == ".json" else _from_parquet(path)


def read_codes_card(path: str | Path) -> dict[str, Any]:
    """The card of a run's codes. Raises LoreError for a damaged or missing one."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    lost, advice = "it is unknown how its codes were made", "Run the recipe of stage semantic_ids again."
    return read_object(folder / CODES_CARD, lost, advice)


def _from_parquet(path: Path) -> tuple[list[str], np.ndarray, int, np.ndarray]:
    card = read_codes_card(path)
    with open_parquet(path, "Run the recipe of stage semantic_ids again.") as parquet:
        check_rows(parquet, path, ROW_BYTES, "Run the recipe of stage semantic_ids again.")
        table = parquet.read()
    try:
        items, column = table.column("item_id").cast(pa.string()).to_pylist(), table.column("codes").combine_chunks()
        size, levels = card["size"], card["levels"]
        if column.null_count or None in items or type(size) is not int or type(levels) is not int or levels < 1:
            raise ValueError("an empty cell, or a card without levels and size")
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(items), levels)
        relocated = table.column("relocated").to_numpy()
        if make_codes(values, size).fingerprint != card["fingerprint"]:
            raise ValueError("other codes than its card says")
    except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise LoreError(f"{path} is damaged ({reason(error)}).\nRun the recipe of stage semantic_ids again.") from error
    return items, values, size, relocated


def _from_json(path: Path) -> tuple[list[str], np.ndarray, int, np.ndarray]:
    expected = 'Expected {"<item_id>": ["<a_170>", "<b_224>", ...]} with one token per level for every item.'
    if path.stat().st_size > MAX_BYTES:
        raise LoreError(f"{path} has {path.stat().st_size:,} bytes; codes may have {MAX_BYTES:,}.\n{expected}")
    try:
        found = parse_object(path.read_bytes())
        levels = len(next(iter(found.values()), ()))
        if not 1 <= levels <= MOST_LEVELS or any(not isinstance(one, list) or len(one) != levels for one in found.values()):
            raise ValueError("items with too many, no, or different numbers of codes")
        values = [[_code(token, level) for level, token in enumerate(tokens)] for tokens in found.values()]
    except (ValueError, TypeError) as error:
        raise LoreError(f"{path} cannot be read as codes ({reason(error)}).\n{expected}") from error
    array = np.asarray(values, dtype=np.int32)
    return list(found), array, int(array.max()) + 1, np.zeros(len(array), dtype=bool)


def _code(token: Any, level: int) -> int:
    match = _TOKEN.match(token)
    if match is None or ord(match[1].lower()) - ord("a") != level:
        raise ValueError(f"{str(token)[:40]!r} on level {level + 1}")
    return int(match[2])
