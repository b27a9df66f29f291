"""Grades of a judge or student for places, under the computed rules of lore.places.local_life.

A grade above the ceiling of a place, or one that rests on a rule that the computation contradicts, is refused and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lore.judge.scorer import Scorer
from lore.judge.verdict import Verdict
from lore.places.local_life import ceiling, computed, local_life, pair
from lore.places.question import Candidate, Intent
from lore.rubric.computed_rules import contradicts
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError


def grade(candidates: Sequence[Candidate], intent: Intent, scorer: Scorer) -> tuple[list[Candidate], int]:
    """The candidates with their tiers, in the same order, and how many grades were refused. A grade that is missing, or that rests
    on a contradicted rule, leaves the tier None. Raises LoreError for a scorer of another rubric."""
    rubric = local_life()
    if scorer.tier_ids != rubric.tier_ids:
        raise LoreError(
            f"The judge grades {', '.join(scorer.tier_ids)}, and rubric {rubric.name} has {', '.join(rubric.tier_ids)}. Its grades "
            f"would mean something else: name a judge that was trained on rubric {rubric.name}."
        )
    verdicts = scorer.score([pair(one, intent) for one in candidates])
    graded, refused = [], 0
    for candidate, verdict in zip(candidates, verdicts, strict=True):
        tier, was_refused = _allowed(verdict, candidate, intent, rubric)
        graded.append(replace(candidate, tier=tier))
        refused += was_refused
    return graded, refused


def ordered(candidates: Sequence[Candidate], intent: Intent, personal: Mapping[int, float] | None = None) -> list[Candidate]:
    """The best tier first, that of the computed rules where there is no grade. Within a tier by personal score (by row of the town)
    where there is one, then as they come."""
    rubric, liked = local_life(), personal or {}
    return sorted(candidates, key=lambda one: (-rubric.index(one.tier or ceiling(one, intent)), -liked.get(one.row, 0.0)))


def open_scorer(folder: str | Path) -> Scorer:
    """The judge or student in a run folder or model folder. Raises LoreError if its rubric is not local_life."""
    # They load torch or onnxruntime: only where a judge is named.
    from lore.engines.engine import Sampling
    from lore.engines.open_engine import open_engine
    from lore.judge.card import judge_id
    from lore.judge.scorer import JudgeScorer
    from lore.judge.trained import trained_judge
    from lore.student.card import check_rubric, is_student, read_student
    from lore.student.scorer import open_student

    if is_student(folder):
        check_rubric(read_student(folder), local_life(), "--judge")
        return open_student(folder)
    judge = trained_judge(folder)
    if judge.rubric.hash != local_life().hash:
        raise LoreError(
            f"--judge: {folder} was trained for rubric {judge.rubric.name} ({judge.rubric.hash}), and places are judged by "
            f"{local_life().name} ({local_life().hash}). Its tiers would mean something else: name a judge of this rubric."
        )
    engine = open_engine(judge.model, judge.rubric, only_scores=judge.fmt.order != "reason_first")
    name = judge_id(judge.weights, judge.rubric.hash, judge.renderer)
    return JudgeScorer(engine, judge.rubric, judge.fmt, Sampling(), name)


def _allowed(verdict: Verdict, candidate: Candidate, intent: Intent, rubric: Rubric) -> tuple[str | None, bool]:
    """(tier, whether the grade was refused)."""
    if verdict.tier is None:
        return None, False
    known = [one.rule for one in computed(candidate, intent)]
    if contradicts(rubric, known, verdict.rules, verdict.rationale, verdict.mismatch):
        return None, True
    best = ceiling(candidate, intent)
    return (best, True) if rubric.index(verdict.tier) > rubric.index(best) else (verdict.tier, False)
