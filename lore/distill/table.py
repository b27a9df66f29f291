"""The table of a distillation: judge, student and baselines on the same test pairs. Quality with 95 % intervals over queries,
agreement with the judge, calibration, size, latency.

    <run>/table.json, <run>/predictions.parquet (as stage evaluate writes them: `lore compare` reads it)
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lore.data.pair import Pair
from lore.distill.config import DistillRecipe
from lore.distill.labels import Human, judge_verdicts
from lore.distill.rows import Rows
from lore.eval.baselines import fit_baseline
from lore.eval.evaluate import MAX_SLICES
from lore.eval.measures.bootstrap import Estimate, interval, mean_estimate, values_and_draws
from lore.eval.report.console import column_titles
from lore.eval.report.write import write_predictions
from lore.eval.scorecard import Answers, Scorecard, score
from lore.eval.sections import MetricsSection
from lore.eval.testset import EvalData, read_chosen
from lore.judge.verdict import Verdict
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.processes import say

CANDIDATES, WARM, TIMED = 50, 2, 11
LEXICAL_PAIRS = 50_000
NOTHING = Estimate(float("nan"))
NO_VALUE = str(NOTHING)
METRICS = ("macro_f1", "acc_2", "acc_k", "qwk", "auc", "ece")

OF_JUDGE = ("agreement", "of the judge's Macro-F1")
COST = ("parameters", "MB", "ms per pair", f"ms for {CANDIDATES}")

Verdicts = dict[str, Verdict]


@dataclass(frozen=True)
class Cost:
    """Size and latency of a row on this machine. ms_per_pair: of the test pairs at once; ms_of_50: median for 50 candidates of one
    query."""

    parameters: int | None = None
    megabytes: float | None = None
    ms_per_pair: float | None = None
    ms_of_50: float | None = None

    def texts(self) -> list[str]:
        """The values in the order of COST."""
        values = (self.parameters and self.parameters / 1e6, self.megabytes, self.ms_per_pair, self.ms_of_50)
        forms = ("{:.2f} M", "{:.1f}", "{:.2f}", "{:.1f}")
        return [NO_VALUE if value is None else form.format(value) for value, form in zip(values, forms, strict=True)]


@dataclass(frozen=True)
class Measured:
    """A student's verdicts on the test pairs, how it was made, and what it costs."""

    how: str
    verdicts: Verdicts
    cost: Cost = Cost()


@dataclass(frozen=True)
class Row:
    """One row of the table. agreement: share of the pairs with the judge's tier; kept: Macro-F1 as a share of the judge's."""

    card: Scorecard
    cost: Cost
    agreement: Estimate = NOTHING
    kept: Estimate = NOTHING

    def metric(self, name: str) -> Estimate:
        return self.card.whole.metrics.get(name, NOTHING)


@dataclass(frozen=True)
class Table:
    """rows: judge (if it labelled the test pairs), student, baselines. remarks: what the table lacks, and why."""

    rows: list[Row]
    verdicts: dict[str, Verdicts]
    remarks: list[str] = field(default_factory=list)

    def texts(self, tiers: int) -> dict[str, dict[str, str]]:
        """The rows as texts by column title, for the terminal and the report: values with 95 % intervals over queries."""
        rows = {row.card.name: cells(row, tiers) for row in self.rows}
        titles = [title for title in next(iter(rows.values())) if any(row[title] != NO_VALUE for row in rows.values())]
        return {name: {title: row[title] for title in titles} for name, row in rows.items()}


def make_table(recipe: DistillRecipe, folder: RunFolder, human: Human, rows: Rows, students: dict[str, Measured]) -> Table:
    """Measures everything on the test pairs. students: by title, the recipe's first."""
    rubric, test = human.source.rubric, human.test
    data = EvalData(human.source.path, rubric, test, None)
    options = MetricsSection(bootstrap_samples=recipe.bootstrap_samples, calibrate_on=None)
    slices = list(test.slice_sizes())[:MAX_SLICES] if recipe.slices is None else recipe.slices
    remarks, judged = [], {}
    if recipe.labels is not None:
        judged = judge_verdicts(recipe.labels.held_out or recipe.labels.path, rubric, test)
        if len(judged) < len(test):
            where = recipe.labels.held_out or recipe.labels.path
            remarks.append(
                f"The judge labelled {len(judged):,} of {len(test):,} test pairs ({where}), so it has no row. Label the test pairs "
                "too, and name their folder as labels.held_out."
            )
    measured = dict(students)
    if "lexical" in recipe.baselines:
        measured["lexical"] = lexical(recipe, human, rows)
    if judged and len(judged) == len(test):
        measured = {"judge": Measured("its labels, as they are", judged)} | measured
    cards = {
        name: score(name, "student", one.how, one.verdicts, data=data, options=options, slices=slices, seed=recipe.seed)
        for name, one in measured.items()
    }
    found = []
    for name, card in cards.items():
        one = measured[name]
        agreement = NOTHING if name == "judge" or not judged else _agreement(one.verdicts, judged, human, recipe)
        kept = _kept(one.verdicts, judged, human, recipe) if "judge" in cards and name != "judge" else NOTHING
        found.append(Row(card, one.cost, agreement, kept))
    for remark in remarks:
        say(remark)
    return Table(found, {name: one.verdicts for name, one in measured.items()}, remarks)


def _agreement(verdicts: Verdicts, judged: Verdicts, human: Human, recipe: DistillRecipe) -> Estimate:
    """Share of the pairs that the judge labelled with the same tier."""
    test = human.test
    known = [at for at, pair_id in enumerate(test.pair_ids) if pair_id in judged and judged[pair_id].tier is not None]
    if not known:
        return NOTHING
    same = [float(verdicts[test.pair_ids[at]].tier == judged[test.pair_ids[at]].tier) for at in known]
    return mean_estimate(np.asarray(same), test.groups[known], samples=recipe.bootstrap_samples, seed=recipe.seed)


