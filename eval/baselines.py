"""Two baselines that a judge has to beat: the majority tier, and a classifier over word overlap.

Both are trained on the train split of the data that the judge is tested on. The lexical baseline is gradient boosting over
overlap features of query and item text. It has no synonyms, no photo and no feature that identifies a query. Inverse
document frequencies come from the train split alone; a word that the train split does not contain counts as rare. CJK text
is split into characters and character pairs.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from lore.data.pair import Pair
from lore.support.errors import LoreError
from lore.support.text import compatible

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"\d+(?:\.\d+)?|[{CJK}]+|[^\W\d_{CJK}]+")
IS_CJK = re.compile(f"[{CJK}]")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
HASH_SIZE = 2**18
BATCH = 4096
MAX_CHARS = 2000
ABSENT = -1.0  # below every overlap; gradient boosting cannot bin a column of only nan
FIELDS = ("title", "attributes", "description", "all")


def tokens(text: str) -> list[str]:
    """Lower-case words without a plural s, numbers, and the single characters and character pairs of CJK runs."""
    found = []
    for word in WORD.findall(compatible(text).lower()):
        if IS_CJK.match(word):
            found += [*word, *(word[i : i + 2] for i in range(len(word) - 1))]
        elif len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            found.append(word[:-1])
        else:
            found.append(word)
    return found


def trigrams(text: str) -> list[str]:
    words = [f" {word} " for word in WORD.findall(compatible(text).lower())]
    return [word[i : i + 3] for word in words for i in range(max(1, len(word) - 2))]


def field_texts(pair: Pair) -> dict[str, str]:
    """The item's text by field, as input of the features; `all` joins every field."""
    named = [pair.brand, pair.category, *(f"{key} {value}" for key, value in pair.attributes.items())]
    texts = {
        "title": pair.title[:MAX_CHARS],
        "attributes": " ".join(part for part in named if part)[:MAX_CHARS],
        "description": (pair.description or "")[:MAX_CHARS],
    }
    return texts | {"all": " ".join(texts.values())}


