"""Edited rule books of the embedded shop, to train judges that follow the rules in their prompt.

A book differs from the rubric in a few rules: another tier, or another number, which its texts then state. What the capability test
edits (lore/eval/probes/rule_edits.yaml) stays out of training: no rule gets a tier or a number that it has there.
"""

import random

from lore.rubric.rubric import Rubric
from lore.rubric.rule_edits import RuleChange, changed_rubric, with_numbers

SEALED_TIERS = {
    "category-sibling": "L3",
    "brand-unknown": "L4",
    "colour-family": "L4",
    "audience-open": "L2",
    "bundle-single": "L3",
    "model-variant": "L2",
}
"""Tiers that no book gives to these rules, because the capability test does."""
NUMBERS_SHARE = 0.3  # of the changes
# Numbers that a book may have. Not among them: within 5 and 30 percent for sizes, 25 for prices, a share of 80 or 70 percent.
NUMBERS = {
    "size": {"size-near": {"within": (0.15, 0.2, 0.25, 0.4, 0.5, 0.6)}},
    "price": {"price-near": {"within": (0.05, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)}},
    "material": {"material-pure": {"share": (98, 92, 90, 85, 75)}, "material-mostly": {"share": (92, 85, 75, 65, 60, 50)}},
}


def edited_book(rubric: Rubric, rng: random.Random, edits: int) -> Rubric:
    """The rubric with up to `edits` changes, drawn at random: of a rule's tier, or of all numbers of a dimension.

    The worst tier ends a judgement, so no rule is moved there or away from it.
    """
    tiers = [rule.id for rule in rubric.rules if rule.tier != rubric.tier_ids[0]]
    places = {rng.choice(list(NUMBERS) if rng.random() < NUMBERS_SHARE else tiers) for _ in range(edits)}
    changes: dict[str, RuleChange] = {}
    for place in sorted(places):
        for rule_id, change in (_other_numbers if place in NUMBERS else _other_tier)(rubric, rng, place).items():
            values = [known.model_dump(exclude_unset=True) for known in (changes.get(rule_id, RuleChange()), change)]
            changes[rule_id] = RuleChange(**values[0] | values[1])
    return changed_rubric(rubric, changes)


def _other_tier(rubric: Rubric, rng: random.Random, rule_id: str) -> dict[str, RuleChange]:
    own = next(rule.tier for rule in rubric.rules if rule.id == rule_id)
    return {rule_id: RuleChange(tier=rng.choice([t for t in rubric.tier_ids[1:] if t not in (own, SEALED_TIERS.get(rule_id))]))}


def _other_numbers(rubric: Rubric, rng: random.Random, dimension: str) -> dict[str, RuleChange]:
    """New numbers for a dimension. Its rules with numbers lose their examples, which may contradict the new ones."""
    rules = [rule for rule in rubric.rules if rule.dimension == dimension]
    old = {(rule.id, name): value for rule in rules for name, value in rule.params.items()}
    while True:
        new = {(rule_id, name): rng.choice(NUMBERS[dimension][rule_id][name]) for rule_id, name in old}
        if list(new.values()) == sorted(new.values(), reverse=True) and len(set(new.values())) == len(new):
            break
    renamed = {value: new[key] for key, value in old.items()}
    changes = {}
    for rule in rules:
        principle = with_numbers(rule.principle, renamed)
        if principle != rule.principle:
            params = {name: new[rule.id, name] for name in rule.params}
            changes[rule.id] = RuleChange(principle=principle, params=params, examples=[])
    return changes
