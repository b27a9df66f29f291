"""Recipe of stage recommend_eval. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, Share, StrictModel, Weight, each_once
from lore.recommend.recommender_recipe import StartSection
from lore.recommend.section import HistoriesSection, codes_file
from lore.support.bounds import MAX_COUNT, MAX_WEIGHT
from lore.support.input_files import InputFiles, input_files
from lore.support.nearest import nearest

Baseline = Literal["popularity", "co-occurrence", "co-occurrence both ways", "item-kNN"]
PREFIXED = " with prefixes"
CONTROL = ", shuffled codes"
LONGEST_NAME = 200
"""Characters of a row's name as the name of its file, see lore.recommend.evaluate."""


class ModelRowSection(StartSection):
    """A trained model, a row of the table."""

    name: str = Field(min_length=1)
    """Run of stage recommender."""
    control_of: str | None = Field(None, min_length=1)
    """The row that this one is a control of, such as the same model on shuffled codes. The table shows by how much that row is
    better."""


class CooccurrenceSection(StrictModel):
    """Items that came next in training, or, both ways, before or next. See lore.recommend.baselines."""

    window: int = Field(5, ge=1, le=1000)
    """Largest distance between two events of a history that count as together."""
    decay: float = Field(0.8, gt=0, le=1)
    """Factor per place of distance."""
    damping: Share = 0.5
    """Power of the row sum that divides a row: 0 for counts, 1 for shares."""
    last: int = Field(10, ge=1, le=100_000)
    """The last events of a history that are looked up."""
    fade: float = Field(0.7, gt=0, le=1)
    """Weight of an event against that of the next one."""


class NeighborsSection(StrictModel):
    """Item-kNN: items that the same users took."""

    neighbors: int = Field(200, ge=1, le=100_000)
    """Nearest items that are kept of each item."""
    shrinkage: float = Field(5.0, ge=0, le=1e6)
    """Added to the denominator of the cosine, against chance matches of rare items."""
    last: int = Field(10, ge=1, le=100_000)
    """The last events of a history that are looked up."""
    fade: float = Field(0.7, gt=0, le=1)
    """Weight of an event against that of the next one."""


class PrefixesSection(StrictModel):
    """Semantic ids for the baselines: an item also gets the mean score of the items that share a prefix with it."""

    codes: str = Field(min_length=1)
    """Run of stage semantic_ids, or a JSON file of published codes."""
    weights: list[Weight] = Field([0.0, 0.1, 0.2], min_length=1, max_length=8)
    """Weight of that mean for prefixes of 1, 2, ... codes."""
    of: list[Literal["co-occurrence", "co-occurrence both ways", "item-kNN"]] = Field(["co-occurrence"], min_length=1)
    """Baselines that get a second row with prefixes, and a third one with shuffled codes."""

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        return {"codes": input_files(lambda: [codes_file(self.codes)])} if Path(self.codes).exists() else {}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if not Path(self.codes).exists():
            yield "codes", f"{self.codes} does not exist. Stage semantic_ids writes codes."


class BlendSection(StrictModel):
    """A row that adds up others, see lore.recommend.blend."""

    of: Annotated[list[str], each_once("row")] = Field(min_length=2, max_length=8)
    """Baselines, their rows with prefixes, and models."""
    weights: list[Annotated[float, Field(gt=0, le=MAX_WEIGHT)]] | None = None
    """Weight of each of them. null: all the same."""
    control_of: str | None = Field(None, min_length=1)
    """See models.<row>.control_of."""


