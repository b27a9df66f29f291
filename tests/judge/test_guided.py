"""An answer without a readable verdict gets one from the tier tokens after its reason, and what the judge writes stays as it is."""

from dataclasses import replace

import pytest
from openai_server import reply, serve
from test_ask import RUBRIC, TIERS, ScriptedEngine, pairs

from lore.codec.prompt import PromptFormat
from lore.data.parquet import read_pairs
from lore.engines.config import EndpointSection, ModelSection
from lore.engines.engine import RequestRefused, Sampling
from lore.engines.open_engine import open_engine
from lore.judge.answer import written_reason
from lore.judge.ask import judge_chunk, predict
from lore.judge.scorer import JudgeScorer
from lore.judge.verdict import GUIDED, Verdict, from_row, guided, to_row
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

FMT = PromptFormat(detail="name")
SHOP = load_rubric("shop")


@pytest.mark.parametrize("kind", ["text", "vision"])
@pytest.mark.parametrize("order", ["reason_first", "answer_first", "answer_only"])
def test_a_real_judge_writes_the_same_tokens_and_every_pair_gets_a_tier(tiny, kind, order):
    engine = open_engine(ModelSection(name=str(getattr(tiny, kind))), SHOP, device="cpu")
    asked, fmt = list(read_pairs(tiny.pairs, split="test", limit=6)), PromptFormat(order, "name", photo=kind == "vision")
    told = {"explain": True, "sampling": Sampling(max_tokens=12)}
    free = judge_chunk(asked, engine, SHOP, fmt, **told)
    found = judge_chunk(asked, engine, SHOP, fmt, **told, guided=True)
    assert [(one.text, one.tokens) for one in found] == [(one.text, one.tokens) for one in free]
    assert {one.failure for one in free} == {"cut_at_max_tokens"}  # random weights never end an answer
    assert all(one.tier == SHOP.tier_ids[one.probabilities.index(max(one.probabilities))] for one in found)
    assert {guided(one) for one in found} == {"cut_at_max_tokens"} and {one.failure for one in found} == {None}
    begun = [replace(one, rationale=written_reason(one.text, fmt)) for one in free]
    assert [one.rationale for one in found] == [one.rationale for one in begun]


@pytest.mark.slow
def test_a_trained_judge_keeps_its_readable_verdicts(tiny):
    engine = open_engine(ModelSection(name=str(tiny.judge("text"))), SHOP, device="cpu")
    asked = list(read_pairs(tiny.pairs, split="train", limit=24))
    for order, tokens in (("reason_first", 16), ("reason_first", 80)):
        fmt, sampling = PromptFormat(order, "name", photo=False, max_prompt_tokens=512), Sampling(max_tokens=tokens)
        free, found = (judge_chunk(asked, engine, SHOP, fmt, sampling, guided=flag) for flag in (False, True))
        for one, other in zip(free, found, strict=True):
            assert (one.text, one.tokens) == (other.text, other.tokens) and other.tier is not None
            assert one.failure == guided(other)
            if one.failure is None:
                assert (one.tier, one.rationale, one.detail) == (other.tier, other.rationale, other.detail)
        assert (tokens == 16) <= any(one.failure for one in free)


