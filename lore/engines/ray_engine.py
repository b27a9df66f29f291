"""An engine whose prompts are answered by workers on a Ray cluster, each with the model in its own process.

The caller keeps everything else: journal, budget and checks of a synthesis stay in its process, and only prompts and completions
travel. Labelling is the other way around (lore.label.ray_pool): its workers hold the whole judge, read their shards themselves and
return finished labels, so Ray Data can feed them.

What Ray does: it places the workers, and starts one anew, on another machine if need be, when its process ends. What is ours: a
prompt on which alone the model raises is refused; an engine that raises for a harmless prompt too gets a new process; the prompts
of a worker that ends go to another one, and prompts on which workers end `max_attempts` times are asked in halves, until the one
that ends them is found and refused.
"""

import os
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from lore.engines.apart import answers_apart
from lore.engines.config import RaySection
from lore.engines.engine import MAX_WORDS, Completion, Engine, EngineDied, EngineUsage, Messages, RequestRefused, Sampling
from lore.engines.ray_cluster import (
    KILLED,
    connected,
    count_attempts,
    end_process,
    enter_folder,
    last_words,
    most_workers,
    resources,
)
from lore.support.errors import LoreError
from lore.support.processes import say

OTHERS_SECONDS = 300.0  # for ray.min_workers, once the first is ready; the others join later
DEATHS = 8  # of workers in a row, without an answer in between; then the fault is not in the prompts
"""Besides those that halving the prompts of one call costs. And how often in a row one worker may end while it loads the model."""


@dataclass
class _Piece:
    """Consecutive prompts of a call that one worker answers. attempts: how many workers have ended on them."""

    start: int
    stop: int
    attempts: int = 0


class RayEngine:
    """`generate` over the workers of a cluster, without `score`: who needs tier probabilities labels with it. close() ends them."""

    def __init__(self, section: RaySection, processor: Any, open_one: Callable[[], Engine], *, tensor_parallel: int = 1):
        """processor: of the model, which this process needs for its prompts; open_one: loads the model, in a worker;
        tensor_parallel: GPUs that it uses. Raises LoreError if there is no cluster or if no worker can load the model."""
        self.section, self.processor, self.usage = section, processor, EngineUsage()
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.takes_images = processor is not self.tokenizer
        self._deaths = 0
        self._workers: list[Any] = []
        with ExitStack() as stack:
            stack.enter_context(connected(section))
            self._start(open_one, tensor_parallel)
            self._connection = stack.pop_all()

    def _start(self, open_one: Callable[[], Engine], tensor_parallel: int) -> None:
        import ray  # optional

        each = resources(self.section, tensor_parallel)
        # Only `ready` is repeated by Ray itself.
        worker = ray.remote(max_restarts=-1, max_task_retries=0, **each)(EngineWorker)
        most = most_workers(self.section, each)
        self._openings = count_attempts()
        self._workers = [worker.remote(os.getcwd(), open_one, self._openings, str(number), DEATHS) for number in range(most)]
        self._opening = {_ready(one): one for one in self._workers}
        self._free: list[Any] = []
        while not self._free:
            self._collect(wait=True)
        if others := min(self.section.min_workers - 1, len(self._opening)):
            ray.wait(list(self._opening), num_returns=others, timeout=OTHERS_SECONDS)

    def _collect(self, wait: bool = False) -> None:
        """Moves workers that have loaded the model from _opening to _free. Raises LoreError if none is left."""
        import ray  # optional

        done, _ = ray.wait(list(self._opening), num_returns=1, timeout=None if wait else 0) if self._opening else ([], [])
        for promise in done:
            worker = self._opening.pop(promise)
            try:
                ray.get(promise)
                self._free.append(worker)
            except ray.exceptions.RayError as error:
                self._workers.remove(worker)
                if not self._workers:
                    raise LoreError(
                        f"No worker on Ray can load the model: {last_words(error)}\n"
                        "All machines must see the same files and have the same packages. If memory is short, give a worker more "
                        "(ray.gpus_per_worker) or lower its vllm settings."
                    ) from error

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """See Engine.generate. A prompt that the model rejects, or that ends every worker, gets completions with finish_reason
        `refused`, as behind a server. Sampled completions also depend on the number of workers. Raises EngineDied if workers end
        whatever they are asked."""
        import ray  # optional

        self._collect()
        answers: list[list[Completion]] = [[] for _ in prompts]
        sizes = np.linspace(0, len(prompts), len(self._workers) + 1).astype(int)
        left = deque(_Piece(int(a), int(b)) for a, b in zip(sizes, sizes[1:], strict=False) if b > a)
        asked: dict[Any, tuple[Any, _Piece]] = {}
        while left or asked:
            while left and self._free:
                piece, worker = left.popleft(), self._free.pop()
                asked[worker.generate.remote(prompts[piece.start : piece.stop], sampling)] = worker, piece
            if not asked:
                self._collect(wait=True)
                continue
            done, _ = ray.wait([*asked, *self._opening], num_returns=1)
            if done[0] in self._opening:
                self._collect()
                continue
            worker, piece = asked.pop(done[0])
            try:
                found, usage, words = ray.get(done[0])
            except ray.exceptions.RayError as error:  # Ray starts it again. A worker that Ray ends for memory is no RayActorError.
                died = isinstance(error, ray.exceptions.RayActorError)
                found, usage, words = [], EngineUsage(), KILLED if died else last_words(error)
            else:
                if words:
                    worker.end.remote()  # in order: it ends before it gets to `ready`
            if words:
                self._opening[_ready(worker)] = worker
                self._again(piece, words, left, answers, sampling)
                continue
            self._free.append(worker)
            self._deaths = 0
            answers[piece.start : piece.stop] = found
            for name in vars(self.usage):
                setattr(self.usage, name, getattr(self.usage, name) + getattr(usage, name))
        return answers

    def _again(
        self, piece: _Piece, words: str, left: deque[_Piece], answers: list[list[Completion]], sampling: Sampling
    ) -> None:
        """Puts a piece whose worker has ended back to the others. Raises EngineDied if too many have ended."""
        self._deaths += 1
        prompts = piece.stop - piece.start
        if self._deaths >= DEATHS + self.section.max_attempts * int(np.log2(max(prompts, 2))):
            raise EngineDied(f"{self._deaths} workers on Ray ended in a row, without an answer in between. The last one: {words}")
        say(f"warning: a worker ended, and another one gets its {prompts:,} prompt{'s' * (prompts > 1)}: {words}")
        piece.attempts += 1
        if piece.attempts < self.section.max_attempts:
            left.append(piece)
        elif prompts > 1:
            middle, attempts = piece.start + prompts // 2, self.section.max_attempts - 1
            left.extend([_Piece(piece.start, middle, attempts), _Piece(middle, piece.stop, attempts)])
        else:
            answers[piece.start] = [refused(f"workers ended on this prompt: {words}")] * sampling.n

    def close(self) -> None:
        """Ends the workers. A second call has no effect."""
        import ray  # optional

        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._openings = [], None
        self._connection.close()


