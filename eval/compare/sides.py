"""The judges of a comparison, aligned to the same pairs in the same order. Judges with different pairs are refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lore.data.pair import query_key
from lore.data.parquet import fingerprint, read_pairs
from lore.data.tables.ids import known_as
from lore.eval.compare.finished import Finished, read_run
from lore.eval.compare.judge_predictions import JudgePredictions, read_judge_predictions
from lore.eval.measures.bootstrap import query_groups
from lore.eval.measures.calibration import apply_temperature
from lore.eval.measures.metrics import confidence_of
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

SHOWN_IDS = 5


@dataclass
class Side:
    """One judge of one run."""

    run: Finished
    judge: str
    predictions: JudgePredictions
    name: str = ""
    """Name in the tables: the judge's name if it is unique, else with its run."""

    @property
    def calibrated(self) -> np.ndarray | None:
        """[N] confidence under the temperature that the run fitted on its dev split; None without one."""
        temperature = self.run.judges[self.judge].get("temperature")
        if temperature is None or self.predictions.probabilities is None:
            return None
        return confidence_of(apply_temperature(self.predictions.probabilities, temperature), self.predictions.predicted)


@dataclass
class Sides:
    """The judges of a comparison. The first is the baseline; all others are aligned to its pairs."""

    first: Side
    others: list[Side]
    groups: np.ndarray
    """[N] integers, one per query."""
    weights: np.ndarray | None
    """[N] label_weight of each pair, if the first run weighted by it."""
    notes: list[str]
    """Differences between the runs that do not prevent a comparison."""


def open_sides(arguments: Sequence[str], *, across_rubrics: bool = False) -> Sides:
    """Opens judges given as `runs/a` or `runs/a:judge name`. Raises LoreError unless all have the same pairs with the same
    queries, labels and rubric. across_rubrics allows different rubrics with the same tiers."""
    chosen = [_chosen(argument) for argument in arguments]
    _check_rubrics([run for run, _ in chosen], across_rubrics)
    places = [(run.predictions.resolve(), judge) for run, judge in chosen]
    for at, place in enumerate(places):
        if place in places[:at]:
            raise LoreError(f"{arguments[at]} is given twice, and a judge cannot differ from itself. Name another one.")
    sides = [Side(run, judge, read_judge_predictions(run, judge)) for run, judge in chosen]
    first, *others = sides
    for side in others:
        _bring_to(first, side)
    _name(sides)
    said = zip(first.predictions.queries, first.predictions.slices, strict=True)
    groups = query_groups([query_key(query, names) for query, names in said])
    return Sides(first, others, groups, _weights(first), _notes(first, others))


def _chosen(argument: str) -> tuple[Finished, str]:
    path, judge = argument, None
    if not Path(argument).exists() and ":" in argument:
        path, _, judge = argument.rpartition(":")
    run = read_run(path)
    if judge is not None:
        if judge not in run.judges:
            names = list(run.judges)
            raise LoreError(f"{path} has no judge {judge!r}; it has {', '.join(names)}.{nearest_hint(judge, names)}")
        return run, judge
    candidates = run.asked or list(run.judges)
    if len(candidates) > 1:
        raise LoreError(
            f"{path} holds {len(run.judges)} judges, and the argument does not say which one to compare. Name one: "
            + ", ".join(f'"{path}:{name}"' for name in run.judges)
        )
    return run, candidates[0]


def _check_rubrics(runs: list[Finished], across_rubrics: bool) -> None:
    known = [run for run in runs if run.rubric]
    if not known:
        raise LoreError(
            f"{runs[0].name} is a predictions file without its run, so it is unknown which tiers count as relevant. Name its run "
            "folder, or compare it with a finished run."
        )
    first = known[0].rubric
    for run in known[1:]:
        rubric = run.rubric
        tiers = [list(zip(r["tiers"], r["relevant"], strict=True)) for r in (first, rubric)]
        if tiers[0] != tiers[1]:
            raise LoreError(
                f"{run.name} was judged by rubric {rubric['name']} with tiers {_tiers(rubric)}, {known[0].name} by {first['name']} "
                f"with tiers {_tiers(first)} (* relevant), so their verdicts do not mean the same and cannot be compared."
            )
        if rubric["hash"] != first["hash"] and not across_rubrics:
            changed = "which changed between the two runs" if rubric["name"] == first["name"] else "another rubric"
            raise LoreError(
                f"{run.name} was judged by rubric {rubric['name']} ({rubric['hash']}), {known[0].name} by {first['name']} "
                f"({first['hash']}), {changed}: labels and prompts may follow other rules. Evaluate both with the same rubric, or "
                "pass --across-rubrics if only the judges' instructions differ; the labels are compared in any case."
            )
    for run in runs:
        run.rubric = run.rubric or first


