"""Questions to the made-up town, and pairs of a question and a place with the label that the rule book gives them.

The circle, hours, exclusion and company are computed by lore.places.local_life, from the same fields and in the same text as when
`lore nearby ask` shows a place to a judge. Whether the need is met is known, because the generator has chosen it. Half of the
questions have a twin: the same place, asked with another walk, time or companion that changes the label.

Every pair is a function of (seed, split, number). Questions of dev and test hold a wording that no training question has, or are
asked in an area that no training pair is in.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from lore.codec.judgement import render_demands
from lore.data.pair import Pair, pair_digest
from lore.data_synth.local_life.town import COUNTRY, DAYS, FIRST_DAY, TIMEZONE, MadeUpTown, lexicon
from lore.places.hours import opening_of
from lore.places.local_life import COMPANY_TAGS, computed, local_life, opening_text, pair, walk_text
from lore.places.question import WALK_MINUTES, Candidate, Hit, Intent, Need
from lore.places.walk import DETOUR, METRES_PER_MINUTE, haversine
from lore.rubric.demand import Demand

PLACES_PER_QUESTION = 4
TRIES = 40
"""Places that are looked at for one of the wanted tier."""
WALKS = (5, 8, 10, 12, 15, 20)
HOLIDAYS = ("2026-07-03", "2026-11-26", "2026-12-25", "2027-01-01", "2027-05-31")
NIGHT = (22, 23, 0, 1, 2, 3)


@dataclass(frozen=True)
class Asked:
    """A question before it is worded. at: how it says the time: not at all, now, by day, or by date."""

    need: str
    condition: str | None
    brand: str | None
    companion: str | None
    minutes: int | None
    now: datetime
    when: datetime
    at: str
    lat: float
    lon: float
    chinese: bool


class Questions:
    """Pairs of one town. chinese: share of Chinese questions."""

    def __init__(self, town: MadeUpTown, chinese: float = 0.25):
        self.town, self.chinese = town, chinese
        self.rubric = local_life()
        self._lats, self._lons = (np.array([getattr(one, name) for one in town.places]) for name in ("lat", "lon"))
        held_out = np.array([area in town.held_out for area in town.area_of])
        self._rows = {True: np.flatnonzero(held_out).tolist(), False: np.flatnonzero(~held_out).tolist()}
        self._kinds = [one.classes[0] for one in town.places]

    def pairs(self, split: str, count: int, start: int = 0) -> Iterator[Pair]:
        """`count` pairs of a split (train, dev, test), PLACES_PER_QUESTION a question, from pair number `start`."""
        question, found = -1, []
        for number in range(start, start + count):
            if number // PLACES_PER_QUESTION != question:
                question = number // PLACES_PER_QUESTION
                found = self._of_question(split, question)
            yield found[number % PLACES_PER_QUESTION]

    def intent(self, asked: Asked, wording: random.Random, new: bool) -> Intent:
        """The question in words, in the compatible characters that `lore nearby ask` turns all text into, and as it should
        understand it. new: with held-out wordings, of the need and of others."""
        words, language = lexicon(), "zh" if asked.chinese else "en"
        said: dict[str, str] = {}
        entries = {
            "lead": words["lead"],
            "need": words["needs"][asked.need],
            "condition": words["conditions"].get(asked.condition),
            "exclusion": words["exclusion"] if asked.brand else None,
            "circle": words["circle"] if asked.minutes else None,
            "time": words.get(asked.at),
            "company": words["companions"].get(asked.companion),
        }
        draws = {name: wording.random() for name in (*entries, "order")}  # a twin draws the same
        for name, entry in entries.items():
            if entry is not None:
                forms = entry[f"ask_{language}"]
                kept = len(forms) - (max(1, len(forms) // 4) if len(forms) > 1 else 0)
                first = kept if new and name == "need" else 0
                said[name] = forms[first + int(draws[name] * ((len(forms) if new else kept) - first))]
        filled = {"brand": asked.brand, "minutes": asked.minutes, "day": _day(asked), "clock": f"{asked.when:%H:%M}"}
        filled["date"] = f"{asked.when:%Y-%m-%d}"
        parts = {name: form.format(**filled) for name, form in said.items()}
        head, last = [parts.pop("lead"), parts.pop("need")], [parts.pop("exclusion")] if asked.brand else []
        tail = list(parts.values())
        random.Random(draws["order"]).shuffle(tail)
        tail += last  # "not X with Y" would exclude Y too
        text = "".join(head) + "".join(f",{one}" for one in tail) if asked.chinese else " ".join(filter(None, head + tail))
        needs = [Need(said["need"], asked.need)]
        needs += [Need(said["condition"], asked.condition)] if asked.condition else []
        needs += [Need(asked.brand, None, True)] if asked.brand else []
        return Intent(
            text=text,
            lat=asked.lat,
            lon=asked.lon,
            language=language,
            needs=tuple(needs),
            minutes=float(asked.minutes or WALK_MINUTES),
            when=asked.when,
            open_then=asked.at != "none",
            companions=(asked.companion,) if asked.companion else (),
        )

    def asked(self, rng: random.Random, area: int) -> Asked:
        """A random question from a point of an area."""
        words = lexicon()
        need = rng.choice(list(words["needs"]))
        about = words["needs"][need]
        brands = [brand for kind in about["met"] for brand in words["kinds"][kind].get("brands", ())]
        now = FIRST_DAY + timedelta(days=rng.randrange(DAYS), hours=_hour(rng), minutes=5 * rng.randrange(12))
        at, when = rng.choices(["none", "now", "day", "date"], [20, 35, 37, 8])[0], now
        if at == "day":
            when = _on(now + timedelta(days=rng.randint(1, 6)), rng)
        elif at == "date":
            when = _on(datetime.fromisoformat(rng.choice(HOLIDAYS)), rng)
        if need == "live_music" and at in ("now", "day") and rng.random() < 0.7:
            when = rng.choice([one.starts for one in self.town.places if one.starts]) + timedelta(minutes=30)
            now = when if at == "now" else when - timedelta(days=rng.randint(1, 6))
        return Asked(
            need,
            rng.choice(about["conditions"]) if about.get("conditions") and rng.random() < 0.4 else None,
            rng.choice(brands) if brands and rng.random() < 0.3 else None,
            rng.choice(list(words["companions"])) if rng.random() < 0.3 else None,
            rng.choice(WALKS) if rng.random() < 0.75 else None,
            now,
            when,
            at,
            *self.town.point(area, rng.random(), rng.random()),
            chinese=rng.random() < self.chinese,
        )

    def _of_question(self, split: str, number: int) -> list[Pair]:
        name = f"{self.town.seed}/{split}/{number}"
        rng = random.Random(name)
        new_area, new_wording = (False, False) if split == "train" else rng.choice([(True, False), (False, True), (True, True)])
        areas = [area for area in range(len(self.town.areas)) if (area in self.town.held_out) == new_area]
        asked = self.asked(rng, rng.choice(areas))

        def intent_of(one: Asked) -> Intent:
            return self.intent(one, random.Random(f"{name}/words"), new_wording)

        intent = intent_of(asked)
        held_out = ["held_out:area"] * new_area + ["held_out:wording"] * new_wording
        minutes = DETOUR * haversine(asked.lat, asked.lon, self._lats, self._lons) / METRES_PER_MINUTE
        found = [
            self._judged(asked, intent, self._row(rng, asked, intent, minutes, new_area), minutes, rng)
            for _ in range(PLACES_PER_QUESTION)
        ]
        if rng.random() < 0.5:
            row = int(found[0].item_id[1:])
            for changed in rng.choices(["circle", "hours", "company"], k=9):
                twin = _changed(asked, changed, rng)
                one = twin and self._judged(twin, intent_of(twin), row, minutes, rng)
                if one and one.label != found[0].label:
                    mark = f"counterfactual:{changed}"
                    found[1] = replace(one, slices=[*one.slices, mark])
                    found[0] = replace(found[0], slices=[*found[0].slices, mark])
                    break
        return [
            replace(
                one,
                pair_id=pair_digest(one.query, f"{name}/{slot}"),
                split=split,
                slices=one.slices + held_out,
                source="local-life-zh" if asked.chinese else "local-life-en",
            )
            for slot, one in enumerate(found)
        ]

    def _row(self, rng: random.Random, asked: Asked, intent: Intent, minutes: np.ndarray, new_area: bool) -> int:
        """A place of a random tier, as far as TRIES places have one."""
        wanted = rng.choice(self.rubric.tier_ids)
        rows = self._rows[new_area]
        right = [row for row in rows if self._kinds[row] in _fitting(asked.need)]
        close = [row for row in right if minutes[row] <= intent.minutes]
        row = rng.choice(rows)
        for _ in range(TRIES):
            draw = rng.random()
            row = rng.choice((close if draw < 0.6 else right if draw < 0.75 else rows) or rows)
            demands = self._demands(asked, intent, self._candidate(asked, intent, row, minutes, rng))
            if self.rubric.verdict_over([one.tier for one in demands]) == wanted:
                break
        return row

    def _judged(self, asked: Asked, intent: Intent, row: int, minutes: np.ndarray, rng: random.Random) -> Pair:
        candidate = self._candidate(asked, intent, row, minutes, rng)
        demands = self._demands(asked, intent, candidate)
        label = self.rubric.verdict_over([one.tier for one in demands])
        decisive = next(one for one in demands if one.tier == label)
        slices = [f"decided:{decisive.dimension}"] + ["chinese"] * asked.chinese
        demanded = {one.dimension for one in demands}
        slices += [dimension for dimension in ("hours", "exclusion", "company") if dimension in demanded]
        if intent.open_then:
            slices += ["overnight"] * (asked.when.hour in NIGHT) + ["unknown_hours"] * (candidate.opening.state == "unknown")
            slices += ["holiday"] * (asked.at == "date")
        return replace(
            pair(candidate, intent),
            label=label,
            mismatch=decisive.dimension if label in self.rubric.mismatch_tiers else None,
            rules=[decisive.rule],
            demands=demands,
            rationale=render_demands(demands),
            slices=slices,
        )

    def _candidate(self, asked: Asked, intent: Intent, row: int, minutes: np.ndarray, rng: random.Random) -> Candidate:
        """The place as the layers of retrieval would give it, which may have found it for another need."""
        place, words, zh = self.town.places[row], lexicon(), asked.chinese
        language, kind = "zh" if zh else "en", place.classes[0]
        fitting = [key for key in words["needs"] if kind in _fitting(key)]
        hits = {}
        if asked.need in fitting or rng.random() < 0.5:
            need = words["needs"][asked.need if asked.need in fitting else rng.choice(fitting)][language]
            why = " -> ".join(dict.fromkeys([need, words["kinds"][kind][language]]))
            hits["graph"] = Hit(row, 1.0, why)
        if not hits or rng.random() < 0.3:
            likeness = rng.uniform(0.2, 0.6)
            hits["vector"] = Hit(row, likeness, f"{likeness:.2f} alike in meaning")
        walk = float(minutes[row])
        return Candidate(row, place, walk * METRES_PER_MINUTE, walk, opening_of(place, asked.when, COUNTRY, TIMEZONE), 1.0, hits)

    def _demands(self, asked: Asked, intent: Intent, candidate: Candidate) -> list[Demand]:
        """The need and its condition, then the computed rules: what a perfect judge would write."""
        place, words, rules = candidate.place, lexicon(), {rule.id: rule for rule in self.rubric.rules}
        language = "zh" if asked.chinese else "en"
        about, kind = words["needs"][asked.need], place.classes[0]
        degree = "met" if kind in about["met"] else "partly" if kind in about.get("partly", ()) else "other"
        demands = [_of_need(rules, f"{intent.needs[0].text} = {about[language]}", kind, "attributes", f"need-{degree}")]
        if asked.condition and degree != "other":
            condition = words["conditions"][asked.condition]
            wanted, value = f"{intent.needs[1].text} = {condition[language]}", place.tags.get(condition["tag"])
            if value is None:
                demands.append(_of_need(rules, wanted, "none", "none", "need-silent"))
            else:
                rule = "need-denied" if value == "no" else "need-met"
                demands.append(_of_need(rules, wanted, f"{condition['tag']} {value}", "attributes", rule))
        for one in computed(candidate, intent):
            dimension = rules[one.rule].dimension
            if dimension == "circle":
                wanted, found, source = f"{intent.minutes:g} minutes", walk_text(candidate, intent), "attributes"
            elif dimension == "hours":
                wanted, found, source = f"open {asked.when:%a %H:%M}", opening_text(candidate.opening, intent), "attributes"
            elif dimension == "exclusion":
                wanted, found, source = f"not {asked.brand}", place.name, "title"
            else:
                keys = [key for key in COMPANY_TAGS[asked.companion] if key in place.tags]
                wanted, found, source = asked.companion, " ".join(f"{key} {place.tags[key]}" for key in keys), "attributes"
            demands.append(Demand(dimension, wanted, found, source, one.rule, one.tier))
        return demands


def _fitting(need: str) -> tuple[str, ...]:
    about = lexicon()["needs"][need]
    return (*about["met"], *about.get("partly", ()))


def _of_need(rules: dict[str, Any], wanted: str, found: str, source: str, rule: str) -> Demand:
    return Demand("need", wanted, found, source, rule, rules[rule].tier)


def _hour(rng: random.Random) -> int:
    return rng.choice(NIGHT) if rng.random() < 0.25 else rng.randint(8, 21)


def _on(day: datetime, rng: random.Random) -> datetime:
    return day.replace(hour=_hour(rng), minute=rng.choice([0, 0, 15, 30]))


def _day(asked: Asked) -> str:
    return f"周{'一二三四五六日'[asked.when.weekday()]}" if asked.chinese else f"{asked.when:%A}"


def _changed(asked: Asked, what: str, rng: random.Random) -> Asked | None:
    """The question with another walk, time or companion; None if it says nothing of the kind."""
    if what == "circle" and asked.minutes:
        return replace(asked, minutes=rng.choice([one for one in WALKS if one != asked.minutes]))
    if what == "hours" and asked.at in ("now", "day"):
        when = _on(asked.now + timedelta(days=rng.randint(1, 6)), rng)
        return replace(asked, when=when, at="day")
    if what == "company":
        others = [one for one in (*lexicon()["companions"], None) if one != asked.companion]
        return replace(asked, companion=rng.choice(others))
    return None
