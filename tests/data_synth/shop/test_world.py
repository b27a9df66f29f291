"""The embedded shop: the same for a seed, held-out splits that hold, truth that stays out of the text."""

import hashlib
import io
import itertools
import json
import re
import tracemalloc
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from lore.codec.prompt import PromptFormat, render
from lore.data.images import load_image
from lore.data.parquet import count_pairs, read_metadata, read_pairs
from lore.data_synth.shop.catalogue import Query, _held_out
from lore.data_synth.shop.world import ITEMS_PER_QUERY, ZIPF_EXPONENT, World
from lore.data_synth.shop.write import search_log, write_pairs, write_world
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

LANGUAGES = ("en", "zh")
GOLDEN = {
    "en": "e86b72e6a870dfc2",
    "zh": "264ccfa4cb6fa5d7",
}  # 200 pairs of seed 0 without their photos; changes only when the shop is meant to change


def content(pair) -> dict:
    """A pair without its photo's bytes, whose compression differs between machines, and without fields that the shop lacks."""
    assert pair.label_distribution is None and pair.rubric is None
    found = asdict(replace(pair, image=None)) | {"photo": pair.image is not None}
    return {name: value for name, value in found.items() if name not in ("label_distribution", "rubric")}


def pixels(pair) -> np.ndarray | None:
    return None if pair.image is None else np.asarray(Image.open(io.BytesIO(pair.image["bytes"])))


@pytest.fixture(scope="module", params=LANGUAGES)
def world(request) -> World:
    return World(language=request.param, photos=0)


@pytest.fixture(scope="module")
def shop() -> World:
    return World(photos=0)


@pytest.fixture(scope="module")
def some(world) -> list:
    return list(world.pairs("train", 2000)) + list(world.pairs("test", 2000))


# determinism


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_seed_names_one_shop(language):
    def draw(seed):
        world = World(seed, language)
        return [*world.pairs("train", 100), *world.pairs("test", 100)]

    pairs, again = draw(0), draw(0)
    text = json.dumps([content(p) for p in pairs], sort_keys=True, ensure_ascii=False)
    assert [content(p) for p in pairs] == [content(p) for p in again] != [content(p) for p in draw(1)]
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(pairs, again, strict=True) if a.image)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN[language]


def test_a_row_is_the_same_wherever_the_stream_starts(world):
    rows = list(world.pairs("train", 60))
    for start in (1, 8, 13, 59):
        part = list(world.pairs("train", 60 - start, start=start))
        assert [content(p) for p in part] == [content(p) for p in rows[start:]]
        assert [p.image for p in part] == [p.image for p in rows[start:]]


def test_streaming_keeps_nothing(shop):
    def peak(count):
        tracemalloc.start()
        for _ in shop.pairs("train", count):
            pass
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    peak(100)
    assert peak(1500) < peak(300) + 100_000


# splits


def readings(world: World, query: Query, words: str, forms: slice) -> int:
    """In how many ways the query's wording can be put together from phrase forms, given its demands in their order."""
    phrases, joiner = world.lexicon.phrases, world.lexicon.joiner
    if query.kind == "question":
        inner = [match[1] for form in phrases["question"][forms] if (match := re.fullmatch(form.format(v="(.*)"), words))]
        return sum(readings(world, replace(query, kind=""), text, forms) for text in inner)
    texts = []
    for want in query.wants:
        key = want.dimension + ("_not" if want.negated else "_pure" if want.pure else "")
        key = "need" if key == "category" and query.kind == "solution" else key
        options = phrases[key] if key == "category" else phrases[key][forms]
        texts.append([form.format(v=want.said or want.value) for form in options])
    head, *rest = texts
    return sum(
        joiner.join([*said[:place], first, *said[place:]]) == words
        for said in itertools.product(*rest)
        for first in head
        for place in range(len(rest) + 1)
    )


def test_training_never_sees_a_held_out_combination_or_phrase(world):
    for number in range(400):
        query, words = world.query("train", number)
        assert not [want for want in query.wants[1:] if _held_out(query.wants[0].value, want)]
        assert query.held_out == [] and readings(world, query, words, slice(None, -1)) == 1


def test_every_dev_and_test_query_holds_something_that_training_never_sees(world):
    trained = {world.query("train", number)[1] for number in range(2000)}
    for split in ("dev", "test"):
        held = Counter()
        for number in range(300):
            query, words = world.query(split, number)
            unseen = any(_held_out(query.wants[0].value, want) for want in query.wants[1:])
            new_form = readings(world, query, words, slice(None, -1)) == 0
            assert readings(world, query, words, slice(None)) == 1, f"{words!r} can be read in two ways"
            assert ("combination" in query.held_out, "template" in query.held_out) == (unseen, new_form)
            assert words not in trained
            held.update(query.held_out or ["none"])
        assert min(held["combination"], held["template"]) > 40 and held["none"] == 0


def test_slices_name_subset_and_capability(some):
    for pair in some:
        assert pair.slices[0] in ("general", "hard", "visual")
        assert any(name.startswith("capability:") for name in pair.slices)
        assert any(name.startswith("held_out:") for name in pair.slices) == (pair.split == "test")
    seen = {name for pair in some for name in pair.slices}
    assert {f"capability:{name}" for name in ("knowledge", "multimodal", "rules")} <= seen
    assert {f"hard:{kind}" for kind in ("jargon", "entity", "solution", "question", "negation", "multi_attribute")} <= seen


# what may be seen where


