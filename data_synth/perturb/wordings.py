"""The wordings of perturbations, read from `perturbations/<language>.yaml` and validated as a whole.

There are two sets of attacks without a common wording: `train` hardens judges, `test` measures them, so that a judge is measured on
attacks that were not in its training.
"""

import hashlib
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lore.config.yaml_text import read_yaml
from lore.support.errors import LoreError

FOLDER = Path(__file__).parent / "perturbations"

AttackSet = Literal["train", "test"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Attacks(_Entry):
    """Wordings with the placeholders {best}, {name}, {rule} and {query}, and look-alike letters."""

    orders: list[str] = Field(min_length=1)
    photo: list[str] = Field(min_length=1)
    chat_markers: list[str] = Field(min_length=1)
    verdict_tags: list[str] = Field(min_length=1)
    padding: list[str] = Field(min_length=1)
    stuffing: list[str] = Field(min_length=1)
    rule_quotes: list[str] = Field(min_length=1)
    homoglyphs: dict[str, str] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_order_has_homoglyphs(self):
        plain = [order for order in self.orders if not set(self.homoglyphs) & set(order)]
        if plain:
            raise ValueError(f"homoglyphs: none for a letter of {', '.join(plain)}")
        return self


class AttackSets(_Entry):
    train: Attacks
    test: Attacks

    @model_validator(mode="after")
    def _disjoint(self):
        shared = [
            wording
            for kind in Attacks.model_fields
            for wording in set(_wordings(getattr(self.train, kind))) & set(_wordings(getattr(self.test, kind)))
        ]
        if shared:
            raise ValueError(f"in train and in test: {', '.join(sorted(shared))}; judges would be measured on trained attacks")
        return self


class Conversion(_Entry):
    """Converts a quantity from the unit `from` to `to`, if its number is within [least, most]."""

    unit: str = Field(alias="from")
    to: str
    factor: Decimal
    least: Decimal = Decimal(0)
    most: Decimal = Decimal("1e9")


class Wordings(_Entry):
    language: str
    attacks: AttackSets
    units: list[Conversion]
    punctuation: list[str]


def _wordings(value: list[str] | dict[str, str]) -> list[str]:
    """What must differ between the sets: the wordings, or each letter with its look-alike."""
    return [f"{key} as {stand_in}" for key, stand_in in value.items()] if isinstance(value, dict) else value


@cache
def load_wordings(language: str) -> Wordings:
    """Reads `perturbations/<language>.yaml`. Raises LoreError for an unknown language or an invalid file."""
    path = FOLDER / f"{language}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise LoreError(f"There are no perturbations in language {language!r}, so none can be made. Choose one of: {known}.")
    try:
        return Wordings.model_validate(read_yaml(path))
    except ValidationError as error:
        raise LoreError(f"{path.name}: {error}") from error


def wordings_hash(language: str) -> str:
    """16 hex digits over the wordings of a language. Verdicts on other wordings must not be reused."""
    return hashlib.blake2b(load_wordings(language).model_dump_json().encode(), digest_size=8).hexdigest()
