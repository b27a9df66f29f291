"""Tests whether verdicts follow the rules in the prompt: an instruction-following test that no static test set offers.

One rule of the rubric is changed, and executing the changed rubric relabels the pairs. The judge answers twice: with the original
rules in its prompt and with the changed ones. A judge that reads its rules moves from the old label to the new one; a judge that
has memorized the rules keeps the old one. Pairs whose label does not change show the side effects of the change.

The embedded shop draws new pairs from a reserved seed, without photos and without words that need a lookup, because other
weaknesses of a judge would hide whether it follows rules. Other rubrics cannot be executed; their files of changes give `labels`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from lore.codec.item_text import item_text
from lore.codec.prompt import PromptFormat
from lore.codec.rule_retrieval import rules_about
from lore.data.pair import Pair
from lore.data_synth.shop.world import World
from lore.eval.measures.results import Condition
from lore.eval.probes.conditions import Counting, Labels, format_with_rules, groups_of, is_right, mean_text, verdict_changed
from lore.eval.probes.rule_edits import RuleEdit, load_rule_edits
from lore.eval.sections import CapabilitySection
from lore.eval.testset import EvalData, read_chosen
from lore.judge.resumable import Asker, Verdicts
from lore.rubric.rubric import Rubric, load_rubric
from lore.support.errors import LoreError

SEED = 7050  # reserved for this test
MAX_DRAWN = 20_000  # pairs searched for those that a change affects
UNCHANGED = "rules as they are"

Shows = Callable[[Pair, RuleEdit], bool]


@dataclass
class Case:
    """One change, with pairs whose label it changes, pairs whose label stays, and the labels before and after."""

    edit: RuleEdit
    affected: list[Pair] = field(default_factory=list)
    unaffected: list[Pair] = field(default_factory=list)
    before: Labels = field(default_factory=dict)
    after: Labels = field(default_factory=dict)

    @property
    def pairs(self) -> list[Pair]:
        return self.affected + self.unaffected

    def add(self, pair: Pair, before: str, after: str) -> None:
        (self.affected if before != after else self.unaffected).append(pair)
        self.before[pair.pair_id], self.after[pair.pair_id] = before, after


def measure_changed_rules(
    asker: Asker, data: EvalData, clean: Verdicts, options: CapabilitySection, counting: Counting
) -> list[Condition]:
    """One condition per change of options.rule_edits, and one over all of them."""
    edits = checked_edits(options.rule_edits, data)
    language = _language(data)
    executed = [edit for edit in edits if edit.labels is None]
    rated = {edit.id: rated_case(edit, data) for edit in edits if edit.labels is not None}
    probes = [pair for case in rated.values() for pair in case.pairs]
    if executed:
        probes += islice(_shop(data.rubric, language).pairs("test", MAX_DRAWN), 100)
    fmt = format_with_rules(asker, probes, "capability-changed-rules")
    if fmt is None:
        note = f"not asked: rules do not fit into prompt.max_prompt_tokens {asker.fmt.max_prompt_tokens}"
        return [counting.condition("rules", "changed rules", [], {}, {}, note=note)]

    def shows(pair: Pair, edit: RuleEdit) -> bool:
        return shows_change(pair, edit, data.rubric, fmt)

    # Half of the pairs keep their label.
    drawn = shop_cases(executed, data.rubric, language, max(1, options.pairs // (2 * len(edits))), shows)
    cases = [drawn.get(edit.id) or _kept(rated[edit.id], shows) for edit in edits]
    before, after = ask_cases(asker, cases, fmt, clean)
    return conditions_of(cases, before, after, fmt, counting)


def ask_cases(asker: Asker, cases: list[Case], fmt: PromptFormat, clean: Verdicts) -> tuple[Verdicts, dict[str, Verdicts]]:
    """Verdicts under the original rules, and under the changed rules of each case by the id of the change."""
    known = clean if fmt == asker.fmt else {}
    wanted = {pair.pair_id: pair for case in cases for pair in case.pairs if pair.pair_id not in known}
    before = known | asker.ask("capability-unchanged-rules", wanted.values(), total=len(wanted), fmt=fmt)
    after = {}
    for case in cases:
        tag = f"capability-changed-rules-{case.edit.id}"
        after[case.edit.id] = asker.ask(tag, case.pairs, total=len(case.pairs), fmt=fmt, rubric=case.edit.rubric)
    return before, after


def conditions_of(
    cases: list[Case], before: Verdicts, after: dict[str, Verdicts], fmt: PromptFormat, counting: Counting
) -> list[Condition]:
    parts = [_Part.of(case, before, after[case.edit.id]) for case in cases]
    found = [_condition(case.edit.change, [part], fmt, counting) for case, part in zip(cases, parts, strict=True)]
    return [*found, _condition(f"all {len(cases)} changes", parts, fmt, counting)] if len(cases) > 1 else found


@dataclass(frozen=True)
class _Part:
    """Outcomes on the pairs of one change; arrays of 1.0 or 0.0, one entry per pair."""

    affected: list[Pair]
    old_right: np.ndarray
    new_right: np.ndarray
    stuck: np.ndarray
    disturbed: np.ndarray
    """For the unaffected pairs: whether the verdict changed."""
    failures: int

    @classmethod
    def of(cls, case: Case, before: Verdicts, after: Verdicts) -> "_Part":
        return cls(
            case.affected,
            is_right(case.affected, case.before, before),
            is_right(case.affected, case.after, after),
            is_right(case.affected, case.before, after),
            verdict_changed(case.unaffected, before, after),
            sum(after[pair.pair_id].tier is None for pair in case.pairs),
        )


def _condition(name: str, parts: list[_Part], fmt: PromptFormat, counting: Counting) -> Condition:
    pairs = [pair for part in parts for pair in part.affected]
    old_right, new_right, stuck, disturbed = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("old_right", "new_right", "stuck", "disturbed")
    )
    failures = sum(part.failures for part in parts)
    notes = [
        f"{mean_text(new_right[old_right == 1])} of those right before follow",
        f"{mean_text(stuck)} keep the old label",
        f"of {len(disturbed)} unaffected {mean_text(disturbed)} move",
    ]
    notes += [f"{failures} without a verdict"] * bool(failures) + ["rules found by search"] * (fmt.detail == "retrieved")
    return Condition(
        "rules",
        name,
        len(pairs),
        len(np.unique(groups_of(pairs))),
        counting.estimate(new_right, pairs),
        UNCHANGED,
        counting.estimate(new_right - old_right, pairs),
        counting.estimate(new_right * old_right, pairs),
        "; ".join(notes) if pairs else "no pair found whose label changes",
    )


def shop_cases(edits: list[RuleEdit], rubric: Rubric, language: str, wanted: int, shows: Shows) -> dict[str, Case]:
    """Pairs of the embedded shop for each change, by its id: up to `wanted` pairs whose label changes, and as many whose label
    stays although a rule of the changed dimension applies to them. Every judge gets the same pairs."""
    cases = {edit.id: Case(edit) for edit in edits}
    if not edits:
        return cases  # the shop cannot draw pairs from another rubric
    dimensions = {edit.id: {rule.dimension for rule in edit.rubric.rules if rule.id in edit.rule_ids} for edit in edits}
    waiting = {edit.id: _shop(edit.rubric, language).pairs("test", MAX_DRAWN) for edit in edits}
    for pair in _shop(rubric, language).pairs("test", MAX_DRAWN):
        if not waiting:
            break
        for edit_id, relabeled in list(waiting.items()):
            case, after = cases[edit_id], next(relabeled).label
            side = case.affected if pair.label != after else case.unaffected
            at_stake = any(demand.dimension in dimensions[edit_id] for demand in pair.demands)
            if len(side) < wanted and at_stake and "capability:rules" in pair.slices and shows(pair, case.edit):
                case.add(pair, pair.label, after)
            if min(len(case.affected), len(case.unaffected)) == wanted:
                del waiting[edit_id]
    for case in cases.values():
        del case.unaffected[len(case.affected) :]
    return cases


def rated_case(edit: RuleEdit, data: EvalData) -> Case:
    """The test pairs for which the file gives a label under the changed rule."""
    case = Case(edit)
    for pair in read_chosen(data.path, data.test.split, edit.labels, image_roots=data.image_roots):
        case.add(pair, data.rubric.tier_ids[data.test.gold[data.test.position[pair.pair_id]]], edit.labels[pair.pair_id])
    return case


def shows_change(pair: Pair, edit: RuleEdit, rubric: Rubric, fmt: PromptFormat) -> bool:
    """Whether the two prompts differ in the changed rules only. With retrieved rules, the changed ones may be missing or their new
    words may retrieve other rules; such pairs tell nothing about rule following."""
    if fmt.detail != "retrieved":
        return True
    item = item_text(pair)
    old, new = ([rule.id for rule in rules_about(book, item, fmt.retrieved_rules).rules] for book in (rubric, edit.rubric))
    return old == new and set(edit.rule_ids) <= set(new)


def _kept(case: Case, shows: Shows) -> Case:
    affected, unaffected = ([pair for pair in part if shows(pair, case.edit)] for part in (case.affected, case.unaffected))
    return Case(case.edit, affected, unaffected, case.before, case.after)


def _shop(rubric: Rubric, language: str) -> World:
    return World(SEED, language, rubric=rubric, subsets={"general": 1.0}, photos=0.0)


def _language(data: EvalData) -> str:
    """Language of the embedded shop that the test pairs come from; en for other data."""
    first = next(read_chosen(data.path, data.test.split, data.test.pair_ids[:1], ["pair_id", "query", "title", "source"]))
    return first.source.removeprefix("shop-") if (first.source or "").startswith("shop-") else "en"


def checked_edits(name_or_path: str, data: EvalData) -> list[RuleEdit]:
    """The changes of a file. Raises LoreError if one cannot be applied, or if its labels are unknown."""
    edits = load_rule_edits(name_or_path, data.rubric)
    rule_ids = {rule.id for rule in data.rubric.rules}
    executable = data.rubric.name == "shop" and rule_ids == {rule.id for rule in load_rubric("shop").rules}
    for edit in edits:
        if edit.labels is None and not executable:
            raise LoreError(
                f"Rule change {edit.id} gives no labels, and rubric {data.rubric.name} cannot be executed; only the embedded "
                "shop's can. Add labels: the tier of test pairs under the changed rule, by pair_id."
            )
        if unknown := [pair_id for pair_id in edit.labels or () if pair_id not in data.test.position]:
            raise LoreError(
                f"Rule change {edit.id} labels {len(unknown)} pairs that are not in the test ({', '.join(unknown[:5])}), so they "
                "would be left out silently. Use pair ids of the test split, or raise test_limit."
            )
    return edits
