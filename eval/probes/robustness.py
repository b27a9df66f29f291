"""Reruns a judge under perturbations that do not change the label, and counts how its verdicts change.

Up rate: share of the pairs with a clean verdict below the best tier whose verdict rises. Down rate: share of the pairs with a
clean verdict above the worst tier whose verdict falls. A pair without a clean verdict is in neither. A pair that loses its
verdict under the perturbation counts as moved in neither direction; it is a format failure and wrong in the accuracy.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lore.data.pair import Pair
from lore.data.rejected_rows import Rejection
from lore.data.tables.any_table import table_records
from lore.data_synth.perturb.perturb import Perturber, chosen
from lore.eval.measures.bootstrap import mean_estimate
from lore.eval.measures.results import Flip
from lore.eval.sections import RobustnessSection
from lore.eval.testset import Labeled, whole_queries
from lore.judge.resumable import Asker, ScorerAsker
from lore.judge.verdict import Verdict
from lore.rubric.rubric import Rubric
from lore.support.console import Console, Table, with_room
from lore.support.errors import LoreError

ALL_INJECTIONS = "all injections"
ON_PHOTOS = "order-in-photo"
NO_VERDICT = -1
WIDTH = 150
TRANSLATION_COLUMNS = ("query", "translation")


@dataclass
class Answers:
    """Clean and perturbed verdicts: tier indices (NO_VERDICT without one), labels and queries; one entry per pair."""

    tiers: int
    clean: list[int] = field(default_factory=list)
    perturbed: list[int] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    def __add__(self, other: "Answers") -> "Answers":
        parts = ("clean", "perturbed", "gold", "groups")
        return Answers(self.tiers, *(getattr(self, part) + getattr(other, part) for part in parts))

    def flip(self, name: str, kind: str, *, samples: int, seed: int) -> Flip:
        """The rates with intervals over queries."""
        clean, perturbed, gold, groups = (
            np.asarray(values, dtype=np.int64) for values in (self.clean, self.perturbed, self.gold, self.groups)
        )
        answered, moved = clean != NO_VERDICT, perturbed != NO_VERDICT
        can_rise, can_fall = answered & (clean < self.tiers - 1), answered & (clean > 0)
        rates = {
            "up": np.where(can_rise, moved & (perturbed > clean), np.nan),
            "down": np.where(can_fall, moved & (perturbed < clean), np.nan),
            "accuracy": (perturbed == gold).astype(float),
            "clean_accuracy": (clean == gold).astype(float),
        }
        estimates = {key: mean_estimate(values, groups, samples=samples, seed=seed) for key, values in rates.items()}
        return Flip(name, kind, pairs=len(gold), queries=len(set(self.groups)), failures=int((~moved).sum()), **estimates)


def robustness_ids(test: Labeled, options: RobustnessSection, seed: int) -> list[str]:
    """Ids of the pairs to perturb: whole queries, about options.pairs pairs, in file order."""
    return [test.pair_ids[index] for index in whole_queries(test.query_keys, options.pairs, seed)]


def measure_robustness(
    asker: Asker | ScorerAsker,
    pairs: list[Pair],
    clean: dict[str, Verdict],
    test: Labeled,
    rubric: Rubric,
    options: RobustnessSection,
    *,
    language: str,
    samples: int,
    seed: int,
) -> list[Flip]:
    """One Flip per perturbation, grouped by kind, then one over all injections, in which every pair counts once per injection.

    pairs: those of `robustness_ids`, unchanged; clean: the judge's verdicts on them. A perturbation leaves out the pairs that it
    does not apply to; an order in the photo needs a photo that the judge has seen. Answers are stored under the tags
    robustness-<name>, so a resumed run repeats no question.
    """
    translations = read_translations(Path(options.translations)) if options.translations else None
    perturber = Perturber(rubric, language, "test", seed=seed, translations=translations)
    flips, injected = [], Answers(len(rubric.tiers))
    for perturbation in chosen(options.perturbations):
        name, kind = perturbation.name, perturbation.kind
        asked = [pair for pair in pairs if name != ON_PHOTOS or clean[pair.pair_id].photo == "seen"]
        changed = [found for pair in asked if (found := perturber.perturb(name, pair)) is not None]
        verdicts = asker.ask(f"robustness-{name}", changed, total=len(changed)) if changed else {}
        answers = Answers(len(rubric.tiers))
        for pair in changed:
            place = test.position[pair.pair_id]
            answers.clean.append(_tier(clean[pair.pair_id], rubric))
            answers.perturbed.append(_tier(verdicts[pair.pair_id], rubric))
            answers.gold.append(int(test.gold[place]))
            answers.groups.append(int(test.groups[place]))
        flips.append(answers.flip(name, kind, samples=samples, seed=seed))
        if kind == "injection":
            injected += answers
    if injected.gold:
        flips.append(injected.flip(ALL_INJECTIONS, "injection", samples=samples, seed=seed))
    return flips


def _tier(verdict: Verdict, rubric: Rubric) -> int:
    return NO_VERDICT if verdict.tier is None else rubric.index(verdict.tier)


def read_translations(path: Path) -> dict[str, str]:
    """Maps each query to its translation, from a .csv, .tsv, .jsonl or .parquet file with these two columns. Raises LoreError for a
    missing file, another format, or an unusable row."""
    translations = {}
    for record in table_records(path, TRANSLATION_COLUMNS, what="robustness.translations: "):
        if isinstance(record, Rejection):
            raise LoreError(f"robustness.translations: {record}. Correct or drop the row.")
        row, values = record
        query, translation = (values.get(name) for name in TRANSLATION_COLUMNS)
        if not all(isinstance(value, str) and value.strip() for value in (query, translation)):
            raise LoreError(
                f"robustness.translations: {path} row {row} has query {query!r} and translation {translation!r}; expected two "
                "texts. Drop the rows of queries without a translation; the perturbation skips these queries."
            )
        translations[query] = translation
    return translations


def print_robustness(found: dict[str, list[Flip]], console: Console | None = None) -> None:
    """Prints one row per perturbation and judge, grouped by perturbation."""
    table = Table(title="robustness: how verdicts change (95 % intervals over queries)", title_justify="left")
    table.add_column("perturbation", overflow="fold")
    if len(found) > 1:
        table.add_column("judge", overflow="fold")
    for heading in ("kind", "pairs", "up", "down", "clean accuracy", "perturbed", "no verdict"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for name in dict.fromkeys(flip.name for flips in sorted(found.values(), key=len, reverse=True) for flip in flips):
        flips = {judge: flip for judge, flips in found.items() for flip in flips if flip.name == name}
        for judge, flip in flips.items():
            first, last = judge == next(iter(flips)), judge == next(reversed(flips))
            who = [name if first else ""] + [judge] * (len(found) > 1)
            estimates = [str(value) for value in (flip.up, flip.down, flip.clean_accuracy, flip.accuracy)]
            table.add_row(*who, flip.kind, str(flip.pairs), *estimates, str(flip.failures), end_section=last)
    with_room(console or Console(), WIDTH).print(table)
