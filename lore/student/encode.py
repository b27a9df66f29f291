"""Pairs to batches of token ids and photos. Training and serving use these functions, so both cut a long pair at the same token and
scale a photo in the same way.

A batch is numpy alone, so that an exported student needs no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lore.codec.pair_text import PairTextFormat, pair_texts
from lore.data.images import ImageError, load_image
from lore.data.pair import Pair
from lore.student.config import StudentConfig
from lore.student.photo_embeddings import PhotoEmbeddings
from lore.support.errors import LoreError

MIN_ITEM_TOKENS = 4
"""A query that leaves less room for its item is too long."""
MANY_BATCHES, BUDGETS = 8, 12
"""From this many batches per thread on, the last one is short beside the rest; budgets that `shared_batches` tries."""
Row = dict[str, Any]
Batch = dict[str, np.ndarray]


class QueryTooLong(LoreError):
    """The query alone fills the student's input."""


@dataclass
class PairEncoder:
    """Makes a student's input. tokenizer: a fast tokenizer of transformers. config: the student's; null: a text cross-encoder.
    embeddings: the photos' vectors, for photo: embedding."""

    tokenizer: Any
    fmt: PairTextFormat
    config: StudentConfig | None = None
    embeddings: PhotoEmbeddings | None = None
    _cut: Tokenizer = field(init=False, repr=False)
    _query: Tokenizer = field(init=False, repr=False)

    def __post_init__(self):
        whole = getattr(self.tokenizer, "backend_tokenizer", None)
        if whole is None:
            raise LoreError(
                f"The tokenizer of the student ({type(self.tokenizer).__name__}) is no fast one, so it has no tokenizer.json, "
                "which serving needs.\nTake an encoder whose folder has a tokenizer.json."
            )
        self._cut, self._query = (Tokenizer.from_str(whole.to_str()) for _ in range(2))
        for one in (self._cut, self._query):
            one.no_padding()
            one.no_truncation()
            one.encode_special_tokens = True  # "[SEP]" in a title is text
        self._together = self.config is None or self.config.kind == "cross_encoder"
        self._photo = "none" if self.config is None else self.config.photo
        self._room = self.fmt.max_tokens  # of a query
        if self._together:
            self._room -= self._cut.num_special_tokens_to_add(is_pair=True) + MIN_ITEM_TOKENS
        self._cut.enable_truncation(self.fmt.max_tokens, strategy="only_second" if self._together else "longest_first")
        self._own_types = "token_type_ids" in self.tokenizer.model_input_names
        self._typed = self._own_types or (self.config is not None and self.config.match_embedding)
        if self._photo == "embedding" and (self.embeddings is None or self.embeddings.size != self.config.embedding_size):
            found = "none were given" if self.embeddings is None else f"they have the length {self.embeddings.size}"
            raise LoreError(
                f"The student reads photo embeddings of the length {self.config.embedding_size}, and {found}.\nName the table "
                "of the items' vectors, from the model that made those of the training."
            )

    def rows(self, pairs: Sequence[Pair]) -> list[Row | QueryTooLong]:
        """One row per pair; a pair whose query alone is too long gets the error in its place.

        input_ids: of the pair, or of the item for a bi-encoder; token_type_ids: for models that read them; query_ids: of a
        bi-encoder's query; length: tokens of all of them; photo: the pair's photo as it is stored, the row of its vector, or None.
        """
        texts = [pair_texts(pair, self.fmt) for pair in pairs]
        queries = self._query_ids([query for query, _ in texts])
        kept = [index for index, ids in enumerate(queries) if len(ids) <= self._room]
        rows: list[Row | QueryTooLong] = [{} if len(ids) <= self._room else self._too_long(len(ids)) for ids in queries]
        asked = [texts[index] if self._together else texts[index][1] for index in kept]
        for index, found in zip(kept, self._cut.encode_batch_fast(asked), strict=True):
            row = rows[index] = {"input_ids": found.ids, "length": len(found.ids), "photo": self._photo_of(pairs[index])}
            if self._typed:
                row["token_type_ids"] = found.type_ids if self._own_types else _sides(found.sequence_ids)
            if not self._together:
                row["query_ids"] = queries[index]
                row["length"] += len(row["query_ids"])
        return rows

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Arguments of the student's forward as arrays: ids int64 [N, tokens], padded on the right to the longest.

        A bi-encoder's queries are there once each, with query_index [N]. photo (float32) and photo_mask [N] are there if a row has
        a photo that can be read.
        """
        arrays = self._padded([row["input_ids"] for row in rows], [row.get("token_type_ids") for row in rows])
        if not self._together:
            different = list(dict.fromkeys(tuple(row["query_ids"]) for row in rows))
            places = {ids: at for at, ids in enumerate(different)}
            arrays["query_index"] = np.asarray([places[tuple(row["query_ids"])] for row in rows], dtype=np.int64)
            queries = self._padded(different, [[0] * len(ids) for ids in different])
            arrays |= {f"query_{name}": array for name, array in queries.items()}
        return arrays | self._photos([row["photo"] for row in rows])

    @property
    def token_arrays(self) -> list[str]:
        """Names of the arrays that every batch has for its tokens, without those of a bi-encoder's queries."""
        return ["input_ids", "attention_mask", *(["token_type_ids"] if self._typed else [])]

    def photo_state(self, pair: Pair, seen: bool) -> str:
        """Verdict.photo of a pair. seen: its photo_mask."""
        if seen:
            return "seen"
        if pair.image is None:
            return "none"
        return "hidden" if self._photo == "none" else "failed"

    def _photo_of(self, pair: Pair) -> Any:
        if self._photo == "embedding":
            return self.embeddings.row(pair.item_id)
        return pair.image if self._photo == "tower" else None

    def _photos(self, photos: list[Any]) -> Batch:
        size = (self.config.embedding_size,) if self._photo == "embedding" else ()
        opened = [self._opened(photo) for photo in photos]
        if all(one is None for one in opened):
            return {}
        if self._photo == "tower":
            size = (3, self.config.tower.image_size, self.config.tower.image_size)
        found = np.zeros((len(photos), *size), dtype=np.float32)
        for at, one in enumerate(opened):
            if one is not None:
                found[at] = one
        return {"photo": found, "photo_mask": np.asarray([one is not None for one in opened], dtype=np.int64)}

    def _opened(self, photo: Any) -> np.ndarray | None:
        """Pixels [3, S, S] or the vector; None without a photo, and for one that cannot be read."""
        if photo is None:
            return None
        if self._photo == "embedding":
            return self.embeddings.vectors[photo]
        try:
            return pixels(load_image(photo), self.config.tower.image_size)
        except ImageError:
            return None

    def _padded(self, ids: Sequence[Sequence[int]], types: Sequence[Any]) -> Batch:
        longest = max(map(len, ids))
        shape = (len(ids), longest)
        arrays = {"input_ids": np.full(shape, self.tokenizer.pad_token_id or 0, dtype=np.int64)}
        for name in ("attention_mask", *(["token_type_ids"] if self._typed else [])):
            arrays[name] = np.zeros(shape, dtype=np.int64)
        for at, (one, kinds) in enumerate(zip(ids, types, strict=True)):
            arrays["input_ids"][at, : len(one)] = one
            arrays["attention_mask"][at, : len(one)] = 1
            if self._typed:
                arrays["token_type_ids"][at, : len(one)] = kinds
        return arrays

    def _query_ids(self, queries: list[str]) -> list[list[int]]:
        """Token ids of each query, for a bi-encoder with special tokens. Candidates of one query share one tokenization."""
        different = list(dict.fromkeys(queries))
        found = self._query.encode_batch_fast(different, add_special_tokens=not self._together)
        known = {query: one.ids for query, one in zip(different, found, strict=True)}
        return [known[query] for query in queries]

    def _too_long(self, length: int) -> QueryTooLong:
        return QueryTooLong(
            f"the query has {length} tokens, and a student with max_tokens {self.fmt.max_tokens} takes {self._room} of a query"
        )


