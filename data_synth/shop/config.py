"""Recipes of the stages world, words and sessions. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, Share, StrictModel
from lore.data.section import JudgedDataSection
from lore.support.bounds import MAX_COUNT

SEALED_SEEDS = frozenset(range(7000, 7100))
"""Seeds reserved for benchmarks. Recipes that make training pairs refuse them."""
SEALED = f"another seed: {min(SEALED_SEEDS)} to {max(SEALED_SEEDS)} are sealed for benchmarks, which must stay unseen"


class RuleBooksSection(StrictModel):
    """Training pairs under edited rule books, for judges that follow the rules in their prompt."""

    count: int = Field(100, ge=1, le=10_000)
    """Number of edited books. They lie beside the pairs, and the column `rubric` of a pair names its book."""
    edits: int = Field(8, ge=1, le=40)
    """Most changes of a book: other tiers of rules, other numbers."""
    original: Share = 0.25
    """Share of the training pairs that the unchanged rubric labels."""
    run: int = Field(32, ge=1, le=MAX_COUNT)
    """Pairs in a row with the same book, so that a micro-batch has one."""


class WorldRecipe(BaseRecipe):
    """Generates the embedded shop: pairs, search log, fact table, and a corpus for a base model."""

    result_files = frozenset({"pairs", "facts.jsonl", "log.jsonl", "corpus.parquet"})

    stage: Literal["world"] = "world"
    language: str = "en"
    """Name of a lexicon in data_synth/shop/lexicons."""
    rubric: str = "shop"
    """Rubric that labels the pairs. A changed copy changes the labels."""
    prior: Literal["balanced", "natural"] = "balanced"
    """Distribution of the tiers: equal shares, or as in search traffic (60 % in the best tier)."""
    test_prior: Literal["balanced", "natural"] = "balanced"
    """Distribution of the tiers in the test split."""
    pairs: dict[str, Annotated[int, Field(ge=0, le=MAX_COUNT)]] = {"train": 20000, "dev": 500, "test": 1500}
    """Number of pairs per split."""
    subsets: dict[str, Share] = {"general": 0.5, "hard": 0.25, "visual": 0.25}
    """Shares of general, hard and visual queries in the training and dev splits. The test split has a third of each."""
    photos: float = Field(0.4, ge=0, le=1)
    """Share of pairs with a photo, outside the visual subset."""
    label_noise: float = Field(0.0, ge=0, lt=1)
    """Share of the training pairs with a wrong label, marked by the slice noise:label. Gold demands and reasoning stay true."""
    rule_books: RuleBooksSection | None = None
    """Label the training pairs under edited rule books. Rationales then state the numbers that decide, and the corpus shows its
    worked examples below rules, edited for each text. null: `rubric` labels all pairs."""
    corpus: int = Field(20000, ge=0, le=MAX_COUNT)
    """Number of texts for a base model: catalog entries and captions, search log, rule book. 0 writes none."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.seed in SEALED_SEEDS:
            yield Conflict(("seed",), str(self.seed), SEALED)

    def derived(self) -> dict[str, Any]:
        return {"pairs": sum(self.pairs.values()), "files": [f"{split}.parquet" for split in self.pairs]}


class WordsRecipe(BaseRecipe):
    """Generates texts from the words of real pairs: pseudo-queries with real items, labeled by the words found."""

    result_files = frozenset({"corpus.parquet"})

    stage: Literal["words"] = "words"
    data: JudgedDataSection
    """The real pairs. Words, queries and items come only from data.split; labels are not used."""
    reasons: float = Field(0.3, ge=0, le=1)
    """Share of the generated pairs that list each query word as found or missing before the verdict."""
    texts: int = Field(20000, ge=1, le=MAX_COUNT)
    """Number of texts in the corpus: first marked words, then generated pairs as conversations."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.data.split is None:
            yield Conflict(("data.split",), "every split", "data.split: train, so that no word of a held-out query is read")

    def derived(self) -> dict[str, Any]:
        return {"texts": self.texts, "files": ["corpus.parquet"]}


class SessionsRecipe(BaseRecipe):
    """Generates what shoppers of the embedded shop took: a catalogue, a log of events, and the taste behind it."""

    result_files = frozenset({"items.parquet", "events.parquet", "styles.jsonl", "tastes.jsonl"})

    stage: Literal["sessions"] = "sessions"
    language: str = "en"
    """Name of a lexicon in data_synth/shop/lexicons."""
    items: int = Field(800, ge=200, le=MAX_COUNT)
    """Size of the catalogue."""
    shoppers: int = Field(3000, ge=1, le=MAX_COUNT)
    """Number of shoppers, each with one history."""
    sessions: int = Field(4, ge=1, le=80)
    """Most sessions of a shopper before the last one. A session has two to four events."""
    visible: Literal["text", "photo", "mixed"] = "photo"
    """Where the color is visible that decides what a shopper likes: only in the texts, only in the photos, or (mixed) only in the
    text of half of the items and only in the photo of the others."""
    loyalty: Share = 0.85
    """Share of the events that follow the shopper's taste."""
    cold: float = Field(0.2, ge=0, le=0.5)
    """Share of the items that are for sale only in the last hour, which no training event is in."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.seed in SEALED_SEEDS:
            yield Conflict(("seed",), str(self.seed), SEALED)

    def derived(self) -> dict[str, Any]:
        return {"files": ["items.parquet", "events.parquet", "styles.jsonl", "tastes.jsonl"]}
