"""Counts over the traces of a synthesized data set, and the tables of these counts for a card or a terminal."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lore.codec.sanitize import neutralize
from lore.data_synth.synthesis.trace import STEPS, Trace, refusal
from lore.support.errors import LoreError
from lore.support.text import shortened

MAX_KEYS = 1000  # per counter; later keys count as OTHERS
OTHERS = "(others)"
SAMPLES = 20
SHOWN_ROWS = 40
SHOWN = {"query": 200, "title": 300, "rationale": 800, "why": 200}  # characters
WHERE = {  # the step that a failed check points to; every other check is about form
    "coverage": "knowledge",
    "grounding": "multimodal",
    "rules": "rules",
    "aggregate": "rules",
    "one_verdict": "rules",
    "verdict": "verdict",
    "agreement": "verdict",
}
PLACES = {
    "knowledge": "a demand is missing or made up",
    "multimodal": "a finding does not match the item",
    "rules": "rules, tiers and verdict contradict each other",
    "verdict": "the steps are consistent, but the tier differs from the label",
    "form": "length, language, copied or leaked text, or the critic",
}


def _tally() -> Any:
    return field(default_factory=Counter)


@dataclass
class Counts:
    """Counts over traces, in bounded memory. `add` takes traces in any order; `merge` adds the counts of other processes.

    samples: the SAMPLES traces with the lowest hashes of seed and pair id, so they do not depend on the order of counting.
    """

    seed: int = 0
    given: Counter[str] = _tally()
    """Pairs by label."""
    accepted: Counter[str] = _tally()
    hinted: Counter[str] = _tally()
    """Accepted pairs whose teacher saw the label."""
    slices: Counter[str] = _tally()
    slices_accepted: Counter[str] = _tally()
    checks: Counter[str] = _tally()
    """Pairs whose kept attempt failed a check, by check."""
    attempt_checks: Counter[str] = _tally()
    """Attempts that failed a check, by check."""
    places: Counter[str] = _tally()
    """Rejected pairs by the first step that failed, a key of PLACES."""
    no_answer: Counter[str] = _tally()
    """Pairs that got no answer, by step and the server's words."""
    attempts: Counter[int] = _tally()
    """Pairs by their number of attempts."""
    attempts_hinted: int = 0
    steps: dict[str, Counter[str]] = field(default_factory=dict)
    """By step: answers, prompt_tokens, completion_tokens and usd. An answer that two pairs share counts for both."""
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        return sum(self.given.values())

    def add(self, trace: Trace) -> None:
        """Adds one trace."""
        _count(self.given, trace.label)
        if trace.accepted:
            _count(self.accepted, trace.label)
            if trace.hinted:
                _count(self.hinted, trace.label)
        else:
            self.places[first_place(trace)] += 1
        if words := refusal(trace.failure):
            _count(self.no_answer, words[: SHOWN["why"]])
        for name in dict.fromkeys(trace.slices):
            _count(self.slices, name)
            if trace.accepted:
                _count(self.slices_accepted, name if name in self.slices else OTHERS)
        for name in trace.failed:
            _count(self.checks, name)
        for attempt in trace.attempts:
            self.attempts_hinted += attempt.hinted
            for name in attempt.failed:
                _count(self.attempt_checks, name)
        self.attempts[len(trace.attempts)] += 1
        for reply in {reply.key: reply for reply in trace.replies}.values():
            step = self.steps.setdefault(reply.step if reply.step in STEPS else OTHERS, Counter())
            step["answers"] += 1
            step["prompt_tokens"] += reply.prompt_tokens
            step["completion_tokens"] += reply.completion_tokens
            step["usd"] += reply.usd
        rank = hashlib.blake2b(f"{self.seed}/{trace.pair_id}".encode(errors="surrogatepass"), digest_size=8).hexdigest()
        if len(self.samples) < SAMPLES or rank < self.samples[-1]["rank"]:
            self._keep([_sample(trace, rank)])

    def merge(self, other: "Counts") -> None:
        """Adds counts of another process over other traces. Raises LoreError if the seeds differ."""
        if self.seed != other.seed:
            raise LoreError(f"Counts with seeds {self.seed} and {other.seed} have different samples. Count both with one seed.")
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                for key, count in value.items():
                    _count(getattr(self, name), key, count)
        self.attempts_hinted += other.attempts_hinted
        for step, took in other.steps.items():
            self.steps.setdefault(step, Counter()).update(took)
        self._keep(other.samples)

    def to_json(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False)

    def _keep(self, samples: list[dict[str, Any]]) -> None:
        self.samples = sorted([*self.samples, *samples], key=lambda sample: (sample["rank"], json.dumps(sample)))[:SAMPLES]


