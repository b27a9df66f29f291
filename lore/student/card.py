"""The card of a student, lore.json beside its weights: which judge it learned from, what it reads, how its answers are used.

Imports no torch: `is_student` decides whether a folder is opened as a judge or as a student.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from lore.codec.pair_text import PairTextFormat, pair_text_hash
from lore.judge.card import ADVICE, CARD, read_card, write_card
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.student.calibration import Calibration, Threshold
from lore.student.config import read_config
from lore.student.section import PairTextSection, StudentSection, VerdictRule
from lore.support.errors import LoreError

KIND = "student"


@dataclass(frozen=True)
class StudentCard:
    """A student as its card describes it. folder: of its weights."""

    folder: Path
    rubric: str
    rubric_hash: str
    renderer_hash: str
    fmt: PairTextFormat
    tiers: list[str]
    relevant: list[str]
    """The tiers that count as relevant."""
    calibration: Calibration
    thresholds: dict[str, Threshold]
    verdict: VerdictRule = "most_probable"
    """Which tier is the verdict, see lore.student.head.verdict_tiers."""


def student_card(
    section: StudentSection,
    fmt: PairTextFormat,
    rubric: Rubric,
    *,
    rubric_name: str,
    calibration: Calibration | None = None,
    thresholds: Mapping[str, Threshold] | None = None,
    verdict: VerdictRule = "most_probable",
    judge: str | None = None,
    labels: Any = None,
    data: Any = None,
) -> dict[str, Any]:
    """The card of a student in training. rubric_name: its name or path in the recipe; judge: judge_id of the labels; labels, data:
    fingerprints of what it was trained on."""
    return {
        "kind": KIND,
        "renderer_hash": pair_text_hash(rubric, fmt),
        "rubric_hash": rubric.hash,
        "rubric": rubric_name,
        "base": section.encoder or "scratch",
        "prompt": fmt.to_dict(),
        "student": {"kind": section.kind, "head": section.head, "photo": getattr(section, "photo", "none")},
        "tiers": list(rubric.tier_ids),
        "relevant": [tier for tier, kept in zip(rubric.tier_ids, rubric.relevant_mask, strict=True) if kept],
        "calibration": (calibration or Calibration()).model_dump(),
        "thresholds": {use: one.model_dump() for use, one in (thresholds or {}).items()},
        "verdict": verdict,
        "judge": judge,
        "labels": labels,
        "data": data,
    }


def student_folder(path: str | Path) -> Path | None:
    """The folder of the student in a run folder (runs/distill), a model folder or an exported folder; None if there is none."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / CARD).is_file():
            return folder if (read_card(folder) or {}).get("kind") == KIND else None
    return None


def is_student(path: str | Path) -> bool:
    """Whether there is a student at a path. Reads its card only."""
    return student_folder(path) is not None


def read_student(path: str | Path) -> StudentCard:
    """The card of the student at a path. Raises LoreError if there is none, for a damaged one, and for a run
    that is not finished."""
    folder, run = student_folder(path), RunFolder(path)
    if run.exists and not run.is_done:
        as_it_is = f", or name {folder} to take the student as it is" if folder else ""
        raise LoreError(
            f"{path} is not a finished run, so it has no student that is trained to the end and calibrated.\nRun its recipe again, "
            f"which resumes it{as_it_is}."
        )
    if folder is None:
        raise LoreError(
            f"{path} is not the folder of a student.\nName the run folder of stage distill, such as runs/distill, its model "
            "folder, or a folder that `lore export student` wrote."
        )
    card, config = read_card(folder) or {}, read_config(folder)
    try:
        fmt = PairTextSection.model_validate(card["prompt"]).format()
        calibration = Calibration.model_validate(card.get("calibration") or {})
        calibration.check_tiers(len(config.tiers))
        if (verdict := card.get("verdict", "most_probable")) not in get_args(VerdictRule):
            raise ValueError(f"verdict {verdict!r}")
        thresholds = {str(use): Threshold.model_validate(one) for use, one in (card.get("thresholds") or {}).items()}
        found = StudentCard(
            folder,
            str(card["rubric"]),
            str(card["rubric_hash"]),
            str(card["renderer_hash"]),
            fmt,
            [str(tier) for tier in card["tiers"]],
            [str(tier) for tier in card["relevant"]],
            calibration,
            thresholds,
            verdict,
        )
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoreError(f"{folder / CARD} is damaged ({error}), so it is unknown how to ask the student.\n{ADVICE}") from error
    if found.tiers != config.tiers or not set(found.relevant) <= set(found.tiers):
        raise LoreError(
            f"{folder / CARD} names the tiers {', '.join(found.tiers)}, and the weights have outputs for {', '.join(config.tiers)}."
            f"\n{ADVICE}"
        )
    if (now := pair_text_hash(found.rubric_hash, fmt)) != found.renderer_hash:
        raise LoreError(
            f"{folder} was trained with renderer {found.renderer_hash}, and this version of LORE would show it pairs with {now}.\n"
            "Its answers would be unreliable. Use the version that trained it, or train it again."
        )
    return found


def check_rubric(card: StudentCard, rubric: Rubric, what: str) -> None:
    """Raises LoreError for a student of another rubric. what: where it is named."""
    if card.rubric_hash != rubric.hash:
        raise LoreError(
            f"{what}: {card.folder} was trained for rubric {card.rubric} ({card.rubric_hash}), and rubric {rubric.name} is now "
            f"{rubric.hash}.\nIts tiers would mean something else: use the rubric of its training, or train a student for this one."
        )


def write_student_card(folder: str | Path, card: dict[str, Any]) -> None:
    """Stores the card next to the weights."""
    write_card(Path(folder), card)
