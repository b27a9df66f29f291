"""The rubric as data: ordered tiers (worst first), dimensions of demands, rules.

A rubric is one YAML file: `lore/rubric/rubrics/<name>.yaml`, or any path. All errors of a file are reported at once. Ids are
single words without angle brackets, because answers contain them between tags: `<verdict>L2</verdict>`.
"""

import hashlib
import json
import math
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from lore.config.yaml_text import MAX_BYTES, read_yaml
from lore.rubric.rubric_errors import MAX_ERRORS, reference_errors
from lore.support.bounds import MAX_MEASURE
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

RUBRICS = Path(__file__).parent / "rubrics"

_YAML_1_1 = {"yes": True, "on": True, "no": False, "off": False}  # rubric files may still write these


def _check_id(text: str) -> str:
    if not text or len(text) > 64 or not text.isprintable() or any(c.isspace() or c in "<>|;," for c in text):
        raise ValueError("one word of at most 64 characters without space, <, >, |, ; or ,")
    return text


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not empty")
    return text


Id = Annotated[str, AfterValidator(_check_id)]
Text = Annotated[str, AfterValidator(_check_text)]
Measure = Annotated[FiniteFloat, Field(ge=-MAX_MEASURE, le=MAX_MEASURE)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tier(_Part):
    """One step of the scale. `aliases`: other labels for this tier in source files. `value`: its number on a numeric label
    scale.
    """

    id: Id
    name: Text
    meaning: Text
    relevant: bool
    aliases: list[str] = []
    value: Measure | None = None


class Dimension(_Part):
    """One kind of demand in a query, such as color, audience or price. computed: a program decides which rule applies, so a verdict
    that contradicts it is refused."""

    id: Id
    meaning: Text
    computed: bool = False


class Example(_Part):
    query: Text
    item: Text


class Rule(_Part):
    """States when a demand of `dimension` is met to the degree `tier`. `params`: the numbers in the principle, for code that
    executes the rule.
    """

    id: Id
    dimension: str
    tier: str
    principle: Text
    examples: list[Example] = []
    params: dict[str, Measure] = {}


class Rubric(_Part):
    """A scale and its rules. `mismatch_tiers`: tiers whose judgement names the failed dimension. `aggregate`: how the verdict
    follows from the tiers of single demands: `worst` takes the worst tier, `mean` the mean rounded down to the worse tier, and
    `free` leaves the weighting to the judge.
    """

    name: Id
    version: Text
    language: Literal["en", "zh"] = "en"
    tiers: list[Tier]
    dimensions: list[Dimension] = []
    rules: list[Rule] = []
    mismatch_tiers: list[str] = []
    aggregate: Literal["worst", "mean", "free"] = "worst"

    @cached_property
    def tier_ids(self) -> list[str]:
        """Ids of the tiers, worst first."""
        return [tier.id for tier in self.tiers]

    @cached_property
    def relevant_mask(self) -> list[bool]:
        return [tier.relevant for tier in self.tiers]

    @cached_property
    def hash(self) -> str:
        """16 hex digits over the content. Formatting and comments of the file do not matter."""
        content = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @cached_property
    def _tier_by_label(self) -> dict[str, str]:
        return {label.strip().casefold(): tier.id for tier in self.tiers for label in (*tier.aliases, tier.id)}

    def verdict_over(self, tier_ids: list[str]) -> str | None:
        """The verdict that follows from the tiers of single demands. None if `aggregate` is free or there are no tiers."""
        if self.aggregate == "free" or not tier_ids:
            return None
        places = [self.index(tier_id) for tier_id in tier_ids]
        return self.tier_ids[min(places) if self.aggregate == "worst" else sum(places) // len(places)]

    def index(self, tier_id: str) -> int:
        """Position of a tier; 0 is the worst."""
        if tier_id not in self.tier_ids:
            known = ", ".join(self.tier_ids)
            hint = nearest_hint(str(tier_id), self.tier_ids)
            raise LoreError(f"'{tier_id}' is not a tier of rubric {self.name}; expected one of {known}.{hint}")
        return self.tier_ids.index(tier_id)

    def tier_of(self, raw_label: object) -> str:
        """Tier id of a label from a source file. An id or alias matches in any case. A number inside the scale gets the tier with
        the nearest value; halfway between two tiers the worse one counts, because judges tend to be too optimistic.
        """
        label = str(raw_label).strip()
        tier_id, number = self._named(label)
        if tier_id is not None:
            return tier_id
        valued = [tier for tier in self.tiers if tier.value is not None]
        if number is not None and valued and valued[0].value <= number <= valued[-1].value:
            return min(valued, key=lambda tier: abs(tier.value - number)).id  # on a tie min takes the first, the worse tier
        known = [known for tier in self.tiers for known in (tier.id, *tier.aliases)]
        span = f", or a number from {valued[0].value:g} to {valued[-1].value:g}" if valued else ""
        raise LoreError(
            f"Label {label[:80]!r} has no tier in rubric {self.name}; expected {', '.join(known)}{span}."
            f"{nearest_hint(label[:80], known)}"
        )

    def mean_of(self, raw_label: object) -> float | None:
        """The number of a label that is the id or alias of no tier, such as a mean of several raters; otherwise None."""
        tier_id, number = self._named(str(raw_label).strip())
        return number if tier_id is None else None

    def _named(self, label: str) -> tuple[str | None, float | None]:
        """The tier with this id or alias, and the label as a number."""
        number = _number(label)
        # A table with missing labels stores whole numbers as floats, such as 1.0.
        whole = str(int(number)) if number is not None and number.is_integer() else None
        return self._tier_by_label.get(label.casefold()) or self._tier_by_label.get(whole), number


def rubric_file(name_or_path: str | Path) -> Path:
    """The file of a rubric: a shipped one by its name, or a YAML file by its path. It may not exist."""
    path = Path(name_or_path)
    return path if path.suffix in (".yaml", ".yml") else RUBRICS / f"{name_or_path}.yaml"


def load_rubric(name_or_path: str | Path) -> Rubric:
    """Loads a shipped rubric by name or a YAML file by path. Raises LoreError with all errors of the file."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        names = sorted(file.stem for file in RUBRICS.glob("*.yaml"))
        if str(name_or_path) not in names:
            raise LoreError(
                f"There is no rubric '{name_or_path}'. Shipped rubrics: {', '.join(names)}."
                f"{nearest_hint(str(name_or_path), names)} Name your own rubric by its path, ending in .yaml."
            )
        path = rubric_file(name_or_path)
    if not path.is_file():
        raise LoreError(f"Rubric file {path} does not exist. Name a shipped rubric or the path of a YAML file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise LoreError(f"Rubric file {path} has {size:,} bytes, but at most {MAX_BYTES:,} are allowed: shorten it.")
    return _read_rubric(path, size, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read_rubric(path: Path, size: int, modified_ns: int) -> Rubric:
    """Caches a file per process until its size or modification time changes, because every section and stage loads the rubric."""
    content = read_yaml(path)
    for tier in content["tiers"] if isinstance(content, dict) and isinstance(content.get("tiers"), list) else []:
        if isinstance(tier, dict) and isinstance(word := tier.get("relevant"), str):
            tier["relevant"] = _YAML_1_1.get(word.lower(), word)
    return parse_rubric(content, where=str(path))


def rubric_metadata(name_or_path: str | Path, rubric: Rubric) -> dict[str, str]:
    """Metadata entries of a pairs file about the rubric of its labels. A path is stored as an absolute path."""
    path = Path(name_or_path)
    name = str(path.absolute()) if path.suffix in (".yaml", ".yml") else str(name_or_path)
    return {"lore.rubric": name, "lore.rubric_hash": rubric.hash}


def rubric_change(metadata: dict[str, str], rubric: Rubric, where: str | Path) -> str | None:
    """A warning if the rubric has changed since the pairs at `where` were imported, otherwise None."""
    then = metadata.get("lore.rubric_hash")
    if then in (None, rubric.hash):
        return None
    return (
        f"{where} was imported under rubric {metadata.get('lore.rubric')} with hash {then}; rubric {rubric.name} has "
        f"{rubric.hash} now. Its labels follow the old text: import it again, or use the rubric that its raters used."
    )


def parse_rubric(raw: Any, where: str = "rubric") -> Rubric:
    """Builds a rubric from plain data. Raises LoreError that lists all errors."""
    if not isinstance(raw, dict):
        raise LoreError(f"{where}: found {_show(raw)}, expected a mapping with name, version and tiers.")
    rubric, errors = None, []
    try:
        rubric = Rubric.model_validate(raw)
    except ValidationError as error:
        errors = [_field_error(problem) for problem in error.errors(include_url=False)[:MAX_ERRORS]]
    errors += reference_errors(raw)
    if errors:
        count = f"{len(errors)} errors" if len(errors) > 1 else "1 error"
        raise LoreError(f"{where} has {count}:\n" + "\n".join(f"  {error}" for error in errors))
    return rubric


def _field_error(problem: dict) -> str:
    location = problem["loc"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if problem["type"] == "missing":
        return f"{where}: missing"
    if problem["type"] == "extra_forbidden":
        models = {"tiers": Tier, "dimensions": Dimension, "rules": Rule}
        model = Rubric if len(location) == 1 else Example if "examples" in location[:-1] else models[location[0]]
        names = list(model.model_fields)
        return f"{where}: unknown key; expected one of {', '.join(names)}.{nearest_hint(str(location[-1]), names)}"
    found = _show(problem["input"])
    if problem["type"] == "string_type":
        return f"{where}: found {found}, expected text (put it in quotes)"
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{where}: found {found}, expected {expected}"


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
