"""Asking a judge: what is decoded, what is scored, what counts as a failure, and that a killed run asks nothing twice.

The engine is scripted: what matters here is what it is asked and what becomes of its answers.
"""

import re

import numpy as np
import pytest
from PIL import Image

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.engines.chat import photo_of
from lore.engines.engine import Completion, EngineUsage, Sampling
from lore.judge.ask import predict
from lore.judge.resumable import Asker
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("rair")
TIERS = RUBRIC.tier_ids


class ScriptedEngine:
    """Answers by query; scores put 0.7 on the tier that the query names."""

    tokenizer = None

    def __init__(self, answers: dict[str, str] | None = None, dies_after: int | None = None):
        self.answers, self.dies_after = answers or {}, dies_after
        self.asked: list[str] = []
        self.scored: list[list[dict]] = []
        self.usage = EngineUsage()

    def generate(self, prompts, sampling):
        return [[self._answer(messages, sampling)] for messages in prompts]

    def _answer(self, messages, sampling):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        query = query_of(messages)
        self.asked.append(query)
        text = self.answers.get(query, f"<reason>seen {query}</reason>\n<verdict>{query[:2]}</verdict>")
        cut = len(text) > sampling.max_tokens
        return Completion(text[: sampling.max_tokens], len(text), "length" if cut else "stop")

    def score(self, prompts):
        self.scored += prompts
        rows = np.full((len(prompts), len(TIERS)), 0.1)
        for row, messages in zip(rows, prompts, strict=True):
            row[TIERS.index(query_of(messages)[:2])] = 0.7
        return rows


def query_of(messages) -> str:
    content = messages[1]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    return re.search("<query>(.*?)</query>", text)[1]


def pairs(*queries: str) -> list[Pair]:
    return [Pair(pair_id=query, query=query, title="t") for query in queries]


def verdicts_of(engine, queries, fmt, **options):
    found = [v for chunk in predict(pairs(*queries), engine, RUBRIC, fmt, Sampling(max_tokens=200), **options) for v in chunk]
    return {verdict.pair_id: verdict for verdict in found}


def test_reason_first_reads_the_written_verdict_and_scores_behind_the_reason():
    engine = ScriptedEngine({"L3 b": "<reason>L1 by colour, really L1</reason>\n<verdict>L3</verdict>\n<rules>r1 r2</rules>"})
    found = verdicts_of(engine, ["L3 b", "L4 a"], PromptFormat(detail="name"))
    assert found["L3 b"].tier == "L3" and found["L3 b"].rules == ["r1", "r2"]
    assert found["L3 b"].probabilities == [0.1, 0.1, 0.7, 0.1]
    begun = engine.scored[0][-1]
    assert begun["role"] == "assistant" and begun["content"] == "<reason>L1 by colour, really L1</reason>\n<verdict>"


def test_what_is_no_single_verdict_is_a_failure_and_never_a_guess():
    engine = ScriptedEngine(
        {
            "L1 none": "I think L3 fits",
            "L1 two": "<verdict>L1</verdict><verdict>L2</verdict>",
            "L1 long": "<reason>" + "x" * 500,
            "L1 unknown": "<verdict>L9</verdict>",
        }
    )
    found = verdicts_of(engine, [*engine.answers, "L2 good"], PromptFormat(detail="name"))
    failures = {query: found[query].failure for query in engine.answers}
    assert failures == {
        "L1 none": "no_verdict",
        "L1 two": "two_verdicts",
        "L1 long": "cut_at_max_tokens",
        "L1 unknown": "unknown_tier",
    }
    for query in engine.answers:
        assert found[query].tier is None and found[query].probabilities is None and found[query].text
    assert found["L2 good"].tier == "L2" and len(engine.scored) == 1


@pytest.mark.parametrize("order", ["answer_only", "answer_first"])
def test_without_a_reason_to_write_nothing_is_decoded(order):
    engine = ScriptedEngine()
    found = verdicts_of(engine, ["L1 a", "L4 b"], PromptFormat(order=order, detail="name"))
    assert [found[query].tier for query in ("L1 a", "L4 b")] == ["L1", "L4"]
    assert not engine.asked and found["L1 a"].text is None


def test_answer_first_explains_when_asked():
    engine = ScriptedEngine({"L2 a": "<verdict>L2</verdict>\n<mismatch>colour</mismatch>\n<reason>blue</reason>"})
    verdict = verdicts_of(engine, ["L2 a"], PromptFormat(order="answer_first", detail="name"), explain=True)["L2 a"]
    assert (verdict.tier, verdict.mismatch, verdict.rationale) == ("L2", "colour", "blue")
    assert engine.scored[0][-1]["content"] == "<verdict>"


