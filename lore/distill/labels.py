"""The labels that a student learns from: those of raters, in three splits, and those of a judge, in a label folder, as targets."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from lore.data.pair_source import PairSource
from lore.distill.config import DistillRecipe, LabelsSection, TargetsSection
from lore.distill.targets import border_targets, two_readings
from lore.eval.testset import Labeled, load_split
from lore.judge.card import split_judge_id
from lore.judge.temperature import apply_temperature, fit_temperature
from lore.judge.verdict import Verdict, from_row
from lore.label.config import InputSection
from lore.label.keys import id_hashes
from lore.label.read import opened_labels, read_labels
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError, reason
from lore.support.progress import track
from lore.support.text import normalize

FEWEST_FOR_A_TEMPERATURE = 20


@dataclass(frozen=True)
class Human:
    """The human pairs of the three splits."""

    source: PairSource
    train: Labeled
    dev: Labeled
    test: Labeled

    @cached_property
    def held_out(self) -> set[str]:
        """Normalized queries of dev and test, in any market."""
        return {normalize(query) for part in (self.dev, self.test) for query in part.queries}


def human_pairs(recipe: DistillRecipe, folder: RunFolder) -> Human:
    """The human pairs. Raises LoreError if there is nothing to test on, a slice without test pairs, or nothing to learn from."""
    source = PairSource(recipe.data, folder, splits=True)
    parts = {
        split: load_split(source.path, split, source.rubric, slices=recipe.data.slices, seed=recipe.seed)
        for split in ("train", "dev", "test")
    }
    if not len(parts["test"]):
        raise LoreError(
            f"{source.path} has no labeled pair in split test, so no student could be measured.\n"
            "Assign the pairs anew: lore data split PAIRS --by query --replace"
        )
    there = parts["test"].slice_sizes()
    if unknown := [name for name in recipe.slices or () if name not in there]:
        raise LoreError(f"slices names {unknown[0]!r}, but no test pair is in it.\nName some of: {', '.join(there) or 'none'}.")
    if not len(parts["train"]) and recipe.labels is None:
        raise LoreError(
            f"{source.path} has no labeled pair in split train, and the recipe has no labels of a judge, so there is nothing to "
            "learn from.\nSet labels.path, or assign the pairs anew: lore data split PAIRS --by query --replace"
        )
    return Human(source, **parts)


@dataclass
class JudgeLabels:
    """Labels of one folder that have a tier, as arrays with one entry per label."""

    folder: str
    judge: str
    table: pa.Table
    tiers: np.ndarray
    probabilities: np.ndarray
    """[N, K]; nan in the rows of a judge that gave only a tier."""

    @cached_property
    def place(self) -> dict[str, int]:
        return {pair_id: row for row, pair_id in enumerate(self.table.column("pair_id").to_pylist())}

    def take(self, rows: np.ndarray) -> "JudgeLabels":
        return JudgeLabels(
            self.folder, self.judge, self.table.take(pa.array(rows)), self.tiers[rows], self.probabilities[rows]
        )

    def __len__(self) -> int:
        return len(self.tiers)


def read_judge(folder: str, rubric: Rubric) -> JudgeLabels:
    """The labels of a folder that have a tier. Raises LoreError if its tiers are not those of the rubric."""
    ledger = opened_labels(folder)
    tiers = [name[2:] for name in ledger.schema.names if name.startswith("p_")]
    if tiers != rubric.tier_ids:
        raise LoreError(
            f"{folder} holds labels with the tiers {', '.join(tiers)}, and rubric {rubric.name} of the human pairs has "
            f"{', '.join(rubric.tier_ids)}, so one student cannot learn from both.\nLabel with a judge of this rubric, or name its "
            "rubric in data.rubric."
        )
    names = [f"p_{tier}" for tier in tiers]
    columns = ["pair_id", "query", "tier", *names, "rationale", "query_frequency", "slices", "content", "judge_id"]
    batches = track(read_labels(folder, columns), f"reading {folder}")
    table = pa.Table.from_batches(list(batches), schema=pa.schema([ledger.schema.field(name) for name in columns]))
    _check_rubric(folder, pc.unique(table.column("judge_id").drop_null()).to_pylist(), rubric)
    table = table.filter(pc.is_valid(table.column("tier")))
    places = pc.index_in(table.column("tier"), pa.array(tiers)).to_numpy(zero_copy_only=False)
    if np.isnan(places.astype(np.float64)).any():
        raise LoreError(f"{folder} holds a tier that is none of {', '.join(tiers)}, so it is damaged. Label its pairs again.")
    given = [table.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in names]
    probabilities = np.stack(given, axis=1) if len(table) else np.zeros((0, len(tiers)))
    total = probabilities.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        probabilities = np.where((probabilities >= 0).all(axis=1, keepdims=True) & (total > 0), probabilities / total, np.nan)
    return JudgeLabels(folder, ledger.stamp, table, places.astype(np.int64), probabilities)


def _check_rubric(folder: str, judge_ids: list[str], rubric: Rubric) -> None:
    """Raises LoreError for labels under another rubric, whose tiers may have the same names."""
    for judge_id in judge_ids:
        _, found, _ = split_judge_id(judge_id)
        if found not in ("", rubric.hash):
            raise LoreError(
                f"{folder} was labelled under a rubric with the hash {found}, and rubric {rubric.name} of the human pairs has "
                f"{rubric.hash}, so its tiers mean something else.\nName the rubric of the labels in data.rubric, or label again "
                "with a judge of this one."
            )


def judge_verdicts(folder: str, rubric: Rubric, wanted: Labeled) -> dict[str, Verdict]:
    """The judge's verdicts on the wanted pairs, by pair_id, as far as the folder holds them."""
    ids, found = pa.array(wanted.pair_ids, pa.string()), {}
    for batch in read_labels(folder):
        for row in batch.filter(pc.is_in(batch.column("pair_id"), ids)).to_pylist():
            found[row["pair_id"]] = from_row(row, rubric.tier_ids)
    return found


