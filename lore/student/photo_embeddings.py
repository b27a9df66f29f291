"""Precomputed vectors of the items' photos, one per item, from any model that makes some."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lore.support.bounds import most_unpacked
from lore.support.errors import LoreError, translated

NAMES = ("item_id", "embedding")
MAX_BYTES = 64 * 2**30


class PhotoEmbeddings:
    """A vector per item_id. vectors: float32 [items, size]."""

    def __init__(self, ids: list[str], vectors: np.ndarray, path: str = ""):
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._rows = {item: row for row, item in enumerate(ids)}
        fits = self.vectors.ndim == 2 and self.vectors.shape[1] and len(ids) == len(self.vectors)
        if not fits or len(self._rows) < len(ids) or not np.isfinite(self.vectors).all():
            raise LoreError(
                f"{path or 'The table'} of photo embeddings has {len(ids):,} item ids ({len(self._rows):,} different) and an array "
                f"of the shape {self.vectors.shape}; expected one finite vector of the same length per item, each item once."
            )

    @property
    def size(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1]

    def row(self, item_id: str | None) -> int | None:
        """The row of an item's vector; None if it has none."""
        return None if item_id is None else self._rows.get(item_id)


def read_photo_embeddings(path: str | Path) -> PhotoEmbeddings:
    """Reads a Parquet file with the columns item_id and embedding (a list of numbers), or an npz with two arrays of these names.
    Raises LoreError for another file."""
    path = Path(path)
    if not path.is_file():
        raise LoreError(
            f"{path} does not exist, so the vectors of the items' photos are missing.\nName their table in the key "
            "photo_embeddings, beside the student."
        )
    if path.stat().st_size > MAX_BYTES:
        raise LoreError(f"{path} has {path.stat().st_size:,} bytes; photo embeddings may have {MAX_BYTES:,}. Use shorter vectors.")
    advice = "Write a Parquet file with the columns item_id and embedding, or an npz with two arrays of these names."
    with translated(lambda _: (f"{path} cannot be read as photo embeddings", advice)):
        if path.suffix == ".npz":
            with ZipFile(path) as packed:
                unpacked = sum(part.file_size for part in packed.infolist())
            if unpacked > min(MAX_BYTES, most_unpacked(path.stat().st_size)):
                raise LoreError(
                    f"{path} has {path.stat().st_size:,} bytes and unpacks to {unpacked:,}, as no vectors do: it could fill the "
                    "memory. Write the vectors with numpy.savez, which does not pack them."
                )
            with np.load(path, allow_pickle=False) as file:
                ids, vectors = (file[name] for name in NAMES)
            return PhotoEmbeddings([str(one) for one in ids.tolist()], vectors, str(path))
        table = pq.read_table(path, columns=list(NAMES))
        ids, column = table.column("item_id").cast(pa.string()).to_pylist(), table.column("embedding").combine_chunks()
        if column.null_count or None in ids:
            raise ValueError("empty cells")
        fixed = pa.types.is_fixed_size_list(column.type)
        lengths = {column.type.list_size} if fixed else set(column.value_lengths().to_pylist())
        if len(lengths) != 1:
            raise ValueError(f"vectors of {len(lengths)} different lengths")
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return PhotoEmbeddings(ids, flat.reshape(len(ids), lengths.pop()), str(path))
