"""Reads finished evaluation runs: the test set, the settings, and each judge's metrics and verdicts.

A run is read as a whole or refused: metrics.json and predictions.parquet must belong together. Keys that older versions of
LORE did not write count as missing, never as zero.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lore.config.stages import RENAMED
from lore.config.yaml_text import read_record
from lore.eval.measures.bootstrap import Estimate
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError, reason
from lore.support.json_files import parse_object

BASELINES = ("lexical", "majority")
APART = ("risk", "samples", "agreement", "robustness", "capability")
"""Keys of metrics.json with results beyond the metrics."""


@dataclass(frozen=True)
class Measured:
    """How a run weighted and counted pairs. Runs that differ here have metrics that do not belong in one table."""

    label_weights: bool = False
    prior: dict[str, float] | None = None
    gains: dict[str, float] | None = None
    border_cost: float = 1.0
    optimism_cost: float = 1.0


@dataclass
class Finished:
    """A finished evaluation run, or a single predictions file (folder None: without metrics)."""

    name: str
    predictions: Path
    folder: Path | None = None
    rubric: dict[str, Any] = field(default_factory=dict)
    """name, hash, tiers (worst first), relevant (one bool per tier)."""
    data: dict[str, Any] = field(default_factory=dict)
    """path, fingerprint, split, pairs, queries."""
    measured: Measured = field(default_factory=Measured)
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The entry of each judge in metrics.json; {} for the judges of a single predictions file."""

    @property
    def tiers(self) -> list[str]:
        return self.rubric["tiers"]

    @property
    def asked(self) -> list[str]:
        """The judges that are not baselines."""
        return [name for name, entry in self.judges.items() if entry.get("kind", name) not in BASELINES]

    def data_files(self) -> Path | None:
        """Current path of the test pairs: where the run read them, or its imported copy if the folder was moved."""
        moved = [self.folder / "data" / "pairs.parquet"] if self.folder else []
        return next((path for path in (Path(str(self.data.get("path"))), *moved) if path.exists()), None)


def is_finished(folder: Path) -> bool:
    """True for the folder of an evaluation that finished, even if its results were damaged since. Raises LoreError if recipe.yaml
    is lost."""
    RunFolder(folder).recipe_values  # noqa: B018
    return RunFolder(folder).is_done and _stage(folder) == "evaluate"


def why_not(path: Path) -> str:
    """Why a path is not the folder of a finished evaluation."""
    if not path.is_dir():
        return "no folder"
    if not RunFolder(path).exists:
        return "no run"
    try:
        stage = _stage(path)
    except LoreError as error:
        return " ".join(str(error).split())
    return "evaluation not finished" if stage == "evaluate" else f"stage {stage}"


def read_run(path: str | Path) -> Finished:
    """Reads a finished run by its folder or its predictions.parquet. Raises LoreError for an unfinished or damaged one."""
    path = Path(path)
    if path.is_file():
        if path.name == "predictions.parquet" and is_finished(path.parent):
            return read_run(path.parent)
        return _read_file(path)
    if not path.is_dir():
        raise LoreError(f"There is no run folder {path}. Name the folder of a finished evaluation, such as runs/NAME.")
    if not is_finished(path):
        if _stage(path) == "evaluate":
            raise LoreError(
                f"{path} is an evaluation that has not finished, so it has verdicts for only some of the pairs. Run its recipe "
                "again: it resumes where it stopped."
            )
        raise LoreError(
            f"{path} holds no evaluation ({why_not(path)}), so there are no results to read. Name a run of stage evaluate."
        )
    RunFolder(path).summary  # noqa: B018 (a damaged one is an error)
    with damage_named(path):
        return _read_folder(path)


def _read_folder(path: Path) -> Finished:
    content, recipe = _json(path / "metrics.json"), _recipe(path)
    rubric, judges = content.get("rubric"), content.get("judges")
    keys = ("name", "hash", "tiers", "relevant")
    if not isinstance(judges, dict) or not judges or not isinstance(rubric, dict) or any(key not in rubric for key in keys):
        raise damaged(path, "metrics.json lacks its judges or its rubric")
    if not all(isinstance(entry, dict) for entry in judges.values()):
        raise damaged(path, "metrics.json has no results of a judge")
    metrics = recipe.get("metrics") or {}
    measured = Measured(
        label_weights=bool(metrics.get("label_weights")),
        prior=content.get("prior"),
        gains=metrics.get("gains"),
        border_cost=metrics.get("border_cost", 1.0),
        optimism_cost=metrics.get("optimism_cost", 1.0),
    )
    name = str(recipe.get("run") or path.name)
    return Finished(name, path / "predictions.parquet", path, rubric, content.get("data") or {}, measured, judges)


