"""Engines and workers that die, for the tests on Ray: real processes that get a real SIGKILL."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lore.engines.config import RaySection
from lore.engines.engine import Completion, EngineUsage, Messages, Sampling
from lore.engines.ray_cluster import connected
from lore.support.errors import LoreError

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def ray_here():
    """Ray on this machine, for all tests of a module. Its processes find the helpers of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS, TESTS / "label", TESTS.parent))))
        with connected(RaySection(address="local")):
            yield


def first_time(folder: Path, name: str) -> bool:
    """Whether no process has asked this before."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def load_nothing() -> None:
    raise LoreError("no such file\nCorrect model.name.")


def killed_while_loading() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class FaultyEngine:
    """Answers with the prompt in capitals. The prompt `kill` kills the process each time, `kill once` the first time; `reject` is
    an error of the model; `breaks` breaks the engine the first time."""

    folder: Path
    usage: EngineUsage = field(default_factory=EngineUsage)
    broken: bool = False

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        texts = [messages[-1]["content"] for messages in prompts]
        for text in texts:
            if text == "kill" or (text == "kill once" and first_time(self.folder, "killed")):
                os.kill(os.getpid(), signal.SIGKILL)
            self.broken = self.broken or (text == "breaks" and first_time(self.folder, "broken"))
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if "reject" in texts:
            raise ValueError("an image with no pixels")
        self.usage.prompt_tokens += len(prompts)
        return [[Completion(f"{text.upper()} {os.getpid()}", 1, "stop", 1)] * sampling.n for text in texts]


@dataclass
class FaultyWorker:
    """A worker of the stub scorer. A query with `poison` kills the process each time, `killed` once, `raises` raises once."""

    spec: Any

    def label(self, questions: pa.Table) -> Any:
        from stub_scorer import StubScorer  # of the tests of labels

        from lore.label.worker import ShardWorker

        folder = Path(self.spec.folder)
        queries = " ".join(questions.column("query").to_pylist())
        if "poison" in queries or ("killed" in queries and first_time(folder, "killed")):
            os.kill(os.getpid(), signal.SIGKILL)
        if "raises" in queries and first_time(folder, "raised"):
            raise RuntimeError("the engine lost its device")
        return ShardWorker(self.spec, scorer=StubScorer()).label(questions)

    def close(self) -> None:
        pass


def own_lines(shown) -> list[str]:
    """The lines that were printed, without blank ones and without Ray's own notes on workers that died or were out of reach: Ray
    prints them only if it notices the death in a certain order.

    shown: what capfd.readouterr() returns.
    """
    return [line for line in (shown.out + shown.err).splitlines() if line.strip() and "(raylet)" not in line]
