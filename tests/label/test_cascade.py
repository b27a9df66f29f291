"""The cascade: its bound, its threshold, and what student and judge answer."""

import json
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import beta

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data.parquet import PairWriter, read_pairs
from lore.data_synth.shop.world import World
from lore.engines.config import ModelSection
from lore.engines.engine import EngineUsage, Sampling
from lore.engines.open_engine import open_engine
from lore.judge.scorer import JudgeScorer
from lore.judge.verdict import Verdict
from lore.label.cascade import (
    Cascade,
    CascadeFit,
    agreement_bounds,
    choose_threshold,
    fit_cascade,
    lexical_scorer,
    open_cascade,
    read_fit,
    read_lexical_scorer,
    write_fit,
)
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

TIERS = ["L1", "L2", "L3", "L4"]
SHOP = load_rubric("shop")


@dataclass
class Answers:
    """A Scorer with given verdicts, which remembers what it was asked."""

    verdicts: dict[str, Verdict]
    judge_id: str
    tier_ids: list[str] = field(default_factory=lambda: TIERS)
    usage: EngineUsage = field(default_factory=EngineUsage)
    asked: list[str] = field(default_factory=list)

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        self.asked += [pair.pair_id for pair in pairs]
        self.usage.prompt_tokens += 10 * len(pairs)
        self.usage.generated_tokens += len(pairs)
        return [replace(self.verdicts[pair.pair_id], judge_id=self.judge_id) for pair in pairs]


def shop(queries: int, per_query: int = 4, seed: int = 0, wrong: float = 0.5) -> tuple[list[Pair], Answers, Answers, list[str]]:
    """Pairs, a student and a judge. The student is wrong with a chance that rises to `wrong` where its confidence is low, and its
    probabilities are too sure: a temperature of 2 was divided out."""
    rng = np.random.default_rng(seed)
    pairs, first, second = [], {}, {}
    for number in range(queries * per_query):
        pair = Pair(pair_id=f"p{number}", query=f"query {number // per_query}", title=f"item {number}")
        logits = np.zeros(4)
        said = int(rng.integers(4))
        logits[said] = rng.uniform(0, 9)
        honest = np.exp(logits) / np.exp(logits).sum()
        truth = said if rng.random() < 1 - wrong * (1 - honest[said]) / 0.75 else (said + 1) % 4
        sure = np.exp(2 * logits) / np.exp(2 * logits).sum()
        first[pair.pair_id] = Verdict(pair.pair_id, TIERS[said], sure.tolist())
        second[pair.pair_id] = Verdict(pair.pair_id, TIERS[truth])
        pairs.append(pair)
    student, judge = Answers(first, "student:rubric:a"), Answers(second, "judge:rubric:b")
    return pairs, student, judge, [pair.query for pair in pairs]


def fitted(pairs, student, judge, keys, target=0.95, seed=0) -> CascadeFit:
    verdicts = [[one.verdicts[pair.pair_id] for pair in pairs] for one in (student, judge)]
    return fit_cascade(*verdicts, keys, target, seed, tier_ids=TIERS, student=student.judge_id, judge=judge.judge_id)


@cache
def usual() -> CascadeFit:
    return fitted(*shop(500))


def test_the_bound_is_clopper_and_pearsons_for_queries_of_one_pair():
    differs = np.zeros(400, bool)
    differs[[50, 120, 399]] = True
    bounds = agreement_bounds(differs, np.arange(400), (np.arange(400), np.ones(400, int)))
    for kept, errors in ((10, 0), (51, 1), (200, 2), (400, 3)):
        assert bounds[kept - 1] == pytest.approx(1 - beta.ppf(0.95, errors + 1, 400 - errors), abs=1e-4)


