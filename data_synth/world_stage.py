"""Writes the embedded shop to a folder, file by file; a file that is there is not written again, so a killed run goes on.

    lore run recipes/quickstart/world.yaml
    lore world --pairs 1000000 --out shop/
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lore.data_synth.config import WorldRecipe
from lore.data_synth.shop_rules import found_text
from lore.data_synth.world import ITEMS_PER_QUERY, World, zipf_frequency
from lore.folder import RunFolder
from lore.pairs import PairWriter
from lore.progress import track
from lore.prompt import item_text

CORPUS_SCHEMA = pa.schema([("text", pa.string()), ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
START, END = "<|im_start|>", "<|im_end|>"  # the base model's turns, so that it has seen a conversation before it is tuned on one
TEST_SUBSETS = {"general": 1 / 3, "hard": 1 / 3, "visual": 1 / 3}


def run(recipe: WorldRecipe, folder: RunFolder) -> None:
    """The stage: everything `write_world` writes goes into the run folder."""
    for split, count in recipe.pairs.items():
        test = split == "test"
        world = World(recipe.seed, recipe.language, recipe.test_prior if test else recipe.prior, recipe.rubric,
                      TEST_SUBSETS if test else recipe.subsets, recipe.photos)
        write_pairs(world, split, count, folder / f"{split}.parquet")
    write_extras(World(recipe.seed, recipe.language, rubric=recipe.rubric), folder.path, recipe.corpus, recipe.pairs["train"] // ITEMS_PER_QUERY)
    folder.note(rubric_hash=world.rubric.hash)
    folder.finish({"pairs": sum(recipe.pairs.values()), "corpus": recipe.corpus, "folder": str(folder.path)})


def write_world(out: str | Path, *, pairs: int, seed: int = 0, language: str = "en", prior: str = "balanced", photos: float = 0.4,
                corpus: int = 20000) -> None:
    """`pairs` pairs over train (90 %), dev (3 %) and test (7 %), and the extras, in folder `out`."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shares = {"dev": pairs * 3 // 100, "test": pairs * 7 // 100}
    shares = {"train": pairs - sum(shares.values()), **shares}
    world = World(seed, language, prior, photos=photos)
    for split, count in shares.items():
        if count:
            write_pairs(world, split, count, out / f"{split}.parquet")
    write_extras(world, out, corpus, max(1, shares["train"] // ITEMS_PER_QUERY))


def write_pairs(world: World, split: str, count: int, path: Path) -> None:
    """Streams one split; nothing happens where the file is there already."""
    if path.exists():
        return
    with PairWriter(path) as writer:
        for pair in track(world.pairs(split, count), f"{path.name}", total=count):
            writer.write(pair)


def write_extras(world: World, out: Path, corpus: int, queries: int) -> None:
    """facts.jsonl (for teachers, never for judges), log.jsonl (the training queries' frequencies), corpus.parquet."""
    _write_jsonl(out / "facts.jsonl", world.lexicon.facts())
    _write_jsonl(out / "log.jsonl", search_log(world, queries))
    if corpus and not (out / "corpus.parquet").exists():
        _write_corpus(out / "corpus.parquet", track(corpus_texts(world, corpus), "corpus.parquet", total=corpus))


def search_log(world: World, queries: int) -> Iterator[dict]:
    """The search log of the training queries: query, searches a month, kind."""
    for number in range(queries):
        query, words = world.query("train", number)
        yield {"query": words, "frequency": zipf_frequency(number, queries), "kind": query.kind}


def corpus_texts(world: World, count: int) -> Iterator[dict]:
    """What a base model reads: catalogue entries with a card of what the item is and where that can be seen, and now and then a
    line of the rule book or of the search log. No query meets an item here and nothing is judged."""
    rng = random.Random(f"{world.seed}/corpus")
    rules = [f"{rule.id} {rule.tier}: {rule.principle}" for rule in world.rubric.rules]
    for number, (pair, facts) in enumerate(world.catalogue(count)):
        draw = rng.random()
        if draw < 0.05:
            yield {"text": f"<rules>{rng.choice(rules)}</rules>{END}", "image": None}
            continue
        if draw < 0.10:
            yield {"text": f"<query>{world.query('train', number)[1]}</query>{END}", "image": None}
            continue
        before, after = item_text(pair).block(photo=pair.image is not None)
        item = before[before.index("<item>"):] + ("<image>" + after if pair.image else "")
        card = [f"{dimension}: {found_text(fact)} ({fact.source})" for dimension, fact in facts.items()]
        rng.shuffle(card)
        text = f"{START}user\n{item}{END}\n{START}assistant\n<reason>{'; '.join(card)}</reason>{END}\n"
        yield {"text": text, "image": pair.image}


def _write_corpus(path: Path, rows: Iterator[dict], batch: int = 2000) -> None:
    part = path.with_suffix(".part")
    pending: list[dict] = []
    with pq.ParquetWriter(part, CORPUS_SCHEMA) as writer:
        for row in rows:
            pending.append(row)
            if len(pending) == batch:
                writer.write_table(pa.Table.from_pylist(pending, schema=CORPUS_SCHEMA))
                pending = []
        if pending:
            writer.write_table(pa.Table.from_pylist(pending, schema=CORPUS_SCHEMA))
    os.replace(part, path)


def _write_jsonl(path: Path, rows) -> None:
    if path.exists():
        return
    part = path.with_suffix(".part")
    with open(part, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(part, path)
