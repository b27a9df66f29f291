"""The embedded shop: pairs with labels, reasoning and photos, a search log, a fact table and a corpus for a base model.

Every row is a function of (seed, split, index), so any part of any size streams in bounded memory and is the same on every
machine. Left out of a real shop: clicks, ranking, prices over time; sessions are a stage of their own. Never to be presented as
real data.

    lore world --pairs 1000000 --out shop/
"""

import random
from collections.abc import Collection, Iterator

from lore.codec.judgement import render_demands
from lore.data.pair import Pair, pair_digest
from lore.data_synth.shop.catalogue import HARD_KINDS, Item, Query, Shop
from lore.data_synth.shop.lexicon import load_lexicon
from lore.data_synth.shop.photos import colour_shares, draw_photo
from lore.data_synth.shop.rules import ItemValue, Want, judge, with_limits, worst
from lore.rubric.demand import Demand
from lore.rubric.rubric import Rubric, load_rubric

PRIORS = {
    "balanced": (0.25, 0.25, 0.25, 0.25),
    "natural": (0.06, 0.27, 0.07, 0.60),
}  # L1..L4; natural: traffic as RAIR reports it
ITEMS_PER_QUERY = 4
ZIPF_EXPONENT = 1.07


class World:
    """One shop. subsets: relative shares of general, hard and visual queries; photos: share of the other items with a photo;
    label_noise: share of the training pairs with a wrong label (their slice is noise:label). rubric: labels the pairs; a name, path
    or Rubric. Texts and photos do not depend on it. limits: rationales state the numbers that decide (see rules.with_limits).
    """

    def __init__(
        self,
        seed: int = 0,
        language: str = "en",
        prior: str = "balanced",
        rubric: str | Rubric = "shop",
        subsets: dict[str, float] | None = None,
        photos: float = 0.4,
        label_noise: float = 0.0,
        limits: bool = False,
    ):
        self.label_noise, self.limits = label_noise, limits
        self.seed, self.language, self.prior, self.photos = seed, language, PRIORS[prior], photos
        self.rubric = rubric if isinstance(rubric, Rubric) else load_rubric(rubric)
        self.rubric_name = self.rubric.name if isinstance(rubric, Rubric) else rubric
        self.lexicon = load_lexicon(language)
        self.shop = Shop(self.lexicon)
        self.subsets = subsets or {"general": 0.5, "hard": 0.25, "visual": 0.25}

    def pairs(self, split: str, count: int, start: int = 0, book: Rubric | None = None) -> Iterator[Pair]:
        """`count` pairs of one split (train, dev, test), ITEMS_PER_QUERY per query, starting at pair number `start`.

        book: labels these pairs, instead of `rubric`.
        """
        book, query, words = book or self.rubric, None, ""
        for i in range(start, start + count):
            number, slot = divmod(i, ITEMS_PER_QUERY)
            if query is None or slot == 0:
                query, words = self.query(split, number)
            yield self._pair(split, number, slot, query, words, book)

    def query(self, split: str, number: int, kind: str | None = None) -> tuple[Query, str]:
        """Query `number` of a split: its demands and its text. kind: general, hard or visual; drawn if not given.

        Training never contains a held-out combination or wording. Every dev and test query has at least one, so none of them can
        occur in training.
        """
        rng = random.Random(f"{self.seed}/{split}/query/{number}")
        kind = kind or rng.choices(list(self.subsets), list(self.subsets.values()))[0]
        while True:
            query = self.shop.query(rng, rng.choice(HARD_KINDS) if kind == "hard" else kind, split)
            words = self._word_query(rng, query, split)
            if split == "train" or query.held_out:
                return query, words

    def _pair(self, split, number, slot, query, words, rubric):
        rng = random.Random(f"{self.seed}/{split}/item/{number}/{slot}")
        item = self.shop.item_for(rng, query, rng.choices(range(4), self.prior)[0])
        fields, offered = self.word_item(rng, item, hide_visible=query.kind == "visual")
        demands = judge(query.wants, offered, self.shop.kinds, rubric)
        tier = worst(demands, rubric)
        decisive = [d for d in demands if d.tier == tier]
        slices = self._slices(query, demands, decisive[0])
        if self.limits:
            demands = with_limits(demands, query.wants, rubric)
        item_id = f"{split}-{number}-{slot}"
        label = tier
        if split == "train" and self.label_noise:
            rng = random.Random(f"{self.seed}/{split}/noise/{number}/{slot}")
            if rng.random() < self.label_noise:
                label = rng.choice([other for other in rubric.tier_ids if other != tier])
                slices.append("noise:label")
        return Pair(
            pair_id=pair_digest(words, f"{self.seed}/{item_id}"),
            query=words,
            item_id=item_id,
            **fields,
            label=label,
            split=split,
            mismatch=decisive[0].dimension if tier in rubric.mismatch_tiers else None,
            rules=[decisive[0].rule],
            rationale=render_demands(demands),
            demands=demands,
            slices=slices,
            query_frequency=self.frequency(split, number),
            source=f"shop-{self.language}",
        )

    def frequency(self, split: str, number: int) -> float:
        """Searches per month for a query, drawn from a Pareto distribution, so that frequency over rank follows Zipf's law."""
        u = 1 - random.Random(f"{self.seed}/{split}/frequency/{number}").random()
        return round(10 * u**-ZIPF_EXPONENT, 2)

    def example(self, rng: random.Random, book: Rubric | None = None, dimensions: Collection[str] = ()) -> Demand:
        """One demand against a random item, with all rules of its dimension equally likely: a worked example of the rules.

        book: the rules, instead of `rubric`. dimensions: of the demand; any, if empty.
        """
        wants: list[Want] = []
        while not wants:
            query = self.shop.query(rng, rng.choice(("general", "visual")), "train")
            wants = [want for want in query.wants if not dimensions or want.dimension in dimensions]
        want = rng.choice(wants)
        item = self.shop.item_meeting(rng, query.family, want)
        _, offered = self.word_item(rng, item, hide_visible=query.kind == "visual", draw=False)
        book = book or self.rubric
        demands = judge([want], offered, self.shop.kinds, book)
        return (with_limits(demands, [want], book) if self.limits else demands)[0]

    def _slices(self, query, demands, decisive):
        hard = query.kind in HARD_KINDS
        slices = ["hard" if hard else query.kind] + ([f"hard:{query.kind}"] if hard else [])
        if any(" = " in d.wanted + d.found for d in demands if d.dimension != "bundle"):
            slices.append("capability:knowledge")
        if any(d.source == "photo" for d in demands):
            slices.append("capability:multimodal")
        if len(slices) == 1 + hard:
            slices.append("capability:rules")
        return slices + [f"dimension:{decisive.dimension}"] + [f"held_out:{name}" for name in query.held_out]

    def _word_query(self, rng, query, split):
        before, after = [], []  # (want, text)
        phrases = self.lexicon.phrases
        for want in query.wants:
            key = want.dimension
            if key == "category" and query.kind == "solution":
                key = "need"
            elif want.negated or want.pure:
                key += "_not" if want.negated else "_pure"
            forms = phrases[key]
            form = rng.choice(forms[:-1] if split == "train" and len(forms) > 1 else forms)
            if len(forms) > 1 and form == forms[-1] and "template" not in query.held_out:
                query.held_out.append("template")
            text = form.format(v=want.said or want.value)
            if want.dimension == "category":
                head = (want, text)
            else:
                (before if form == "{v}" and query.kind != "solution" else after).append((want, text))
        query.wants = [head[0], *(want for want, _ in before + after)]
        words = self.lexicon.joiner.join(text for _, text in [*before, head, *after])
        if query.kind == "question":
            forms = phrases["question"]
            form = rng.choice(forms[:-1] if split == "train" else forms)
            if form == forms[-1] and "template" not in query.held_out:
                query.held_out.append("template")
            words = form.format(v=words)
        return words

    def word_item(self, rng: random.Random, item: Item, hide_visible: bool, draw: bool = True) -> tuple[dict, dict[str, ItemValue]]:
        """Pair fields of an item, and its values with their sources. hide_visible: color and pattern appear only in the photo;
        draw: generate the photo."""
        lexicon, texts, values = self.lexicon, self.lexicon.texts, item.values
        photo = hide_visible or rng.random() < self.photos
        category = values["category"]
        accessory = self.shop.accessories.get(category)
        head = texts["accessory"].format(v=category, main=accessory.main) if accessory else category
        offered = {"category": ItemValue(category, "title")}
        title, attributes, fields = [head], {}, {}
        soft = values.get("material") in lexicon.materials["soft"]
        share = (item.material_share or 100) if soft else None
        for dimension, value in values.items():
            if dimension == "category":
                continue
            if dimension == "price":
                fields["price"] = float(value)
                offered["price"] = ItemValue(value, "attributes")
                continue
            accent = item.accent if dimension == "colour" else None
            rest = {
                "colour": colour_shares(accent),
                "material": {"share": share},
            }.get(dimension, {})
            if photo and dimension in ("colour", "pattern") and (hide_visible or rng.random() < 0.3):
                offered[dimension] = ItemValue(value, "photo", **rest)
                continue
            said = (
                rng.choice(lines)
                if dimension == "brand" and (lines := self.shop.brands[value].lines) and rng.random() < 0.15
                else None
            )
            key = (
                "colour_accent"
                if accent
                else "material_share"
                if dimension == "material" and soft
                else "bundle_single"
                if dimension == "bundle" and value == "1"
                else dimension
            )
            text = texts[key].format(v=said or value, accent=accent, share=share)
            if key == "bundle_single":
                said = texts[key]  # the text does not contain the number of pieces
            place = rng.random()
            if place < 0.65:
                title.append(text)
            elif dimension == "brand" and said is None:
                fields["brand"] = value
            else:
                attributes[lexicon.attribute_names[dimension]] = text
            offered[dimension] = ItemValue(value, "title" if place < 0.65 else "attributes", said=said, **rest)
        rng.shuffle(title)
        fields |= {"title": lexicon.joiner.join(title), "attributes": attributes}
        if rng.random() < 0.2:
            others = [
                colour.name for colour in lexicon.colours if colour.name != values["colour"]
            ]  # never the true color, which may appear only in the photo
            fields["description"] = rng.choice(lexicon.distractors).format(
                colour=rng.choice(others), type=rng.choice(lexicon.types).name, brand=rng.choice(lexicon.brands).name
            )
        if photo and draw:
            fields["image"] = {"bytes": self._photo(rng, item), "path": None}
        return fields, offered

    def _photo(self, rng, item):
        colours = self.shop.colours
        pattern = self.lexicon.patterns.index(item.values.get("pattern", self.lexicon.patterns[0]))
        return draw_photo(
            self.shop.families[item.family].shape,
            colours[item.values["colour"]].rgb,
            colours[item.accent].rgb if item.accent else None,
            pattern,
            rng.getrandbits(32),
        )

    def catalogue_item(self, number: int) -> tuple[Pair, dict[str, ItemValue]]:
        """Item `number` without a query: an unlabeled pair with an empty query, and the item's values, for the corpus."""
        rng = random.Random(f"{self.seed}/catalogue/{number}")
        item = self.shop.catalogue_item(rng, rng.choice(list(self.shop.families)))
        if "pattern" in self.shop.families[item.family].demands:
            item.values["pattern"] = rng.choice(self.lexicon.patterns)
        if rng.random() < 0.1:
            item.accent = rng.choice([c for c in self.shop.colours if c != item.values["colour"]])
        fields, offered = self.word_item(rng, item, hide_visible=rng.random() < 0.4)
        name = f"catalogue-{number}"
        return Pair(pair_id=name, query="", item_id=name, **fields, source=f"shop-{self.language}"), offered
