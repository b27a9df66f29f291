"""Stage world: writes the embedded shop to a folder, file by file. Existing files are not rewritten, so a killed run resumes.

lore run recipes/quickstart/world.yaml
lore world --pairs 1000000 --out shop/
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lore.codec.item_text import item_text
from lore.codec.judgement import render_demands
from lore.codec.prompt import PromptFormat, system_text
from lore.config.yaml_text import to_yaml
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.data.tables.parquet_files import already_written
from lore.data_synth.shop.config import SEALED_SEEDS, RuleBooksSection, WorldRecipe
from lore.data_synth.shop.corpus import END, START, Pieces, with_spans, write_corpus
from lore.data_synth.shop.rule_books import NUMBERS, SEALED_TIERS, edited_book
from lore.data_synth.shop.rules import ItemValue, found_text, wanted_text
from lore.data_synth.shop.world import ITEMS_PER_QUERY, World
from lore.rubric.rubric import Rubric, load_rubric, rubric_metadata
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic, written_whole
from lore.support.errors import LoreError, reason
from lore.support.outputs import Output, checked_folder, checked_outputs
from lore.support.progress import track
from lore.support.untrusted_json import parse_object

CATALOGUE_SHARE, RULES_SHARE = 0.45, 0.35  # of the corpus; the rest is the search log
EXAMPLES_PER_TEXT = 6
MOST_EDITS = 30  # of the book above the worked examples
LOOKUPS = 0.32  # of a corpus that teaches to read rule books: its first texts
FEW_RULES = 4  # in a lookup at the beginning: from many rules at once a small model learns nothing
FEW_RULES_SHARE = 0.8  # of the lookups; then their number grows to the whole book
LOOKUP_ROUNDS = 4  # in which each rule of a lookup is asked for once
WHOLE_BOOKS = 0.02  # share of the texts with examples that begin with a judge's whole instructions
WHOLE_EXAMPLES = 12  # of such a text, at most
LIMIT = re.compile(r"( = [^|(]+)(?= [|(])")  # what with_limits adds to a demand
DRAWS_PER_RULE = 5  # of the examples of a text
FILES = (*(f"pairs/{split}.parquet" for split in ("train", "dev", "test")), "facts.jsonl", "log.jsonl", "corpus.parquet")
ADDRESSED = 0.05  # share of catalog entries after the judge's instructions, so that the vocabulary contains their words
OPTIONAL = ("brand", "audience")  # dimensions that an item may not state although a query asks for them
TEST_SUBSETS = {"general": 1 / 3, "hard": 1 / 3, "visual": 1 / 3}


def run(recipe: WorldRecipe, folder: RunFolder) -> None:
    """Writes pairs, search log, fact table and corpus into the run folder."""
    for split, count in recipe.pairs.items():
        test = split == "test"
        world = World(
            recipe.seed,
            recipe.language,
            recipe.test_prior if test else recipe.prior,
            recipe.rubric,
            TEST_SUBSETS if test else recipe.subsets,
            recipe.photos,
            recipe.label_noise,
            limits=recipe.rule_books is not None,
        )
        books = recipe.rule_books if split == "train" else None
        write_pairs(world, split, count, folder / "pairs" / f"{split}.parquet", books)
    write_extras(
        World(recipe.seed, recipe.language, rubric=recipe.rubric, photos=recipe.photos, limits=recipe.rule_books is not None),
        folder.path,
        recipe.corpus,
        -(-recipe.pairs.get("train", 0) // ITEMS_PER_QUERY),
    )
    folder.note(rubric_hash=load_rubric(recipe.rubric).hash)
    folder.finish({"pairs": sum(recipe.pairs.values()), "corpus": recipe.corpus, "folder": str(folder.path)})


def write_world(
    out: str | Path,
    *,
    pairs: int,
    seed: int = 0,
    language: str = "en",
    prior: str = "balanced",
    photos: float = 0.4,
    corpus: int = 20000,
    force: bool = False,
) -> None:
    """Writes `pairs` pairs over train (90 %), dev (3 %) and test (7 %) to `out`/pairs, and the extra files to `out`. Files of the
    same shop are kept. force: replace files of another shop, or of something else, by the same names."""
    if seed in SEALED_SEEDS:
        raise LoreError(
            f"Seed {seed} is reserved for benchmarks (like all from {min(SEALED_SEEDS)} to {max(SEALED_SEEDS)}), whose pairs must "
            "stay unseen in training. Choose another seed."
        )
    world = World(seed, language, prior, photos=photos)  # first, so that bad arguments leave no folder
    out = checked_folder(Path(out))
    arguments = {"pairs": pairs, "seed": seed, "language": language, "prior": prior, "photos": photos, "corpus": corpus}
    _make_room(out, arguments, force)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "world.json").exists():
        write_atomic(out / "world.json", json.dumps(arguments, indent=2) + "\n")
    shares = {"dev": pairs * 3 // 100, "test": pairs * 7 // 100}
    shares = {"train": pairs - sum(shares.values()), **shares}
    for split, count in shares.items():
        if count:
            write_pairs(world, split, count, out / "pairs" / f"{split}.parquet")
    write_extras(world, out, corpus, -(-shares["train"] // ITEMS_PER_QUERY))


def _make_room(out: Path, arguments: dict, force: bool) -> None:
    """Keeps the files of two shops apart, and those of others: world.json holds the arguments of the folder's shop. force: removes
    files of another shop or of something else."""
    known = _arguments_of(out / "world.json", force)
    if known not in (None, arguments) and not force:
        other = {key: value for key, value in arguments.items() if known.get(key) != value}
        changed = ", ".join(f"{key}: was {known.get(key)}, now {value}" for key, value in other.items())
        raise LoreError(f"{out} contains another shop ({changed}). Choose another folder, or pass --force to replace the shop.")
    files = [out / name for name in (*FILES, "world.json")]
    checked_outputs([Output(path, lambda _: known == arguments) for path in files], force=force)
    if known != arguments:
        for path in files:  # world.json last: a stopped command leaves the old shop, of which files are missing
            path.unlink(missing_ok=True)


def _arguments_of(path: Path, force: bool) -> dict | None:
    """The arguments of a shop; None if the file is missing or holds something else. Raises LoreError for a damaged one, unless
    force."""
    if not path.is_file():
        return None
    try:
        known = parse_object(path.read_bytes())
    except ValueError as error:
        if force:
            return None
        raise LoreError(
            f"{path} cannot be read ({reason(error)}), so it is unknown which shop {path.parent} contains. Delete the folder, or "
            "pass --force to replace the shop."
        ) from error
    return known if {"pairs", "seed", "language"} <= known.keys() else None


def write_pairs(world: World, split: str, count: int, path: Path, books: RuleBooksSection | None = None) -> None:
    """Streams one split to a file, unless the file exists. books: edited rule books that label the pairs, written beside the file.
    Raises LoreError if it is damaged."""
    if already_written(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = world.pairs(split, count) if books is None else pairs_under_books(world, split, count, books, path.parent)
    with PairWriter(path, metadata=rubric_metadata(world.rubric_name, world.rubric)) as writer:
        for pair in track(pairs, f"{path.name}", total=count):
            writer.write(pair)


def pairs_under_books(world: World, split: str, count: int, section: RuleBooksSection, folder: Path) -> Iterator[Pair]:
    """`count` pairs, in runs of section.run under one of section.count edited books, which are written to `folder`."""
    books = []
    for number in range(section.count):
        rng = random.Random(f"{world.seed}/book/{number}")
        books.append((f"books/{number:04d}.yaml", edited_book(world.rubric, rng, rng.randint(1, section.edits))))
    for name, book in books:
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomic(folder / name, to_yaml(book.model_dump(exclude_defaults=True)))
    for start in range(0, count, section.run):
        rng = random.Random(f"{world.seed}/{split}/book/{start}")
        name, book = (None, None) if rng.random() < section.original else rng.choice(books)
        for pair in world.pairs(split, min(section.run, count - start), start, book):
            pair.rubric = name
            yield pair


def write_extras(world: World, out: Path, corpus: int, queries: int) -> None:
    """Writes facts.jsonl (for teachers), log.jsonl (frequencies of the training queries) and corpus.parquet."""
    _write_jsonl(out / "facts.jsonl", world.lexicon.facts())
    _write_jsonl(out / "log.jsonl", search_log(world, queries))
    if corpus and not already_written(out / "corpus.parquet"):
        write_corpus(out / "corpus.parquet", track(corpus_texts(world, corpus), "corpus.parquet", total=corpus))


def search_log(world: World, queries: int) -> Iterator[dict]:
    """The search log of the training queries: query, searches per month, kind."""
    for number in range(queries):
        query, words = world.query("train", number)
        yield {"query": words, "frequency": world.frequency("train", number), "kind": query.kind}


def corpus_texts(world: World, count: int) -> Iterator[dict]:
    """The corpus of a base model: catalog entries and captions, the rules with worked examples, the search log with facets.

    No text contains a query together with an item, and no shopper's word is resolved. The model learns what a samovar is, and how
    to combine the three capabilities, from the reasoning of the pairs. Only text that the rest of a row determines carries loss;
    the next lamp in a catalog cannot be predicted. Where rule books change, the corpus begins with lookups, easy ones first: keep
    its order in training.
    """
    rng = random.Random(f"{world.seed}/corpus")
    lookups = round(LOOKUPS * count) if world.limits else 0
    for number in range(lookups):
        yield {**with_spans(tiers_looked_up(rng, world, number / lookups)), "image": None}
    for number in range(count - lookups):
        draw = rng.random()
        if draw < CATALOGUE_SHARE:
            pair, offered = world.catalogue_item(number)
            text, image = catalogue_entry(rng, world, pair, offered), pair.image
        elif draw < CATALOGUE_SHARE + RULES_SHARE:
            text, image = (examples_below_rules if world.limits else worked_examples)(rng, world), None
        else:
            query, words = world.query("train", rng.randrange(10**9), kind=rng.choice(("general", "visual", "hard")))
            asked = [replace(want, value=want.said or want.value, said=None) for want in query.wants]
            facets = "; ".join(f"{want.dimension}: {wanted_text(want, world.lexicon.notation)}" for want in asked)
            text, image = [(f"<query>{words}</query>\n<reason>", False), (f"{facets}</reason>{END}\n", True)], None
        yield {**with_spans(text), "image": image}


def catalogue_entry(rng: random.Random, world: World, pair: Pair, offered: dict[str, ItemValue]) -> Pieces:
    """An item as judges see it, then a list of its values and their sources, in random order."""
    before, after = item_text(pair).block(photo=pair.image is not None)
    item = before[before.index("<item>") :] + ("<image>" + after if pair.image else "")
    system = system_text(world.rubric, PromptFormat(detail="name")) if rng.random() < ADDRESSED else None
    turn = f"{START}system\n{system}{END}\n{START}user\n" if system else f"{START}user\n"
    pieces = [(f"{turn}{item}{END}\n{START}assistant\n<reason>", False)]
    dimensions = [*offered, *(d for d in OPTIONAL if d not in offered)]
    rng.shuffle(dimensions)
    for dimension in dimensions:
        shown = offered.get(dimension)
        found = f" {found_text(shown, world.lexicon.notation)} ({shown.source if shown else 'none'})"
        pieces += [(f"{dimension} |", False), (found, True), ("; ", False)]
    return [*pieces[:-1], (f"</reason>{END}\n", False)]


def worked_examples(rng: random.Random, world: World) -> Pieces:
    """Demands of many queries against many items, with the rule that applies."""
    pieces = [("<rules>", False)]
    for _ in range(EXAMPLES_PER_TEXT):
        demand = world.example(rng)
        verdict = f" {demand.rule} {demand.tier}"
        pieces += [(render_demands([demand]).removesuffix(verdict), False), (verdict, True), ("; ", False)]
    return [*pieces[:-1], (f"</rules>{END}\n", False)]


def tiers_looked_up(rng: random.Random, world: World, progress: float) -> Pieces:
    """Rules with random tiers, then each rule several times with its tier, which can only be read above. progress: 0 to 1, from few
    rules to the whole book."""
    rules = world.rubric.rules
    most = FEW_RULES + round((len(rules) - FEW_RULES) * max(0.0, progress - FEW_RULES_SHARE) / (1 - FEW_RULES_SHARE))
    shown = rng.sample(rules, rng.randint(most // 2, most))
    tiers = {rule.id: rng.choice([tier for tier in world.rubric.tier_ids if tier != SEALED_TIERS.get(rule.id)]) for rule in shown}
    lines = "".join(f"- {tiers[rule.id]} {rule.id}\n" for rule in shown)
    pieces = [(f"{START}system\n{lines}{END}\n<rules>", False)]
    for rule in (rule for _ in range(LOOKUP_ROUNDS) for rule in rng.sample(shown, len(shown))):
        pieces += [(f" {rule.id}", False), (f" {tiers[rule.id]}", True), (";", False)]
    return [*pieces, (f"</rules>{END}\n", False)]


def examples_below_rules(rng: random.Random, world: World) -> Pieces:
    """Rules of some dimensions of an edited book, or a judge's whole instructions with all rules, then worked examples that follow
    them. No two examples have the same rule, so that its tier can be read in the book alone."""
    book = edited_book(world.rubric, rng, rng.randint(0, MOST_EDITS))
    dimensions = [dimension.id for dimension in book.dimensions]
    whole = rng.random() < WHOLE_BOOKS
    shown = dimensions if whole else rng.sample(dimensions, rng.choice((1, 2, 2, 3, 3, 4)))
    rules = [rule for rule in book.rules if rule.dimension in shown]
    part = Rubric.model_validate(book.model_dump() | {"rules": [rule.model_dump() for rule in rules]})
    text = system_text(part, PromptFormat())
    if not whole:
        text = next(paragraph for paragraph in text.split("\n\n") if f"- {rules[0].tier} {rules[0].id}" in paragraph)
    pieces, done = [(f"{START}system\n{text}{END}\n<rules>", False)], set()
    for _ in range(DRAWS_PER_RULE * len(rules)):
        demand = world.example(rng, book, shown)
        if demand.rule in done:
            continue
        done.add(demand.rule)
        verdict = f" {demand.rule} {demand.tier}"
        text = render_demands([demand]).removesuffix(verdict)
        parts = LIMIT.split(text) if demand.dimension in NUMBERS else [text]
        pieces += [(part, at % 2 == 1) for at, part in enumerate(parts)]
        pieces += [(verdict, True), ("; ", False)]
        if len(done) == (WHOLE_EXAMPLES if whole else len(rules)):
            break
    return [*pieces[:-1], (f"</rules>{END}\n", False)]


def _write_jsonl(path: Path, rows) -> None:
    """Writes a file, unless it exists. Raises LoreError if it is damaged."""
    if path.exists():
        content = path.read_bytes()
        try:
            for line in content.removesuffix(b"\n").split(b"\n") if content or any(rows) else ():
                parse_object(line)
        except ValueError as error:
            advice = "Delete it and run the same command again, which makes it anew."
            raise LoreError(f"{path} is damaged ({reason(error)}), so its rows are lost. {advice}") from error
        return
    with written_whole(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
