"""Stage words: texts that teach a small base model to match words, before it sees a human label.

- Marked words: a query of random words and a title of random words, half of them from the query, each followed by yes or no. The
  words are random because nearly every word of a real title is a no; a model could then answer no without looking.
- Judged pairs: real items of one split with pseudo-queries. These contain words of the title (some dropped, reordered, with a
  plural s added or removed), words of other titles, and invented words. The label depends on the share of the query's words that
  the title contains. Some pairs also list each query word and where the title has it, like the program teacher's reasoning.

Human labels are not read, and neither is anything outside data.split. Left out: synonyms, a higher weight of rare words,
descriptions as evidence, and what people mean by a query.

    lore run recipes/crowdflower/words.yaml
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from lore.codec.item_text import item_text
from lore.codec.judgement import Judgement, render_answer, render_demands
from lore.codec.prompt import PromptFormat, system_text
from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.data.tables.parquet_files import already_written
from lore.data_synth.shop.config import WordsRecipe
from lore.data_synth.shop.corpus import END, START, Pieces, with_spans, write_corpus
from lore.data_synth.synthesis.program_words import WordsProgram
from lore.data_synth.synthesis.trace import Unreadable
from lore.rubric.demand import Demand
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.progress import track

WORD = re.compile(r"[^\W_]+")
QUERY_LENGTHS = [1, 2, 2, 2, 3, 3, 3, 4, 4, 5]
FOUND_SHARES = [0.0, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
INFLECTED = 0.15
REAL_QUERIES = 0.15
MADE_UP = 0.15
SCRAMBLED = 0.2
DESCRIBED = 0.3
MAX_DESCRIPTION_WORDS = 12
MARKED_FIRST = 0.3  # share of the texts, at the beginning, that are only marked words: judging builds on matching
MARKED_LATER = 0.2
MARKED_HITS = 0.5
RARE = 0.15  # share of the random words drawn from all words; the others come from words in several titles
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
    source = PairSource(recipe.data, folder)
    rubric = source.rubric
    folder.note(data_fingerprint=source.fingerprint, rubric_hash=rubric.hash)
    columns = ["pair_id", "query", "title", "description"]
    real = list(read_pairs(source.path, split=recipe.data.split, columns=columns, limit=recipe.data.limit))
    matcher = WordPairs(real, rubric, recipe.seed)
    corpus = folder / "corpus.parquet"
    if not already_written(corpus):
        write_corpus(corpus, track(matcher.texts(recipe.texts, recipe.reasons), "corpus.parquet", total=recipe.texts))
    folder.finish({"texts": recipe.texts, "words": len(matcher.words), "folder": str(folder.path)})


class WordPairs:
    """Generates pairs from the words of `real`. The n-th pair depends only on the seed and n."""

    def __init__(self, real: list[Pair], rubric: Rubric, seed: int):
        if not real:
            raise LoreError(
                "words: the data section selects no pair, so there are no words for queries.\n"
                "Check data.path and data.split against `lore data stats`."
            )
        self.real, self.rubric, self.seed = real, rubric, seed
        self.program: WordsProgram | None = None
        in_titles = Counter(word for pair in real for word in set(words_of(pair.title)))
        self.words = sorted(in_titles)
        self.frequent = sorted(word for word, titles in in_titles.items() if titles > 1) or self.words
        self.queries = sorted({pair.query for pair in real if words_of(pair.query)})

    def pair(self, number: int, reasons: float) -> Pair:
        """The n-th generated pair. A share `reasons` of the pairs has a rationale."""
        rng = random.Random(f"{self.seed}/words/{number}")
        item = rng.choice(self.real)
        title = words_of(item.title)
        if rng.random() < SCRAMBLED or not title:
            title = self._scrambled(rng)
            item = replace(item, title=" ".join(title), description=None)
        query = words_of(rng.choice(self.queries)) if rng.random() < REAL_QUERIES and self.queries else self._query(rng, title)
        if rng.random() < MADE_UP:
            query, title = self._made_up(rng, query, title)
            item = replace(item, title=" ".join(title))
        found = self.found(query, title)
        tier_ids = self.rubric.tier_ids
        tier = tier_ids[tier_index(sum(found) / len(found), len(tier_ids))]
        pair = Pair(
            pair_id=f"words-{number}", query=" ".join(query), title=item.title, label=tier, split="train", source="words"
        )
        description = self._some_description(rng, item)
        rationale = self.rationale(pair) if rng.random() < reasons else None
        return replace(pair, description=description, rationale=rationale)

    def rationale(self, pair: Pair) -> str | None:
        """Each content word of the query and where the title has it, as the program teacher writes it for real pairs."""
        if self.program is None:
            self.program = WordsProgram(self.rubric)
        try:
            wishes = self.program.knowledge(pair, [])
        except Unreadable:  # the query has only function words
            return None
        found = self.program.multimodal(pair, wishes, [])
        demands = [Demand(w.dimension, w.wanted, e.found, e.source, "", "") for w, e in zip(wishes, found, strict=True)]
        return render_demands(demands, leave_out=("rules",))

    def found(self, query: list[str], title: list[str]) -> list[bool]:
        """Whether each query word occurs in the title, ignoring a plural s."""
        stems = {stem_of(word) for word in title}
        return [stem_of(word) in stems for word in query]

    def texts(self, count: int, reasons: float) -> Iterator[dict]:
        """The corpus, in order: first titles with every word marked as in the query or not, then generated pairs as whole
        conversations mixed with some marked titles."""
        system = system_text(self.rubric, PromptFormat(detail="name"))
        for number in range(count):
            rng = random.Random(f"{self.seed}/text/{number}")
            marked = number < MARKED_FIRST * count or rng.random() < MARKED_LATER
            yield with_spans(self._marked(rng) if marked else self._judged(self.pair(number, reasons), system))

    def _marked(self, rng: random.Random) -> Pieces:
        """Random words, each followed by yes or no. Only these marks carry loss: the next random word cannot be predicted."""
        query = [self._random_word(rng) for _ in range(rng.randint(2, 6))]
        drawn = [rng.choice(query) if rng.random() < MARKED_HITS else self._random_word(rng) for _ in range(rng.randint(6, 12))]
        title = [inflected(word) if rng.random() < INFLECTED else word for word in drawn]
        pieces = [(f"{START}user\n<query>{' '.join(query)}</query>\n<item>\n<title>", False)]
        for word, hit in zip(title, self.found(title, query), strict=True):
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
        """The start of the description, so that the model learns to ignore it here."""
        if not item.description or rng.random() >= DESCRIBED:
            return None
        return " ".join(item.description.split()[:MAX_DESCRIPTION_WORDS])

    def _random_word(self, rng: random.Random) -> str:
        return rng.choice(self.words if rng.random() < RARE else self.frequent)

    def _word(self, rng: random.Random) -> str:
        """A random word: half the time uniform over the vocabulary, else by frequency."""
        if rng.random() < 0.5:
            return rng.choice(self.words)
        return rng.choice(words_of(rng.choice(self.real).title) or self.words)

    def _scrambled(self, rng: random.Random) -> list[str]:
        return [self._word(rng) for _ in range(rng.randint(4, 14))]

    def _made_up(self, rng: random.Random, query: list[str], title: list[str]) -> tuple[list[str], list[str]]:
        """Puts an invented word into the query, and half the time into the title too."""
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
    """The word with its plural s removed or added; numbers stay."""
    if stem_of(word) != word:
        return stem_of(word)
    return f"{word}s" if len(word) > 2 and word.isalpha() and not word.endswith("s") else word


def tier_index(share: float, tiers: int) -> int:
    """The best tier only if everything is found; below it, equal steps of the share, worst first."""
    return tiers - 1 if share > 0.999 else min(tiers - 2, int(share * (tiers - 1)))
