"""Stage evaluate: judges and baselines on the same held-out pairs, with intervals, calibration, slices and a report.

    lore run recipes/evaluate.yaml

The metrics are those of RAIR (arXiv 2512.24943): Acc@2, Acc@K and Macro-F1, plus those in eval/measures. RAIR's published
script takes the first tier name anywhere in the output. Here a verdict is parsed outside the reasoning, and an output with
more than one verdict is a format failure. Models and endpoints can also be sampled, perturbed (eval/probes/robustness.py)
and tested on one capability at a time (eval/probes).
"""

import re
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from urllib.parse import quote

from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.data_synth.perturb.wordings import wordings_hash
from lore.eval.benchmark import load_benchmark
from lore.eval.config import EvaluateRecipe
from lore.eval.measures.agreement import ceiling
from lore.eval.measures.results import Condition, Flip, SampleCurves
from lore.eval.open_judges import asked_models, askers, baseline_verdicts, described, read_verdicts, student_askers
from lore.eval.probes.capability import check_capability, measure_capability
from lore.eval.probes.robustness import measure_robustness, robustness_ids
from lore.eval.probes.sampling import sample_curves
from lore.eval.ratings import read_ratings
from lore.eval.report.console import check_shown
from lore.eval.report.write import save
from lore.eval.scorecard import check_metrics, score
from lore.eval.testset import EvalData, Labeled, load_split, read_chosen, whole_queries
from lore.judge.dry_pass import check_asking
from lore.judge.resumable import Asker, ScorerAsker, Verdicts
from lore.run.run_folder import RunFolder
from lore.support.console import Console
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.processes import is_main_process, say
from lore.support.progress import track

MAX_SLICES = 60
HAN = re.compile("[\u4e00-\u9fff]")


def run(recipe: EvaluateRecipe, folder: RunFolder) -> None:
    """Evaluates every judge and baseline of the recipe. Only the main process works; other processes return at once."""
    if not is_main_process():
        return
    console = Console()
    data = load_data(recipe, folder)
    check_asking("evaluate", asked_models(recipe, data), data.rubric)
    slices = chosen_slices(recipe, data.test)
    if recipe.capability is not None:
        check_capability(data, recipe.capability)
    calibration = f"temperature fitted on {data.dev}" if data.dev else "no pairs to calibrate on"
    console.print(f"{data.test}; {calibration}", soft_wrap=True)

    rows = recipe.rows()
    verdicts = baseline_verdicts(recipe, data)
    verdicts |= read_verdicts(recipe, data)
    language = wording_language(recipe, data)
    if recipe.robustness is not None:
        folder.note(wordings=wordings_hash(language))
    opened = askers(recipe, data, folder) | student_askers(recipe, data, folder)
    asked = {name: ask(asker, recipe, data, language) for name, asker in opened.items()}
    verdicts |= {name: found.verdicts for name, found in asked.items()}
    cards = []
    for name, judge in track(rows.items(), "metrics", total=len(rows)):
        measured = partial(score, data=data, options=recipe.metrics, slices=slices, seed=recipe.seed)
        card = measured(name, judge.kind, described(judge, recipe), verdicts[name])
        if found := asked.get(name):
            card.samples, card.flips, card.conditions = found.samples, found.flips, found.conditions
        cards.append(card)
    save(recipe, folder, data, verdicts, cards, console=console)


@dataclass
class Asked:
    """One judge's verdicts and the results of its probes."""

    verdicts: Verdicts
    samples: SampleCurves | None = None
    flips: list[Flip] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)


def wording_language(recipe: EvaluateRecipe, data: EvalData) -> str:
    """Language of the attack wordings: the recipe's, else zh if most of the first titles contain Han characters, else en."""
    if recipe.robustness is None or recipe.robustness.language is not None:
        return recipe.robustness.language if recipe.robustness else "en"
    titles = [pair.title for pair in islice(read_pairs(data.path, split=data.test.split, columns=["title"]), 200)]
    return "zh" if 2 * sum(bool(HAN.search(title)) for title in titles) > len(titles) else "en"


