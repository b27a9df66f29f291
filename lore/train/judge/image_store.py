"""The photos that a run shows again and again, in one Arrow file of the run: the processes of a machine map it into memory and
share one copy."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lore.data.pair import Pair
from lore.train.common.arrow_rows import IMAGE, write_rows

SCHEMA = pa.schema([("pair_id", pa.string()), ("image", IMAGE)])
AT_ONCE = 64  # photos in memory while they are written


def photo_file(folder: Any) -> Path:
    """Where a run keeps them."""
    return folder / "data" / "photos.arrow"


class StoredPhoto(Mapping):
    """`Pair.image` whose bytes are read when they are asked for."""

    def __init__(self, images: pa.ChunkedArray, row: int):
        self._images, self._row = images, row

    def __getitem__(self, key: str) -> Any:
        return self._images[self._row][key].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(IMAGE.names)

    def __len__(self) -> int:
        return len(IMAGE.names)


def store_photos(pairs: Iterable[Pair], path: Path) -> None:
    """Writes the photos of the pairs, and for a pair without one that it has none."""
    write_rows(({"pair_id": pair.pair_id, "image": pair.image} for pair in pairs), SCHEMA, path, batch=AT_ONCE)


def with_stored_photos(pairs: Iterable[Pair], path: Path) -> list[Pair]:
    """The pairs, which `store_photos` has seen, with their photos."""
    table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    images, stored = table["image"], {}
    for row, (pair_id, there) in enumerate(zip(table["pair_id"].to_pylist(), images.is_valid().to_pylist(), strict=True)):
        stored.setdefault(pair_id, StoredPhoto(images, row) if there else None)  # of pairs alike in their id the first one
    return [replace(pair, image=stored.get(pair.pair_id)) for pair in pairs]
