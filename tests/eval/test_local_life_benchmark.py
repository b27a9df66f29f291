"""Guards eval/benchmarks/local_life.yaml, and the share of verdicts that are refused for a computed rule."""

import numpy as np
import yaml

from lore.data.parquet import read_pairs
from lore.data_synth.shop.config import SEALED_SEEDS
from lore.eval.benchmark import load_benchmark, write_benchmark_pairs
from lore.eval.measures.metrics import count, measure, total, under_prior
from lore.eval.scorecard import Answers
from lore.eval.testset import load_split
from lore.judge.verdict import Verdict
from lore.places.local_life import local_life


def test_a_towns_pairs_are_generated_scored_and_their_refusals_counted(runs, tmp_path):
    shipped = load_benchmark("local_life")
    assert set(shipped["world"]["seeds"]) <= SEALED_SEEDS
    folder = runs / "benchmarks" / "small"
    definition = {**shipped, "world": {"kind": "town", "seeds": [7099], "pairs": {"test": 60}}}
    definition["recipe"] = {**definition["recipe"], "data": {"path": str(folder), "rubric": "local_life"}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(definition))
    write_benchmark_pairs(str(tmp_path / "small.yaml"), str(folder))
    pairs = list(read_pairs(folder, split="test"))
    test = load_split(folder, "test", local_life())
    assert len(test) == len(pairs) == 60 and {"hours", "chinese", "decided:need"} < test.slice_sizes().keys()

    honest = {one.pair_id: Verdict(one.pair_id, one.label, mismatch=one.mismatch, rules=one.rules) for one in pairs}
    assert not Answers.of(honest, test, local_life()).refused.any()
    perfect = {one.pair_id: Verdict(one.pair_id, "L4") for one in pairs}
    refused = Answers.of(perfect, test, local_life()).refused
    spoiled = [any(d.tier in ("L2", "L3") and d.dimension != "need" for d in one.demands) for one in pairs]
    assert refused.tolist() == spoiled and 0 < refused.sum() < 60
    silent = {one.pair_id: Verdict(one.pair_id, None, failure="empty") for one in pairs}
    assert not Answers.of(silent, test, local_life()).refused.any(), "a missing verdict contradicts nothing"


def test_the_refused_rate_by_hand():
    gold, predicted = np.array([0, 0, 1, 1]), np.array([1, 0, 1, 1])
    refused, tiers, relevant = np.array([True, False, False, True]), ["L1", "L2"], [False, True]
    counts = count(gold, predicted, 2, refused=refused, weights=np.array([2.0, 1.0, 1.0, 1.0]))
    assert measure(total(counts), tiers, relevant)["refused_rate"] == 3 / 5
    by_tier = total(count(gold, predicted, 2, refused=refused, by_tier=True))
    assert np.isclose(measure(under_prior(by_tier, [0.9, 0.1]), tiers, relevant)["refused_rate"], 0.5)
    assert "refused_rate" not in measure(total(count(gold, predicted, 2)), tiers, relevant)