def target_temperature(section: TargetsSection, labels: JudgeLabels, human: Human) -> tuple[float, str]:
    """(temperature of the judge's probabilities, what it was fitted on)."""
    if section.temperature is not None:
        return section.temperature, "given in the recipe"
    for part, remark in ((human.dev, ""), (human.train, ", which the judge may have been trained on")):
        both = zip(map(labels.place.get, part.pair_ids), part.gold, strict=True)
        rows = [(row, gold) for row, gold in both if row is not None and not np.isnan(labels.probabilities[row]).any()]
        if len(rows) >= FEWEST_FOR_A_TEMPERATURE:
            places, gold = (np.asarray(column, dtype=np.int64) for column in zip(*rows, strict=True))
            fitted_on = f"fitted on {len(rows):,} pairs of split {part.split}{remark}"
            return fit_temperature(labels.probabilities[places], gold), fitted_on
    return 1.0, f"not fitted: fewer than {FEWEST_FOR_A_TEMPERATURE} pairs of dev or train have a human label and one of the judge"


def judge_targets(labels: JudgeLabels, temperature: float, border: float) -> np.ndarray:
    """[N, K] targets: the judge's probabilities at the temperature, or its tier with some mass on the neighbors."""
    alone = np.isnan(labels.probabilities).any(axis=1)
    tempered = apply_temperature(np.where(alone[:, None], 1.0, labels.probabilities), temperature)
    return np.where(alone[:, None], border_targets(labels.tiers, labels.probabilities.shape[1], border), tempered)


@dataclass
class ChosenLabels:
    """Labels of the judge to train on. targets [N, K], weights [N]; ranks [N]: their order when there are more of them."""

    labels: JudgeLabels
    targets: np.ndarray
    weights: np.ndarray
    ranks: np.ndarray


