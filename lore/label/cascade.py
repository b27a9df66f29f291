"""Cascade: a student answers first, and the judge is asked where the student is unsure.

The student's confidence is the probability of its tier after temperature scaling towards the judge's tiers (`fit_temperature`).
Where it reaches a threshold, the student's verdict stands; the judge answers the other pairs. Both numbers come from a sample of
the input that student and judge answer, split in two by query. Nobody has to label anything.

The first half gives the temperature and the threshold: the smallest one with which the lower bound of the agreement reaches the
target. Agreement is the share of pairs whose final tier is the judge's; a pair that the judge answers agrees. It never falls when
the threshold rises. So the search begins at the highest threshold and ends before the first one that fails, and the number of tried
thresholds needs no correction (Bates et al. 2021, arXiv 2101.02703). The bound is the one-sided 95 % limit of Korn and Graubard
(1998, "Confidence Intervals for Proportions With Small Expected Number of Positive Counts Estimated From Survey Data"): the exact
binomial limit of Clopper and Pearson, with the number of pairs divided by the design effect of the queries. A bootstrap over
queries would take a sample without a disagreement for a proof.

The second half, queries that the threshold has not seen, checks it: agreement with a 95 % interval by bootstrap over queries. If it
misses the target there, or no threshold reaches it, the judge answers everything, and `CascadeFit.why` says so.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import sklearn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.special import betaincinv, stdtrit

from lore.data.pair import Pair, item_key, query_key
from lore.data.parquet import read_pairs
from lore.data.splits import split_of
from lore.engines.engine import EngineUsage
from lore.eval.baselines import Lexical, Majority, fit_baseline
from lore.eval.measures.bootstrap import LEVEL, Estimate, mean_estimate, query_groups
from lore.eval.measures.calibration import apply_temperature, fit_temperature
from lore.eval.measures.metrics import confidence_of
from lore.judge.card import judge_id, split_judge_id
from lore.judge.scorer import Scorer
from lore.judge.verdict import Verdict
from lore.rubric.rubric import Rubric
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.untrusted_json import read_object

CASCADE = "cascade.json"
HALVES = {"fit": 0.5, "check": 0.5}
UNSURE = -1.0
"""Confidence of a student's verdict that cannot stand: a failure, or one without probabilities."""
LABELED = ["pair_id", "query", "title", "attributes", "description", "category", "brand", "label", "label_weight"]

Share = Annotated[float, Field(ge=0, le=1)]


class CascadeFit(BaseModel):
    """Temperature and threshold of a cascade, with what was measured when they were chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    student: str
    """judge_id of the student."""
    judge: str
    """judge_id of the judge."""
    target: Share
    seed: int
    temperature: Annotated[float, Field(gt=0)] | None
    """Divides the student's log-probabilities. None if the student gave no probabilities."""
    threshold: Share | None
    """The student's verdict stands where its confidence reaches this. None: the judge answers everything."""
    why: str
    """Why the judge answers everything; empty if there is a threshold."""
    bound: Share | None
    """Lower 95 % bound of the agreement on the half that the threshold was chosen on. None without a threshold."""
    agreement: tuple[Share, Share | None, Share | None] | None
    """Agreement on the held-out queries, and the ends of its 95 % interval. None if no threshold was found."""
    to_judge: Share
    """Share of the held-out pairs that the judge answers."""
    alone: Share | None
    """Agreement on the held-out queries if the student answered every pair that it can."""
    fit_pairs: int
    fit_queries: int
    check_pairs: int
    check_queries: int
    unanswered: int
    """Pairs of the sample that the judge gave no tier; they are left out."""

    def __str__(self) -> str:
        sample = f"{self.fit_pairs + self.check_pairs:,} pairs of {self.fit_queries + self.check_queries:,} queries"
        if self.threshold is None:
            return f"cascade: the judge answers everything, because {self.why} (sample: {sample})"
        agreement = Estimate(*(float("nan") if end is None else end for end in self.agreement))
        return (
            f"cascade: the student's verdict stands from confidence {self.threshold:.3f} (temperature {self.temperature:.2f}); "
            f"agreement with the judge {percent(agreement)} on {self.check_pairs:,} held-out pairs, target {100 * self.target:g} "
            f"%; {100 * self.to_judge:.1f} % of the pairs go to the judge (sample: {sample})"
        )


def percent(estimate: Estimate) -> str:
    """An agreement in percent with its interval, to one decimal."""
    ends = "" if np.isnan(estimate.low) else f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.value:.1f} %{ends}"


