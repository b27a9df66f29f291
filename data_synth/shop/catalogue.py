"""Draws queries and items of the embedded shop as structured values, before they are written as text.

A query is a list of Wants. An item is drawn for a query so that it should get a chosen tier; executing the rubric
(`lore.data_synth.shop.rules.judge`) then decides the label, whatever tier was chosen. Combinations of type and value that hash into
HELD_OUT do not occur in the training split.
"""

import hashlib
import random
from dataclasses import dataclass, field
from functools import cached_property

from lore.data_synth.shop.lexicon import Lexicon
from lore.data_synth.shop.rules import Want

HARD_KINDS = ("jargon", "entity", "solution", "question", "negation", "multi_attribute")
SIZES_CM = (20, 30, 40, 50, 60, 80, 100, 120)
BUNDLES = (3, 4, 6, 8, 12)
PRICE_LIMITS = (20, 30, 40, 50, 60, 80, 100)
HELD_OUT = 0.12  # share of the combinations of type and value that training never contains

# Ways to draw an item for a demand: the rule that then applies -> its tier index, counted from the worst.
OUTCOMES = {
    "brand": {"same": 3, "sub": 2, "unknown": 2, "parent": 1, "other": 1},
    "colour": {"same": 3, "family": 2, "accent": 1, "other": 1},
    "colour_not": {"avoided": 3, "excluded": 1},
    "pattern": {"same": 3, "other": 1},
    "material": {"same": 3, "other": 1},
    "material_pure": {"pure": 3, "mostly": 2, "blend": 1, "other": 1},
    "size": {"same": 3, "near": 2, "far": 1},
    "audience": {"same": 3, "open": 2, "other": 1},
    "bundle": {"complete": 3, "multiple": 2, "part": 2, "single": 1},
    "model": {"same": 3, "variant": 2, "other": 1},
    "price": {"within": 3, "near": 2, "over": 1},
    "category": {"same": 3, "sibling": 1, "accessory": 1, "other": 0, "main": 0},
}


@dataclass(slots=True)
class Query:
    """wants[0] is the category; the others are in the order of the query's text."""

    wants: list[Want]
    kind: str  # general, visual or one of HARD_KINDS
    family: str
    held_out: list[str] = field(default_factory=list)  # properties that training never contains: combination, template


@dataclass(slots=True)
class Item:
    """The true values of an item by dimension; a missing key means that the item does not have or name the dimension."""

    values: dict[str, str]
    family: str
    accent: str | None = None
    material_share: int | None = None