def chosen_labels(recipe: DistillRecipe, human: Human, summary: dict[str, Any]) -> ChosenLabels:
    """The labels that the recipe trains on: of queries outside of dev and test, at most labels.limit. summary: gets what was used
    and left out."""
    section, rubric = recipe.labels, human.source.rubric
    labels = read_judge(section.path, rubric)
    held = labels if section.held_out is None else read_judge(section.held_out, rubric)
    if held.judge != labels.judge:
        raise LoreError(
            f"labels.held_out {section.held_out} is by the judge {held.judge or 'unknown'}, and labels.path {section.path} by "
            f"{labels.judge or 'unknown'}: the targets' temperature and the table would be those of another judge.\nLabel the dev "
            "and test pairs with the same judge."
        )
    temperature, fitted_on = target_temperature(recipe.targets, held, human)
    queries = labels.table.column("query").combine_chunks().dictionary_encode()
    free = np.asarray([normalize(query) not in human.held_out for query in queries.dictionary.to_pylist()], dtype=bool)
    rows = np.flatnonzero(free[queries.indices.to_numpy()]) if len(labels) else np.zeros(0, dtype=np.int64)
    summary |= {
        "judge": labels.judge,
        "labels": section.path,
        "labelled": len(labels),
        "of queries in dev or test": len(labels) - len(rows),
        "temperature": round(temperature, 4),
        "temperature is": fitted_on,
    }
    order = np.argsort(id_hashes(labels.table.column("pair_id").combine_chunks().take(pa.array(rows))), kind="stable")
    chosen = labels.take(np.sort(rows[order][: section.limit]))
    ranks = np.empty(len(chosen), dtype=np.int64)
    ranks[np.argsort(id_hashes(chosen.table.column("pair_id").combine_chunks()), kind="stable")] = np.arange(len(chosen))
    targets, weights = judge_targets(chosen, temperature, recipe.targets.border), np.ones(len(chosen))
    if section.second is not None:
        targets, weights = _with_second(recipe, chosen, targets, temperature, rubric, summary)
    return ChosenLabels(chosen, targets, weights, ranks)


def _with_second(
    recipe: DistillRecipe, chosen: JudgeLabels, targets: np.ndarray, temperature: float, rubric: Rubric, summary: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and weights from both readings."""
    second = read_judge(recipe.labels.second, rubric)
    if second.judge and second.judge == chosen.judge:
        raise LoreError(
            f"labels.second {recipe.labels.second} is by {second.judge}, as is labels.path {recipe.labels.path}: the same prompt "
            "twice, so the two never disagree.\nLabel the same input with another prompt order, or leave labels.second out."
        )
    places = np.asarray([second.place.get(pair_id, -1) for pair_id in chosen.table.column("pair_id").to_pylist()], dtype=np.int64)
    there = np.flatnonzero(places >= 0)
    if not len(there):
        raise LoreError(
            f"labels.second {recipe.labels.second} has none of the pairs of labels.path {recipe.labels.path}, so there is no "
            "second reading.\nLabel the same input with a judge of another prompt order, or leave labels.second out."
        )
    other = np.full(targets.shape, np.nan)
    other[there] = judge_targets(second.take(places[there]), temperature, recipe.targets.border)
    differs = int((chosen.tiers[there] != second.tiers[places[there]]).sum())
    summary |= {"read twice": len(there), "with two tiers": differs}
    return two_readings(targets, other, recipe.labels.least_weight)


def labelled_input(section: LabelsSection) -> InputSection:
    """The table of the labelled pairs: labels.pairs, or the input in the label folder's recipe. Raises LoreError without one."""
    if section.pairs is not None:
        return section.pairs
    why = "has no recipe.yaml"
    with suppress(LoreError):
        values = RunFolder(section.path).recipe_values
        if values:
            try:
                return InputSection.model_validate(values.get("input"))
            except ValidationError as error:
                why = f"has a recipe.yaml without a readable input ({reason(error)})"
    raise LoreError(
        f"labels.path {section.path} {why}, so it is unknown where the texts of its pairs are, and the label files hold none.\n"
        "Name the table that was labelled: labels.pairs: {path: pairs.parquet}."
    )
