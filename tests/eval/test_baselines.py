"""The lexical baseline reads words in any script, learns overlap, and comes near its known score on real labels."""

import csv
import hashlib

import numpy as np
import pytest

from lore.data.pair import Pair
from lore.eval.baselines import Lexical, Majority, fit_baseline, tokens, trigrams
from lore.eval.measures.bootstrap import estimate, query_groups
from lore.support.errors import LoreError


def pair(query: str, title: str, **fields) -> Pair:
    return Pair(pair_id=f"{query}|{title}", query=query, title=title, **fields)


def test_tokens_of_words_numbers_and_chinese():
    assert tokens("Red Dresses, 2.5 m GLASS") == ["red", "dresse", "2.5", "m", "glass"]
    assert tokens("红色连衣裙XL") == ["红", "色", "连", "衣", "裙", "红色", "色连", "连衣", "衣裙", "xl"]
    assert tokens("ＮＩＫＥ shoes") == ["nike", "shoe"]
    assert tokens("") == tokens("!?") == trigrams("") == []
    assert trigrams("cup") == [" cu", "cup", "up "]


def overlap_data(n: int = 300) -> tuple[list[Pair], list[int]]:
    """Label 1 where the title has the query's words; a third tier that no pair has."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "bcdfgh" for b in ("ale", "orn", "ick", "ust")]
    pairs, gold = [], []
    for _ in range(n):
        asked, other = rng.choice(words, 2, replace=False), rng.choice(words, 3)
        label = int(rng.random() < 0.5)
        pairs.append(pair(" ".join(asked), " ".join([*other, *(asked if label else [])])))
        gold.append(label)
    return pairs, gold


def test_the_lexical_baseline_learns_word_overlap_and_gives_distributions():
    pairs, gold = overlap_data()
    baseline = fit_baseline("lexical", pairs[:200], gold[:200], 3)
    probabilities = baseline.predict(pairs[200:])
    assert isinstance(baseline, Lexical) and probabilities.shape == (100, 3)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(100))
    assert (probabilities[:, 2] == 0).all()
    assert np.mean(probabilities.argmax(axis=1) == gold[200:]) > 0.9


def test_a_baseline_is_the_same_for_the_same_seed():
    pairs, gold = overlap_data(120)
    first, second = (fit_baseline("lexical", pairs, gold, 2, seed=1).predict(pairs) for _ in range(2))
    assert (first == second).all()


def test_empty_and_missing_texts_give_features_without_nan():
    pairs = [
        pair("", ""),
        pair("a", "b", description="c", attributes={"colour": "red"}, brand="x", category="y"),
        pair("红色", "红"),
    ]
    features = Lexical(2).fit(pairs * 10, [0, 1, 1] * 10).features(pairs)
    assert np.isfinite(features).all() and len(features) == 3


def test_majority_gives_the_train_shares_and_weights_count():
    pairs = [pair("q", str(i)) for i in range(4)]
    assert Majority(3).fit(pairs, [0, 2, 2, 2]).predict(pairs[:1]).tolist() == [[0.25, 0, 0.75]]
    assert Majority(3).fit(pairs, [0, 2, 2, 2], [9, 1, 1, 1]).predict(pairs[:1])[0].argmax() == 0


def test_one_label_in_training_falls_back_to_the_majority():
    assert isinstance(fit_baseline("lexical", [pair("q", "t")], [1], 3), Majority)


def test_no_training_pair_is_an_error_that_says_what_to_do():
    with pytest.raises(LoreError, match="lore data split"):
        fit_baseline("lexical", [], [], 3)


def test_lexical_baseline_on_crowdflower_comes_near_its_reference(public_data):
    path = public_data / "crowdflower" / "train.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there: get the search relevance data from Kaggle and set LORE_DATA")
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held_out = np.asarray([hashlib.blake2b(row["query"].encode(), digest_size=4).digest()[0] < 256 / 3 for row in rows])
    pairs = [pair(row["query"], row["product_title"], description=row["product_description"]) for row in rows]
    gold = np.asarray([int(row["median_relevance"]) - 1 for row in rows])
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    baseline = fit_baseline("lexical", [pairs[i] for i in train], gold[train], 4)
    predicted = baseline.predict([pairs[i] for i in test]).argmax(axis=1)
    groups = query_groups([pairs[i].query for i in test])
    found = estimate(gold[test], predicted, groups, ["1", "2", "3", "4"], [False, False, True, True])
    # Reference, split apart by query: Acc@4 .609, Macro-F1 .359, QWK .334.
    assert 0.54 < found["acc_k"].value < 0.68
    assert 0.31 < found["macro_f1"].value < 0.44
    assert 0.27 < found["qwk"].value < 0.50
