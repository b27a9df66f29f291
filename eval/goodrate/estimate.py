"""GoodRate of a result log: the share of shown items, and of pages, that are good; per system, and as a difference.

It reports three estimates: from the judge's verdicts alone, from human labels of a random sample alone, and from both
(lore.eval.measures.ppi). The last one has no bias for any judge, and a shorter interval for a good judge.

The judge's value of an item is its probability of the relevant tiers, or 0 or 1 if the judge gives no probabilities. A verdict
alone loses the judge's confidence. The interval depends on the squared distance to the labels, which calibrated
probabilities minimize; if they are not calibrated, the labels correct them. The value of a page is the product over its
items. A format failure counts as not good.

    lore goodrate sample log.parquet --queries 50 -o to_rate.csv
    lore goodrate log.parquet --verdicts runs/judge/predictions.parquet --rated rated.csv --rubric shop
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from lore.data.rejected_rows import Rejection
from lore.data.tables.ids import known_as
from lore.eval.goodrate.log import Shown, read_log
from lore.eval.goodrate.rated_sample import Rated, nothing_rated, read_rated
from lore.eval.measures.ppi import Parts, Powered, Target, parts, solve
from lore.judge.ask import no_answer
from lore.judge.foreign_predictions import prediction_rows, read_predictions
from lore.rubric.rubric import Rubric, load_rubric
from lore.support.errors import LoreError
from lore.support.text import printable

FEW_CLUSTERS = 30
MAX_UNANSWERED_SHARE = 0.5
UNLIKELY = 0.001
"""Probability, for a random sample, of a distance to its log above which a warning is shown."""


@dataclass(frozen=True)
class Rate:
    """A GoodRate or a difference of two."""

    of: str
    """items or pages."""
    system: str
    """A name, or `B - A`."""
    shown: int
    """Number of rows or pages of the log."""
    rated: int
    """Number of them with a label."""
    estimate: Powered
    clusters: float
    """Effective number of rated queries."""


@dataclass
class GoodRate:
    """The GoodRates of a log, with the settings and warnings."""

    rates: list[Rate]
    summary: dict[str, object]
    """Counts and settings, as in goodrate.json."""
    remarks: list[str] = field(default_factory=list)
    """Warnings that affect how far the numbers can be trusted."""
    rejected: list[Rejection] = field(default_factory=list)


def goodrate(
    log_path: Path,
    verdicts_path: Path,
    rubric_name: str,
    *,
    rated_path: Path | None = None,
    judge: str | None = None,
    top: int | None = None,
    target: Target = "log",
) -> GoodRate:
    """Reads the files and estimates. top: only the first `top` positions of each page count. target: see ppi."""
    rubric = load_rubric(rubric_name)
    whole = read_log(log_path)
    sample = read_rated(rated_path, rubric, whole) if rated_path else nothing_rated(whole)
    log = whole
    if top is not None:
        keep = whole.at_top(top)
        log, sample = whole.only(keep), sample.only(keep)
    judged, failures, foreign = read_judged(verdicts_path, rubric, log, judge)
    rates, remarks = estimate(log, judged, sample, target)
    if failures:
        remarks.append(
            f"{failures:,} of {len(set(log.pair_ids)):,} shown pairs have no verdict (format failures); they count as not good."
        )
    if sample.unlabeled:
        remarks.append(
            f"{sample.unlabeled:,} of {sample.labeled + sample.unlabeled:,} sampled pairs have no label. If raters skipped the "
            "hard ones, every estimate from the labels is too high."
        )
    if log.rejected:
        reasons = Counter(problem.reason for problem in log.rejected)
        remarks.append(
            f"{len(log.rejected):,} rows of the log cannot be read and are left out ("
            + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            + "); pages are evaluated without them."
        )
    summary = {
        "log": {
            "path": str(log_path),
            "rows": len(log),
            "pairs": len(set(log.pair_ids)),
            "queries": log.n_queries,
            "pages": len(np.unique(log.pages)),
            "impressions": float(log.impressions.sum()),
            "rejected_rows": len(log.rejected),
            "rows_below_top": log.below_top,
        },
        "verdicts": {"path": str(verdicts_path), "judge": judge, "format_failures": failures, "of_pairs_not_shown": foreign},
        "rated": {"path": str(rated_path) if rated_path else None, "labeled": sample.labeled, "unlabeled": sample.unlabeled},
        "rubric": {"name": rubric.name, "hash": rubric.hash, "good": [t.id for t in rubric.tiers if t.relevant]},
        "top": top,
        "target": target,
    }
    return GoodRate(rates, summary, remarks, log.rejected)


def read_judged(path: Path, rubric: Rubric, log: Shown, judge: str | None = None) -> tuple[np.ndarray, int, int]:
    """The judge's value of every row [N], the format failures among the shown pairs, and the number of verdicts on other pairs."""
    shown = list(dict.fromkeys(log.pair_ids))
    judges: dict[str, set[str]] = {}
    rows, spelled = prediction_rows(path, "--verdicts"), known_as(shown)
    for row in rows:
        row["pair_id"] = spelled(row["pair_id"])
        judges.setdefault(str(row.get("judge") or ""), set()).add(row["pair_id"])
    if judge is None and len(judges) > 1:
        raise LoreError(
            f"{path} holds the verdicts of {len(judges)} judges, and GoodRate uses one. Choose it with --judge: "
            f"{printable(', '.join(sorted(judges)))}."
        )
    if judge is not None and judge not in judges:
        found = printable(", ".join(filter(None, sorted(judges))))
        raise LoreError(
            f"{path} has no verdicts of a judge {judge!r}; found {found or 'no column judge'}. "
            "Correct --judge, or drop it if the file has one judge."
        )
    known = judges.get(judge, set()) if judge is not None else set().union(*judges.values())
    foreign = known - set(shown)
    verdicts = read_predictions(path, rubric, shown, foreign, judge, rows=rows)
    lost = [why for pair_id in shown if (why := no_answer(verdicts[pair_id]))]
    if len(lost) > MAX_UNANSWERED_SHARE * len(shown):
        raise LoreError(
            f"{path}: {len(lost):,} of {len(shown):,} shown pairs got no answer, so the GoodRate would measure that. The "
            f"most frequent reason: {Counter(lost).most_common(1)[0][0][:300]}\nAsk the judge again about these pairs."
        )
    mask = np.asarray(rubric.relevant_mask)
    value = {}
    for pair_id in shown:
        verdict = verdicts[pair_id]
        if verdict.tier is None:
            value[pair_id] = 0.0
        elif verdict.probabilities is not None:
            value[pair_id] = float(np.asarray(verdict.probabilities)[mask].sum())
        else:
            value[pair_id] = float(mask[rubric.index(verdict.tier)])
    failures = sum(verdicts[pair_id].tier is None for pair_id in shown)
    return np.asarray([value[pair_id] for pair_id in log.pair_ids]), failures, len(foreign)