def fit_cascade(
    student_verdicts: Sequence[Verdict],
    judge_verdicts: Sequence[Verdict],
    query_keys: Sequence[str],
    target: float,
    seed: int,
    *,
    tier_ids: list[str],
    student: str,
    judge: str,
    samples: int = 1000,
) -> CascadeFit:
    """Chooses temperature and threshold on half of a sample and checks them on the other half.

    The three sequences have one entry per pair of the sample; query_keys as in lore.data.pair.query_key. target: wanted agreement
    with the judge. seed: of the halves and of the bootstrap with `samples` draws. student, judge: their judge_ids, for `read_fit`.
    """
    answered = np.asarray([verdict.tier is not None for verdict in judge_verdicts], dtype=bool)
    rows = zip(student_verdicts, judge_verdicts, query_keys, strict=True)
    kept = [row for row in rows if row[1].tier is not None]
    firsts = [row[0] for row in kept]
    gold = np.asarray([tier_ids.index(row[1].tier) for row in kept], dtype=np.int64)
    halves = {key: split_of(key, HALVES, seed) for key in dict.fromkeys(row[2] for row in kept)}
    in_fit = np.asarray([halves[row[2]] == "fit" for row in kept], dtype=bool)
    groups = query_groups([row[2] for row in kept]) if kept else np.zeros(0, dtype=np.int64)

    probabilities, predicted = _answers(firsts, tier_ids)
    can = predicted >= 0
    differs = can & (predicted != gold)
    temperature, confidence = None, np.full(len(kept), UNSURE)
    if (can & in_fit).any():
        temperature = fit_temperature(probabilities[can & in_fit], gold[can & in_fit])
        confidence[can] = confidence_of(apply_temperature(probabilities[can], temperature), predicted[can])

    check = ~in_fit
    threshold, bound, why = choose_threshold(confidence[in_fit], differs[in_fit], groups[in_fit], target)
    if not can.any():
        why = "the student gives no tier probabilities"
    elif not check.any():
        threshold, bound, why = None, None, "the sample has too few queries to hold some out"
    agreement, to_judge = None, 1.0
    if threshold is not None:
        stands = confidence[check] >= threshold
        found = mean_estimate((~(stands & differs[check])).astype(np.float64), groups[check], samples=samples, seed=seed)
        agreement = tuple(None if np.isnan(end) else float(end) for end in (found.value, found.low, found.high))
        to_judge = float(1 - stands.mean())
        if found.value < target:
            why = f"the threshold {threshold:.3f} reached an agreement of only {percent(found)} on the held-out queries"
            threshold, to_judge = None, 1.0
    return CascadeFit(
        student=student,
        judge=judge,
        target=float(target),
        seed=int(seed),
        temperature=temperature,
        threshold=threshold,
        why=why,
        bound=bound,
        agreement=agreement,
        to_judge=to_judge,
        alone=float(1 - differs[check].mean()) if check.any() else None,
        fit_pairs=int(in_fit.sum()),
        fit_queries=len(np.unique(groups[in_fit])),
        check_pairs=int(check.sum()),
        check_queries=len(np.unique(groups[check])),
        unanswered=int((~answered).sum()),
    )


def choose_threshold(
    confidence: np.ndarray, differs: np.ndarray, groups: np.ndarray, target: float
) -> tuple[float | None, float | None, str]:
    """The smallest threshold with which the lower bound of the agreement reaches the target, and that bound; or None, None and why
    there is none. confidence [N]: UNSURE goes to the judge whatever the threshold; differs [N]: the student's tier is not the
    judge's; groups [N]: integers, one per query."""
    able = confidence > UNSURE
    if not able.any():
        return None, None, "no pair of the sample has a student's verdict with probabilities"
    order = np.argsort(-confidence, kind="stable")[: able.sum()]
    ends = np.flatnonzero(np.diff(confidence[order], append=UNSURE) != 0)  # pairs of one confidence stand together
    bounds = agreement_bounds(differs[order], groups[order], np.unique(groups, return_counts=True))[ends]
    failed = np.flatnonzero(bounds < target)
    last = (failed[0] if len(failed) else len(ends)) - 1
    if last < 0:
        pairs, queries = len(confidence), len(np.unique(groups))
        reached = f"{100 * float(bounds[0]):.2f}" if np.isfinite(bounds[0]) else "0"
        return None, None, (
            f"no threshold reaches the target of {100 * target:g} % on {pairs:,} pairs of {queries:,} queries (the lower bound is "
            f"{reached} % where only the student's surest verdicts stand; a larger sample raises it)"
        )
    if last == len(ends) - 1:
        return 0.0, float(bounds[last]), ""
    # Between two confidences of the sample, so that the last digit of a confidence decides nothing.
    return float(confidence[order[ends[last : last + 2]]].mean()), float(bounds[last]), ""


