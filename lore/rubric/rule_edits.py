"""Changes of a rubric's rules: the changed rubric, and the numbers as its texts state them.

Errors are reported together: a change without effect, an unknown rule or tier, and a text that still states a changed number.
Each of them would show a judge one rule and score it by another.
"""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from lore.rubric.rubric import Example, Rubric, Rule, parse_rubric
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

NUMBER_WORDS = {
    5: "five", 10: "ten", 15: "fifteen", 20: "twenty", 25: "twenty-five", 30: "thirty", 40: "forty", 50: "fifty",
    60: "sixty", 70: "seventy", 75: "seventy-five", 80: "eighty", 90: "ninety", 95: "ninety-five", 100: "a hundred",
}  # fmt: skip
FRACTION_WORDS = {0.05: "a twentieth", 0.1: "a tenth", 0.2: "a fifth", 0.25: "a quarter", 0.5: "half"}


class RuleChange(BaseModel):
    """New values of one rule; fields that are not given stay. params replaces only the named ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tier: str | None = None
    principle: str | None = None
    params: dict[str, float] = {}
    examples: list[Example] | None = None


def changed_rubric(rubric: Rubric, changes: dict[str, RuleChange]) -> Rubric:
    """The rubric with changed rules, by rule id. Raises LoreError with one line per error."""
    old = {rule.id: rule for rule in rubric.rules}
    if unknown := [rule_id for rule_id in changes if rule_id not in old]:
        wrong = [f"'{name}' is not a rule of rubric {rubric.name}.{nearest_hint(name, old)}" for name in unknown]
        raise LoreError("\n".join(wrong))
    rules = [_changed(rule, changes[rule.id]) if rule.id in changes else rule.model_dump() for rule in rubric.rules]
    changed = parse_rubric(rubric.model_dump() | {"rules": rules}, where="the changed rubric")
    new = {rule.id: rule for rule in changed.rules}
    errors = [f"{rule_id}: nothing is changed" for rule_id in changes if new[rule_id] == old[rule_id]]
    errors += _stale_numbers(old, new, changes)
    if errors:
        raise LoreError("\n".join(errors))
    return changed


def stated_number(text: str, value: float) -> str | None:
    """The form in which a text states a number, or a share of 1 as percent; None if it does not."""
    found = _stating(value).search(text)
    return found[0] if found else None


def with_numbers(text: str, numbers: dict[float, float]) -> str:
    """A text that states other numbers: in words where it had words and the new number has some, otherwise in digits."""
    new = {form: _like(form, value) for old, value in numbers.items() for form in written_forms(old)}
    stating = re.compile("|".join(_stating(old).pattern for old in numbers))
    return stating.sub(lambda found: new[found[0]], text)


def written_forms(value: float) -> list[str]:
    """The forms in which a text may state a number, or a share of 1 as percent: digits first."""
    forms = [f"{value:g}"]
    if 0 < value <= 1:
        percent = round(100 * value, 6)
        forms = [f"{percent:g}", NUMBER_WORDS.get(percent), FRACTION_WORDS.get(value), *forms]
    else:
        forms.append(NUMBER_WORDS.get(value))
    return [form for form in forms if form]


def _like(form: str, value: float) -> str:
    """A number in words if `form` is in words."""
    forms = written_forms(value)
    return next((word for word in forms if word in NUMBER_WORDS.values()), forms[0]) if form[0].isalpha() else forms[0]


def _stating(value: float) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, written_forms(value)))})(?![\w-]|\.\d)")


def _changed(rule: Rule, change: RuleChange) -> dict[str, Any]:
    if foreign := [name for name in change.params if name not in rule.params]:
        known = ", ".join(rule.params) or "none"
        raise LoreError(f"{rule.id}: '{foreign[0]}' is not a number of this rule; it has {known}")
    given = change.model_dump(exclude_none=True)
    return rule.model_dump() | given | {"params": rule.params | change.params}


def _stale_numbers(old: dict[str, Rule], new: dict[str, Rule], changes: dict[str, RuleChange]) -> list[str]:
    """Errors for texts of the changed dimension that still state a number that none of its rules has any more."""
    errors = []
    for rule_id, change in changes.items():
        near = [rule for rule in new.values() if rule.dimension == new[rule_id].dimension]
        kept = {value for rule in near for value in rule.params.values()}
        for name in change.params:
            value = old[rule_id].params[name]
            if value in kept:
                continue
            errors += [
                f"{rule.id}: its text still says {found!r}, the old {name} of {rule_id} ({value:g}): rewrite its principle"
                for rule in near
                if (found := stated_number(rule.principle, value))
            ]
    return errors