def test_visual_pairs_hold_the_answer_in_the_photo_alone(world):
    lexicon = world.lexicon
    pattern_of = "|".join(re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)) for text in lexicon.distractors)
    colours = {c.name for c in lexicon.colours}
    visual = World(language=world.language, subsets={"visual": 1}).pairs("test", 400)
    shown = 0
    for pair in visual:
        assert load_image(pair.image).size == (56, 56)
        words = set(f"{pair.title} {' '.join(pair.attributes.values())}".split())
        assert not words & (colours | set(lexicon.patterns))
        assert not pair.description or re.fullmatch(pattern_of, pair.description)  # never about the item
        assert pair.attributes.keys().isdisjoint({lexicon.attribute_names["colour"], lexicon.attribute_names["pattern"]})
        photo = [d for d in pair.demands if d.dimension in ("colour", "pattern")]
        assert all(d.source == "photo" for d in photo)
        shown += bool(photo)
    assert shown > 250  # the others are of another kind altogether


def test_a_prompt_holds_the_words_of_the_pair_and_none_of_its_truth(some):
    rubric, fmt = load_rubric("shop"), PromptFormat(photo=False)
    for pair in some[::20]:
        messages = render(pair, rubric, fmt)
        bare = replace(pair, label=None, rationale=None, rules=[], mismatch=None, demands=[], slices=[], query_frequency=None)
        assert render(bare, rubric, fmt) == messages
        user = re.sub(r"</?\w+>", " ", messages[-1]["content"])
        fields = [pair.query, pair.title, pair.brand or "", pair.description or "", f"{pair.price or 0:.0f}"]
        fields += [f"{key}: {value};" for key, value in pair.attributes.items()]
        assert set(user.replace(";", " ").split()) <= set(" ".join(fields).replace(";", " ").split())


def test_words_that_need_knowledge_are_in_the_fact_table(some, world):
    facts = {(fact["phrase"], fact["value"]) for fact in world.lexicon.facts()}
    pairs = [tuple(text.split(" = ")) for p in some for d in p.demands for text in (d.wanted, d.found) if " = " in text]
    assert len(pairs) > 100 and set(pairs) <= facts


def test_the_chinese_shop_speaks_chinese():
    world = World(language="zh", photos=0)
    models = {m for series in world.lexicon.models for m in series}
    for pair in [*world.pairs("train", 1000), *world.pairs("test", 1000)]:
        texts = [pair.query, pair.title, pair.brand, pair.description, *pair.attributes, *pair.attributes.values()]
        texts += [text for d in pair.demands for text in (d.wanted, d.found)]
        assert set(re.findall("[A-Za-z]+[0-9]*", " ".join(filter(None, texts)))) <= models
        assert pair.source == "shop-zh"


# the search log and the files


def test_searches_follow_zipf_and_pairs_agree_with_the_log(shop):
    queries = 2000
    log = list(search_log(shop, queries))
    counts = np.sort([row["frequency"] for row in log])[::-1]
    slope = np.polyfit(np.log(np.arange(1, queries + 1)), np.log(counts), 1)[0]
    assert abs(slope + ZIPF_EXPONENT) < 0.05
    for number, pair in enumerate(itertools.islice(shop.pairs("train", queries * ITEMS_PER_QUERY), 400)):
        row = log[number // ITEMS_PER_QUERY]
        assert (pair.query, pair.query_frequency) == (row["query"], row["frequency"])


def test_a_world_is_written_whole_and_once(tmp_path, monkeypatch):
    out, original = tmp_path / "shop", World.pairs

    def dies(self, split, count, start=0):
        yield from original(self, split, 5 if split == "test" else count)
        if split == "test":
            raise KeyboardInterrupt

    monkeypatch.setattr(World, "pairs", dies)
    with pytest.raises(KeyboardInterrupt):
        write_world(out, pairs=300, corpus=30)
    assert not (out / "pairs" / "test.parquet").exists()
    monkeypatch.undo()

    write_world(out, pairs=300, corpus=30)
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert {
        "corpus.parquet",
        "facts.jsonl",
        "log.jsonl",
        *(f"pairs/{s}.parquet" for s in ("dev", "test", "train")),
    } <= set(files)
    assert not [name for name in files if "part" in name.rsplit(".", 1)[-1]]
    assert {s: count_pairs(out / "pairs", s) for s in ("train", "dev", "test")} == {"train": 270, "dev": 9, "test": 21}
    expected = [content(p) for p in World().pairs("test", 21)]
    assert [content(p) for p in read_pairs(out / "pairs" / "test.parquet")] == expected

    times = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    write_world(out, pairs=300, corpus=30)
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_a_failed_start_leaves_no_folder_and_a_torn_note_is_one_message(tmp_path):
    with pytest.raises(LoreError):
        write_world(tmp_path / "shop", pairs=10, language="xx")
    assert not (tmp_path / "shop").exists()
    (tmp_path / "shop").mkdir()
    for torn in ('{"pairs": ', "3", '"a"'):
        (tmp_path / "shop" / "world.json").write_text(torn)
        with pytest.raises(LoreError, match="world.json cannot be read.*Delete the folder"):
            write_world(tmp_path / "shop", pairs=10)


def test_written_pairs_name_their_rubric(tmp_path, shop):
    write_pairs(shop, "dev", 4, tmp_path / "dev.parquet")
    found = read_metadata(tmp_path / "dev.parquet")
    assert (found["lore.rubric"], found["lore.rubric_hash"]) == ("shop", load_rubric("shop").hash)
