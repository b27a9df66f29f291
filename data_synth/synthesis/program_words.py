"""The program teacher for any rated pairs: each word of the query is a demand, and is found in the item's texts or not.

The last content word before `for`, `with` or `in` names the kind of thing, a word of the item's own brand is a brand, and all
other words are attributes. A word also counts as found with or without a plural s, joined to its neighbor (`air pods`,
`airpods`), or through a given fact. A found word gets the rule of the best tier, if its dimension has one; a missing word gets
the rule of the worst tier. Left out: synonyms without a fact, the importance of a word, and everything that needs real
understanding. So many traces contradict the raters, and the checks reject those.
"""

from lore.codec.lexical_match import HAN, content_words, forms, pieces, spellings
from lore.data.pair import Pair
from lore.data_synth.synthesis.facts import Fact
from lore.data_synth.synthesis.trace import MAX_DEMANDS, Evidence, Ruling, Unreadable, Wish
from lore.rubric.rubric import Rubric, Rule
from lore.support.errors import LoreError
from lore.support.text import normalize

HEAD_ENDS = {"for", "with", "in", "by", "from", "of", "to", "without"}
DETAILS = ("attribute", "special", "specification", "function", "style")


class WordsProgram:
    """Implements the three steps over the words of a pair."""

    def __init__(self, rubric: Rubric, language: str = "en"):
        self.name, self.rubric, self.language = "words", rubric, language
        ids = [dimension.id for dimension in rubric.dimensions]
        if not ids or not rubric.rules:
            raise LoreError(
                f"teacher.program words assigns a dimension and a rule to every query word, and rubric {rubric.name} has none.\n"
                "Add dimensions and rules to the rubric, or use another teacher."
            )
        self.kind = "category" if "category" in ids else ids[0]
        self.brand = "brand" if "brand" in ids else self.kind
        self.detail = next((name for name in DETAILS if name in ids), self.kind)
        self._rules = {dimension: self._extremes(dimension) for dimension in ids}

    def knowledge(self, pair: Pair, facts: list[Fact]) -> list[Wish]:
        words = list(dict.fromkeys(content_words(pair.query, self.language)))[:MAX_DEMANDS]
        if not words:
            raise Unreadable("the query has no content word")
        head = self._head(pair.query, words)
        brand = set(pieces(pair.brand or ""))
        meanings = {fact.phrase.casefold(): fact.value for fact in facts if fact.phrase}
        spelt, wishes = spellings(pair.query), []
        for word in words:
            dimension = self.kind if word == head else self.brand if word in brand else self.detail
            said = spelt.get(word, word)
            meaning = meanings.get(said) or meanings.get(word)
            wishes.append(Wish(dimension, said, f"{said} = {meaning}" if meaning else said))
        return sorted(wishes, key=lambda wish: wish.dimension != self.kind)

    def multimodal(self, pair: Pair, wishes: list[Wish], facts: list[Fact]) -> list[Evidence]:
        fields = [*pair.attributes.values(), pair.brand or "", pair.category or "", pair.shop or ""]
        places = {"title": pair.title, "attributes": "\n".join(fields), "description": pair.description or ""}
        had = {source: _Words(text) for source, text in places.items()}
        query = pieces(pair.query)
        return [self._find(wish, query, had) for wish in wishes]

    def rules(self, pair: Pair, wishes: list[Wish], evidence: list[Evidence]) -> list[Ruling]:
        rulings = []
        for wish, found in zip(wishes, evidence, strict=True):
            best, worst = self._rules[wish.dimension]
            rule = worst if found.source == "none" else best
            rulings.append(Ruling(rule.id, rule.tier) if rule else Ruling("", self._tier(found)))
        return rulings

    def _head(self, query: str, words: list[str]) -> str:
        head = None
        for word in pieces(query):
            if word in HEAD_ENDS and head is not None:
                break
            if word in words and not word[0].isdigit():
                head = word
        return head or words[0]

    def _find(self, wish: Wish, query: list[str], had: dict[str, "_Words"]) -> Evidence:
        said, _, value = wish.wanted.partition(" = ")
        for source, words in had.items():
            for text in filter(None, (said, value)):
                spelt = [words.spelt(part) for part in pieces(text)]
                if all(spelt):
                    return Evidence(" ".join(spelt), source)
            glued = words.glued("".join(pieces(said)), query)
            if glued:
                return Evidence(glued, source)
        return Evidence("none", "none")

    def _extremes(self, dimension: str) -> tuple[Rule | None, Rule | None]:
        rules = sorted(
            (rule for rule in self.rubric.rules if rule.dimension == dimension), key=lambda rule: self.rubric.index(rule.tier)
        )
        top = self.rubric.tier_ids[-1]
        met = [rule for rule in rules if rule.tier == top]
        unmet = [rule for rule in rules if rule.tier != top]
        return met[-1] if met else None, unmet[0] if unmet else None

    def _tier(self, found: Evidence) -> str:
        return self.rubric.tier_ids[0 if found.source == "none" else -1]


class _Words:
    """The words of one text, single and in neighboring pairs."""

    def __init__(self, text: str):
        words = pieces(text)
        self.single = {form: spelt for piece, spelt in spellings(text).items() for form in forms(piece)}
        self.text = normalize(text)
        self.pairs = {a + b: f"{a} {b}" for a, b in zip(words, words[1:], strict=False)}

    def spelt(self, piece: str) -> str:
        """The text's spelling of a word, or "" if it is missing. Han characters have no word boundaries, so they match anywhere."""
        spelt = next((self.single[form] for form in sorted(forms(piece)) if form in self.single), "")
        return spelt or (piece if HAN.match(piece) and piece in self.text else "")

    def glued(self, word: str, query: list[str]) -> str:
        """The text's spelling of a query word that it joins to a neighbor or splits in two; "" if there is none."""
        if word in self.pairs:
            return self.pairs[word]
        for a, b in zip(query, query[1:], strict=False):
            if word in (a, b) and a + b in self.single:
                return a + b
        return ""
