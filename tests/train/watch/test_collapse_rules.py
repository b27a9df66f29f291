"""The rules that call a judge in training collapsed, the best step, and what a watch measures. No model is needed."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from lore.codec.judgement import FormatFailure, Judgement
from lore.eval.measures.metrics import NO_VERDICT, count, measure, total
from lore.judge.answer import Answer
from lore.judge.confusion import confusion_of, macro_f1
from lore.rubric.rubric import load_rubric
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.train.watch.collapse_rules import Probed, Watch, label_shares, preflight_rollouts, probe_metrics, training_metrics
from lore.train.watch.config import WatchSection
from lore.train.watch.console import print_watch, watch_line

RUBRIC = load_rubric("shop")
HEALTHY = {
    "pass_at_1": 0.6,
    "pass_at_k": 0.8,
    "macro_f1": 0.5,
    "entropy": 0.2,
    "length": 40.0,
    "truncated": 0.0,
    "format_failures": 0.0,
    "top_share": 0.5,
    "top_tier": "L4",
}


def said(tier: str | None, tokens: int = 10, truncated: bool = False) -> Answer:
    judgement = Judgement(tier) if tier else FormatFailure("empty", "")
    return Answer(tier or "", tokens, truncated, judgement)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def reasons(folder, *probes: dict, rewards=(), labels=("L1", "L2", "L4"), **section) -> list[str | None]:
    watch = Watch(WatchSection(**section), folder, RUBRIC, label_shares(labels))
    rewards = [*rewards, *[None] * len(probes)]
    return [
        watch.add(10 * number, HEALTHY | probe, {} if rewards[number] is None else {"reward": rewards[number]})
        for number, probe in enumerate(probes)
    ]


def test_a_constant_tier_stops_training(folder):
    found = reasons(folder, {}, {"top_share": 0.949}, {"top_share": 0.95})
    assert found[:2] == [None, None]
    assert found[2].startswith("constant tier: 95% of the verdicts are L4, but only 33% of the probe's labels")
    assert folder.metrics()[-1]["stopped"] == found[2]


@pytest.mark.parametrize(
    "probes, labels",
    [
        ([{}, {"top_share": 1.0}], ["L4"] * 19 + ["L1"]),
        ([{"top_share": 1.0}, {"top_share": 1.0}], ["L1", "L4"]),
        ([{"format_failures": 0.9}, {"top_share": 1.0}], ["L1", "L4"]),
        ([{}, {"top_share": 1.0, "format_failures": 0.5}], ["L1", "L4"]),
    ],
    ids=["the labels are as uniform", "it began so", "it began without verdicts", "few verdicts"],
)
def test_a_constant_tier_that_is_no_collapse(folder, probes, labels):
    assert reasons(folder, *probes, labels=labels) == [None, None]


def test_a_constant_tier_that_is_not_the_labels_own_stops_training(folder):
    assert reasons(folder, {}, {"top_share": 1.0, "top_tier": "L1"}, labels=["L4"] * 20)[1].startswith("constant tier")


def test_answers_that_shrink_to_nothing_stop_training(folder):
    found = reasons(folder, {}, {"length": 10.0}, {"length": 9.9})
    assert found[:2] == [None, None]
    assert found[2].startswith("length to zero: answers have 9.9 tokens, at the start they had 40.0")


def test_a_base_model_that_learns_to_stop_has_not_shrunk(folder):
    assert reasons(folder, {"length": 256.0, "truncated": 0.5}, {"length": 12.0}) == [None, None]
    assert reasons(folder, {}, {"length": 1.0}, length_share=0.0)[1] is None


def test_entropy_below_the_floor_stops_training(folder):
    found = reasons(folder, {}, {"entropy": 0.01}, {"entropy": 0.00999}, entropy_floor=0.01)
    assert found[:2] == [None, None]
    assert found[2].startswith("entropy: 0.00999 nats per token, at the start 0.20000")


@pytest.mark.parametrize("start", [0.009, None])
def test_a_judge_that_began_below_the_floor_has_not_lost_its_entropy(folder, start):
    assert reasons(folder, {"entropy": start}, {"entropy": 0.0}, entropy_floor=0.01) == [None, None]


REWARDS = [None, 0.3, 0.3, 0.3, 0.4, 0.4, 0.4]


def test_a_reward_that_rises_while_the_probe_falls_stops_training(folder):
    fallen = [{"macro_f1": 0.5}] * 4 + [{"macro_f1": 0.45}] * 3
    found = reasons(folder, *fallen, rewards=REWARDS)
    assert found[:6] == [None] * 6
    assert "rose from 0.300 to 0.400 while the probe's Macro-F1 fell to 0.450: 3 evaluations in a row" in found[6]


def test_where_training_has_no_reward_the_margin_of_its_preferences_stands_for_it(folder):
    watch = Watch(WatchSection(), folder, RUBRIC, label_shares(["L1", "L2"]))
    fallen = [0.5] * 4 + [0.45] * 3
    found = [
        watch.add(10 * number, HEALTHY | {"macro_f1": f1}, training_metrics([{"rewards/margins": 0.1 * number}, {"loss": 1.0}]))
        for number, f1 in enumerate(fallen)
    ]
    assert found[:6] == [None] * 6 and "rose from 0.200 to 0.500" in found[6]


@pytest.mark.parametrize(
    "fallen, rewards",
    [
        ([0.45, 0.451, 0.45], REWARDS),
        ([0.45, 0.45, 0.45], [*REWARDS[:4], 0.3, 0.3, 0.3]),
        ([0.45, 0.45], REWARDS[:6]),
    ],
    ids=["not so far", "no higher reward", "not so often"],
)
def test_a_fall_that_is_not_yet_a_collapse(folder, fallen, rewards):
    probes = [{"macro_f1": 0.5}] * 4 + [{"macro_f1": value} for value in fallen]
    assert not any(reasons(folder, *probes, rewards=rewards))


def test_the_best_step_is_the_first_of_the_best_and_never_a_collapsed_one(folder):
    watch = Watch(WatchSection(), folder, RUBRIC, {"L1": 1.0})
    for step, value in ((0, 0.5), (10, 0.7), (20, 0.7)):
        watch.add(step, HEALTHY | {"pass_at_1": value}, {})
    assert watch.add(30, HEALTHY | {"pass_at_1": 0.9, "top_share": 1.0}, {})
    assert (watch.best_step, watch.best_value, watch.best_until(9)) == (10, 0.7, 0)
    watch.section = WatchSection(best="macro_f1")
    assert watch.best_step == 0


def test_a_resumed_run_has_the_history_up_to_its_checkpoint(folder):
    watch = Watch(WatchSection(), folder, RUBRIC, {"L1": 1.0})
    for step in (0, 10, 20, 30):
        folder.record({"step": step, "loss": 1.0})
        watch.add(step, HEALTHY | {"pass_at_1": 0.5 + step / 100}, {"reward": step / 10})
    folder.truncate_metrics(20)
    again = Watch(WatchSection(), folder, RUBRIC, {"L1": 1.0})
    assert again.history == watch.history[:3]
    assert (again.steps, again.best_step, again.stopped) == ([0, 10, 20], 20, None)


def test_what_a_watch_measures():
    probed = [
        Probed("a", "L4", [said("L4"), said("L4"), said("L1"), said(None, 30, truncated=True)]),
        Probed("b", "L1", [said("L4"), said("L4"), said("L2"), said("L4")]),
    ]
    found = probe_metrics(probed, RUBRIC, 0.3, {"reward": 0.5, "format": 0.9})
    assert found["pass_at_1"] == 2 / 8 and found["pass_at_k"] == 1 / 2
    assert (found["top_tier"], found["top_share"]) == ("L4", 5 / 7)
    assert found["length"] == pytest.approx(100 / 8) and found["truncated"] == found["format_failures"] == 1 / 8
    assert (found["entropy"], found["reward"], found["reward/format"]) == (0.3, 0.5, 0.9)
    json.dumps(found)


def test_a_probe_without_a_verdict_has_numbers_all_the_same():
    found = probe_metrics([Probed("a", "L4", [said(None), said(None)])], RUBRIC)
    assert (found["macro_f1"], found["top_tier"], found["top_share"], found["format_failures"]) == (0.0, None, 0.0, 1.0)
    assert "–" in watch_line({"step": 0, "probe": found})


def test_macro_f1_is_that_of_the_evaluation():
    random = np.random.default_rng(0)
    for tiers in (1, 2, 4):
        gold, predicted = random.integers(0, tiers, 40), random.integers(-1, tiers, 40)
        names = RUBRIC.tier_ids
        verdicts = [(names[g], None if p == NO_VERDICT else names[p]) for g, p in zip(gold, predicted, strict=True)]
        counts = total(count(gold, predicted, len(names)))
        expected = measure(counts, names, RUBRIC.relevant_mask)["macro_f1"]
        assert macro_f1(confusion_of(verdicts, RUBRIC)) == expected


def test_what_a_trainer_logged_is_averaged_by_name():
    logs = [
        {"loss": 1.0, "reward": 0.2, "rewards/tier/mean": 0.1, "frac_reward_zero_std": 0.5, "epoch": 1},
        {"loss": 3.0, "reward": 0.4, "rewards/tier/mean": 0.3, "frac_reward_zero_std": None},
    ]
    found = training_metrics(logs)
    assert found == pytest.approx({"loss": 2.0, "reward": 0.3, "reward/tier": 0.2, "zero_spread": 0.5})
    assert training_metrics([]) == {}


def test_the_table_is_a_plain_line_a_watch_in_a_log_file(folder):
    out = io.StringIO()
    watch = Watch(WatchSection(), folder, RUBRIC, {"L1": 1.0})
    for step in range(22):
        watch.add(step, HEALTHY | {"pass_at_1": 0.5}, {"gap": 0.01})
        print_watch(watch, Console(file=out, width=40))
    lines = out.getvalue().splitlines()
    assert len(lines) == 22 + 2 and "\x1b" not in out.getvalue()
    assert [number for number, line in enumerate(lines) if "pass@1" in line] == [0, 21]
    assert lines[1].endswith("best") and not lines[2].endswith("best")


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_rollouts_before_step_1_are_counted():
    groups = [[said("L4"), said("L1")], [said("L4"), said("L4")], [said("L1"), said(None, truncated=True)]]
    rows = dict(preflight_rollouts(groups, [[1.0, 0.0], [1.0, 1.0], [0.0, None]], ["L4"] * 3, quiet()))
    assert rows["groups with spread"] == "1 of 3 (33%)" and rows["pass rate"] == "3 of 6 (50%)"
    assert rows["groups all right"] == rows["groups all wrong"] == "1 of 3 (33%)"
    assert rows["truncated"] == rows["format failures"] == "1 of 6 (17%)"


def test_rollouts_that_are_all_truncated_stop_before_step_1():
    groups = [[said(None, 16, truncated=True)] * 2] * 2
    with pytest.raises(LoreError, match="All 4 answers to 2 prompts are truncated at 16 tokens"):
        preflight_rollouts(groups, [[0.0, 1.0], [0.0, 0.0]], console=quiet())
    groups[0] = [said("L4", 16), said(None, 16, truncated=True)]
    assert preflight_rollouts(groups, [[1.0, 0.0], [0.0, 0.0]], console=quiet())


def test_rollouts_without_spread_stop_before_step_1():
    groups = [[said("L4"), said("L4")], [said("L1"), said(None)]]
    with pytest.raises(LoreError, match=r"None of 2 groups \(4 answers, 1 without a verdict; rewards from 0 to 1\)"):
        preflight_rollouts(groups, [[1.0, 1.0], [0.0, None]], console=quiet())
    assert preflight_rollouts(groups, [[1.0, 1.0], [0.0, None]], console=quiet(), grouped=False)  # as ppo learns
    with pytest.raises(LoreError, match="All answers of 2 groups .* have the same reward"):
        preflight_rollouts(groups, [[1.0, 1.0], [1.0, None]], console=quiet(), grouped=False)
    with pytest.raises(LoreError, match="no reward could judge any"):
        preflight_rollouts(groups, [[None, None], [None, float("nan")]], console=quiet())


def test_a_tier_that_the_rubric_does_not_have_is_an_error():
    with pytest.raises(LoreError, match="not a tier of rubric shop"):
        confusion_of([("L9", None)], RUBRIC)


def test_one_right_answer_to_one_pair_passes():
    answer = Answer("", 1, False, Judgement("L4"))
    assert probe_metrics([Probed("a", "L4", [answer])], RUBRIC)["pass_at_1"] == 1.0
