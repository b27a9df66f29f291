"""Pairs that teach a small base model to match words, before it sees a human label.

Real items of one split meet pseudo queries: words of the title (some dropped, reordered, given or robbed of a plural s), words of
other titles and words that do not exist. The label is the share of the query's words found in the title, each word weighted by
its rarity; a part of the pairs also names every query word as found (yes) or missing (no). Human labels are not read, and nothing
outside data.split is. Left out: synonyms, descriptions as evidence, what people mean by a query.

    lore run recipes/crowdflower/words.yaml
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from lore.data_synth.config import WordsRecipe
from lore.data_synth.corpus import END, START, Pieces, with_spans, write_corpus
from lore.errors import LoreError
from lore.folder import RunFolder
from lore.judgement import Judgement, PromptFormat, render_answer
from lore.pairs import Pair, fingerprint, read_pairs
from lore.progress import track
from lore.prompt import item_text, system_text
from lore.rubric import Rubric, load_rubric
from lore.sources import materialise

WORD = re.compile(r"[^\W_]+")
QUERY_LENGTHS = [1, 2, 2, 2, 3, 3, 3, 4, 4, 5]
FOUND_SHARES = [0.0, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
INFLECTED = 0.15
REAL_QUERIES = 0.15
MADE_UP = 0.15
SCRAMBLED = 0.2
DESCRIBED = 0.3
MAX_DESCRIPTION_WORDS = 12
MARKED = 0.5
SYLLABLES = [
    "ba",
    "con",
    "dor",
    "el",
    "fi",
    "gan",
    "hu",
    "jet",
    "ka",
    "lux",
    "mi",
    "nor",
    "o",
    "pra",
    "qui",
    "ro",
    "sten",
    "tek",
    "ul",
    "vi",
    "wex",
    "za",
]


def run(recipe: WordsRecipe, folder: RunFolder) -> None:
    """Writes corpus.parquet, the texts of the base model."""
    path = materialise(recipe.data, folder)
    rubric = load_rubric(recipe.data.rubric)
    folder.note(data_fingerprint=fingerprint(path), rubric_hash=rubric.hash)
    columns = ["pair_id", "query", "title", "description"]
    real = list(read_pairs(path, split=recipe.data.split, columns=columns, limit=recipe.data.limit))
    matcher = WordPairs(real, rubric, recipe.seed)
    corpus = folder / "corpus.parquet"
    if not corpus.exists():
        write_corpus(corpus, track(matcher.texts(recipe.texts, recipe.reasons), "corpus.parquet", total=recipe.texts))
    folder.finish({"texts": recipe.texts, "words": len(matcher.words), "folder": str(folder.path)})


class WordPairs:
    """Generates pairs over the words of `real`; the n-th pair depends on the seed and n alone."""

    def __init__(self, real: list[Pair], rubric: Rubric, seed: int):
        if not real:
            raise LoreError(
                "words: the data section selects no pair, so there are no words to make queries of.\n"
                "Check data.path and data.split against `lore data stats`."
            )
        self.real, self.rubric, self.seed = real, rubric, seed
        in_titles = Counter(stem for pair in real for stem in {stem_of(word) for word in words_of(pair.title)})
        self.words = sorted({word for pair in real for word in words_of(pair.title)})
        self.queries = sorted({pair.query for pair in real})
        self._weights = {stem: math.log((1 + len(real)) / count) for stem, count in in_titles.items()}
        self._unseen = math.log(1 + len(real))

    def pair(self, number: int, reasons: float) -> Pair:
        """The n-th generated pair, with a rationale in a share `reasons` of the pairs."""
        rng = random.Random(f"{self.seed}/words/{number}")
        item = rng.choice(self.real)
        title = words_of(item.title)
        if rng.random() < SCRAMBLED or not title:
            title = self._scrambled(rng)
            item = replace(item, title=" ".join(title), description=None)
        query = words_of(rng.choice(self.queries)) if rng.random() < REAL_QUERIES else self._query(rng, title)
        if rng.random() < MADE_UP:
            query, title = self._made_up(rng, query, title)
            item = replace(item, title=" ".join(title))
        found = self.found(query, title)
        tier_ids = self.rubric.tier_ids
        tier = tier_ids[tier_index(self.share(query, found), len(tier_ids))]
        rationale = "; ".join(f"{word} {'yes' if hit else 'no'}" for word, hit in zip(query, found, strict=True))
        return Pair(
            pair_id=f"words-{number}",
            query=" ".join(query),
            title=item.title,
            label=tier,
            split="train",
            source="words",
            description=self._some_description(rng, item),
            rationale=rationale if rng.random() < reasons else None,
        )

    def found(self, query: list[str], title: list[str]) -> list[bool]:
        """Which query words stand in the title, a plural s aside."""
        stems = {stem_of(word) for word in title}
        return [stem_of(word) in stems for word in query]

    def share(self, query: list[str], found: list[bool]) -> float:
        """Share of the query's words found, weighted by how few titles have them."""
        weights = [self._weights.get(stem_of(word), self._unseen) + 0.5 for word in query]
        return sum(weight for weight, hit in zip(weights, found, strict=True) if hit) / sum(weights)

    def texts(self, count: int, reasons: float) -> Iterator[dict]:
        """What the base model reads: titles whose every word is marked as in the query or not, generated pairs as whole
        conversations."""
        system = system_text(self.rubric, PromptFormat(detail="name"))
        rng = random.Random(f"{self.seed}/texts")
        for number in range(count):
            pair = self.pair(number, reasons)
            yield with_spans(self._marked(pair) if rng.random() < MARKED else self._judged(pair, system))

    def _marked(self, pair: Pair) -> Pieces:
        """The title with a yes or no behind every word. Only these carry loss: which word a title holds next is noise."""
        words = words_of(pair.title)[:12]
        hits = self.found(words, words_of(pair.query))
        pieces = [(f"{START}user\n<query>{pair.query}</query>\n<item>\n<title>", False)]
        for word, hit in zip(words, hits, strict=True):
            pieces += [(f" {word}", False), (" yes" if hit else " no", True)]
        return [*pieces, (f"</title>{END}\n", False)]

    def _judged(self, pair: Pair, system: str) -> Pieces:
        before, _ = item_text(pair).block(photo=False)
        answer = render_answer(Judgement(pair.label, rationale=pair.rationale or ""), self.rubric, PromptFormat(detail="name"))
        prompt = f"{START}system\n{system}{END}\n{START}user\n{before}{END}\n{START}assistant\n"
        return [(prompt, False), (f"{answer}{END}\n", True)]

    def _query(self, rng: random.Random, title: list[str]) -> list[str]:
        length, share = rng.choice(QUERY_LENGTHS), rng.choice(FOUND_SHARES)
        wanted = [rng.random() < share for _ in range(length)]
        kept = min(sum(wanted), len(title))
        if rng.random() < 0.5:
            start = rng.randrange(len(title) - kept + 1)
            hits = title[start : start + kept]
        else:
            hits = rng.sample(title, kept)
        words = hits + [self._word(rng) for _ in range(length - kept)]
        if kept < length or rng.random() < 0.3:
            rng.shuffle(words)
        return [inflected(word) if rng.random() < INFLECTED else word for word in words]

    def _some_description(self, rng: random.Random, item: Pair) -> str | None:
        """The start of the description, for the model to learn that it decides nothing here."""
        if not item.description or rng.random() >= DESCRIBED:
            return None
        return " ".join(item.description.split()[:MAX_DESCRIPTION_WORDS])

    def _word(self, rng: random.Random) -> str:
        """Half the time any word of the vocabulary, else one as frequent words are met."""
        if rng.random() < 0.5:
            return rng.choice(self.words)
        return rng.choice(words_of(rng.choice(self.real).title) or self.words)

    def _scrambled(self, rng: random.Random) -> list[str]:
        return [self._word(rng) for _ in range(rng.randint(4, 14))]

    def _made_up(self, rng: random.Random, query: list[str], title: list[str]) -> tuple[list[str], list[str]]:
        """A word that does not exist in the query, and half the time in the title as well."""
        word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
        query, title = list(query), list(title)
        query[rng.randrange(len(query))] = word
        if rng.random() < 0.5:
            title[rng.randrange(len(title))] = word
        return query, title


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def stem_of(word: str) -> str:
    """The word without a plural s."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def inflected(word: str) -> str:
    """The word with its plural s taken away or added; numbers stay."""
    if stem_of(word) != word:
        return stem_of(word)
    return f"{word}s" if len(word) > 2 and word.isalpha() and not word.endswith("s") else word


def tier_index(share: float, tiers: int) -> int:
    """The best tier only where everything is found; below it equal steps of the share, worst first."""
    return tiers - 1 if share > 0.999 else min(tiers - 2, int(share * (tiers - 1)))