CASES = {
    "no words": ("L3 a", "", ""),
    "plain words": ("L1 a", "I think L3 fits", "I think L3 fits"),
    "two verdicts": ("L1 b", "<reason>blue</reason><verdict>L1</verdict><verdict>L2</verdict>", "blue"),
    "unknown tier": ("L2 a", "<reason>red, size 4</reason>\n<verdict>L9</verdict>", "red, size 4"),
    "cut": ("L2 b", "<reason>colour: red | red" + " and" * 100, ("<reason>colour: red | red" + " and" * 100)[8:200].strip()),
    "thought, then cut": ("L4 a", "<think>L1? no</think>\n<reason>fits " + "x" * 300, "fits " + "x" * (200 - 35)),
    "thought alone": ("L4 b", "<think>is it red? " + "y" * 300, "is it red? " + "y" * (200 - 18)),
    "other marks": ("L3 b", "[THINK]L1?[/THINK]the shape differs", "the shape differs"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_tier_is_read_after_the_reason_as_far_as_it_is_written(case):
    query, text, reason = CASES[case]
    engine = ScriptedEngine({query: text})
    (verdict,) = judge_chunk(pairs(query), engine, RUBRIC, FMT, Sampling(max_tokens=200), guided=True)
    begun = engine.scored[0][-1]["content"]
    assert begun == (f"<reason>{reason}</reason>\n<verdict>" if reason else "<verdict>")
    assert verdict.tier == query[:2] and verdict.text == text[:200] and verdict.rationale == reason
    (free,) = judge_chunk(pairs(query), ScriptedEngine({query: text}), RUBRIC, FMT, Sampling(max_tokens=200))
    assert verdict.detail == f"{GUIDED}: {free.failure}" and guided(verdict) == free.failure and guided(free) is None
    assert from_row(to_row(verdict, TIERS), TIERS) == verdict


def test_readable_answers_are_as_without_it_and_the_others_are_counted():
    engine, queries = ScriptedEngine({"L2 b": "no idea"}), ["L1 a", "L2 b", "L4 c"]
    scorer = JudgeScorer(engine, RUBRIC, FMT, Sampling(max_tokens=200), "id", guided=True)
    found = scorer.score(pairs(*queries))
    plain = JudgeScorer(ScriptedEngine({"L2 b": "no idea"}), RUBRIC, FMT, Sampling(max_tokens=200), "id").score(pairs(*queries))
    assert found[0] == plain[0] and found[2] == plain[2] and scorer.guided_verdicts == 1
    assert (found[1].tier, found[1].failure, plain[1].failure) == ("L2", None, "no_verdict")
    (chunk,) = predict(pairs(*queries), ScriptedEngine({"L2 b": "no idea"}), RUBRIC, FMT, Sampling(max_tokens=200), guided=True)
    assert [one.tier for one in chunk] == ["L1", "L2", "L4"]


def test_without_an_answer_or_scores_there_is_no_tier():
    class Refuses(ScriptedEngine):
        def score(self, prompts):
            if any("no idea" in prompt[-1]["content"] for prompt in prompts):
                raise RequestRefused("too long", "too long")
            return super().score(prompts)

    (first, second) = judge_chunk(
        pairs("L1 a", "L2 b"), Refuses({"L2 b": "no idea"}), RUBRIC, FMT, Sampling(max_tokens=200), guided=True
    )
    assert first.tier == "L1" and (second.tier, second.failure, guided(second)) == (None, "no_verdict", None)
    with pytest.raises(LoreError, match="scores"):
        judge_chunk(pairs("L1 a"), ScriptedEngine(), RUBRIC, FMT, Sampling(), guided=True, scores=False)
    assert guided(Verdict("p", "L1", detail="something else")) is None


def test_a_server_is_asked_once_more_for_the_tier_alone():
    def answer(request):
        if "logprobs" not in request.body or not request.body["logprobs"]:
            return reply("<reason>the colour fits, but", reason="length")
        top = [{"token": tier[1], "logprob": -0.1 if tier == "L3" else -4.0} for tier in TIERS]  # the prefill ends with L
        found = reply("3")
        found.body["choices"][0]["logprobs"] = {"content": [top[2] | {"top_logprobs": top}]}
        return found

    with serve(answer) as server:
        engine = open_engine(EndpointSection(url=server.url, model="tiny"), RUBRIC)
        (verdict,) = judge_chunk(pairs("L1 a"), engine, RUBRIC, FMT, Sampling(max_tokens=9), guided=True)
    assert (verdict.tier, guided(verdict)) == ("L3", "cut_at_max_tokens")
    *_, last = [request.body for request in server.requests]
    assert "<reason>the colour fits, but</reason>\n<verdict>" in str(last["messages"][-1]["content"]).replace("\\n", "\n")
