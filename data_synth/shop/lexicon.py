"""The vocabulary of the embedded shop, read from `lexicons/<language>.yaml` and validated as a whole.

Types, brands, colors and all phrases of shoppers and sellers are data, so a new language needs only a new file.
"""

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lore.config.yaml_text import read_yaml
from lore.support.errors import LoreError

FOLDER = Path(__file__).parent / "lexicons"
NOTATION = {
    "negated": "not {v}",
    "pure": "pure {v}",
    "accent": "{v} with {accent}",
    "share": "{share:g}% {v}",
    "missing": "none",
}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Family(_Entry):
    name: str
    shape: str
    materials: str
    demands: list[str]


class ItemType(_Entry):
    name: str
    family: str
    jargon: list[str] = []
    needs: list[str] = []


class Accessory(_Entry):
    name: str
    main: str = Field(alias="for")


class Brand(_Entry):
    name: str
    lines: list[str] = []
    parent: str | None = None


class Colour(_Entry):
    name: str
    family: str
    rgb: tuple[int, int, int]
    words: list[str] = []


class Audience(_Entry):
    name: str
    words: list[str] = []


class Lexicon(_Entry):
    """All words of one shop. Cross-references are validated on reading."""

    language: str
    joiner: str
    families: list[Family]
    types: list[ItemType]
    accessories: list[Accessory]
    brands: list[Brand]
    colours: list[Colour]
    patterns: list[str]
    materials: dict[str, list[str]]
    audiences: list[Audience]
    models: list[list[str]]
    attribute_names: dict[str, str]
    phrases: dict[str, list[str]]
    texts: dict[str, str]
    distractors: list[str]
    notation: dict[str, str] = NOTATION  # how the reasoning writes a demand or a value of the item

    @model_validator(mode="after")
    def _references(self):
        families = {family.name for family in self.families}
        types = {t.name for t in self.types}
        brands = {brand.name for brand in self.brands}
        wrong = [f"type {t.name}: no family {t.family}" for t in self.types if t.family not in families]
        wrong += [f"accessory {a.name}: no type {a.main}" for a in self.accessories if a.main not in types]
        wrong += [f"brand {b.name}: no parent {b.parent}" for b in self.brands if b.parent and b.parent not in brands]
        wrong += [f"family {f.name}: no materials {f.materials}" for f in self.families if f.materials not in self.materials]
        wrong += [
            f"phrase {key}: needs at least two forms" for key, forms in self.phrases.items() if len(forms) < 2 and key != "category"
        ]
        if self.notation.keys() != NOTATION.keys():
            wrong.append(f"notation: needs {', '.join(NOTATION)}; has {', '.join(self.notation)}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def facts(self) -> list[dict[str, str]]:
        """The facts that a teacher may look up and a judge must know: `phrase` means `value` in `dimension`."""
        rows = [("jargon", "category", word, t.name) for t in self.types for word in t.jargon]
        rows += [("need", "category", word, t.name) for t in self.types for word in t.needs]
        rows += [("accessory", "category", a.name, a.main) for a in self.accessories]
        rows += [("line", "brand", line, brand.name) for brand in self.brands for line in brand.lines]
        rows += [("sub-brand", "brand", brand.name, brand.parent) for brand in self.brands if brand.parent]
        rows += [("word", "colour", word, colour.name) for colour in self.colours for word in colour.words]
        rows += [("word", "audience", word, audience.name) for audience in self.audiences for word in audience.words]
        rows += [("count", "bundle", self.texts["bundle_single"], "1")]
        return [{"kind": kind, "dimension": dimension, "phrase": phrase, "value": value} for kind, dimension, phrase, value in rows]


@cache
def load_lexicon(language: str) -> Lexicon:
    """Reads `lexicons/<language>.yaml`. Raises LoreError for an unknown language or an invalid file."""
    path = FOLDER / f"{language}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise LoreError(f"There is no lexicon for language {language!r}, so no shop can be made. Choose one of: {known}.")
    try:
        return Lexicon.model_validate(read_yaml(path))
    except ValidationError as error:
        raise LoreError(f"{path.name}: {error}") from error
