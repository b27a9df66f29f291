"""The words stage: generated texts over one split's words, labeled by the words found."""

import csv

import pyarrow.parquet as pq
import pytest

from lore.codec.judgement import FormatFailure, parse
from lore.codec.prompt import PromptFormat
from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError
from lore.data.pair import Pair
from lore.data.splits import split_of
from lore.data_synth.shop.word_matching_corpus import WordPairs, inflected, stem_of, tier_index, words_of
from lore.rubric.rubric import load_rubric
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError

RUBRIC = load_rubric("crowdflower")
TITLES = ["LED Christmas Lights - Clear Wire", "Solid-Wood Wine Rack, 6 Bottle", "Nike Running Shoes for Women", "16GB Memory Card"]
BODY = 'stage: words\nrun: words\ntexts: 60\ndata: {{path: "{}", source: crowdflower, rubric: crowdflower, split: train}}\n'


def generator(seed: int = 0) -> WordPairs:
    real = [Pair(pair_id=title, query=title.split()[-1], title=title, description="A gift & more") for title in TITLES]
    return WordPairs(real, RUBRIC, seed)


@pytest.fixture
def crowdflower(tmp_path):
    """A file in CrowdFlower's form whose every query and title holds a word that no other pair has."""
    path = tmp_path / "train.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "query", "product_title", "product_description", "median_relevance", "relevance_variance"])
        for n in range(60):
            writer.writerow([n, f"query{n:02d} lamp", f"Table Lamp title{n:02d}", f"Text text{n:02d}", n % 4 + 1, 0.0])
    return path


def test_every_word_found_is_the_best_tier_and_none_the_worst():
    assert [tier_index(share, 4) for share in (0.0, 0.32, 0.5, 0.7, 0.99, 1.0)] == [0, 0, 1, 2, 2, 3]
    assert [tier_index(share, 2) for share in (0.0, 0.9, 1.0)] == [0, 0, 1]


def test_a_plural_s_is_no_difference():
    assert stem_of("lights") == stem_of("light") == stem_of(inflected("light"))
    assert stem_of("glass") == "glass"
    assert generator().found(["light", "wires", "wood"], words_of(TITLES[0])) == [True, True, False]


def test_labels_and_reasons_follow_from_the_words():
    words = generator()
    for number in range(300):
        pair = words.pair(number, reasons=1.0)
        query, title = words_of(pair.query), words_of(pair.title)
        found = words.found(query, title)
        lines = (pair.rationale or "").split("; ")
        demands = dict(line.split(": ", 1)[1].split(" | ") for line in lines if line)
        for word, hit in zip(query, found, strict=True):
            if word in demands and not demands[word].count(" ") == 2:  # words that a title glues are found in their own way
                assert (demands[word] != "none (none)") == hit
        assert (pair.label == "4") == all(found)
        assert (pair.label == "1") or any(found)


def test_a_query_of_signs_alone_is_passed_over():
    real = [Pair(pair_id=title, query="***", title=title) for title in TITLES]
    assert all(words_of(WordPairs(real, RUBRIC, 0).pair(number, 0.5).query) for number in range(100))


def test_all_tiers_occur():
    assert {generator().pair(number, 0.5).label for number in range(300)} == {"1", "2", "3", "4"}


def test_the_label_is_the_share_of_words_found():
    words = generator()
    for number in range(300):
        pair = words.pair(number, 0.5)
        found = words.found(words_of(pair.query), words_of(pair.title))
        assert pair.label == RUBRIC.tier_ids[tier_index(sum(found) / len(found), 4)]


def test_half_of_the_marked_words_are_found_and_marks_are_right():
    words, marks = generator(), []
    for row in words.texts(400, 0.5):
        if "assistant" in row["text"]:
            continue
        query = words_of(row["text"].split("<query>")[1].split("</query>")[0])
        title = row["text"].split("<title>")[1].split("</title>")[0].split()
        assert words.found(title[::2], query) == [mark == "yes" for mark in title[1::2]]
        spans = [row["text"][span["start"] : span["end"]].strip() for span in row["trained"]]
        assert spans == title[1::2]
        marks += spans
    assert len(marks) > 1000 and 0.45 < marks.count("yes") / len(marks) < 0.7


def test_texts_are_answers_of_the_codec_and_the_same_for_a_seed():
    texts = [row["text"] for row in generator().texts(200, 0.5)]
    assert texts == [row["text"] for row in generator().texts(200, 0.5)]
    assert texts != [row["text"] for row in generator(1).texts(200, 0.5)]
    answers = [text.split("<|im_start|>assistant\n")[1].removesuffix("<|im_end|>\n") for text in texts if "assistant" in text]
    assert len(answers) > 60
    for answer in answers:
        assert not isinstance(parse(answer, RUBRIC, PromptFormat(detail="name")), FormatFailure), answer


def test_nothing_outside_the_split_is_read(crowdflower, runs, write_recipe):
    recipe = load_recipe(write_recipe("words.yaml", BODY.format(crowdflower), plain=True))
    run_recipe(write_recipe("words.yaml", BODY.format(crowdflower), plain=True), [])
    folder = RunFolder.of(recipe)
    text = " ".join(pq.read_table(folder / "corpus.parquet")["text"].to_pylist()).lower()
    splits = {n: split_of(f"query{n:02d} lamp") for n in range(60)}
    assert set(splits.values()) == {"train", "dev", "test"}
    for n, split in splits.items():
        if split != "train":
            assert not any(f"{kind}{n:02d}" in text for kind in ("query", "title", "text"))
    assert folder.summary["texts"] == 60


def test_a_recipe_that_would_read_every_split_is_refused(write_recipe):
    with pytest.raises(RecipeError, match="held-out query"):
        load_recipe(write_recipe("words.yaml", BODY.format("x.csv").replace(", split: train", ""), plain=True))


def test_a_missing_file_says_where_to_get_it(tmp_path, runs, write_recipe):
    path = write_recipe("words.yaml", BODY.format(tmp_path / "none.csv"), plain=True)
    with pytest.raises(LoreError, match="kaggle.com/c/crowdflower-search-relevance"):
        run_recipe(path, [])


def test_no_pairs_is_an_error():
    with pytest.raises(LoreError, match="lore data stats"):
        WordPairs([], RUBRIC, 0)