def estimate_of(value: Any) -> Estimate:
    """Reads the output of Estimate.to_json; nan if there is none."""
    value = value if isinstance(value, dict) else {}
    return Estimate(*(float("nan") if value.get(key) is None else float(value[key]) for key in ("value", "low", "high")))


def found_apart(entry: dict[str, Any]) -> dict[str, Estimate]:
    """Every estimate of a judge beyond its metrics, by a name that describes its place in metrics.json."""
    return {name: estimate for key in APART for name, estimate in _estimates(entry.get(key), key)}


def _estimates(value: Any, at: str) -> Iterator[tuple[str, Estimate]]:
    if isinstance(value, dict) and "value" in value and "low" in value:
        yield at, estimate_of(value)
    elif isinstance(value, dict):
        named = " ".join(str(value[key]) for key in ("capability", "kind", "name", "condition") if isinstance(value.get(key), str))
        at = f"{at}: {named}" if named else at
        for key, inner in value.items():
            yield from _estimates(inner, f"{at} {key}")
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict) and "value" not in inner:  # a curve, such as risk by coverage, is not a single result
                yield from _estimates(inner, at)


def _read_file(path: Path) -> Finished:
    """Reads a predictions.parquet without its run. Its rubric must come from the runs that it is compared with."""
    if path.suffix != ".parquet":
        raise LoreError(
            f"{path} is neither a run folder nor a predictions.parquet, so it has no labels and queries. Evaluate it first: as a "
            "judge of kind predictions in a recipe of stage evaluate."
        )
    names = _schema(path)
    if absent := [name for name in ("judge", "pair_id", "query", "label", "tier") if name not in names]:
        raise LoreError(
            f"{path} has no column {' and no '.join(absent)}, so it was not written by an evaluation. Evaluate it first: as a "
            "judge of kind predictions in a recipe of stage evaluate."
        )
    judges = pc.unique(_table(path, path, ["judge"])["judge"]).to_pylist()
    return Finished(str(path), path, judges={str(judge): {} for judge in judges})


def read_columns(run: Finished, columns: Iterable[str], judge: str) -> pa.Table:
    """The given columns of one judge's predictions, without those that the file does not have."""
    path = run.predictions
    if not path.is_file():
        raise damaged(run.folder, "it has no predictions.parquet")
    names = _schema(path)
    return _table(path, run.folder or path, [name for name in columns if name in names], [("judge", "=", judge)])


def _table(path: Path, owner: Path, columns: list[str], filters: list[tuple] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, filters=filters)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(owner, f"{path.name} cannot be read ({error})") from error


def _schema(path: Path) -> list[str]:
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(path, f"it cannot be read as Parquet ({error})") from error
    if "judge" not in names:
        raise damaged(path, "it has no column judge")
    return names


def _stage(folder: Path) -> str | None:
    """The stage of a run folder by its present name; None if the folder is not a run."""
    if not RunFolder(folder).exists:
        return None
    stage = str(_recipe(folder).get("stage"))
    return RENAMED.get(stage, stage)


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        return read_record(folder / "recipe.yaml")
    except (OSError, ValueError) as error:
        raise damaged(folder, f"recipe.yaml cannot be read ({reason(error)})") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path.parent, f"{path.name} cannot be read ({reason(error)})") from error


@contextmanager
def damage_named(path: Path | None) -> Iterator[None]:
    """Translates whatever an odd value in the results of a run raises."""
    try:
        yield
    except LoreError:
        raise
    except Exception as error:
        raise damaged(path, f"its results hold a value that an evaluation does not write ({reason(error)})") from error


def damaged(path: Path | None, what: str) -> LoreError:
    """The error for a run or file with contradictory content."""
    return LoreError(
        f"{path} is damaged: {what}. Its numbers cannot be trusted. Restore the file, or delete the run and evaluate again."
    )
