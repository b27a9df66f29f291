"""Batches the requests of many coroutines for an engine in this process."""

import asyncio

from lore.engines.apart import answers_apart
from lore.engines.engine import Completion, Engine, Gate, Messages, RequestRefused, Sampling, Usage
from lore.engines.http.protocol import prompt_bound

PHOTO_TOKENS = 2048  # upper bound that a budget reserves for one photo


class Batched:
    """`complete` for an engine in this process: one call of `generate` answers all pending requests."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._waiting: list[tuple[Messages, Sampling, asyncio.Future]] = []
        self._runner: asyncio.Task | None = None

    async def complete(self, messages: Messages, sampling: Sampling, gate: Gate) -> list[Completion]:
        ticket = await gate.admit(Usage(prompt_bound(messages, PHOTO_TOKENS), sampling.max_tokens))
        promise = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, sampling, promise))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            answers = await promise
        except BaseException:
            gate.settle(ticket, None)
            raise
        gate.settle(ticket, Usage(answers[0].prompt_tokens, sum(answer.tokens for answer in answers)))
        return answers

    async def _run(self) -> None:
        while self._waiting:
            size = -1
            while size != len(self._waiting):  # wait until no coroutine adds a request
                size = len(self._waiting)
                await asyncio.sleep(0)
            batch, self._waiting = self._waiting, []
            by_sampling: dict[Sampling, list[tuple[Messages, asyncio.Future]]] = {}
            for messages, sampling, promise in batch:
                by_sampling.setdefault(sampling, []).append((messages, promise))
            for sampling, asked in by_sampling.items():
                answers = await asyncio.to_thread(self._answers, [messages for messages, _ in asked], sampling)
                for (_, promise), answer in zip(asked, answers, strict=True):
                    if promise.done():
                        continue
                    if isinstance(answer, Exception):
                        promise.set_exception(answer)
                        promise.exception()  # marks it as retrieved, so asyncio does not log it if the caller was canceled
                    else:
                        promise.set_result(answer)

    def _answers(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion] | Exception]:
        """Completions, or an error, for every prompt. If the engine itself is broken, every prompt gets its error."""
        try:
            answers = answers_apart(lambda some: self.engine.generate(some, sampling), prompts)
        except Exception as error:
            return [error] * len(prompts)
        return [_or_refused(answer) for answer in answers]


def _or_refused(answer: list[Completion] | Exception) -> list[Completion] | Exception:
    """The answer; an error for one that the engine itself has refused."""
    if isinstance(answer, list) and answer[0].finish_reason == "refused":
        return RequestRefused(answer[0].detail, answer[0].detail)
    return answer