def agreement_bounds(differs: np.ndarray, groups: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """[M] lower one-sided 95 % bound of the agreement if the first 1, 2, … M pairs keep the student's verdict.

    differs, groups [M]: in the order in which pairs are kept; sizes: the queries of the whole sample and their numbers of pairs.
    The design effect is at least the one of all M pairs, because a few disagreements do not show how they cluster.
    """
    queries, counts = sizes
    pairs, n_queries = int(counts.sum()), len(queries)
    if n_queries < 2:
        return np.full(len(differs), -np.inf)
    at = np.flatnonzero(differs)
    own = np.searchsorted(queries, groups[at])
    size = counts[own].astype(np.float64)
    by_query = np.argsort(own, kind="stable")
    begins = np.searchsorted(own[by_query], own[by_query], side="left")
    earlier = np.empty(len(at))  # disagreements of the same query before this one
    earlier[by_query] = np.arange(len(at)) - begins
    # Sums over the queries of d², d·n and n², for d disagreements and n pairs of a query.
    squares, products = np.cumsum(2 * earlier + 1), np.cumsum(size)
    number = np.arange(1, len(at) + 1)
    rate = number / pairs
    spread = squares - 2 * rate * products + rate**2 * float((counts.astype(np.float64) ** 2).sum())
    variance = spread * n_queries / (n_queries - 1) / pairs**2
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.nan_to_num(variance / (rate * (1 - rate) / pairs), nan=1.0, posinf=1.0)
    whole = max(1.0, effect[-1]) if len(at) else float((counts.astype(np.float64) ** 2).sum()) / pairs
    effect = np.maximum(effect, whole)
    # No disagreement yet: the effect of all of them.
    rate, effect = np.insert(rate, 0, 0.0), np.insert(effect, 0, whole)
    few = (stdtrit(pairs - 1, LEVEL) / stdtrit(n_queries - 1, LEVEL)) ** 2
    effective = pairs / effect * few
    positives = rate * effective
    with np.errstate(invalid="ignore"):
        upper = betaincinv(positives + 1, np.maximum(effective - positives, 1e-9), LEVEL)
    bounds = 1 - np.where(rate >= 1, 1.0, upper)
    return bounds[np.cumsum(differs)]


def _answers(verdicts: Sequence[Verdict], tier_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, K] and tiers [N] of a student; tier -1 where its verdict cannot stand."""
    probabilities = np.full((len(verdicts), len(tier_ids)), 1 / len(tier_ids))
    predicted = np.full(len(verdicts), -1, dtype=np.int64)
    for row, verdict in enumerate(verdicts):
        given = verdict.probabilities
        if verdict.tier in tier_ids and given is not None and len(given) == len(tier_ids) and np.isfinite(given).all():
            probabilities[row], predicted[row] = given, tier_ids.index(verdict.tier)
    return probabilities, predicted


@dataclass
class Cascade:
    """A Scorer that asks the student, then the judge where the student is unsure. Raises LoreError for a student of other tiers,
    and for a fit of another student or judge."""

    student: Scorer
    judge: Scorer
    fit: CascadeFit

    def __post_init__(self):
        check_student(self.student, self.judge)
        for name, scorer in (("student", self.student), ("judge", self.judge)):
            if scorer.judge_id != (fitted := getattr(self.fit, name)):
                raise LoreError(
                    f"The threshold of the cascade was chosen for the {name} {fitted}, and the {name} is now {scorer.judge_id}.\n"
                    "Its confidence means something else, so the agreement that was measured would not hold. Restore the old "
                    f"{name}, or label into a new folder."
                )

    @property
    def tier_ids(self) -> list[str]:
        return self.judge.tier_ids

    @property
    def judge_id(self) -> str:
        """Identifies student, judge and threshold together. A verdict has the judge_id of the one that gave it."""
        parts = (self.student.judge_id, self.judge.judge_id, self.fit.temperature, self.fit.threshold)
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
        return judge_id(f"cascade-{digest}", *split_judge_id(self.judge.judge_id)[1:])

    @property
    def usage(self) -> EngineUsage:
        first, second = self.student.usage, self.judge.usage
        return EngineUsage(
            first.prompt_tokens + second.prompt_tokens,
            first.cached_tokens + second.cached_tokens,
            first.generated_tokens + second.generated_tokens,
        )

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        """See Scorer.score. source is `student` or `judge`; the probabilities of a student's verdict are after temperature."""
        if self.fit.threshold is None or not pairs:
            return self.judge.score(pairs)
        verdicts = self.student.score(pairs)
        probabilities, predicted = _answers(verdicts, self.tier_ids)
        probabilities = apply_temperature(probabilities, self.fit.temperature)
        stands = (predicted >= 0) & (confidence_of(probabilities, predicted) >= self.fit.threshold)
        for row in np.flatnonzero(stands):
            verdicts[row] = replace(verdicts[row], probabilities=probabilities[row].tolist(), source="student")
        unsure = np.flatnonzero(~stands).tolist()
        if unsure:
            asked = self.judge.score([pairs[row] for row in unsure])
            for row, verdict in zip(unsure, asked, strict=True):
                verdicts[row] = verdict
        return verdicts

    def close(self) -> None:
        """Frees the memory of both, as far as they hold an engine."""
        for scorer in (self.student, self.judge):
            if hasattr(scorer, "close"):
                scorer.close()


def check_student(student: Scorer, judge: Scorer) -> None:
    """Raises LoreError if the student answers with other tiers than the judge."""
    if student.tier_ids != judge.tier_ids:
        raise LoreError(
            f"The student answers with the tiers {', '.join(student.tier_ids)} and the judge with {', '.join(judge.tier_ids)}, so "
            "the labels of a cascade would mix two scales.\nTake a student with the judge's rubric."
        )


def open_cascade(
    student: Scorer,
    judge: Scorer,
    sample: Callable[[], Iterable[Pair]],
    path: Path,
    *,
    target: float,
    seed: int,
) -> Cascade:
    """The cascade of `path` (cascade.json), if an earlier start has chosen the threshold; else chooses it and writes the file.
    sample: the pairs for that, whole queries drawn from the input by the hash of the query; both are asked about all of them."""
    if path.is_file():
        return Cascade(student, judge, read_fit(path))
    check_student(student, judge)
    pairs = list(sample())
    keys = [query_key(pair.query, pair.slices) for pair in pairs]
    fit = fit_cascade(
        student.score(pairs),
        judge.score(pairs),
        keys,
        target,
        seed,
        tier_ids=judge.tier_ids,
        student=student.judge_id,
        judge=judge.judge_id,
    )
    write_fit(path, fit)
    return Cascade(student, judge, fit)


def write_fit(path: Path, fit: CascadeFit) -> None:
    """Writes cascade.json. Its floats read back as they were."""
    write_atomic(path, json.dumps(fit.model_dump(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_fit(path: Path) -> CascadeFit:
    """The fit in cascade.json. Raises LoreError for a damaged file."""
    lost, advice = "the threshold of the cascade is lost", "Delete it: the threshold is then chosen again, from the same sample."
    content = read_object(path, lost, advice)
    if isinstance(content.get("agreement"), list):
        content["agreement"] = tuple(content["agreement"])
    try:
        return CascadeFit.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LoreError(f"{path} is damaged ({where}: {first['msg']}), so {lost}.\n{advice}") from error


@dataclass(frozen=True)
class LexicalScorer:
    """The lexical baseline (lore.eval.baselines) as a Scorer: a student that costs almost nothing and knows words alone."""

    model: Lexical | Majority
    tier_ids: list[str]
    judge_id: str
    usage: EngineUsage = field(default_factory=EngineUsage)
    """Always zeros: it reads no tokens."""

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        """See Scorer.score."""
        if not pairs:
            return []
        return [
            Verdict(
                pair.pair_id,
                self.tier_ids[int(row.argmax())],
                row.tolist(),
                photo="hidden" if pair.image else "none",
                judge_id=self.judge_id,
                source="student",
            )
            for pair, row in zip(pairs, self.model.predict(pairs), strict=True)
        ]


def lexical_scorer(pairs: Iterable[Pair], rubric: Rubric, seed: int = 0) -> LexicalScorer:
    """Trains the lexical baseline on the pairs that have a label. Raises LoreError without any, and for a label that is no tier."""
    digest = hashlib.blake2b(f"{sklearn.__version__} {seed}".encode(), digest_size=8)
    labeled, gold, weights = [], [], []
    for pair in pairs:
        if pair.label is not None:
            gold.append(rubric.index(pair.label))
            weights.append(pair.label_weight)
            labeled.append(replace(pair, image=None, price=None, shop=None))  # it does not read them
            row = f"{query_key(pair.query)}\x1f{item_key(labeled[-1])}\x1f{gold[-1]}\x1f{weights[-1]}\n"
            digest.update(row.encode(errors="surrogatepass"))
    if not labeled:
        raise LoreError("The lexical student has no labeled pair to learn from. Name a pairs file with labels as its student.")
    model = fit_baseline("lexical", labeled, gold, len(rubric.tier_ids), weights=weights, seed=seed)
    return LexicalScorer(model, rubric.tier_ids, judge_id(f"lexical-{digest.hexdigest()}", rubric.hash, "none"))


def read_lexical_scorer(path: str | Path, rubric: Rubric, *, split: str | None = None, seed: int = 0) -> LexicalScorer:
    """Trains the lexical baseline on a pairs file. split: null reads all pairs."""
    return lexical_scorer(read_pairs(path, split=split, columns=LABELED), rubric, seed)