class Shop:
    """Samples queries and items from a lexicon. Every method takes a random.Random, so any row can be drawn on its own."""

    def __init__(self, lexicon: Lexicon):
        self.lexicon = lexicon
        self.families = {family.name: family for family in lexicon.families}
        self.types = {t.name: t for t in lexicon.types}
        self.accessories = {a.name: a for a in lexicon.accessories}
        self.brands = {brand.name: brand for brand in lexicon.brands}
        self.colours = {colour.name: colour for colour in lexicon.colours}

    @cached_property
    def kinds(self) -> dict[str, dict]:
        """The look-ups that the rules need (type -> family, accessory -> main item, sub-brand -> parent, colour -> family,
        model -> series), and the notation of the reasoning."""
        return {
            "family": {t.name: t.family for t in self.lexicon.types},
            "main": {a.name: a.main for a in self.lexicon.accessories},
            "parent": {b.name: b.parent for b in self.lexicon.brands if b.parent},
            "colour_family": {c.name: c.family for c in self.lexicon.colours},
            "series": {m: str(i) for i, series in enumerate(self.lexicon.models) for m in series},
            "notation": self.lexicon.notation,
        }

    def query(self, rng: random.Random, kind: str, split: str) -> Query:
        """One query of `kind` for `split`; only dev and test may contain a held-out combination."""
        while True:
            query = self._draw_query(rng, kind)
            unseen = any(_held_out(query.wants[0].value, want) for want in query.wants[1:])
            if split != "train" or not unseen:
                query.held_out = ["combination"] if unseen else []
                return query

    def _draw_query(self, rng, kind):
        lexicon = self.lexicon
        entity = rng.choice(["line", "sub-brand", "accessory"]) if kind == "entity" else None
        if entity == "accessory":
            accessory = rng.choice(lexicon.accessories)
            family = self.types[accessory.main].family
            wants = [Want("category", accessory.name)]
        else:
            item_type = rng.choice(lexicon.types)
            family = item_type.family
            said = rng.choice(item_type.needs) if kind == "solution" else None
            wants = [Want("category", item_type.name, said)]
        dimensions = list(self.families[family].demands)
        forced = []
        if kind == "visual":
            forced = [rng.choice([d for d in ("colour", "pattern") if d in dimensions])]
        elif entity in ("line", "sub-brand"):
            forced = ["brand"]
        elif kind == "negation":
            forced = ["colour"]
        jargon = None
        if kind == "jargon":
            jargon = rng.choice(["type", "colour", "audience"] if "audience" in dimensions else ["type", "colour"])
            if jargon == "type":
                wants = [Want("category", wants[0].value, rng.choice(self.types[wants[0].value].jargon))]
            else:
                forced = [jargon]
        count = 3 if kind == "multi_attribute" else 2 if rng.random() < 0.4 else 1
        rest = [d for d in dimensions if d not in forced]
        chosen = forced + rng.sample(rest, count - len(forced))
        rng.shuffle(chosen)
        wants += [self._want(rng, d, family, kind, entity, jargon) for d in chosen]
        return Query(wants, kind, family)

    def _want(self, rng, dimension, family, kind, entity, jargon):
        lexicon = self.lexicon
        if dimension == "colour":
            colour = rng.choice(lexicon.colours)
            said = rng.choice(colour.words) if jargon == "colour" else None
            return Want("colour", colour.name, said, negated=kind == "negation")
        if dimension == "brand":
            if entity == "line":
                brand = rng.choice([b for b in lexicon.brands if b.lines])
                return Want("brand", brand.name, rng.choice(brand.lines))
            pool = [b for b in lexicon.brands if b.parent] if entity == "sub-brand" else lexicon.brands
            return Want("brand", rng.choice(pool).name)
        if dimension == "pattern":
            return Want("pattern", rng.choice(lexicon.patterns))
        if dimension == "material":
            kind_of = self.families[family].materials
            return Want("material", rng.choice(lexicon.materials[kind_of]), pure=kind_of == "soft" and rng.random() < 0.7)
        if dimension == "audience":
            audience = rng.choice(lexicon.audiences)
            said = rng.choice(audience.words) if jargon == "audience" and audience.words else None
            return Want("audience", audience.name, said)
        if dimension == "model":
            return Want("model", rng.choice(rng.choice(lexicon.models)))
        pool = {"size": SIZES_CM, "bundle": BUNDLES, "price": PRICE_LIMITS}[dimension]
        return Want(dimension, str(rng.choice(pool)))

    def item_for(self, rng: random.Random, query: Query, tier_index: int) -> Item:
        """An item whose worst demand should get tier_index (0 is the worst). If no demand can get this tier, which happens
        only for L3, the best tier is used."""
        plans = {i: self._outcomes(want) for i, want in enumerate(query.wants)}
        able = [i for i, plan in plans.items() if tier_index in plan.values()]
        if tier_index == 3 or not able:
            able, tier_index = list(plans), 3 if tier_index != 0 else 0
        decisive = 0 if tier_index == 0 else rng.choice(able)
        item = self.catalogue_item(rng, query.family)
        for i, want in enumerate(query.wants):
            allowed = [
                rule for rule, tier in plans[i].items() if (tier == tier_index if i == decisive else tier >= max(tier_index, 1))
            ]
            if i != decisive and rng.random() < 0.6:  # most other demands are met, as in a real result list
                allowed = [rule for rule in allowed if plans[i][rule] == 3]
            self._realize(rng, item, want, rng.choice(allowed))
        return item

    def item_meeting(self, rng: random.Random, family: str, want: Want) -> Item:
        """An item drawn for a single demand; every rule of the demand's dimension is equally likely."""
        item = self.catalogue_item(rng, family)
        self._realize(rng, item, want, rng.choice(list(self._outcomes(want))))
        return item

    def _outcomes(self, want):
        if want.dimension == "category":
            if want.value in self.accessories:
                return {"same": 3, "other": 0, "main": 0}
            drop = {"main"} | (set() if any(a.main == want.value for a in self.lexicon.accessories) else {"accessory"})
        else:
            drop = set()
        key = "colour_not" if want.negated else "material_pure" if want.pure else want.dimension
        outcomes = {rule: tier for rule, tier in OUTCOMES[key].items() if rule not in drop}
        if want.dimension == "brand":
            if want.value in self.kinds["parent"]:
                outcomes.pop("sub")
            else:
                outcomes.pop("parent")
                if want.value not in self.kinds["parent"].values():
                    outcomes.pop("sub")
        if want.dimension == "bundle" and want.value == "3":
            outcomes.pop("multiple")
        return outcomes

    def catalogue_item(self, rng: random.Random, family_name: str) -> Item:
        """An item of a family, drawn without a query."""
        family = self.families[family_name]
        values = {
            "category": rng.choice([t.name for t in self.lexicon.types if t.family == family_name]),
            "colour": rng.choice(self.lexicon.colours).name,
            "pattern": self.lexicon.patterns[0],
        }
        item = Item(values, family_name)
        for dimension in family.demands:
            if dimension == "colour" or (dimension != "pattern" and rng.random() < 0.5):
                continue
            want = self._want(rng, dimension, family_name, "general", None, None)
            if dimension in ("size", "price", "bundle"):  # numbers below and above those that shoppers ask for
                self._realize(rng, item, want, rng.choice(list(self._outcomes(want))))
            else:
                values[dimension] = want.value
        if family.materials == "soft" and "material" in values:
            item.material_share = rng.choice((60, 70, 80, 92, 95, 98, 100))
        return item

    def _realize(self, rng, item, want, rule):
        """Sets a value of `want`'s dimension in `item` so that `rule` applies."""
        values, kinds, lexicon = item.values, self.kinds, self.lexicon
        match want.dimension, rule:
            case "category", "same":
                values["category"] = want.value
            case "category", "sibling":
                values["category"] = rng.choice([t for t, f in kinds["family"].items() if f == item.family and t != want.value])
            case "category", "accessory":
                values["category"] = rng.choice([a for a, main in kinds["main"].items() if main == want.value])
            case "category", "main":
                values["category"] = kinds["main"][want.value]
            case "category", "other":
                other = rng.choice([t for t in lexicon.types if t.family != item.family])
                values["category"], item.family = other.name, other.family
            case "brand", "unknown":
                values.pop("brand", None)
            case "brand", "sub":
                values["brand"] = rng.choice([b for b, parent in kinds["parent"].items() if parent == want.value])
            case "brand", "parent":
                values["brand"] = kinds["parent"][want.value]
            case "brand", "other":
                related = {want.value, kinds["parent"].get(want.value)}
                values["brand"] = rng.choice([b for b in self.brands if b not in related and kinds["parent"].get(b) != want.value])
            case "colour", "same" | "excluded":
                values["colour"] = want.value
            case "colour", "family":
                same = [c for c, f in kinds["colour_family"].items() if f == kinds["colour_family"][want.value] and c != want.value]
                values["colour"] = rng.choice(same)
            case "colour", "avoided":
                values["colour"] = rng.choice([c for c in self.colours if c != want.value])
            case "colour", "other" | "accent":
                family = kinds["colour_family"][want.value]
                values["colour"] = rng.choice([c for c, f in kinds["colour_family"].items() if f != family])
                item.accent = want.value if rule == "accent" else None
            case "pattern" | "material", "other":
                pool = lexicon.patterns if want.dimension == "pattern" else lexicon.materials[self.families[item.family].materials]
                values[want.dimension] = rng.choice([v for v in pool if v != want.value])
            case "material", "pure" | "mostly" | "blend":
                values["material"] = want.value
                item.material_share = rng.choice({"pure": (95, 98, 100), "mostly": (90, 92, 94), "blend": (60, 70, 80)}[rule])
            case "size" | "price", "near":
                wanted = int(want.value)
                signs = (1,) if want.dimension == "price" else (1, -1)
                values[want.dimension] = str(wanted + rng.choice(signs) * rng.choice((wanted // 20, wanted // 10)))
            case "size", "far":
                wanted = int(want.value)
                values["size"] = str(rng.choice([s for s in (*SIZES_CM, wanted * 13 // 10) if abs(s - wanted) > wanted / 10]))
            case "price", "within":
                values["price"] = str(int(want.value) * rng.choice((10, 9, 8, 5)) // 10)
            case "price", "over":
                values["price"] = str(int(want.value) * rng.choice((12, 15, 20)) // 10)
            case "bundle", "multiple":
                values["bundle"] = str(rng.choice([n for n in range(2, int(want.value)) if int(want.value) % n == 0]))
            case "bundle", "part":
                wanted = int(want.value)
                values["bundle"] = str(rng.choice([n for n in (wanted - 1, wanted + 1) if wanted % n]))
            case "bundle", "single":
                values["bundle"] = "1"
            case "audience", "open":
                values.pop("audience", None)
            case "audience", "other":
                values["audience"] = rng.choice([a.name for a in lexicon.audiences if a.name != want.value])
            case "model", "variant" | "other":
                same = rule == "variant"
                series = kinds["series"]
                values["model"] = rng.choice([m for m in series if m != want.value and (series[m] == series[want.value]) == same])
            case _:  # same, complete: the value asked for
                values[want.dimension] = want.value
        if want.dimension == "material" and rule == "same" and self.families[item.family].materials == "soft":
            item.material_share = rng.choice((60, 80, 95, 100))


def _held_out(category, want):
    digest = hashlib.blake2b(f"{category}|{want.dimension}|{want.value}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32 < HELD_OUT
