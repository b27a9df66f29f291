"""Pairs to batches of token ids. Training and serving use these functions, so both cut a long pair at the same token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lore.codec.pair_text import PairTextFormat, pair_texts
from lore.data.pair import Pair
from lore.support.errors import LoreError

MIN_ITEM_TOKENS = 4
"""A query that leaves less room for its item is too long."""
Row = dict[str, Any]
Batch = dict[str, np.ndarray]


class QueryTooLong(LoreError):
    """The query alone fills the student's input."""


@dataclass
class PairEncoder:
    """Tokenizes pairs. tokenizer: a fast tokenizer of transformers."""

    tokenizer: Any
    fmt: PairTextFormat
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
        self._specials = self._cut.num_special_tokens_to_add(is_pair=True)
        self._cut.enable_truncation(self.fmt.max_tokens, strategy="only_second")
        self._typed = "token_type_ids" in self.tokenizer.model_input_names

    def rows(self, pairs: Sequence[Pair]) -> list[Row | QueryTooLong]:
        """One row per pair: {"input_ids", "length"} and, for models that read them, "token_type_ids". A pair whose query alone is
        too long gets the error in its place."""
        texts = [pair_texts(pair, self.fmt) for pair in pairs]
        lengths = self._query_lengths([query for query, _ in texts])
        room = self.fmt.max_tokens - self._specials - MIN_ITEM_TOKENS
        kept = [index for index, length in enumerate(lengths) if length <= room]
        rows: list[Row | QueryTooLong] = [self._too_long(length, room) if length > room else {} for length in lengths]
        for index, found in zip(kept, self._cut.encode_batch_fast([texts[index] for index in kept]), strict=True):
            row = rows[index] = {"input_ids": found.ids, "length": len(found.ids)}
            if self._typed:
                row["token_type_ids"] = found.type_ids
        return rows

    def batch(self, rows: Sequence[Row]) -> Batch:
        """The rows as int64 arrays [N, tokens], padded on the right to the longest."""
        longest = max(len(row["input_ids"]) for row in rows)
        arrays = {"input_ids": np.full((len(rows), longest), self.tokenizer.pad_token_id or 0, dtype=np.int64)}
        for name in ("attention_mask", *(["token_type_ids"] if self._typed else [])):
            arrays[name] = np.zeros((len(rows), longest), dtype=np.int64)
        for at, row in enumerate(rows):
            size = len(row["input_ids"])
            arrays["input_ids"][at, :size] = row["input_ids"]
            arrays["attention_mask"][at, :size] = 1
            if self._typed:
                arrays["token_type_ids"][at, :size] = row["token_type_ids"]
        return arrays

    def _query_lengths(self, queries: list[str]) -> list[int]:
        """Tokens of each query. Candidates of one query share one tokenization."""
        different = list(dict.fromkeys(queries))
        found = self._query.encode_batch_fast(different, add_special_tokens=False)
        known = {query: len(one.ids) for query, one in zip(different, found, strict=True)}
        return [known[query] for query in queries]

    def _too_long(self, length: int, room: int) -> QueryTooLong:
        return QueryTooLong(
            f"the query has {length} tokens, and a student with max_tokens {self.fmt.max_tokens} takes {room} of a query"
        )


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
