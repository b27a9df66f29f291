"""The photos of a run in one Arrow file. The processes of a machine memory-map it and share one copy."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lore.data.pair import Pair
from lore.train.common.arrow_rows import IMAGE, whole_rows, write_rows

SCHEMA = pa.schema([("pair_id", pa.string()), ("image", IMAGE)])
AT_ONCE = 64  # photos in memory while they are written


def photo_file(folder: Any) -> Path:
    """Path of the photo file in a run folder."""
    return folder / "data" / "photos.arrow"


class StoredPhoto(Mapping):
    """A lazy `Pair.image`: reads its bytes on access."""

    def __init__(self, images: pa.ChunkedArray, row: int):
        self._images, self._row = images, row

    def __getitem__(self, key: str) -> Any:
        return self._images[self._row][key].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(IMAGE.names)

    def __len__(self) -> int:
        return len(IMAGE.names)


def store_photos(pairs: Iterable[Pair], path: Path) -> None:
    """Writes one row per pair, with a null image for a pair without a photo."""
    write_rows(({"pair_id": pair.pair_id, "image": pair.image} for pair in pairs), SCHEMA, path, batch=AT_ONCE)


def with_stored_photos(pairs: Iterable[Pair], path: Path) -> list[Pair]:
    """The pairs with their photos from a file of `store_photos`, which must contain every pair."""
    with whole_rows(path):
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        images, stored = table["image"], {}
    for row, (pair_id, there) in enumerate(zip(table["pair_id"].to_pylist(), images.is_valid().to_pylist(), strict=True)):
        stored.setdefault(pair_id, StoredPhoto(images, row) if there else None)  # for a duplicate id, keep the first
    return [replace(pair, image=stored.get(pair.pair_id)) for pair in pairs]