class Majority:
    """Predicts the most frequent tier of the train split, with the tier shares as probabilities."""

    def __init__(self, tiers: int):
        self.tiers = tiers
        self.shares = np.full(tiers, 1 / tiers)

    def fit(self, pairs: Iterable[Pair], gold: Sequence[int], weights: Sequence[float] | None = None) -> "Majority":
        counts = np.bincount(np.asarray(gold, dtype=np.int64), weights, self.tiers)
        self.shares = counts / counts.sum()
        return self

    def predict(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Probabilities [N, tiers]."""
        return np.tile(self.shares, (len(pairs), 1))


class Lexical:
    """Gradient boosting over overlap features of query and item text."""

    def __init__(self, tiers: int, seed: int = 0):
        self.tiers = tiers
        self.words = HashingVectorizer(analyzer=tokens, n_features=HASH_SIZE, alternate_sign=False, norm=None)
        self.chars = HashingVectorizer(analyzer=trigrams, n_features=HASH_SIZE, alternate_sign=False, norm=None)
        self.word_idf, self.char_idf = TfidfTransformer(norm=None), TfidfTransformer(norm=None)
        self.trees = HistGradientBoostingClassifier(
            max_iter=150,
            learning_rate=0.05,
            max_leaf_nodes=15,
            min_samples_leaf=30,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=seed,
        )

    def fit(self, pairs: Sequence[Pair], gold: Sequence[int], weights: Sequence[float] | None = None) -> "Lexical":
        texts = [field_texts(pair)["all"] for pair in pairs]
        self.word_idf.fit(self.words.transform(texts))
        self.char_idf.fit(self.chars.transform(texts))
        self.trees.fit(self.features(pairs), np.asarray(gold, dtype=np.int64), weights)
        return self

    def predict(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Probabilities [N, tiers]; 0 for a tier that the train split does not contain."""
        probabilities = np.zeros((len(pairs), self.tiers))
        if pairs:
            probabilities[:, self.trees.classes_] = self.trees.predict_proba(self.features(pairs))
        return probabilities

    def features(self, pairs: Sequence[Pair]) -> np.ndarray:
        """[N, features] float32; ABSENT where a field or number is missing."""
        blocks = [self._features(pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)]
        return np.concatenate(blocks).astype(np.float32)

    def _features(self, pairs: Sequence[Pair]) -> np.ndarray:
        queries = [pair.query[:MAX_CHARS] for pair in pairs]
        fields = [field_texts(pair) for pair in pairs]
        query_words, query_chars = self.words.transform(queries), self.chars.transform(queries)
        columns = []
        for name in FIELDS:
            texts = [field[name] for field in fields]
            empty = np.asarray([not text.strip() for text in texts])
            overlap = [
                *_overlap(query_words, self.words.transform(texts), self.word_idf),
                *_overlap(query_chars, self.chars.transform(texts), self.char_idf),
            ]
            columns += [np.where(empty, ABSENT, column) for column in overlap]
        columns += list(
            np.asarray(
                [_pair_features(query, field) for query, field in zip(queries, fields, strict=True)], dtype=float
            ).T
        )
        return np.stack(columns, axis=1)


def _overlap(query, text, idf: TfidfTransformer) -> list[np.ndarray]:
    """Share of the query's tokens found in the text, the same share weighted by idf, Jaccard index and tf-idf cosine, from
    sparse counts [N, HASH_SIZE]."""
    in_query, in_text = query.sign(), text.sign()
    shared = in_query.multiply(in_text)
    n_shared, n_query, n_text = (_row_sums(matrix) for matrix in (shared, in_query, in_text))
    rare_shared, rare_query = _row_sums(idf.transform(shared)), _row_sums(idf.transform(in_query))
    query_vector, text_vector = idf.transform(query), idf.transform(text)
    lengths = np.sqrt(_row_sums(query_vector.multiply(query_vector)) * _row_sums(text_vector.multiply(text_vector)))
    return [
        n_shared / np.maximum(n_query, 1),
        rare_shared / np.maximum(rare_query, 1e-9),
        n_shared / np.maximum(n_query + n_text - n_shared, 1),
        _row_sums(query_vector.multiply(text_vector)) / np.maximum(lengths, 1e-9),
    ]


def _row_sums(matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1), dtype=np.float64).reshape(-1)


def _pair_features(query: str, field: dict[str, str]) -> list[float]:
    """Features of word order, lengths and numbers."""
    asked, title = tokens(query), tokens(field["title"])
    title_set, title_bigrams = set(title), set(zip(title, title[1:], strict=False))
    bigrams = set(zip(asked, asked[1:], strict=False))
    numbers, item_numbers = set(NUMBER.findall(query)), set(NUMBER.findall(field["all"]))
    where = [title.index(word) / len(title) for word in asked if word in title_set]
    return [
        len(bigrams & title_bigrams) / len(bigrams) if bigrams else ABSENT,
        float(bool(asked) and asked[0] in title_set),
        float(bool(asked) and asked[-1] in title_set),
        where[-1] if where else ABSENT,
        float(bool(title) and title[-1] in asked),
        float(query.strip().lower() in field["title"].lower()),
        len(asked),
        len(title),
        len(field["description"]),
        len(numbers),
        len(numbers & item_numbers) / len(numbers) if numbers else ABSENT,
        len(item_numbers - numbers),
    ]


def fit_baseline(
    kind: str, pairs: Sequence[Pair], gold: Sequence[int], tiers: int, *, weights=None, seed: int = 0
) -> Majority | Lexical:
    """Trains one baseline. kind: "majority" or "lexical"."""
    if not len(pairs):
        raise LoreError(
            f"the {kind} baseline has no labeled pair to train on, because the train split is empty. "
            "Split the data (lore data split --by query), name another split in train_split, or set baselines: []"
        )
    if kind == "lexical" and len(set(gold)) > 1:
        return Lexical(tiers, seed).fit(pairs, gold, weights)
    return Majority(tiers).fit(pairs, gold, weights)