class RecommendEvalRecipe(BaseRecipe):
    """Ranks the catalogue for held-out events by trained models and baselines, in one table."""

    irrelevant_keys: ClassVar[frozenset[str]] = frozenset({"bootstrap_samples"})
    result_files: ClassVar[frozenset[str]] = frozenset({"rows", "table.json", "report.html"})

    stage: Literal["recommend_eval"] = "recommend_eval"
    data: HistoriesSection
    """The histories, held out as for the models."""
    part: Literal["valid", "test"] = "test"
    """Which held-out events are predicted. Choose by valid, and report test once."""
    limit: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Maximum number of events to predict, drawn by the seed. null: all."""
    models: dict[str, ModelRowSection] = {}
    """The trained models by the name of their row."""
    baselines: Annotated[list[Baseline], each_once("baseline")] = [
        "popularity",
        "co-occurrence",
        "co-occurrence both ways",
        "item-kNN",
    ]
    """Rows that count training events."""
    cooccurrence: CooccurrenceSection = CooccurrenceSection()
    item_knn: NeighborsSection = NeighborsSection()
    prefixes: PrefixesSection | None = None
    """Rows of baselines with semantic ids. null: none."""
    blends: dict[str, BlendSection] = {}
    """Rows that add up others, such as a model and item-kNN, by the name of their row."""
    reference: str | None = Field(None, min_length=1)
    """Row that the others are compared with, on the same users. null: co-occurrence, or the first row."""
    bootstrap_samples: int = Field(1000, ge=0, le=1_000_000)
    """Resamples of the users behind every 95 % interval. 0: no intervals."""

    def rows(self) -> list[str]:
        """Names of the table's rows."""
        return [*self.single_rows(), *self.blends]

    def single_rows(self) -> list[str]:
        """Names of the rows that blends can add up."""
        found = [*self.baselines]
        for name in [] if self.prefixes is None else dict.fromkeys(self.prefixes.of):
            found += [name + PREFIXED, name + PREFIXED + CONTROL]
        return [*found, *self.models]

    def compared_with(self) -> str:
        """Name of the reference row."""
        rows = self.rows()
        return self.reference or ("co-occurrence" if "co-occurrence" in rows else rows[0])

    def controls(self) -> dict[str, str]:
        """The row that a row is a control of, by its name."""
        of = [name + PREFIXED for name in ([] if self.prefixes is None else dict.fromkeys(self.prefixes.of))]
        named = {name: row.control_of for name, row in (self.models | self.blends).items() if row.control_of is not None}
        return {name + CONTROL: name for name in of} | named

    def conflicts(self) -> Iterator[Conflict]:
        rows = self.rows()
        if not rows:
            yield Conflict(("models", "baselines"), "nothing to measure", "at least one model or baseline")
            return
        for key, names in (("models", self.models), ("blends", self.blends)):
            for name in names:
                if len(quote(name, safe="")) > LONGEST_NAME:
                    found = f"a name of {len(name)} characters"
                    yield Conflict((f"{key}.{name[:40]}",), found, "a shorter one: it names a file")
                if rows.count(name) > 1:
                    yield Conflict((f"{key}.{name}",), "the name of another row", "another name")
        singles = self.single_rows()
        for name, blend in self.blends.items():
            for of in blend.of:
                if of not in singles:
                    wanted = f"a row that is no blend: {', '.join(singles)}"
                    yield Conflict((f"blends.{name}.of",), of, wanted, nearest(of, singles))
            if blend.weights is not None and len(blend.weights) != len(blend.of):
                found = f"{len(blend.weights)} weights"
                yield Conflict((f"blends.{name}.weights",), found, f"{len(blend.of)} weights, one per row of `of`")
        named = {f"{self._kind(row)}.{row}.control_of": of for row, of in self.controls().items()}
        for key, wanted in ({"reference": self.reference} | named).items():
            if wanted is not None and wanted not in rows:
                yield Conflict((key,), wanted, f"a row of the table: {', '.join(rows)}", nearest(wanted, rows))
        for row, of in self.controls().items():
            if row == of:
                yield Conflict((f"{self._kind(row)}.{row}.control_of",), of, "another row than the control itself")

    def _kind(self, row: str) -> str:
        return "blends" if row in self.blends else "models"

    def derived(self) -> dict[str, Any]:
        return {"rows of the table": self.rows(), "compared with": self.compared_with(), "predicted": self.part}