def estimate(log: Shown, judged: np.ndarray, sample: Rated, target: Target = "log") -> tuple[list[Rate], list[str]]:
    """Rates of items and of pages for each system, then the difference of two systems; and warnings about the sample."""
    remarks = []
    pages = np.unique(log.pages, return_inverse=True)[1].reshape(-1)
    first = np.unique(pages, return_index=True)[1]
    page_impressions = np.zeros(len(first))
    np.maximum.at(page_impressions, pages, log.impressions)  # a page has as many impressions as its most shown item
    page_judged = np.ones(len(first))
    np.multiply.at(page_judged, pages, judged)
    page_good, page_chances, why = sample.pages(pages)
    if why:
        remarks.append(f"No estimate of pages from labels: {why}")
    items = (judged, sample.good, log.impressions, log.clusters, sample.chances)
    whole_pages = (page_judged, page_good, page_impressions, log.clusters[first], page_chances)
    if sample.labeled:
        remarks += _about_sample(parts(*items, target=target))
    rates = _rates("items", log.systems, *items, target=target) + _rates("pages", log.systems[first], *whole_pages, target=target)
    return rates, remarks


def _rates(of, systems, judged, good, weights, clusters, chances, *, target) -> list[Rate]:
    """Rate of each system, and of the second minus the first; the arrays have one entry per row or page."""
    found: dict[str, Parts] = {}
    rates = []
    for name in sorted(set(systems)):
        at = systems == name
        columns = (judged[at], good[at], weights[at], clusters[at], None if chances is None else chances[at])
        found[name] = parts(*columns, n_clusters=int(clusters.max()) + 1, target=target)
        rated = int((~np.isnan(good[at])).sum())
        rates.append(Rate(of, name, int(at.sum()), rated, solve(found[name]), found[name].clusters))
    if len(found) == 2:
        (a, parts_a), (b, parts_b) = found.items()
        difference = parts_b - parts_a
        counts = (sum(rate.shown for rate in rates), sum(rate.rated for rate in rates))
        rates.append(Rate(of, f"{b} - {a}", *counts, solve(difference), difference.clusters))
    return rates


def _about_sample(whole: Parts) -> list[str]:
    """Warnings about a small sample, and about one that the judge rates better or worse than the log by more than chance."""
    remarks = []
    if whole.clusters < FEW_CLUSTERS:
        remarks.append(
            f"The labels weigh no more than those of {whole.clusters:.0f} equally frequent queries, and below {FEW_CLUSTERS} the "
            "intervals are a little short. Rate more, or draw with `lore goodrate sample`, which prefers what is shown often."
        )
    spread = float(np.linalg.norm(whole.gap_C))
    if spread > 0 and 2 * student.sf(abs(whole.gap) / spread, max(whole.clusters - 1, 1)) < UNLIKELY:
        remarks.append(
            f"The sample does not look like a random part of the log: the judge finds {whole.judged - whole.gap:.1%} of it good "
            f"and {whole.judged:.1%} of the log; chance does that in less than 1 of {round(1 / UNLIKELY):,} samples. Then no "
            "estimate from its labels holds: say in its column probability how it was drawn, or draw it with "
            "`lore goodrate sample`."
        )
    return remarks