class EngineWorker:
    """Holds the model of one worker, in a process that Ray starts. folder: the driver's working directory; openings: counts, under
    `name`, how often its process has ended while it loaded the model. Ray itself would start it again for ever."""

    def __init__(self, folder: str, open_one: Callable[[], Engine], openings: Any, name: str, most: int):
        import ray  # optional

        enter_folder(folder)
        number, words = ray.get(openings.begin.remote(name))
        if number > most:
            raise LoreError(f"{most} times in a row, while it loaded the model, {words}")
        self.engine = open_one()
        ray.get(openings.done.remote(name))

    def ready(self) -> None:
        """Returns when the model is loaded."""

    def end(self) -> None:
        """Ends this process, so that Ray starts another one."""
        end_process()

    def generate(self, prompts: list[Messages], sampling: Sampling) -> tuple[list[list[Completion]], EngineUsage, str]:
        """(completions, tokens of this call, ""). The last words of an engine that answers no prompt at all come third."""
        before = vars(self.engine.usage).copy()
        try:
            answers = answers_apart(lambda some: self.engine.generate(some, sampling), prompts)
        except Exception as error:
            return [], EngineUsage(), f"{type(error).__name__}: {error}"[:MAX_WORDS]
        found = [[refused(one.words)] * sampling.n if isinstance(one, RequestRefused) else one for one in answers]
        return found, EngineUsage(*(count - before[name] for name, count in vars(self.engine.usage).items())), ""


def refused(words: str) -> Completion:
    """What a prompt gets that has no answer."""
    return Completion("", 0, "refused", detail=words)


def _ready(worker: Any) -> Any:
    """Promise of a worker that has loaded the model, however often its process is ended before."""
    return worker.ready.options(max_task_retries=-1).remote()