def ask(asker: Asker | ScorerAsker, recipe: EvaluateRecipe, data: EvalData, language: str) -> Asked:
    """Gets all verdicts of one judge while its engine is open. Verdicts saved by earlier starts of this run are reused.
    language: of the attack wordings. A student is not sampled, and its capabilities are not tested: it has no prompt to change."""
    found, test = Asked({}), data.test
    for part in data.parts:
        pairs = read_chosen(data.path, part.split, part.pair_ids, image_roots=data.image_roots)
        tag = f"split-{quote(part.split, safe='')}"  # a split can have any name, such as `samples` or `../x`
        found.verdicts |= asker.ask(tag, pairs, total=len(part), known=part.pair_ids)
    resampling = {"samples": recipe.metrics.bootstrap_samples, "seed": recipe.seed}
    sampling = recipe.sampling
    prompted = isinstance(asker, Asker)
    if sampling.samples and prompted:
        ids = [test.pair_ids[i] for i in whole_queries(test.query_keys, sampling.sample_pairs, recipe.seed)]
        drawn = asker.samples(
            "samples",
            read_chosen(data.path, test.split, ids, image_roots=data.image_roots),
            sampling.samples,
            temperature=sampling.sample_temperature,
            seed=recipe.seed,
            total=len(ids),
        )
        found.samples = sample_curves(
            drawn,
            test,
            data.rubric,
            temperature=sampling.sample_temperature,
            bootstrap_samples=recipe.metrics.bootstrap_samples,
            seed=recipe.seed,
            weights=test.weights if recipe.metrics.label_weights else None,
        )
    if recipe.robustness is not None and asker.name in (recipe.robustness.judges or recipe.judges):
        ids = robustness_ids(test, recipe.robustness, recipe.seed)
        pairs = list(read_chosen(data.path, test.split, ids, image_roots=data.image_roots))
        found.flips = measure_robustness(
            asker, pairs, found.verdicts, test, data.rubric, recipe.robustness, language=language, **resampling
        )
    if recipe.capability is not None and prompted and asker.name in (recipe.capability.judges or recipe.asked()):
        found.conditions = measure_capability(asker, data, found.verdicts, recipe.capability, **resampling)
    return found


def load_data(recipe: EvaluateRecipe, folder: RunFolder) -> EvalData:
    """Loads the test pairs and the calibration pairs. A resumed run must find the same ones."""
    source = PairSource(recipe.data, folder, splits=True)  # data.split defaults to test
    rubric = source.rubric
    check_shown(recipe.metrics.shown, rubric.tier_ids)
    check_metrics(recipe.metrics, rubric)
    for tier in recipe.metrics.prior or {}:
        if tier not in rubric.tier_ids:
            raise LoreError(
                f"metrics.prior names {tier!r}, which is not a tier of rubric {rubric.name} "
                f"({', '.join(rubric.tier_ids)}).{nearest_hint(tier, rubric.tier_ids)}"
            )
    path = source.path
    folder.note(data_fingerprint=source.fingerprint, rubric_hash=rubric.hash)
    test = load_split(
        path, recipe.test_split, rubric, slices=recipe.data.slices, limit=recipe.test_limit, seed=recipe.seed
    )
    if not len(test):
        inside = f" and slices {recipe.data.slices}" if recipe.data.slices else ""
        raise LoreError(
            f"{path} has no labeled pair in split {recipe.test_split!r}{inside}, so there is nothing to evaluate. "
            "Choose another data.split, or assign all pairs anew: lore data split --by query --replace"
        )
    dev = None
    if recipe.metrics.calibrate_on:
        dev = load_split(
            path,
            recipe.metrics.calibrate_on,
            rubric,
            slices=recipe.data.slices,
            limit=recipe.dev_limit,
            seed=recipe.seed,
        )
    ratings = raters = None
    if recipe.metrics.ratings:
        ratings = read_ratings(recipe.metrics.ratings, rubric, test.pair_ids)
        if ratings.unrated:
            say(f"metrics.ratings has no rating for {ratings.unrated:,} of {len(test.pair_ids):,} test pairs")
        raters = ceiling(
            ratings,
            test.groups,
            rubric.relevant_mask,
            weights=test.weights if recipe.metrics.label_weights else None,
            samples=recipe.metrics.bootstrap_samples,
            seed=recipe.seed,
        )
    return EvalData(path, rubric, test, dev if dev else None, raters, ratings, source.image_roots)


def chosen_slices(recipe: EvaluateRecipe, test: Labeled) -> list[str]:
    """The recipe's slices, else the largest slices of the data."""
    sizes = test.slice_sizes()
    if recipe.slices is None:
        return list(sizes)[:MAX_SLICES]
    if recipe.benchmark and load_benchmark(recipe.benchmark)["recipe"].get("slices") == recipe.slices:
        return [name for name in recipe.slices if name in sizes]  # a subset of the benchmark may lack some slices
    for name in recipe.slices:
        if name not in sizes:
            known = ", ".join(list(sizes)[:20]) or "none"
            raise LoreError(
                f"slices names {name!r}, but no test pair is in it, so there is nothing to report. "
                f"Slices of the test: {known}.{nearest_hint(name, list(sizes))}"
            )
    return recipe.slices


