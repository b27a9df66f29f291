"""A judge's scorecard holds every measure for the whole, each slice and the prior; the table shows what is asked for."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from lore.eval.measures.agreement import Ratings
from lore.eval.measures.metrics import metric_names
from lore.eval.report.console import READABLE, best_value, print_table, shown_columns
from lore.eval.scorecard import score
from lore.eval.sections import MetricsSection
from lore.eval.testset import EvalData, Labeled
from lore.judge.verdict import Verdict
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("rair")
TIERS = RUBRIC.tier_ids
PRIOR = dict(zip(TIERS, (0.06, 0.27, 0.07, 0.6), strict=True))
GAINS = dict(zip(TIERS, (0, 0.01, 0.1, 1.0), strict=True))
PAIRS = 200


def made(ratings: bool = False) -> EvalData:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 4, PAIRS)
    slices = [["odd"] if index % 2 else ["even", "worst"][: 1 + (tier == 0)] for index, tier in enumerate(gold)]
    queries = [f"q{index // 5}" for index in range(PAIRS)]
    test = Labeled("test", [f"p{index}" for index in range(PAIRS)], queries, gold, np.ones(PAIRS), slices)
    given = Ratings(np.arange(20), np.zeros(20, dtype=int), gold[:20], ["ann"], PAIRS - 20) if ratings else None
    return EvalData("nowhere", RUBRIC, test, None, ratings=given)


def answered(data: EvalData, probabilities: bool = True) -> dict[str, Verdict]:
    rng = np.random.default_rng(1)
    verdicts = {}
    for pair_id, tier in zip(data.test.pair_ids, data.test.gold, strict=True):
        p = rng.dirichlet(np.eye(4)[tier] * 3 + 0.5)
        verdicts[pair_id] = Verdict(pair_id, TIERS[int(p.argmax())], p.tolist() if probabilities else None)
    verdicts["p7"] = Verdict("p7", None, failure="no_verdict")
    return verdicts


def carded(data: EvalData, verdicts, slices=("odd", "even", "worst"), **options):
    settings = MetricsSection(bootstrap_samples=40, **options)
    return score("a", "model", "", verdicts, data=data, options=settings, slices=slices, seed=0)


def test_everything_is_measured_for_the_whole_its_slices_and_the_prior():
    data = made(ratings=True)
    card = carded(data, answered(data), prior=PRIOR, gains=GAINS)
    expected = set(metric_names(TIERS)) - {"ece_calibrated", "refused_rate"}
    assert set(card.slices) == set(card.slices_natural) == {"odd", "even", "worst"}
    for part in (card.whole, card.natural, *card.slices.values(), *card.slices_natural.values()):
        assert set(part.metrics) == expected
    for name in ("acc_2", "macro_f1", "micro_f1", "cost", "auc", "ndcg", "brier"):
        for part in (card.whole, card.natural):
            assert not math.isnan(part.metrics[name].low) and part.metrics[name].low <= part.metrics[name].high
    assert card.whole.metrics["cost"] != card.natural.metrics["cost"]
    assert card.risk.risk[-1].value == pytest.approx(1 - card.whole.metrics["acc_k"].value)
    assert card.risk_natural.risk[-1].value == pytest.approx(1 - card.natural.metrics["acc_k"].value)
    assert card.agreement.quadratic_kappa == card.whole.metrics["qwk"]
    assert card.agreement_natural.quadratic_kappa.value == pytest.approx(card.natural.metrics["qwk"].value)
    assert card.agreement.with_raters.value > 0 and card.agreement_natural.with_raters is None
    assert card.agreement.alpha.low < card.agreement.alpha.high
    assert math.isnan(card.slices["worst"].metrics["auc"].value)  # nothing relevant in it
    text = json.dumps(card.to_json(), allow_nan=False)
    assert all(f'"{key}"' in text for key in ("risk", "risk_under_prior", "agreement_under_prior", "slices_under_prior"))


def test_a_slice_of_tiers_without_a_share_has_no_values_under_the_prior():
    data = made()
    card = carded(data, answered(data), prior={"L4": 1.0})
    assert math.isnan(card.slices_natural["worst"].metrics["acc_k"].value)
    assert not math.isnan(card.slices_natural["even"].metrics["acc_k"].value)


def test_a_slice_is_scored_as_if_it_were_the_whole_test():
    data, verdicts = made(), answered(made())
    odd = np.flatnonzero(data.test.in_slice("odd"))
    kept = [np.asarray(column)[odd].tolist() for column in (data.test.pair_ids, data.test.queries)]
    alone = Labeled("test", *kept, data.test.gold[odd], np.ones(len(odd)), [["odd"]] * len(odd))
    whole = carded(EvalData("nowhere", RUBRIC, alone, None), {key: verdicts[key] for key in kept[0]}, slices=[], gains=GAINS).whole
    assert carded(data, verdicts, gains=GAINS).slices["odd"] == whole


def test_without_probabilities_what_needs_them_is_missing():
    data = made()
    card = carded(data, answered(data, probabilities=False), gains=GAINS)
    assert card.risk is None and card.to_json()["risk"] is None
    assert all(math.isnan(card.whole.metrics[name].value) for name in ("auc", "brier", "ece"))
    assert not math.isnan(card.whole.metrics["ndcg"].value)


def test_costs_follow_the_recipe():
    data = made()
    low, high = (carded(data, answered(data), border_cost=b, optimism_cost=o).whole.metrics["cost"] for b, o in ((0, 1), (2, 3)))
    assert low.value < high.value
    pairs = zip(answered(data).values(), data.test.gold, strict=True)
    distance = [abs(RUBRIC.index(v.tier) - tier) if v.tier else max(tier, 3 - tier) for v, tier in pairs]
    assert low.value == pytest.approx(np.mean(distance))


def test_gains_that_fit_no_tier_are_refused():
    data = made()
    with pytest.raises(LoreError, match="metrics.gains names 'L5'.*L1, L2"):
        carded(data, answered(data), gains={"L5": 1.0})
    with pytest.raises(LoreError, match="L4 is -1"):
        carded(data, answered(data), gains={"L4": -1.0})
    with pytest.raises(LoreError, match="all zero"):
        carded(data, answered(data), gains={"L4": 0.0})


def test_the_table_shows_the_named_metrics_in_their_order():
    data = made()
    card = carded(data, answered(data), gains=GAINS)
    assert list(shown_columns([card.whole], TIERS)) == [name for name in READABLE if name not in ("ece_calibrated", "refused_rate")]
    assert list(shown_columns([card.whole], TIERS, ["f1_L3", "brier", "acc_2"]).items()) == [
        ("f1_L3", "F1 L3"),
        ("brier", "Brier"),
        ("acc_2", "Acc@2"),
    ]
    with pytest.raises(LoreError, match="'macrof1'.*Nearest: 'macro_f1'"):
        shown_columns([card.whole], TIERS, ["acc_k", "macrof1"])
    out = io.StringIO()
    print_table([card], TIERS, "t", console=Console(file=out), shown=["brier"])
    assert "Brier" in out.getvalue() and "Acc@2" not in out.getvalue()


def test_the_best_cost_is_the_lowest():
    data = made()
    good, bad = answered(data), dict.fromkeys(data.test.pair_ids)
    bad = {pair_id: Verdict(pair_id, "L4", [0.0, 0, 0, 1]) for pair_id in bad}
    parts = {"good": carded(data, good).whole, "bad": carded(data, bad).whole}
    for name in ("cost", "brier", "ece"):
        assert best_value(name, parts) == min(part.metrics[name].value for part in parts.values())
    assert best_value("auc", parts) == parts["good"].metrics["auc"].value
