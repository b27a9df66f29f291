"""Stage town: writes the made-up town as a table of places, its pairs, and a corpus. Files that exist are kept.

lore run recipes/quickstart/local_life/town.yaml
lore nearby index runs/quickstart/local_life/town/places.jsonl -o town.db --country US --timezone America/Chicago
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lore.codec.item_text import item_text
from lore.codec.judgement import render_demands
from lore.codec.prompt import PromptFormat, system_text
from lore.data.parquet import PairWriter
from lore.data.tables.parquet_files import already_written
from lore.data_synth.local_life.config import TownRecipe
from lore.data_synth.local_life.pairs import Questions
from lore.data_synth.local_life.town import MadeUpTown
from lore.data_synth.shop.corpus import END, START, Pieces, with_spans, write_corpus
from lore.places.local_life import local_life
from lore.rubric.rubric import rubric_metadata
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.progress import track

PLACES, RULES = 0.45, 0.35  # of the corpus; the rest is questions
ADDRESSED = 0.05  # share of the places after the judge's instructions, so that the vocabulary contains their words
EXAMPLES_PER_TEXT = 4
UNSEEN = 10**9  # the corpus takes pairs from here on, which no training split reaches


def run(recipe: TownRecipe, folder: RunFolder) -> None:
    town = MadeUpTown(recipe.seed, recipe.places)
    questions = Questions(town, recipe.chinese)
    rows = [{key: value for key, value in asdict(one).items() if value not in (None, [], {}, "")} for one in town.rows()]
    write_atomic(folder / "places.jsonl", "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
    for split, count in recipe.pairs.items():
        write_pairs(questions, split, count, folder / "pairs" / f"{split}.parquet")
    if recipe.corpus and not already_written(folder / "corpus.parquet"):
        texts = corpus_texts(questions, recipe.corpus)
        write_corpus(folder / "corpus.parquet", track(texts, "corpus.parquet", total=recipe.corpus))
    folder.note(rubric_hash=local_life().hash)
    folder.finish({"places": len(rows), "pairs": sum(recipe.pairs.values()), "corpus": recipe.corpus, "folder": str(folder.path)})


def write_pairs(questions: Questions, split: str, count: int, path: Path) -> None:
    """Streams one split to a file, unless the file exists."""
    if already_written(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with PairWriter(path, metadata=rubric_metadata("local_life", local_life())) as writer:
        for pair in track(questions.pairs(split, count), path.name, total=count):
            writer.write(pair)


def corpus_texts(questions: Questions, count: int) -> Iterator[dict]:
    """Places with what the rules read of them, demands with the rule that applies, and questions with what they demand. No text
    holds a question together with a place."""
    rng = random.Random(f"{questions.town.seed}/corpus")
    pairs = questions.pairs("train", count * EXAMPLES_PER_TEXT, UNSEEN)
    for pair in pairs:
        draw = rng.random()
        if draw < PLACES:
            head = f"system\n{system_text(local_life(), PromptFormat(detail='name'))}{END}\n{START}user"
            block, _ = item_text(pair).block(photo=False)
            turn = f"{START}{head if rng.random() < ADDRESSED else 'user'}\n{block[block.index('<item>') :]}{END}\n"
            text: Pieces = [(f"{turn}{START}assistant\n<reason>", False)]
            for demand in rng.sample(pair.demands, len(pair.demands)):
                text += [(f"{demand.dimension} |", False), (f" {demand.found} ({demand.source})", True), ("; ", False)]
            yield with_spans([*text[:-1], (f"</reason>{END}\n", False)])
        elif draw < PLACES + RULES:
            text = [("<rules>", False)]
            for one in (pair, *(next(pairs) for _ in range(EXAMPLES_PER_TEXT - 1))):
                demand = rng.choice(one.demands)
                verdict = f" {demand.rule} {demand.tier}"
                text += [(render_demands([demand]).removesuffix(verdict), False), (verdict, True), ("; ", False)]
            yield with_spans([*text[:-1], (f"</rules>{END}\n", False)])
        else:
            facets = "; ".join(f"{demand.dimension}: {demand.wanted}" for demand in pair.demands)
            yield with_spans([(f"<query>{pair.query}</query>\n<reason>", False), (f"{facets}</reason>{END}\n", True)])
        count -= 1
        if not count:
            return
