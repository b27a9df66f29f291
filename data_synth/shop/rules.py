"""Executes the shop's rules: (demands of a query, values of an item) -> one Demand per demand; the worst one decides.

Tiers and thresholds come from the given rubric, so a changed rule changes the labels. Left out of real guidelines: weights of
demands. The verdict is the worst tier over the demands, as in RAIR.
"""

from dataclasses import dataclass, replace

from lore.data_synth.shop.lexicon import NOTATION
from lore.rubric.demand import Demand
from lore.rubric.rubric import Rubric, Rule
from lore.rubric.rule_edits import stated_number


@dataclass(frozen=True, slots=True)
class Want:
    """One demand of a query. said: the shopper's word, if it needs resolving (jargon, product line, paraphrase)."""

    dimension: str
    value: str
    said: str | None = None
    negated: bool = False
    pure: bool = False


@dataclass(frozen=True, slots=True)
class ItemValue:
    """The value of an item in one dimension, and where it can be read: title, attributes, description or photo.

    said: the seller's word, if it needs resolving (a product line instead of the brand).
    share: percent for materials, 0..1 for the dominant color; accent: the second color, with its share.
    """

    value: str
    source: str
    said: str | None = None
    share: float | None = None
    accent: str | None = None
    accent_share: float = 0.0


def judge(wants: list[Want], offered: dict[str, ItemValue], kinds: dict[str, dict], rubric: Rubric) -> list[Demand]:
    """One Demand per want, in the query's order; stops at a demand that makes the item irrelevant.

    offered: dimension -> ItemValue; kinds: the lexicon's look-ups (`family`, `main`, `parent`, `colour_family`, `series`) and
    its `notation`.
    """
    notation = kinds["notation"]
    rules = {rule.id: rule for rule in rubric.rules}
    demands = []
    for want in wants:
        shown = offered.get(want.dimension)
        rule = rules[f"{want.dimension}-{_RULES[want.dimension](want, shown, kinds, rules)}"]
        demands.append(
            Demand(
                dimension=want.dimension,
                wanted=wanted_text(want, notation),
                found=found_text(shown, notation),
                rule=rule.id,
                tier=rule.tier,
                source=shown.source if shown else "none",
            )
        )
        if rule.tier == rubric.tier_ids[0]:
            break
    return demands


def worst(demands: list[Demand], rubric: Rubric) -> str:
    """The verdict: the worst tier over the demands."""
    return min((d.tier for d in demands), key=rubric.index)


def with_limits(demands: list[Demand], wants: list[Want], rubric: Rubric) -> list[Demand]:
    """The demands with the numbers that decide them: the rule's limit, copied from the rubric's text, and how far the item is off.

        size: 40 = within ten percent | 50 = 25 percent off (title) | size-far L2

    A model that states both has to compare two numbers of its own text, whatever the rubric says. wants: one per demand, in order.
    """
    rules = {rule.id: rule for rule in rubric.rules}
    return [_with_limit(demand, want, rules) for demand, want in zip(demands, wants, strict=False)]


def _with_limit(demand: Demand, want: Want, rules: dict[str, Rule]) -> Demand:
    if demand.dimension == "material" and want.pure:
        pure, mostly = _stated(rules["material-pure"], "share"), _stated(rules["material-mostly"], "share")
        return replace(demand, wanted=f"{demand.wanted} = at least {pure} percent, or {mostly} to {pure}")
    if demand.dimension not in ("size", "price"):
        return demand
    near, off = _stated(rules[f"{demand.dimension}-near"], "within"), 0
    if demand.source != "none":
        off = 100 * abs(int(demand.found) - int(want.value)) / int(want.value)
    known = off and not demand.rule.endswith(("-same", "-within"))
    found = f"{demand.found} = {off:.3g} percent off" if known else demand.found
    return replace(demand, wanted=f"{demand.wanted} = within {near} percent", found=found)


def _stated(rule: Rule, name: str) -> str:
    return stated_number(rule.principle, rule.params[name]) or f"{rule.params[name]:g}"


def wanted_text(want: Want, notation: dict[str, str] = NOTATION) -> str:
    """A demand in the notation of the reasoning, with the meaning of the shopper's word."""
    wanted = f"{want.said} = {want.value}" if want.said else want.value
    key = "negated" if want.negated else "pure" if want.pure else None
    return notation[key].format(v=wanted) if key else wanted


def found_text(shown: ItemValue | None, notation: dict[str, str] = NOTATION) -> str:
    """An item's value in the notation of the reasoning, given by the lexicon."""
    if shown is None:
        return notation["missing"]
    if shown.said:
        return f"{shown.said} = {shown.value}"
    if shown.accent:
        return notation["accent"].format(v=shown.value, accent=shown.accent)
    if shown.share is not None and shown.share > 1:
        return notation["share"].format(share=shown.share, v=shown.value)
    return shown.value


def _category(want, shown, kinds, rules):
    if shown.value == want.value:
        return "same"
    if kinds["main"].get(shown.value) == want.value:
        return "accessory"
    if kinds["main"].get(want.value) == shown.value:
        return "main"
    if want.value in kinds["main"] or shown.value in kinds["main"]:
        return "other"
    return "sibling" if kinds["family"][shown.value] == kinds["family"][want.value] else "other"


def _brand(want, shown, kinds, rules):
    if shown is None:
        return "unknown"
    if shown.value == want.value:
        return "same"
    if kinds["parent"].get(shown.value) == want.value:
        return "sub"
    return "parent" if kinds["parent"].get(want.value) == shown.value else "other"


def _colour(want, shown, kinds, rules):
    if want.negated:
        return "excluded" if shown.value == want.value else "avoided"
    if shown.value == want.value and shown.share >= rules["colour-same"].params["share"]:
        return "same"
    if kinds["colour_family"][shown.value] == kinds["colour_family"][want.value]:
        return "family"
    return "accent" if shown.accent == want.value and shown.accent_share < rules["colour-accent"].params["share"] else "other"


def _pattern(want, shown, kinds, rules):
    return "same" if shown.value == want.value else "other"


def _material(want, shown, kinds, rules):
    if shown.value != want.value:
        return "other"
    if not want.pure:
        return "same"
    if shown.share >= rules["material-pure"].params["share"]:
        return "pure"
    return "mostly" if shown.share >= rules["material-mostly"].params["share"] else "blend"


def _size(want, shown, kinds, rules):
    wanted, found = int(want.value), int(shown.value)
    if wanted == found:
        return "same"
    return "near" if abs(found - wanted) <= rules["size-near"].params["within"] * wanted else "far"


def _audience(want, shown, kinds, rules):
    if shown is None:
        return "open"
    return "same" if shown.value == want.value else "other"


def _bundle(want, shown, kinds, rules):
    wanted, found = int(want.value), int(shown.value)
    if wanted == found:
        return "complete"
    if found == 1:
        return "single"
    return "multiple" if wanted % found == 0 else "part"


def _model(want, shown, kinds, rules):
    if shown.value == want.value:
        return "same"
    return "variant" if kinds["series"][shown.value] == kinds["series"][want.value] else "other"


def _price(want, shown, kinds, rules):
    limit, price = int(want.value), int(shown.value)
    if price <= limit:
        return "within"
    return "near" if price <= limit * (1 + rules["price-near"].params["within"]) + 1e-9 else "over"


_RULES = {
    "category": _category,
    "brand": _brand,
    "colour": _colour,
    "pattern": _pattern,
    "material": _material,
    "size": _size,
    "audience": _audience,
    "bundle": _bundle,
    "model": _model,
    "price": _price,
}
