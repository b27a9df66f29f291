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
from lore.rubric.rubric import Rubric
from lore.rubric.rule_edits import RuleChange, changed_rubric
from lore.support.errors import LoreError

EDITS = Path(__file__).parent / "rule_edits.yaml"
SHOP = "shop"
EDIT_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,47}$")


class _Edit(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

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
    changed = changed_rubric(rubric, edit.rules)
    labels = None if edit.labels is None else {str(key): rubric.tier_of(label) for key, label in edit.labels.items()}
    return RuleEdit(edit_id, edit.change, list(edit.rules), changed, labels)