def test_pairs_that_agree_or_not_as_whole_queries_count_as_one():
    differs = np.repeat(np.arange(100) % 20 == 7, 5)
    bounds = agreement_bounds(differs, np.repeat(np.arange(100), 5), (np.arange(100), np.full(100, 5)))
    assert bounds[-1] == pytest.approx(1 - beta.ppf(0.95, 6, 95), abs=2e-3)
    # No disagreement so far: clustered as all of them are.
    assert bounds[0] == pytest.approx(0.05 ** (1 / 100), abs=2e-3)
    assert agreement_bounds(np.zeros(8, bool), np.zeros(8, int), (np.zeros(1, int), np.full(1, 8))).max() == -np.inf


def test_bounds_follow_from_sums_over_the_queries():
    """Against the textbook formula of the ratio estimator, computed query by query."""
    rng = np.random.default_rng(3)
    groups, differs = rng.integers(0, 60, 300), rng.random(300) < 0.2
    queries, counts = np.unique(groups, return_counts=True)
    bounds = agreement_bounds(differs, groups, (queries, counts))

    def effect(kept: int) -> float:
        errors = np.asarray([differs[:kept][groups[:kept] == query].sum() for query in queries])
        rate = errors.sum() / 300
        variance = len(queries) / (len(queries) - 1) * ((errors - rate * counts) ** 2).sum() / 300**2
        return variance / (rate * (1 - rate) / 300)

    from scipy.stats import t  # only here

    few = (t.ppf(0.95, 299) / t.ppf(0.95, len(queries) - 1)) ** 2
    for kept in (40, 150, 300):
        errors = differs[:kept].sum()
        effective = 300 / max(1, effect(kept), effect(300)) * few
        positives = errors / 300 * effective
        assert bounds[kept - 1] == pytest.approx(1 - beta.ppf(0.95, positives + 1, effective - positives))


def test_the_threshold_holds_its_target_in_19_of_20_samples():
    """Queries differ in how hard they are, so disagreements cluster. The agreement at a threshold is known exactly."""
    rng = np.random.default_rng(7)
    missed, found = 0, 0
    for _ in range(300):
        hard = np.repeat(rng.choice([0.0, 3.0], 150, p=[0.75, 0.25]), 6)
        sure = rng.random(900)
        differs = rng.random(900) < np.minimum(1, 0.4 * hard * (1 - sure) ** 2)
        threshold, bound, _ = choose_threshold(sure, differs, np.repeat(np.arange(150), 6), 0.95)
        if threshold is None:
            continue
        found += 1
        x = np.linspace(threshold, 1, 2001)
        lost = 0.25 * np.trapezoid(np.minimum(1, 1.2 * (1 - x) ** 2), x)
        missed += lost > 0.05
    assert found > 250 and missed / 300 <= 0.07


def test_a_fit_is_checked_on_queries_that_it_has_not_seen():
    fit = usual()
    assert fit.threshold is not None and fit.why == ""
    assert fit.temperature == pytest.approx(2.0, rel=0.25)
    assert fit.bound >= 0.95 and fit.agreement[0] >= 0.95 and fit.agreement[1] < fit.agreement[0] < fit.agreement[2]
    assert fit.alone < 0.95 < 1 and 0.1 < fit.to_judge < 0.9
    assert fit.fit_pairs + fit.check_pairs == 2000 and fit.fit_queries + fit.check_queries == 500
    assert "held-out pairs, target 95 %" in str(fit)
    assert usual() == fitted(*shop(500))


def test_new_pairs_keep_the_target_and_the_judge_is_asked_only_where_needed():
    pairs, student, judge, _ = shop(1500, seed=9)
    cascade = Cascade(student, judge, usual())
    verdicts = cascade.score(pairs)
    assert [verdict.pair_id for verdict in verdicts] == [pair.pair_id for pair in pairs]
    from_judge = [verdict.pair_id for verdict in verdicts if verdict.source == "judge"]
    assert judge.asked == from_judge and len(student.asked) == 6000
    assert len(from_judge) / 6000 == pytest.approx(usual().to_judge, abs=0.05)
    assert np.mean([verdict.tier == judge.verdicts[verdict.pair_id].tier for verdict in verdicts]) >= 0.95
    sure = [verdict for verdict in verdicts if verdict.source == "student"]
    assert min(max(verdict.probabilities) for verdict in sure) >= usual().threshold
    assert {verdict.judge_id for verdict in sure} == {"student:rubric:a"}
    assert cascade.usage == EngineUsage(prompt_tokens=10 * (6000 + len(from_judge)), generated_tokens=6000 + len(from_judge))
    assert cascade.judge_id.startswith("cascade-") and cascade.judge_id.endswith(":rubric:b")
    assert cascade.score([]) == []