def _tiers(rubric: dict) -> str:
    return ", ".join(tier + "*" * relevant for tier, relevant in zip(rubric["tiers"], rubric["relevant"], strict=True))


def _bring_to(first: Side, side: Side) -> None:
    """Reorders the side's pairs to match the first. Raises LoreError, with ids, if the pairs are not the same."""
    spelled = known_as(first.predictions.pair_ids)
    side.predictions.pair_ids = [spelled(pair_id) for pair_id in side.predictions.pair_ids]
    place = {pair_id: at for at, pair_id in enumerate(side.predictions.pair_ids)}
    own = set(first.predictions.pair_ids)
    problems = {
        f"missing in {side.run.name}": [pair_id for pair_id in first.predictions.pair_ids if pair_id not in place],
        f"missing in {first.run.name}": [pair_id for pair_id in side.predictions.pair_ids if pair_id not in own],
    }
    for what, values in (("label", "labels"), ("query", "queries")):
        theirs, ours = getattr(side.predictions, values), getattr(first.predictions, values)
        problems[f"with another {what}"] = [
            f"{pair_id} ({ours[at]!r}, {theirs[place[pair_id]]!r})"
            for at, pair_id in enumerate(first.predictions.pair_ids)
            if pair_id in place and ours[at] != theirs[place[pair_id]]
        ]
    lines = []
    for what, ids in problems.items():
        if ids:
            shown = ", ".join(str(pair_id)[:160] for pair_id in ids[:SHOWN_IDS])
            lines.append(f"  {len(ids):,} of {len(own):,} pairs {what}: {shown}{', …' * (len(ids) > SHOWN_IDS)}")
    if lines:
        raise LoreError(
            f"{side.run.name} was not tested on the pairs of {first.run.name}, and a comparison over only some pairs misleads:\n"
            + "\n".join(lines)
            + "\nEvaluate both on the same data, split, limits and seed."
        )
    side.predictions = side.predictions.taken([place[pair_id] for pair_id in first.predictions.pair_ids])


def _name(sides: list[Side]) -> None:
    """Sets the shortest names that distinguish the judges."""
    for name_of in (
        lambda side: side.judge,
        lambda side: f"{side.judge} ({side.run.name})",
        lambda side: f"{side.judge} ({side.run.folder or side.run.predictions})",
    ):
        names = [name_of(side) for side in sides]
        if len(set(names)) == len(names):
            break
    for side, name in zip(sides, names, strict=True):
        side.name = name


def _weights(first: Side) -> np.ndarray | None:
    """label_weight of each pair, read from the test data because predictions hold no weights."""
    if not first.run.measured.label_weights:
        return None
    path, data = first.run.data_files(), first.run.data
    how = f"{first.run.name} weights each pair by its label_weight"
    if path is None:
        raise LoreError(f"{how}, and its data {data.get('path')} with the weights does not exist. Restore it.")
    if data.get("fingerprint") not in (None, fingerprint(path)):
        raise LoreError(f"{how}, and {path} has changed since, so its weights may differ. Restore the file or evaluate again.")
    pairs = read_pairs(path, split=data.get("split"), columns=["pair_id", "query", "title", "label_weight"])
    weight: dict[str, float] = {}
    for pair in pairs:
        weight.setdefault(pair.pair_id, pair.label_weight)  # the evaluation counted the first row of a repeated pair
    if missing := [pair_id for pair_id in first.predictions.pair_ids if pair_id not in weight]:
        shown = ", ".join(missing[:SHOWN_IDS])
        raise LoreError(f"{how}, but {len(missing)} test pairs are not in {path}: {shown}. Restore the file or evaluate again.")
    return np.asarray([weight[pair_id] for pair_id in first.predictions.pair_ids], dtype=np.float64)


def _notes(first: Side, others: list[Side]) -> list[str]:
    notes = []
    for side in others:
        if side.run.folder and first.run.folder:
            pairs = zip(vars(first.run.measured).items(), vars(side.run.measured).values(), strict=True)
            if different := [f"metrics.{key} {own!r}, there {their!r}" for (key, own), their in pairs if own != their]:
                notes.append(
                    f"{side.run.name} used other settings; all judges are measured as in {first.run.name}: {'; '.join(different)}"
                )
        if side.run.rubric["hash"] != first.run.rubric["hash"]:
            notes.append(f"{side.run.name} was judged by another version of the rubric; tiers and labels are the same")
        other = sum(set(a) != set(b) for a, b in zip(first.predictions.slices, side.predictions.slices, strict=True))
        if other:
            notes.append(f"{other:,} pairs have other slices in {side.run.name}; the slices here are those of {first.run.name}")
    return notes
