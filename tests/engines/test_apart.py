"""A prompt on which an engine in this process raises fails alone; errors of the engine itself are raised."""

import json

import numpy as np
import pytest
import torch

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.engines.engine import Completion, EngineUsage, Sampling
from lore.judge.ask import predict, sample
from lore.judge.resumable import Asker
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("shop")
TIERS = len(RUBRIC.tier_ids)


class Choosy:
    """Raises `error` for a call with a prompt that holds `bad`; calls: the number of prompts of each call."""

    tokenizer, takes_images = None, False

    def __init__(self, bad: str = "BAD", error: Exception | None = None):
        self.bad, self.error, self.calls = bad, error or ValueError("index out of range in self"), []
        self.usage = EngineUsage()

    def check(self, prompts):
        self.calls.append(len(prompts))
        if any(self.bad in json.dumps(messages) for messages in prompts):
            raise self.error

    def generate(self, prompts, sampling):
        self.check(prompts)
        return [[Completion("<verdict>L4</verdict>\n<reason>r</reason>", 5, "stop")] * sampling.n for _ in prompts]

    def score(self, prompts):
        self.check(prompts)
        return np.full((len(prompts), TIERS), 1 / TIERS)


class Overflows(Choosy):
    def generate(self, prompts, sampling):
        return Choosy("nothing").generate(prompts, sampling)

    def score(self, prompts):
        rows = np.full((len(prompts), TIERS), 1 / TIERS)
        rows[[self.bad in json.dumps(messages) for messages in prompts]] = np.nan
        return rows


def pairs(*texts: str) -> list[Pair]:
    return [Pair(pair_id=text, query=text, title="t") for text in texts]


ASKED = pairs("a", "b", "BAD c", "d", "e")


@pytest.mark.parametrize("engine", [Choosy(), Overflows()], ids=["raises", "nan"])
@pytest.mark.parametrize("explain", [False, True])
def test_the_pair_on_which_an_engine_raises_fails_alone(engine, explain):
    fmt = PromptFormat(order="answer_first", detail="name")
    (verdicts,) = predict(ASKED, engine, RUBRIC, fmt, Sampling(), explain=explain)
    # A written verdict is kept without its probabilities.
    assert [verdict.probabilities is None for verdict in verdicts] == [False, False, True, False, False]
    keeps = explain and isinstance(engine, Overflows)
    assert [verdict.failure for verdict in verdicts] == [None, None, None if keeps else "refused", None, None]
    assert "out of range" in verdicts[2].detail or "bfloat16" in verdicts[2].detail
    assert verdicts[1].tier is not None and verdicts[1].probabilities == [1 / TIERS] * TIERS


def test_samples_of_the_other_pairs_are_drawn():
    (drawn,) = sample(ASKED, Choosy(), RUBRIC, PromptFormat(detail="name"), Sampling(0.9, n=2))
    assert [failure for _, _, failure in drawn] == [None, None, "refused", None, None]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("host"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_and_a_lost_device_stop_at_once(error):
    engine = Choosy(error=error)
    with pytest.raises(type(error)):
        list(predict(ASKED, engine, RUBRIC, PromptFormat(order="answer_only", detail="name"), Sampling()))
    assert engine.calls == [5]


@pytest.mark.parametrize("engine", [Choosy(bad=""), Overflows(bad="")], ids=["raises", "nan"])
@pytest.mark.parametrize("asked", [ASKED, ASKED[:1]], ids=["several", "one"])
def test_an_error_of_every_prompt_is_raised(engine, asked):
    with pytest.raises((ValueError, LoreError), match="out of range|bfloat16"):
        list(predict(asked, engine, RUBRIC, PromptFormat(order="answer_only", detail="name"), Sampling()))


def test_the_pairs_that_are_left_in_a_later_start_do_not_stop_it(tmp_path):
    asked = [*ASKED, *pairs("BAD f")]

    def start(engine):
        fmt = PromptFormat(order="answer_only", detail="name")
        return Asker("judge", tmp_path, lambda: engine, RUBRIC, fmt, Sampling(), chunk_pairs=3).ask("test", asked)

    for engine in (Choosy(), again := Choosy()):
        assert [pair_id for pair_id, verdict in start(engine).items() if verdict.failure] == ["BAD c", "BAD f"]
    assert again.calls == [2, 1, 1, 1]  # both, each alone, and a harmless one
    assert not any(verdict.failure for verdict in start(Choosy(bad="never")).values())
