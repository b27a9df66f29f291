"""One judge asked several times: answers are kept by tag, samples are drawn once, changed prompts reach the engine."""

from collections import Counter

import pytest
from test_ask import RUBRIC, TIERS, ScriptedEngine, pairs, query_of

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat
from lore.engines.engine import Completion, Sampling
from lore.judge.resumable import Asker
from lore.support.errors import LoreError

REASON_FIRST, ANSWER_ONLY = PromptFormat(detail="name"), PromptFormat(order="answer_only", detail="name")


def asker(tmp_path, engine, fmt=REASON_FIRST, **options) -> Asker:
    return Asker("judge", tmp_path / "judge", lambda: engine, RUBRIC, fmt, Sampling(max_tokens=200), **options)


class SamplingEngine(ScriptedEngine):
    """The n-th sample of a prompt answers the n-th tier, the fifth is no answer."""

    def generate(self, prompts, sampling):
        self.asked += [query_of(messages) for messages in prompts]
        texts = [f"<verdict>{tier}</verdict>" for tier in TIERS] + ["L4?"]
        return [[Completion(texts[i], 1, "stop") for i in range(sampling.n)] for _ in prompts]


def test_answers_are_kept_by_tag_and_the_engine_is_opened_for_new_questions_alone(tmp_path):
    engine, asked = ScriptedEngine(), pairs("L1 a", "L2 b")
    first = asker(tmp_path, engine)
    assert {v.tier for v in first.ask("test", asked).values()} == {"L1", "L2"}
    again = Asker("judge", tmp_path / "judge", lambda: pytest.fail("opened"), RUBRIC, REASON_FIRST, Sampling())
    assert again.ask("test", asked).keys() == {"L1 a", "L2 b"} and again.asked == 0
    assert again.ask("test", pytest.fail, known=["L1 a"]).keys() == {"L1 a", "L2 b"}  # not even the pairs are read
    first.ask("photo-swapped", asked[:1])
    more = first.ask("test", [*asked, *pairs("L3 c")])
    assert engine.asked == ["L1 a", "L2 b", "L1 a", "L3 c"] and len(more) == 3


def test_a_changed_format_rubric_or_facts_reach_the_prompt_of_these_questions_alone(tmp_path):
    engine = ScriptedEngine()
    judge = asker(tmp_path, engine, ANSWER_ONLY)
    judge.ask("plain", pairs("L1 a"))
    judge.ask("facts", pairs("L1 a"), facts=lambda pair: [f"{pair.query} = lamp"])
    judge.ask("tiers", pairs("L1 a"), fmt=PromptFormat(order="answer_only", detail="tiers"))
    plain, facts, tiers = ([m["content"] for m in messages[:2]] for messages in engine.scored)
    assert facts == [plain[0], f"<facts>L1 a = lamp</facts>\n{plain[1]}"]
    assert tiers[1] == plain[1] and "Tiers, worst first" in tiers[0] and "Tiers" not in plain[0]


def test_samples_are_drawn_once_and_failures_stay_in_their_place(tmp_path):
    engine = SamplingEngine()
    judge = asker(tmp_path, engine)
    drawn = judge.samples("samples", pairs("L1 a", "L2 b"), 5, temperature=1.0, seed=0)
    assert drawn == dict.fromkeys(["L1 a", "L2 b"], [*TIERS, None])
    assert judge.samples("samples", pairs("L1 a", "L2 b"), 5, temperature=1.0, seed=0) == drawn
    assert engine.asked == ["L1 a", "L2 b"]
    with pytest.raises(LoreError, match="holds 5 samples.*the recipe asks for 3"):
        judge.samples("samples", pairs("L1 a"), 3, temperature=1.0, seed=0)


def test_where_the_verdict_comes_first_samples_follow_its_probabilities_and_nothing_is_decoded(tmp_path):
    engine = ScriptedEngine(dies_after=0)  # generate would raise
    judge = asker(tmp_path, engine, ANSWER_ONLY)
    drawn = judge.samples("one", pairs("L3 a"), 64, temperature=1.0, seed=0)["L3 a"]
    times = Counter(drawn)
    assert 35 <= times["L3"] <= 55 and sum(times.values()) == 64  # 0.7 of 64 is 45; four standard deviations are 15
    cold = judge.samples("cold", pairs("L3 a"), 64, temperature=0.1, seed=0)["L3 a"]
    assert set(cold) == {"L3"}
    other = asker(tmp_path / "other", engine, ANSWER_ONLY).samples("one", pairs("L3 a"), 64, temperature=1.0, seed=0)
    assert other["L3 a"] == drawn


def test_without_scores_nothing_is_scored(tmp_path):
    engine = ScriptedEngine()
    verdict = asker(tmp_path, engine, ANSWER_ONLY, scores=False).ask("test", pairs("L2 a"))["L2 a"]
    assert engine.scored == [] and engine.asked == ["L2 a"] and verdict.failure == "leading_text"


def test_saved_answers_of_another_judge_or_to_other_prompts_are_refused(tmp_path):
    engine = ScriptedEngine()
    first = asker(tmp_path, engine, weights="aa")
    verdict = first.ask("test", pairs("L1 a"))["L1 a"]
    assert verdict.judge_id == f"aa:{RUBRIC.hash}:{renderer_hash(RUBRIC, REASON_FIRST)}"
    assert asker(tmp_path, engine, weights="aa").ask("test", pairs("L1 a")) == {"L1 a": verdict}
    changed = first.ask("tiers", pairs("L1 a"), fmt=ANSWER_ONLY)["L1 a"]
    assert changed.judge_id == f"aa:{RUBRIC.hash}:{renderer_hash(RUBRIC, ANSWER_ONLY)}"
    for other in (asker(tmp_path, engine, weights="bb"), asker(tmp_path, engine, ANSWER_ONLY, weights="aa")):
        with pytest.raises(LoreError, match="part-000000.parquet was made with aa:.*its verdicts are from another judge"):
            other.ask("test", pairs("L1 a"))
    first.samples("samples", pairs("L1 a"), 1, temperature=1.0, seed=0)
    with pytest.raises(LoreError, match="its samples are from another judge"):
        asker(tmp_path, engine, weights="bb").samples("samples", pairs("L1 a"), 1, temperature=1.0, seed=0)
