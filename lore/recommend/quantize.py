"""Vectors to codes: residual k-means, codes that no two items share, codes for new items. Imports no torch.

Each level's codebook quantizes what the levels before it have left over (RQ-VAE, arXiv 2203.01941, without its autoencoder;
lore.recommend.rqvae has it). scikit-learn's k-means moves a center without points to the point that is worst served, so a code dies
only where a level has fewer different residuals than codes.

Two items with the same codes are told apart by relocating one of them to the nearest code that is free: on the last level where one
is, else on the one before. The further digit of TIGER (arXiv 2305.05065, section 3.1), which only counts the collisions, means
nothing, and a model that learns it learns noise.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from lore.support.atomic_files import written_whole
from lore.support.errors import LoreError, reason

ITEMS_PER_CODE, ROOM = 32, 8
"""A small catalogue gets fewer codes per level: a code of the first level stands for 32 items on average, and there are 8 times as
many codes as items, so that a relocated item finds one nearby and new items find room."""
MOST_FITTED = 131_072
"""Vectors that codebooks are fitted on, drawn from a larger catalogue: 512 per code of 256."""
ROWS = 4096


@dataclass(frozen=True)
class Quantizer:
    """Codebooks. books: float32 [L, K, D]. layers: (weight [out, in], bias [out]) of the autoencoder's encoder, with a ReLU between
    two; none where the vectors themselves are quantized."""

    books: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @property
    def levels(self) -> int:
        return self.books.shape[0]

    @property
    def size(self) -> int:
        """Codes per level."""
        return self.books.shape[1]

    @property
    def width(self) -> int:
        """Dimensions of the vectors that `nearest` and `assign` take."""
        return self.layers[0][0].shape[1] if self.layers else self.books.shape[2]

    def latents(self, vectors: np.ndarray) -> np.ndarray:
        """What is quantized: float64 [N, D], so that codes do not depend on which vectors come in one call."""
        found = np.asarray(vectors, dtype=np.float64)
        if found.ndim != 2 or found.shape[1] != self.width or not np.isfinite(found).all():
            raise LoreError(
                f"The codebooks take finite vectors of the length {self.width}, and these have the shape {found.shape}, so they "
                "get no codes.\nGive vectors of the item encoder that the codebooks belong to."
            )
        for at, (weight, bias) in enumerate(self.layers):
            found = found @ weight.T.astype(np.float64) + bias
            found = np.maximum(found, 0) if at < len(self.layers) - 1 else found
        return found

    def nearest(self, vectors: np.ndarray) -> np.ndarray:
        """Codes int32 [N, L] of vectors [N, width], level by level; several vectors may get the same codes."""
        residual = self.latents(vectors)
        found = np.empty((len(residual), self.levels), dtype=np.int32)
        for at in range(0, len(residual), ROWS):
            rows = residual[at : at + ROWS]
            for level, book in enumerate(self.books.astype(np.float64)):
                found[at : at + ROWS, level] = _distances(rows, book).argmin(axis=1)
                rows = rows - book[found[at : at + ROWS, level]]
        return found

    def reconstructed(self, codes: np.ndarray) -> np.ndarray:
        """Sum of the codes' centers, float64 [N, D]."""
        return sum(book[codes[:, level]] for level, book in enumerate(self.books.astype(np.float64)))

    def assign(self, vectors: np.ndarray, taken: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(codes int32 [N, L], relocated bool [N]): different codes for all vectors, none of them in `taken` [T, L].

        The vector nearest to the center of its codes keeps them; on equal terms the first. Raises LoreError if there are fewer
        codes than items.
        """
        codes = self.nearest(vectors)
        taken = np.empty((0, self.levels), dtype=np.int32) if taken is None else taken
        if self.size**self.levels < len(codes) + len(taken):
            raise LoreError(
                f"{self.levels} levels of {self.size} codes name {self.size**self.levels:,} items, and there are "
                f"{len(codes) + len(taken):,}, so some would share their codes.\nRaise codes.levels or codes.size."
            )
        latents = self.latents(vectors)
        misses = np.square(latents - self.reconstructed(codes)).sum(axis=1)
        best_first = np.argsort(misses, kind="stable")
        used = _Used(taken, self.size)
        relocated = np.zeros(len(codes), dtype=bool)
        for row in best_first:
            if used.has(code := tuple(codes[row].tolist())):
                relocated[row] = True
            else:
                used.add(code)
        books = self.books.astype(np.float64)
        for row in best_first[relocated[best_first]]:
            codes[row] = code = _nearest_free(latents[row], books, used)
            used.add(code)
        return codes, relocated

    def save(self, path: Path) -> None:
        """Writes the codebooks to a safetensors file."""
        arrays = {"books": self.books}
        for at, (weight, bias) in enumerate(self.layers):
            arrays |= {f"encoder.{at}.weight": weight, f"encoder.{at}.bias": bias}
        save_arrays(path, arrays)


def load_quantizer(path: Path) -> Quantizer:
    """Reads what `Quantizer.save` wrote. Raises LoreError for another file."""
    arrays = load_arrays(path, "codebooks")
    try:
        places = range((len(arrays) - 1) // 2)
        layers = tuple((arrays[f"encoder.{at}.weight"], arrays[f"encoder.{at}.bias"]) for at in places)
        books = arrays["books"]
        if books.ndim != 3 or not books.size or not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError(f"codebooks of the shape {books.shape}")
        widths = [books.shape[2], *(weight.shape[0] for weight, _ in layers[::-1])]
        if layers and widths[0] != widths[1]:
            raise ValueError("an encoder of another width")
        return Quantizer(books, layers)
    except (KeyError, ValueError) as error:
        raise LoreError(f"{path} has no codebooks ({reason(error)}).\nRun the recipe of stage semantic_ids again.") from error


def fit_residual_kmeans(vectors: np.ndarray, levels: int, size: int, seed: int) -> Quantizer:
    """Codebooks of vectors [N, D], each level on what is left over. The same vectors and seed give the same books."""
    rng = np.random.default_rng(seed)
    left = np.asarray(vectors, dtype=np.float64)
    if len(left) > MOST_FITTED:
        left = left[np.sort(rng.choice(len(left), MOST_FITTED, replace=False))]
    size = codes_per_level(len(vectors), levels, size)
    books = []
    with threadpool_limits(1), warnings.catch_warnings():  # several threads add up in another order each time
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different residuals than codes: repair uses the rest
        for level in range(levels):
            fitted = KMeans(min(size, len(left)), n_init=1, random_state=seed + level).fit(left)
            centers = fitted.cluster_centers_.astype(np.float32)
            books.append(np.resize(centers, (size, left.shape[1])))
            left = left - centers.astype(np.float64)[fitted.labels_]
    return Quantizer(np.stack(books))


def codes_per_level(items: int, levels: int, most: int) -> int:
    """At most `most`, fewer for a small catalogue, see ITEMS_PER_CODE."""
    needed = next(size for size in range(2, max(most, 2) + 1) if size**levels >= ROOM * items or size >= most)
    return min(most, max(needed, items // ITEMS_PER_CODE))


class _Used:
    """Codes in use, and how many of them begin with a prefix."""

    def __init__(self, codes: np.ndarray, size: int):
        self.size, self.counts = size, Counter()
        for code in codes.tolist():
            self.add(tuple(code))

    def has(self, code: tuple[int, ...]) -> bool:
        return code in self.counts

    def add(self, code: tuple[int, ...]) -> None:
        self.counts.update(code[:length] for length in range(1, len(code) + 1))

    def is_full(self, prefix: tuple[int, ...], levels: int) -> bool:
        return self.counts[prefix] >= self.size ** (levels - len(prefix))


def _nearest_free(latent: np.ndarray, books: np.ndarray, used: _Used) -> tuple[int, ...]:
    """The codes of a vector [D], level by level the nearest below which one is free."""
    code: tuple[int, ...] = ()
    for book in books:
        order = _distances(latent[None], book)[0].argsort(kind="stable").tolist()
        code += (next(one for one in order if not used.is_full((*code, one), len(books))),)
        latent = latent - book[code[-1]]
    return code


def _distances(rows: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Squared distances [N, K], less the part that all codes of a row share."""
    return np.square(book).sum(axis=1) - 2 * rows @ book.T


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays to a safetensors file, whole or not at all."""
    with written_whole(path) as file:
        file.write(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def load_arrays(path: Path, what: str) -> dict[str, Any]:
    """Arrays of a safetensors file. Raises LoreError for a missing or damaged one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise LoreError(f"{path} holds no {what} ({reason(error)}).\nRun the recipe of stage semantic_ids again.") from error