@pytest.mark.parametrize("broken", [{"tier": None, "failure": "refused"}, {"probabilities": None}, {"probabilities": [0.5, 0.5]}])
def test_what_the_student_cannot_answer_goes_to_the_judge(broken):
    pairs, student, judge, _ = shop(20, seed=2)
    for pair in pairs[::2]:
        student.verdicts[pair.pair_id] = replace(student.verdicts[pair.pair_id], **broken)
    nothing = float("nan")
    student.verdicts["p1"] = replace(student.verdicts["p1"], probabilities=[nothing] * 4)
    verdicts = Cascade(student, judge, usual().model_copy(update={"threshold": 0.0})).score(pairs)
    assert [verdict.source for verdict in verdicts] == ["judge", "judge", *["judge", "student"] * 39]


def test_failures_in_the_sample():
    pairs, student, judge, keys = shop(500)
    for pair in pairs[:400]:
        student.verdicts[pair.pair_id] = Verdict(pair.pair_id, None, failure="refused")
        judge.verdicts[pairs[-1 - int(pair.pair_id[1:])].pair_id] = Verdict(pair.pair_id, None, failure="refused")
    fit = fitted(pairs, student, judge, keys)
    assert fit.unanswered == 400 and fit.fit_pairs + fit.check_pairs == 1600
    assert fit.threshold is not None and fit.to_judge >= 0.2


def test_everything_goes_to_the_judge_if_no_threshold_reaches_the_target():
    few = fitted(*shop(30), target=0.98)
    assert few.threshold is None and few.agreement is None and few.to_judge == 1.0
    assert "no threshold reaches the target of 98 %" in few.why and "a larger sample raises it" in str(few)
    pairs, student, judge, _ = shop(30)
    cascade = Cascade(student, judge, few)
    assert {verdict.source for verdict in cascade.score(pairs)} == {"judge"} and student.asked == []

    pairs, student, judge, keys = shop(100)
    student.verdicts = {name: replace(one, probabilities=None) for name, one in student.verdicts.items()}
    none = fitted(pairs, student, judge, keys)
    assert (none.threshold, none.temperature, none.why) == (None, None, "the student gives no tier probabilities")
    assert fitted(pairs[:4], student, judge, keys[:4]).threshold is None
    assert fitted([], student, judge, []).threshold is None


def test_a_threshold_that_fails_on_the_held_out_queries_is_not_used(monkeypatch):
    monkeypatch.setattr("lore.label.cascade.choose_threshold", lambda *_: (0.0, 0.99, ""))
    fit = fitted(*shop(300))
    assert fit.threshold is None and fit.agreement[0] < 0.95 and "only" in fit.why and "held-out" in fit.why


def test_other_tiers_another_student_and_another_judge_are_refused():
    _, student, judge, _ = shop(2)
    fit = usual()
    for changed, message in (
        (replace(student, tier_ids=["bad", "good"]), "would mix two scales"),
        (replace(student, judge_id="new:rubric:a"), "chosen for the student student:rubric:a, and the student is now new:rubric:a"),
    ):
        with pytest.raises(LoreError, match=message):
            Cascade(changed, judge, fit)
    with pytest.raises(LoreError, match="chosen for the judge"):
        Cascade(student, replace(judge, judge_id="x:y:z"), fit)
    other = fit.model_copy(update={"threshold": 0.5})
    assert Cascade(student, judge, other).judge_id != Cascade(student, judge, fit).judge_id


