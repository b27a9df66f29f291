"""The vector layer: places whose text means about what the question means.

    town:     write_town(path, places, encode=lambda some: encode([place_text(place, relations) for place in some]))
    question: Vectors(town.vectors, encode, relations).retrieve(intent, reach, k)

Likeness is the exact dot product with every row within reach, without an approximate index: of 384 dimensions, 5,000 rows take 3 ms
of one core and 20,000 take 13 ms, and a walk of 15 minutes reaches 300 places in the middle of Chicago. A town of 200,000 rows that
all lie within reach takes 56 ms (python benchmarks/nearby_places.py --speed). The vectors are held as float32: 300 MB for 200,000.

encode: the sentence encoder of a folder (sentence_encoder), the one that wrote the town's vectors. Without one, hashed_words gives
vectors of words and parts of words: nothing is downloaded or fitted, any language works, and only spelling counts, not meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from lore.nearby.graph import Relations
from lore.nearby.retrieval import Reach
from lore.places.place import Place
from lore.places.question import Hit, Intent

Encode = Callable[[Sequence[str]], np.ndarray]
"""From n texts to unit vectors (n, dimension), float32."""
MAX_CHARACTERS, MAX_TOKENS, BATCH_TOKENS = 500, 64, 4096
HASHED = 384
SAID = frozenset("cuisine internet_access wifi outdoor_seating wheelchair takeaway delivery smoking religion sport".split())
"""Keys of the tags that a place's text holds, beside diet:*."""


def place_text(place: Place, relations: Relations) -> str:
    """Name, categories, what the tags say, and the place's own text: at most MAX_CHARACTERS characters."""
    classes = [relations.readable(relations.by_word.get(name, name)) for name in place.classes]
    tags = [
        f"{key} {value}" if value != "yes" else key
        for key, value in place.tags.items()
        if value != "no" and (key in SAID or key.startswith("diet:"))
    ]
    said = ", ".join(tags).replace("_", " ").replace(":", " ").replace(";", " ")
    return ". ".join(part for part in (place.name, ", ".join(classes), said, place.text) if part)[:MAX_CHARACTERS]


def sentence_encoder(folder: str) -> Encode:
    """Mean over the tokens by an encoder such as all-MiniLM-L6-v2, folder or hub id. Raises LoreError if it cannot be loaded."""
    from lore.recommend.config import TextSection  # loads torch
    from lore.recommend.features import load_text_encoder, mean_states  # loads torch

    section = TextSection(encoder=folder, max_tokens=MAX_TOKENS)
    model, tokenizer = load_text_encoder(section)
    return lambda texts: _unit(mean_states(model, tokenizer, texts, MAX_TOKENS, BATCH_TOKENS))


def hashed_words(texts: Sequence[str]) -> np.ndarray:
    """Words and their parts of 3 and 4 letters, hashed into HASHED dimensions with signs (Weinberger et al. 2009)."""
    from sklearn.feature_extraction.text import HashingVectorizer  # only without an encoder: takes time to load

    counts = HashingVectorizer(n_features=HASHED, analyzer="char_wb", ngram_range=(3, 4), norm=None).transform(texts)
    return _unit(counts.toarray().astype(np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


class Vectors:
    """The layer over one town. vectors (n, dimension): unit vectors by row; None: the layer says nothing."""

    name = "vector"

    def __init__(self, vectors: np.ndarray | None, encode: Encode, relations: Relations):
        # Products of float16 take 7 times as long.
        self._vectors = None if vectors is None else np.asarray(vectors, dtype=np.float32)
        self._relations = relations
        self._encoded = lru_cache(maxsize=256)(lambda text: encode([text])[0])

    def retrieve(self, intent: Intent, reach: Reach, k: int) -> list[Hit]:
        if self._vectors is None or not len(reach.rows):
            return []
        query = self._encoded(self.query_text(intent))
        if 3 * len(reach.rows) > len(self._vectors):  # a copy of so many rows takes longer than the rows that are not needed
            likeness = (self._vectors @ query)[reach.rows]
        else:
            likeness = self._vectors[reach.rows] @ query
        best = np.argsort(-likeness, kind="stable")[:k]
        return [Hit(int(reach.rows[at]), float(likeness[at]), f"{likeness[at]:.2f} alike in meaning") for at in best.tolist()]

    def query_text(self, intent: Intent) -> str:
        """The words of the needs; of a Chinese question the English names of needs with a key, because many encoders read English
        alone."""
        words = []
        for need in intent.needs:
            if not need.excluded:
                is_translated = need.key is not None and intent.language == "zh"
                words.append(self._relations.need(need.key).en[0] if is_translated else need.text)
        return " ".join(words)[:MAX_CHARACTERS] or intent.text[:MAX_CHARACTERS]
