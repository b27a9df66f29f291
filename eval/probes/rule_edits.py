"""Changes of a rubric's rules, read from a file and applied one at a time (see rule_edits.yaml for the format).

Errors are reported together: a change without effect, an unknown rule or tier, and a text that still states a changed number.
Each of them would show the judge one rule and score it by another.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lore.config.yaml_text import read_yaml
from lore.rubric.rubric import Example, Rubric, Rule, parse_rubric
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

EDITS = Path(__file__).parent / "rule_edits.yaml"
SHOP = "shop"
EDIT_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,47}$")
NUMBER_WORDS = {
    5: "five", 10: "ten", 15: "fifteen", 20: "twenty", 25: "twenty-five", 30: "thirty", 40: "forty", 50: "fifty",
    60: "sixty", 70: "seventy", 75: "seventy-five", 80: "eighty", 90: "ninety", 95: "ninety-five", 100: "a hundred",
}  # fmt: skip
FRACTION_WORDS = {0.05: "a twentieth", 0.1: "a tenth", 0.2: "a fifth", 0.25: "a quarter", 0.5: "half"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RuleChange(_Part):
    """New values of one rule; fields that are not given stay. params replaces only the named ones."""

    tier: str | None = None
    principle: str | None = None
    params: dict[str, float] = {}
    examples: list[Example] | None = None


class _Edit(_Part):
    change: str = Field(min_length=1)
    rules: dict[str, RuleChange] = Field(min_length=1)
    labels: dict[str | int, str | int] | None = None


@dataclass(frozen=True)
class RuleEdit:
    """One change. rubric: the whole changed rubric; labels: tier by pair_id, for test pairs that were rated under it."""

    id: str
    change: str
    rule_ids: list[str]
    rubric: Rubric
    labels: dict[str, str] | None = None


def load_rule_edits(name_or_path: str, rubric: Rubric) -> list[RuleEdit]:
    """The changes of a file, applied to `rubric`; `shop` names those of the embedded shop. Raises LoreError."""
    path = EDITS if name_or_path == SHOP else Path(name_or_path)
    if name_or_path == SHOP and rubric.name != SHOP:
        raise LoreError(
            f"capability.rule_edits is {SHOP}, which changes rules of the embedded shop, but the pairs are labeled by rubric "
            f"{rubric.name}. Name a file of changes to that rubric, or drop rule_edits."
        )
    content, edits, errors = _read(path), [], []
    for edit_id, raw in content.items():
        try:
            edits.append(_applied(str(edit_id), raw, rubric))
        except LoreError as error:
            errors += [f"{edit_id}: {line}" for line in str(error).split("\n")]
    if errors:
        count = f"{len(errors)} errors" if len(errors) > 1 else "1 error"
        raise LoreError(f"Rule changes {path} have {count}, so labels would be unsure:\n" + "\n".join(f"  {e}" for e in errors))
    return edits


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise LoreError(f"capability.rule_edits: {path} does not exist. Name a file in the format of the shipped one, or `{SHOP}`.")
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise LoreError(f"Rule changes {path}: found no change; expected a mapping from a name to change and rules.")
    return content


def _applied(edit_id: str, raw: Any, rubric: Rubric) -> RuleEdit:
    if not EDIT_ID.match(edit_id):
        raise LoreError("found that name, expected lower-case letters, digits and - (at most 48): it names a folder")
    try:
        edit = _Edit.model_validate(raw)
    except ValidationError as error:
        problems = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors(include_url=False)]
        raise LoreError("\n".join(f"{where}: {what}" if where else what for where, what in problems)) from error
    old = {rule.id: rule for rule in rubric.rules}
    if unknown := [rule_id for rule_id in edit.rules if rule_id not in old]:
        wrong = [f"'{name}' is not a rule of rubric {rubric.name}.{nearest_hint(name, old)}" for name in unknown]
        raise LoreError("\n".join(wrong))
    rules = [_changed(rule, edit.rules[rule.id]) if rule.id in edit.rules else rule.model_dump() for rule in rubric.rules]
    changed = parse_rubric(rubric.model_dump() | {"rules": rules}, where="the changed rubric")
    new = {rule.id: rule for rule in changed.rules}
    errors = [f"{rule_id}: nothing is changed" for rule_id in edit.rules if new[rule_id] == old[rule_id]]
    errors += _stale_numbers(old, new, edit)
    if errors:
        raise LoreError("\n".join(errors))
    labels = None if edit.labels is None else {str(key): rubric.tier_of(label) for key, label in edit.labels.items()}
    return RuleEdit(edit_id, edit.change, list(edit.rules), changed, labels)


def _changed(rule: Rule, change: RuleChange) -> dict[str, Any]:
    if foreign := [name for name in change.params if name not in rule.params]:
        known = ", ".join(rule.params) or "none"
        raise LoreError(f"{rule.id}: '{foreign[0]}' is not a number of this rule; it has {known}")
    given = change.model_dump(exclude_none=True)
    return rule.model_dump() | given | {"params": rule.params | change.params}


def _stale_numbers(old: dict[str, Rule], new: dict[str, Rule], edit: _Edit) -> list[str]:
    """Errors for texts of the changed dimension that still state a number that none of its rules has any more."""
    errors = []
    for rule_id, change in edit.rules.items():
        near = [rule for rule in new.values() if rule.dimension == new[rule_id].dimension]
        kept = {value for rule in near for value in rule.params.values()}
        for name in change.params:
            value = old[rule_id].params[name]
            if value in kept:
                continue
            forms = _written(value)
            errors += [
                f"{rule.id}: its text still says {found[0]!r}, the old {name} of {rule_id} ({value:g}): rewrite its principle"
                for rule in near
                if (found := re.search(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, forms))})(?![\w-])", rule.principle))
            ]
    return errors


def _written(value: float) -> list[str]:
    """The forms in which a text may state a number, or a share of 1 as percent."""
    forms = [f"{value:g}"]
    if 0 < value <= 1:
        percent = round(100 * value, 6)
        forms += [f"{percent:g}", NUMBER_WORDS.get(percent), FRACTION_WORDS.get(value)]
    else:
        forms.append(NUMBER_WORDS.get(value))
    return [form for form in forms if form]