def _kept(verdicts: Verdicts, judged: Verdicts, human: Human, recipe: DistillRecipe) -> Estimate:
    """Macro-F1 as a share of the judge's. Both see the same resamples of the queries."""
    values, draws = zip(
        *(metric_draws(answers, human.test, human.source.rubric, recipe, "macro_f1") for answers in (verdicts, judged)), strict=True
    )
    if not values[1] > 0:
        return NOTHING
    ratio = None
    if draws[0] is not None and draws[1] is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = draws[0] / draws[1]
    return interval("kept", values[0] / values[1], ratio, human.test.n_queries)


def metric_draws(
    verdicts: Verdicts, pairs: Any, rubric: Any, recipe: DistillRecipe, metric: str
) -> tuple[float, np.ndarray | None]:
    """A metric of verdicts on labeled pairs, and its values over the resamples (None without them)."""
    answers = Answers.of(verdicts, pairs, rubric)
    value, draws = values_and_draws(
        pairs.gold,
        answers.predicted,
        pairs.groups,
        rubric.tier_ids,
        rubric.relevant_mask,
        probabilities=answers.probabilities,
        samples=recipe.bootstrap_samples,
        seed=recipe.seed,
    )
    return value[metric], draws.get(metric)


def lexical(recipe: DistillRecipe, human: Human, rows: Rows) -> Measured:
    """Gradient boosting over word overlap, on human labels, or on the judge's where there are none."""
    by_raters = bool(rows.human_weight.any())
    labels, weight = (rows.label, rows.human_weight) if by_raters else (rows.judge.argmax(axis=1), rows.judge_weight)
    kept = np.flatnonzero(weight > 0)[:LEXICAL_PAIRS]
    tiers = human.source.rubric.tier_ids
    baseline = fit_baseline("lexical", rows.pairs(kept), labels[kept], len(tiers), seed=recipe.seed)

    def answer(pairs: list[Pair]) -> list[Verdict]:
        probabilities = baseline.predict(pairs)
        found = zip(pairs, probabilities, strict=True)
        return [Verdict(pair.pair_id, tiers[int(row.argmax())], row.tolist(), source="student") for pair, row in found]

    how = f"gradient boosting over word overlap, on {len(kept):,} {'human labels' if by_raters else 'labels of the judge'}"
    verdicts, cost = timed(answer, pairs_of_test(human))
    return Measured(how, verdicts, cost)


def pairs_of_test(human: Human) -> list[Pair]:
    """The labeled pairs of the test, in file order, with their photos."""
    source, test = human.source, human.test
    return list(read_chosen(source.path, test.split, test.pair_ids, image_roots=source.image_roots))


def timed(answer: Callable[[list[Pair]], list[Verdict]], pairs: list[Pair]) -> tuple[Verdicts, Cost]:
    """The verdicts on all pairs, and what they take: all at once, and 50 candidates of one query."""
    began = time.perf_counter()
    verdicts = {verdict.pair_id: verdict for verdict in answer(pairs)}
    each = 1000 * (time.perf_counter() - began) / len(pairs)
    candidates = [replace(pairs[at % len(pairs)], query=pairs[0].query) for at in range(CANDIDATES)]
    seconds = []
    for _ in range(WARM + TIMED):
        began = time.perf_counter()
        answer(candidates)
        seconds.append(time.perf_counter() - began)
    return verdicts, Cost(ms_per_pair=each, ms_of_50=1000 * float(np.median(seconds[WARM:])))


def save_table(recipe: DistillRecipe, folder: RunFolder, human: Human, table: Table, more: dict[str, Any]) -> None:
    """Writes table.json and predictions.parquet. more: further keys of table.json."""
    rubric, test = human.source.rubric, human.test
    write_predictions(folder / "predictions.parquet", table.verdicts, test, rubric)
    content = {
        "rubric": {"name": rubric.name, "hash": rubric.hash, "tiers": rubric.tier_ids, "relevant": rubric.relevant_mask},
        "test": {"pairs": len(test), "queries": test.n_queries},
        "rows": {
            row.card.name: {
                "agreement with the judge": row.agreement.to_json(),
                "Macro-F1 as a share of the judge's": row.kept.to_json(),
                "parameters": row.cost.parameters,
                "megabytes": _rounded(row.cost.megabytes),
                "milliseconds per pair": _rounded(row.cost.ms_per_pair),
                f"milliseconds for {CANDIDATES} candidates": _rounded(row.cost.ms_of_50),
                **row.card.to_json(),
            }
            for row in table.rows
        },
        "remarks": table.remarks,
        **more,
    }
    write_atomic(folder / "table.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def metric_titles(tiers: int) -> dict[str, str]:
    """Title of each metric of the table."""
    titles = column_titles([f"L{number}" for number in range(tiers)])
    return {name: titles[name] for name in METRICS}


def cells(row: Row, tiers: int) -> dict[str, str]:
    """The row as texts by column title."""
    found = {title: str(row.metric(name)) for name, title in metric_titles(tiers).items()}
    return found | {
        OF_JUDGE[0]: str(row.agreement),
        OF_JUDGE[1]: NO_VALUE if np.isnan(row.kept.value) else _percent(row.kept),
        **dict(zip(COST, row.cost.texts(), strict=True)),
    }


def _percent(estimate: Estimate) -> str:
    ends = "" if np.isnan(estimate.low) else f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.value:.1f} %{ends}"