def _sides(sequences: list[int | None]) -> list[int]:
    """Token types for a tokenizer that writes none: 1 for the item and the special tokens behind it."""
    begins = sequences.index(1) if 1 in sequences else len(sequences)
    return [0] * begins + [1] * (len(sequences) - begins)


def pixels(image: Any, side: int) -> np.ndarray:
    """A photo as float32 [3, side, side] in [-1, 1], scaled to a square as SigLIP's processor does."""
    from PIL import Image  # a student without a vision tower opens no photos

    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows that share a batch: sorted by length, with at most batch_tokens tokens each, padding included. A longer row
    is a batch by itself."""
    batch: list[int] = []
    for index in np.argsort(np.asarray(lengths), kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def shared_batches(lengths: Sequence[int], batch_tokens: int, threads: int) -> list[list[int]]:
    """`batches` for several threads: a few batches become as many, and as even, as keep all threads busy to the end."""
    found = list(batches(lengths, batch_tokens))
    if threads == 1 or not found or len(found) >= MANY_BATCHES * threads:
        return found
    wanted = -(-len(found) // threads) * threads
    for budget in np.linspace(sum(lengths) / wanted, batch_tokens, BUDGETS):
        even = list(batches(lengths, int(np.ceil(budget))))
        if len(even) <= wanted:
            return even
    return found
