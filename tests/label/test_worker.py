"""Engines that fail as a whole end their shard at once; one prompt that fails alone is in test_label.py."""

import gc
import weakref

import pyarrow as pa
import pytest
import torch
from stub_scorer import StubScorer

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.engines.engine import EngineDied, EngineUsage, Sampling
from lore.judge.scorer import JudgeScorer
from lore.label.label import _label
from lore.label.worker import scored
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

PAIRS = [Pair(pair_id=str(number), query="q", title="t") for number in range(64)]


class Broken:
    """An engine that answers nothing. calls: how often it was asked."""

    tokenizer, takes_images, calls = None, False, 0

    def __init__(self, error: Exception):
        self.error, self.usage = error, EngineUsage()

    def score(self, prompts):
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "words", "calls"),
    [
        (RuntimeError("CUDA error: misaligned address"), "answers no pair: RuntimeError: CUDA error: misaligned", 2 * 64),
        (torch.AcceleratorError("CUDA error: device-side assert triggered", 710), "answers no pair: AcceleratorError: .*assert", 1),
    ],
)
def test_an_engine_that_answers_nothing_fails_no_pair_and_is_not_asked_again_for_each(error, words, calls):
    engine = Broken(error)
    scorer = JudgeScorer(engine, load_rubric("shop"), PromptFormat("answer_only", "name"), Sampling(), "judge")
    with pytest.raises(LoreError, match=words):
        scored(scorer, PAIRS)
    assert engine.calls == calls


def test_the_memory_of_a_dead_engine_is_free_before_another_one_is_opened():
    opened = []

    class Worker:
        """Holds a scorer that refers to itself, as vLLM does."""

        scorer = None

        def label(self, questions):
            assert not any(one() for one in opened)
            self.scorer = StubScorer()
            self.scorer.itself = self.scorer
            opened.append(weakref.ref(self.scorer))
            return self.asked(self.scorer)

        def asked(self, scorer):
            if len(opened) == 1:
                raise EngineDied("lost its device")
            return "labels"

        def close(self):
            self.scorer = None
            gc.collect(1)  # all that is new

    assert _label(Worker(), pa.table({}), None) == "labels" and len(opened) == 2
