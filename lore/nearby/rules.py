"""The rule book rubrics/local_life.yaml for a question and a place: what is computed, and what a judge or student may add.

The rules of the circle, of opening hours, of excluded words in a name, and of company that a tag settles are computed. The worst of
them is the ceiling of a place: whatever a judge says, its tier is no better. A grade above the ceiling, or one that rests on a rule
that the computation contradicts, is refused and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path

from lore.data.pair import Pair
from lore.judge.scorer import Scorer
from lore.judge.verdict import Verdict
from lore.nearby.hours import Opening
from lore.nearby.intent import Intent
from lore.nearby.place import plain_name
from lore.nearby.retrieval import Candidate
from lore.rubric.rubric import Rubric, load_rubric
from lore.support.errors import LoreError

COMPANY_TAGS = {
    "dog": ("dog", "dogs", "pets", "pets_allowed"),
    "wheelchair": ("wheelchair",),
    "stroller": ("stroller", "wheelchair"),
    "kids": ("kids_area", "highchair", "changing_table", "children"),
}
"""OpenStreetMap's keys by companion. Only kinds of company that a tag can settle."""
SHOWN_TAGS = 12


@cache
def local_life() -> Rubric:
    return load_rubric("local_life")


@dataclass(frozen=True)
class RuleVerdict:
    """rule: id in the rubric; tier: that of the rule."""

    rule: str
    tier: str


def computed(candidate: Candidate, intent: Intent) -> list[RuleVerdict]:
    """The rules that need no judge. Unknown hours are a rule of their own, never taken for open or closed."""
    found = ["circle-within" if candidate.minutes <= intent.minutes + 1e-6 else "circle-beyond"]
    if intent.open_then:
        found.append(f"hours-{candidate.opening.state}")
    name = f" {plain_name(candidate.place.name)} "
    excluded = [plain_name(need.text) for need in intent.needs if need.excluded]
    if excluded:
        found.append("exclusion-broken" if any(one and f" {one} " in name for one in excluded) else "exclusion-kept")
    tags = candidate.place.tags
    said = {tags[key] for one in intent.companions for key in COMPANY_TAGS.get(one, ()) if key in tags}
    if said & {"yes", "no", "limited", "leashed"}:
        found.append("company-refused" if "no" in said else "company-welcome")
    tier_of = {rule.id: rule.tier for rule in local_life().rules}
    return [RuleVerdict(rule, tier_of[rule]) for rule in found]


def ceiling(candidate: Candidate, intent: Intent) -> str:
    """The best tier that the computed rules leave to a place."""
    tier = local_life().verdict_over([one.tier for one in computed(candidate, intent)])
    assert tier is not None  # the circle is always computed, and the rubric takes the worst
    return tier


def grade(candidates: Sequence[Candidate], intent: Intent, scorer: Scorer) -> tuple[list[Candidate], int]:
    """The candidates with their tiers, in the same order, and how many grades were refused. A grade that is missing, or that rests
    on a contradicted rule, leaves the tier None. Raises LoreError for a scorer of another rubric."""
    rubric = local_life()
    if scorer.tier_ids != rubric.tier_ids:
        raise LoreError(
            f"The judge grades {', '.join(scorer.tier_ids)}, and rubric {rubric.name} has {', '.join(rubric.tier_ids)}. Its grades "
            f"would mean something else: name a judge that was trained on rubric {rubric.name}."
        )
    verdicts = scorer.score([_pair(one, intent) for one in candidates])
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
    engine = open_engine(judge.model, judge.rubric, shared_prefix=True, only_scores=judge.fmt.order != "reason_first")
    name = judge_id(judge.weights, judge.rubric.hash, judge.renderer)
    return JudgeScorer(engine, judge.rubric, judge.fmt, Sampling(), name)


def opening_text(opening: Opening, intent: Intent) -> str:
    """`open until 18:00`, `closed until Tue 09:00`, `hours unknown`, in the language of the question."""
    zh, until, when = intent.language == "zh", opening.until, intent.when
    if opening.state == "unknown":
        return "营业时间未知" if zh else "hours unknown"
    is_open = opening.state == "open"
    if until is None:
        return ("一直营业" if is_open else "不营业") if zh else ("open all the time" if is_open else "closed")
    soon = when is not None and until - when < timedelta(hours=24) and (is_open or until.date() == when.date())
    day = "" if soon else f"周{'一二三四五六日'[until.weekday()]}" if zh else f"{until:%a} "
    if zh:
        return f"营业至{day}{until:%H:%M}" if is_open else f"已打烊，{day}{until:%H:%M}开门"
    return f"{opening.state} until {day}{until:%H:%M}"


def _pair(candidate: Candidate, intent: Intent) -> Pair:
    """The question and the place as a judge reads them. Its renderer makes texts of strangers safe."""
    place = candidate.place
    asked = f"at {intent.when:%a %H:%M}: " if intent.when is not None else ""
    known = {
        "category": ", ".join(place.classes),
        "walk": f"{candidate.minutes:.0f} minutes of {intent.minutes:.0f}",
        "opening": asked + opening_text(candidate.opening, intent),
        "found by": "; ".join(hit.why for hit in candidate.hits.values()),
    }
    attributes = {key: value for key, value in known.items() if value} | dict(list(place.tags.items())[:SHOWN_TAGS])
    return Pair(
        pair_id=str(candidate.row),
        query=intent.text,
        item_id=place.place_id,
        title=place.name or place.place_id,
        attributes=attributes,
        description=place.text or None,
    )


def _allowed(verdict: Verdict, candidate: Candidate, intent: Intent, rubric: Rubric) -> tuple[str | None, bool]:
    """(tier, whether the grade was refused)."""
    if verdict.tier is None:
        return None, False
    rules = {one.id: one for one in rubric.rules}
    by_dimension = {rules[one.rule].dimension: one for one in computed(candidate, intent)}
    cited = [(rules[rule].dimension, rule) for rule in verdict.rules if rule in rules]
    contradicts = any(dimension in by_dimension and by_dimension[dimension].rule != rule for dimension, rule in cited)
    blamed = by_dimension.get(verdict.mismatch or "")
    if contradicts or (blamed is not None and blamed.tier not in rubric.mismatch_tiers):
        return None, True
    best = ceiling(candidate, intent)
    return (best, True) if rubric.index(verdict.tier) > rubric.index(best) else (verdict.tier, False)