def test_a_killed_run_goes_on_with_the_pairs_that_have_no_verdict(tmp_path):
    queries = [f"L{1 + i % 4} {i}" for i in range(10)]
    fmt, sampling = PromptFormat(detail="name"), Sampling()

    def go_on(engine):
        asker = Asker("judge", tmp_path, lambda: engine, RUBRIC, fmt, sampling, chunk_pairs=3)
        asker.ask("judge", pairs(*queries))
        return asker.ask("judge", [])

    first = ScriptedEngine(dies_after=7)
    with pytest.raises(KeyboardInterrupt):
        go_on(first)
    (tmp_path / "judge" / ".part-000002.parquet.part").write_bytes(b"torn")  # what a kill in the middle of a write leaves
    second = ScriptedEngine()
    verdicts = go_on(second)
    assert sorted(second.asked) == sorted(queries[6:])  # two chunks of three were saved
    assert set(verdicts) == set(queries) and all(verdict.tier == pair_id[:2] for pair_id, verdict in verdicts.items())
    assert go_on(third := ScriptedEngine()) == verdicts and not third.asked


def test_a_query_too_long_for_the_prompt_fails_alone_and_a_rubric_too_long_stops_the_run():
    from tokenizers_for_tests import chatml

    engine = ScriptedEngine()
    engine.tokenizer = chatml()
    found = verdicts_of(engine, ["L1 a", "L1 " + "very long " * 200], PromptFormat(detail="name", max_prompt_tokens=200))
    assert [verdict.failure for verdict in found.values()] == [None, "prompt_too_long"]
    with pytest.raises(LoreError, match="max_prompt_tokens"):
        verdicts_of(engine, ["L1 a"], PromptFormat(detail="full", max_prompt_tokens=200))


def test_scores_that_are_no_numbers_stop_the_run():
    engine = ScriptedEngine()
    engine.score = lambda prompts: np.full((len(prompts), len(TIERS)), np.nan)
    with pytest.raises(LoreError, match="bfloat16"):
        verdicts_of(engine, ["L1 a"], PromptFormat(order="answer_only", detail="name"))


def test_a_photo_is_shown_hidden_or_counted_as_unreadable(tmp_path):
    black = tmp_path / "black.png"
    Image.new("RGB", (8, 8)).save(black)
    seen = Pair(pair_id="L1 seen", query="L1 seen", title="t", image={"bytes": None, "path": str(black)})
    broken = Pair(pair_id="L1 broken", query="L1 broken", title="t", image={"bytes": b"broken", "path": None})
    image, state = photo_of(seen, PromptFormat(), None)
    assert state == "seen" and image.getextrema() == ((1, 1), (1, 1), (1, 1))  # all zeros would be taken for padding

    engine = ScriptedEngine()
    fmt = PromptFormat(order="answer_only", detail="name")
    chunk = next(predict([seen, broken, *pairs("L1 none")], engine, RUBRIC, fmt, Sampling()))
    assert [verdict.photo for verdict in chunk] == ["seen", "failed", "none"]
    in_parts = {"seen" in str(messages[1]["content"]): isinstance(messages[1]["content"], list) for messages in engine.scored}
    assert in_parts == {True: True, False: False}  # photos are shown as parts; prompts are asked sorted by query
    hidden = next(predict([seen], engine, RUBRIC, PromptFormat(order="answer_only", detail="name", photo=False), Sampling()))
    assert hidden[0].photo == "hidden" and isinstance(engine.scored[-1][1]["content"], str)

    engine.takes_images = False  # a text model is asked without the photo
    assert next(predict([seen], engine, RUBRIC, fmt, Sampling()))[0].photo == "hidden"


def test_verdicts_say_who_answered_and_with_how_many_tokens_and_seconds_only_on_request():
    queries = ["L1 a", "L2 b"]
    found = verdicts_of(ScriptedEngine(), queries, PromptFormat(detail="name"), judge_id="w:r:p")
    assert all(v.judge_id == "w:r:p" and v.source == "judge" and v.tokens == len(v.text) for v in found.values())
    assert all(verdict.seconds is None for verdict in found.values())
    scored = verdicts_of(ScriptedEngine(), queries, PromptFormat(order="answer_only", detail="name"), timed=True)
    assert all(v.tokens is None and v.judge_id is None and 0 < v.seconds < 60 for v in scored.values())