@dataclass
class Table:
    """One table of counts. rows: a name, then numbers. note: how to read the table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def first_place(trace: Trace) -> str:
    """The first step of a rejected trace that failed, a key of PLACES."""
    if trace.failure:  # "rules: a verdict without rulings"
        step = trace.failure.partition(":")[0]
        return {"knowledge": "knowledge", "caption": "multimodal", "multimodal": "multimodal", "rules": "rules"}.get(step, "form")
    found = {WHERE.get(name, "form") for name in trace.failed}
    return next((place for place in PLACES if place in found), "form")


def tables(counts: Counts, tier_ids: list[str] | None = None) -> list[Table]:
    """All counts as tables. tier_ids: the rubric's, worst first; by default the labels in sorted order."""
    labels = [label for label in (tier_ids or []) if label in counts.given]
    labels += sorted(label for label in counts.given if label not in labels)
    total = counts.pairs
    rows = [_in_and_out(label, counts.given[label], counts.accepted[label], counts.hinted[label]) for label in labels]
    rows.append(_in_and_out("all", total, sum(counts.accepted.values()), sum(counts.hinted.values())))
    found = [Table("Pairs by tier", ["tier", "given", "accepted", "share", "with hint", "rejected"], rows)]
    for title, names in (
        ("Acceptance by capability", [name for name in counts.slices if name.startswith("capability:")]),
        ("Acceptance by slice", [name for name in counts.slices if not name.startswith("capability:")]),
    ):
        names = sorted(names, key=lambda name: (-counts.slices[name], name))
        rows = [_share_of(name.removeprefix("capability:"), counts.slices_accepted[name], counts.slices[name]) for name in names]
        note = f"{len(rows) - SHOWN_ROWS:,} smaller slices are not shown." if len(rows) > SHOWN_ROWS else ""
        if rows:
            found.append(Table(title, ["slice", "pairs", "accepted", "share"], rows[:SHOWN_ROWS], note))
    rejected = counts.places.total()
    if rejected:
        rows = [
            [f"{place}: {PLACES[place]}", f"{counts.places[place]:,}", percent(counts.places[place], rejected)] for place in PLACES
        ]
        note = "Each rejected pair counts once, at the first step that failed in its kept attempt."
        found.append(Table("Where rejected pairs fail", ["step", "pairs", "share"], rows, note))
    tried = sum(number * pairs for number, pairs in counts.attempts.items())
    names = sorted(
        {*counts.checks, *counts.attempt_checks}, key=lambda name: (-counts.checks[name], -counts.attempt_checks[name], name)
    )
    rows = [
        [name, f"{counts.checks[name]:,}", percent(counts.checks[name], total), f"{counts.attempt_checks[name]:,}"]
        + [percent(counts.attempt_checks[name], tried)]
        for name in names
    ]
    if rows:
        columns = ["check", "pairs", "share", "attempts", "share of attempts"]
        note = f"Failures in the kept attempt, and in all {tried:,} attempts; a pair can fail several checks."
        found.append(Table("Failed checks", columns, rows[:SHOWN_ROWS], note))
    rows = [[f"{number}", f"{pairs:,}", percent(pairs, total)] for number, pairs in sorted(counts.attempts.items())]
    note = f"{counts.attempts_hinted:,} attempts saw the human label."
    found.append(Table("Attempts per pair", ["attempts", "pairs", "share"], rows, note))
    took = {step: counts.steps[step] for step in (*STEPS, OTHERS) if step in counts.steps}
    took["all"] = sum(took.values(), Counter())
    rows = [
        [step, *(f"{sums[key]:,}" for key in ("answers", "prompt_tokens", "completion_tokens")), f"{sums['usd']:.4f}"]
        for step, sums in took.items()
    ]
    columns = ["step", "answers", "prompt tokens", "completion tokens", "US dollars"]
    note = "An answer counts for every pair that used it, so the sum can exceed the spent total."
    return [*found, Table("Answers of the teachers", columns, rows, note)]


def _sample(trace: Trace, rank: str) -> dict[str, Any]:
    why = [[trace.failed[0], trace.failure]] if trace.failure else [[check.name, check.why] for check in trace.checks if check.why]
    texts = {name: _short(getattr(trace, name), SHOWN[name]) for name in ("query", "title", "rationale")}
    verdict = {
        "tier": _short(trace.tier or "", 64),
        "label": _short(trace.label, 64),
        "accepted": trace.accepted,
        "hinted": trace.hinted,
    }
    return {"rank": rank, **texts, **verdict, "why": [[name[:64], _short(reason, SHOWN["why"])] for name, reason in why[:8]]}


def _short(text: str, limit: int) -> str:
    return shortened(neutralize(text[: 4 * limit]), limit)


def _count(counter: Counter, key: Any, times: int = 1) -> None:
    counter[key if key in counter or len(counter) < MAX_KEYS else OTHERS] += times


def percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _share_of(name: str, part: int, whole: int) -> list[str]:
    return [name, f"{whole:,}", f"{part:,}", percent(part, whole)]


def _in_and_out(name: str, given: int, accepted: int, hinted: int) -> list[str]:
    return [name, f"{given:,}", f"{accepted:,}", percent(accepted, given), f"{hinted:,}", f"{given - accepted:,}"]
