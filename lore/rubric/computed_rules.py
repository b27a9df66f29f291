"""Whether a verdict keeps to the rules that a program has computed for a pair: those of the rubric's computed dimensions."""

from collections.abc import Iterable

from lore.rubric.demand import read_demands
from lore.rubric.rubric import Rubric


def computed_of(rubric: Rubric, rules: Iterable[str]) -> list[str]:
    """The rules of computed dimensions."""
    dimension_of = {rule.id: rule.dimension for rule in rubric.rules}
    computed = {dimension.id for dimension in rubric.dimensions if dimension.computed}
    return [rule for rule in rules if dimension_of.get(rule) in computed]


def ceiling(rubric: Rubric, computed: Iterable[str]) -> str | None:
    """The best tier that computed rules leave. None without such rules, or in a rubric that weighs freely."""
    tier_of = {rule.id: rule.tier for rule in rubric.rules}
    return rubric.verdict_over([tier_of[rule] for rule in computed]) if rubric.aggregate == "worst" else None


def contradicts(rubric: Rubric, computed: Iterable[str], cited: Iterable[str], rationale: str, mismatch: str | None) -> bool:
    """Whether a verdict cites another rule of a dimension than the computed one, by itself or in the demands of its rationale, or
    blames a dimension whose computed rule finds nothing wrong. Unknown names contradict nothing."""
    rules = {rule.id: rule for rule in rubric.rules}
    by_dimension = {rules[rule].dimension: rules[rule] for rule in computed}
    blamed = by_dimension.get(mismatch or "")
    if blamed is not None and blamed.tier not in rubric.mismatch_tiers:
        return True
    cited = [*cited, *(demand.rule for demand in read_demands(rationale) if demand)]
    return any(by_dimension.get(rules[rule].dimension, rules[rule]).id != rule for rule in cited if rule in rules)