def test_a_resumed_run_asks_nobody_and_keeps_the_threshold(tmp_path):
    pairs, student, judge, _ = shop(500)
    path = tmp_path / "cascade.json"
    first = open_cascade(student, judge, lambda: pairs, path, target=0.95, seed=0)
    assert len(student.asked) == len(judge.asked) == 2000

    def never():
        raise AssertionError("the sample was read again")

    again = open_cascade(student, judge, never, path, target=0.95, seed=0)
    assert again.fit == first.fit == usual() and again.judge_id == first.judge_id
    assert len(judge.asked) == 2000


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:50],
        lambda text: text.replace('"threshold"', '"thresholds"'),
        lambda text: json.dumps(json.loads(text) | {"threshold": 1.5}),
        lambda text: json.dumps(json.loads(text) | {"temperature": "2"}),
        lambda text: json.dumps(json.loads(text) | {"agreement": [0.5]}),
        lambda text: "[]",
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "cascade.json"
    write_fit(path, usual())
    assert read_fit(path) == usual()
    path.write_text(damage(path.read_text()))
    with pytest.raises(LoreError, match="is damaged .*\n.*Delete it"):
        read_fit(path)


def test_the_lexical_student(tmp_path):
    world = World(seed=3)
    pairs = list(world.pairs("train", 120))
    scorer = lexical_scorer(pairs, SHOP)
    verdicts = scorer.score(list(world.pairs("test", 40)))
    assert all(verdict.tier == SHOP.tier_ids[int(np.argmax(verdict.probabilities))] for verdict in verdicts)
    assert {verdict.photo for verdict in verdicts} == {"none", "hidden"} and {verdict.source for verdict in verdicts} == {"student"}
    assert scorer.usage == EngineUsage() and scorer.score([]) == []
    with PairWriter(tmp_path / "pairs.parquet") as writer:
        for pair in pairs:
            writer.write(pair)
    assert read_lexical_scorer(tmp_path / "pairs.parquet", SHOP).judge_id == scorer.judge_id
    assert lexical_scorer(pairs[:-1], SHOP).judge_id != scorer.judge_id != lexical_scorer(pairs, SHOP, seed=1).judge_id
    with pytest.raises(LoreError, match="no labeled pair"):
        lexical_scorer([replace(pair, label=None) for pair in pairs], SHOP)


@pytest.mark.slow
def test_a_real_engine_after_the_lexical_student(tmp_path):
    """A model with random weights answers what the student is unsure of."""
    from tiny import make  # loads torch

    made = make(tmp_path)
    engine = open_engine(ModelSection(name=str(made.text)), SHOP, device="cpu")
    fmt = PromptFormat(order="answer_only", detail="name", photo=False)
    judge = JudgeScorer(engine, SHOP, fmt, Sampling(), "tiny:shop:answer_only")
    student = read_lexical_scorer(made.pairs, SHOP, split="train")
    pairs = list(read_pairs(made.pairs, split="test"))
    cascade = open_cascade(student, judge, lambda: pairs, tmp_path / "cascade.json", target=0.6, seed=0)
    fit = cascade.fit.model_copy(update={"temperature": 1.0, "threshold": 0.9, "why": ""})
    asked = judge.usage.prompt_tokens
    verdicts = Cascade(student, judge, fit).score(pairs)
    assert {verdict.source for verdict in verdicts} == {"student", "judge"}
    assert 0 < judge.usage.prompt_tokens - asked < asked and cascade.usage == judge.usage
    for verdict, first, own in zip(verdicts, student.score(pairs), judge.score(pairs), strict=True):
        assert (verdict.source == "student") == (max(first.probabilities) >= 0.9)
        assert verdict.tier == (first if verdict.source == "student" else own).tier
        assert verdict.source == "student" or verdict.probabilities == pytest.approx(own.probabilities, abs=1e-4)


def test_closing_a_cascade_frees_the_engines_of_both():
    closed = []

    class Held:
        def __init__(self, name):
            self.judge_id, self.tier_ids, self.name = name, ["L1", "L2"], name

        def close(self):
            closed.append(self.name)

    fit = SimpleNamespace(student="student", judge="judge")
    Cascade(Held("student"), Held("judge"), fit).close()
    assert closed == ["student", "judge"]
