"""The rule book rubrics/local_life.yaml for a question and a place: the rules that are computed, and the pair that a judge reads.

The rules of the circle, of opening hours, of excluded words in a name, and of company that a tag settles are computed. The worst of
them is the ceiling of a place: whatever a judge says, its tier is no better.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cache

from lore.data.pair import Pair
from lore.places.hours import Opening
from lore.places.place import plain_name
from lore.places.question import Candidate, Intent
from lore.rubric import computed_rules
from lore.rubric.rubric import Rubric, load_rubric

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


def in_circle(candidate: Candidate, intent: Intent) -> bool:
    return candidate.minutes <= intent.minutes + 1e-6


def computed(candidate: Candidate, intent: Intent) -> list[RuleVerdict]:
    """The rules that need no judge. Unknown hours are a rule of their own, never taken for open or closed."""
    found = ["circle-within" if in_circle(candidate, intent) else "circle-beyond"]
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
    tier = computed_rules.ceiling(local_life(), [one.rule for one in computed(candidate, intent)])
    assert tier is not None  # the circle is always computed, and the rubric takes the worst
    return tier


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


def walk_text(candidate: Candidate, intent: Intent) -> str:
    """`8 minutes, within 15`."""
    return f"{candidate.minutes:.0f} minutes, {'within' if in_circle(candidate, intent) else 'beyond'} {intent.minutes:.3g}"


def pair(candidate: Candidate, intent: Intent) -> Pair:
    """The question and the place as a judge reads them. Its renderer makes texts of strangers safe; a tag cannot pass for what was
    computed."""
    place = candidate.place
    asked = f"at {intent.when:%a %H:%M}: " if intent.when is not None else ""
    known = {
        "category": ", ".join(place.classes),
        "walk": walk_text(candidate, intent),
        "opening": asked + opening_text(candidate.opening, intent),
        "found by": "; ".join(hit.why for hit in candidate.hits.values()),
    }
    tags = [(key, value) for key, value in place.tags.items() if plain_name(key) not in known][:SHOWN_TAGS]
    attributes = {key: value for key, value in known.items() if value} | dict(tags)
    return Pair(
        pair_id=str(candidate.row),
        query=intent.text,
        item_id=place.place_id,
        title=place.name or place.place_id,
        attributes=attributes,
        description=place.text or None,
    )
