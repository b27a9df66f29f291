"""The endpoint engine: a judge or a teacher behind any OpenAI-compatible server (vLLM, SGLang, llama.cpp, a provider).

`complete` is the core, for callers with an event loop; `generate` and `score` call it in their own event loop. Failures:
- 429, 5xx, timeouts, malformed replies or another model's reply: retried with backoff and lower concurrency
  (lore.engines.http.throttle);
- 400 for one prompt: RequestRefused, for this prompt only;
- invalid key, unknown model, server that stays down: EndpointStopped, immediately for every request;
- any other request that keeps failing: EndpointFailed after max_attempts.

One prompt must not end a run. Where the outcome of a request does not tell whether the prompt or the server is the cause, a
harmless request with the same fields is sent: if the server answers it, only this prompt is refused.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from lore.codec.chat_template import fold_system, folds_system, server_options
from lore.codec.verdict_tokens import verdict_tokens
from lore.engines.apart import HARMLESS
from lore.engines.chat import stop_ids
from lore.engines.config import EndpointSection, ModelSection
from lore.engines.conversation_check import check_server_template
from lore.engines.engine import (
    Completion,
    EndpointFailed,
    EndpointStopped,
    EngineUsage,
    Gate,
    Messages,
    RequestRefused,
    Sampling,
    ScoresRefused,
    Usage,
)
from lore.engines.http.client import Client, Outcome
from lore.engines.http.protocol import Reply, bound_of, completions, request_body
from lore.engines.http.throttle import Throttle, backoff_seconds
from lore.engines.http.tier_logprobs import OPENING, begun_at_verdict, listed_tokens, scoring_fields, tier_ends, tier_probabilities
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

# With one seed for all prompts, duplicate prompts would get identical samples.
SEED_STEP = 1_000_003
NO_LOGPROBS = "the server returns no log-probabilities for this prompt"
NO_TIER = "the server lists no tier among the tokens for this prompt"


class EndpointEngine:
    """A served model. `tokenizer` and `processor` are None unless the section names a tokenizer.

    Use it in one event loop at a time. Callers of `complete` use it as an async context manager, or call `aclose` before
    their event loop ends. `usage` counts what the replies report, also those to harmless requests and those that are not used.
    """

    def __init__(self, section: EndpointSection, rubric: Rubric | None = None):
        """rubric: needed by `score` only. Raises LoreError if section.key_variable holds no valid key."""
        self.section, self.rubric, self.usage = section, rubric, EngineUsage()
        self.processor, self.tokenizer, self.takes_images = None, None, True
        if section.tokenizer is not None:
            from lore.engines.loading import known_stops, load_processor  # loads torch: only for a local tokenizer

            local = ModelSection(name=section.tokenizer)
            self.processor = load_processor(local, chat=True)
            self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
            self.takes_images = self.processor is not self.tokenizer
        self.verdict = verdict_tokens(self.processor, rubric) if self.tokenizer is not None and rubric is not None else None
        judged = self.verdict is not None and server_options(self.processor)
        self._client = Client(section, frozenset({"chat_template_kwargs"}) if judged else frozenset())
        self._throttle = Throttle(section.max_concurrency, max_down_seconds=section.max_down_seconds, stop=self._down)
        self._stopped: EndpointStopped | None = None
        self._checking = asyncio.Lock()  # one harmless request at a time
        self._checked_at, self._harmless_reply = -inf, False  # when the server last answered one, and how
        self._lists_logprobs = self._lists_tiers = False
        self._switches: dict[str, Any] = {}  # make the server use the same template options and stop tokens as the other engines
        if options := server_options(self.processor):
            self._switches["chat_template_kwargs"] = options
        self._folds = self.processor is not None and folds_system(self.processor)
        if self.processor is not None:
            self._switches["stop_token_ids"] = stop_ids(self.processor, known_stops(local))

    async def complete(self, messages: Messages, sampling: Sampling, gate: Gate | None = None) -> list[Completion]:
        """`sampling.n` completions of one prompt. `gate` admits and settles every HTTP attempt.

        Greedy samples are equal, so one is requested and repeated. Raises RequestRefused, EndpointFailed, EndpointStopped,
        and any error of the gate.
        """
        return await self._complete(messages, sampling, gate, sure=False)

    async def _complete(self, messages: Messages, sampling: Sampling, gate: Gate | None, *, sure: bool) -> list[Completion]:
        """See complete, and _ask for `sure`."""
        wanted = sampling.n if sampling.temperature > 0 else 1
        found: list[Completion] = []
        while len(found) < wanted:  # some servers ignore n and return one answer
            n, seed = wanted - len(found), sampling.seed + len(found)
            body = self._body(messages, sampling, n, seed)
            bound = bound_of(self.section, messages, sampling, n)
            found += await self._ask(body, bound, gate, lambda reply, n=n: completions(reply, n, sampling.max_tokens), sure=sure)
        if all(one.detail for one in found):
            raise RequestRefused(f"{self.section.url} gives no answer to a prompt: {found[0].detail}", found[0].detail)
        return found if wanted == sampling.n else found * sampling.n

    async def complete_once(self, messages: Messages, sampling: Sampling) -> list[Completion]:
        """One greedy completion of one prompt, for callers with a deadline and a circuit breaker of their own (lore.online): one
        attempt, which no throttle holds back. Raises RequestRefused, EndpointFailed if there is no usable reply, and
        EndpointStopped if the server rejects every request."""
        body = self._body(messages, sampling, 1, sampling.seed)
        found = await self._once(body, lambda reply: completions(reply, 1, sampling.max_tokens))
        if found[0].detail:
            raise RequestRefused(f"{self.section.url} gives no answer to a prompt: {found[0].detail}", found[0].detail)
        return found

    async def score_once(self, messages: Messages) -> np.ndarray:
        """Tier probabilities [tiers] of one prompt, see `complete_once` and `score`."""
        begun = begun_at_verdict(messages, self.rubric, self.verdict)
        body = self._body(begun, Sampling(max_tokens=1), 1, 0) | scoring_fields(self.verdict)
        if not (listed := await self._once(body, _listed)):
            raise RequestRefused(f"{self.section.url}: {NO_LOGPROBS}", NO_LOGPROBS)
        row, any_tier = tier_probabilities(listed, tier_ends(self.rubric, self.verdict), self.verdict)
        if not any_tier:  # equal probabilities would make the first tier its verdict
            raise RequestRefused(f"{self.section.url}: {NO_TIER}", NO_TIER)
        return row

    async def _once(self, body: dict[str, Any], read: Callable[[Reply], Any]) -> Any:
        outcome = self._counted(await self._client.send(body, read))
        while outcome.kind == "again":  # without the fields that the server has named, so that it ends
            outcome = self._counted(await self._client.send(body, read))
        if outcome.error is not None:
            raise outcome.error
        if outcome.kind != "answered":
            raise EndpointFailed(f"{self.section.url} gave no usable answer: {outcome.what}.")
        return outcome.value

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> "EndpointEngine":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """See Engine.generate. A prompt that the server rejects, or that fails max_attempts times while the server answers another
        request, gets completions with finish_reason `refused`. Raises LoreError if the server's chat template would write other
        prompts than those in training (with a local tokenizer)."""
        self._check_template(begun=False)
        out: list[list[Completion]] = [[] for _ in prompts]

        async def one(index: int) -> None:
            seeded = replace(sampling, seed=sampling.seed * SEED_STEP + index * sampling.n)
            try:
                out[index] = await self._complete(prompts[index], seeded, None, sure=True)
            except RequestRefused as error:
                out[index] = [Completion("", 0, "refused", detail=error.words)] * sampling.n

        self._run(self._each(len(prompts), one))
        return out

    def score(self, prompts: list[Messages]) -> np.ndarray:
        """See Engine.score, and lore.engines.http.tier_logprobs for the accuracy. Raises EndpointStopped if the server returns no
        log-probabilities, or no tier token for any prompt; ScoresRefused, with the scores of the others, if the server refuses a
        prompt, returns no log-probabilities or no tier for it alone, or fails max_attempts times on it while it answers another
        request.
        """
        self._check_template(begun=True)
        if self.rubric is None:
            raise LoreError("This endpoint was opened without a rubric, so it has no tiers to score. Pass a rubric to open_engine.")
        ends, fields = tier_ends(self.rubric, self.verdict), scoring_fields(self.verdict)
        out, found, refused = np.zeros((len(prompts), len(ends))), [], {}

        def body_of(messages: Messages) -> dict[str, Any]:
            return self._body(messages, Sampling(max_tokens=1), 1, 0) | fields

        async def one(index: int) -> None:
            begun = begun_at_verdict(prompts[index], self.rubric, self.verdict)
            body, bound = body_of(begun), bound_of(self.section, begun, Sampling(max_tokens=1), 1)
            try:
                listed = await self._ask(body, bound, None, _listed, sure=True)
            except RequestRefused as error:
                refused[index] = error.words
                return
            if not listed and not self._lists_logprobs and not _listed(await self._ask_harmless(body, None)):
                raise self._client.stop("returns no log-probabilities", "Use a server that supports logprobs, or another engine.")
            self._lists_logprobs = True
            if not listed:
                refused[index] = NO_LOGPROBS
                return
            row, any_tier = tier_probabilities(listed, ends, self.verdict)
            found.append(any_tier)
            if any_tier:
                out[index] = row
            else:  # equal probabilities would make the first tier its verdict
                refused[index] = NO_TIER

        async def look_for_tiers(_: int) -> None:
            listed = _listed(await self._ask_harmless(body_of(begun_at_verdict(prompts[0], self.rubric, self.verdict)), None))
            self._lists_tiers = bool(listed) and tier_probabilities(listed, ends, self.verdict)[1]

        self._run(self._each(len(prompts), one))
        self._lists_tiers = self._lists_tiers or any(found)
        if found and not self._lists_tiers:
            self._run(self._each(1, look_for_tiers))
            if not self._lists_tiers:
                raise self._client.stop(
                    f"returned none of the tiers {', '.join(self.rubric.tier_ids)} after <verdict> for any of {len(found)} prompts",
                    "The server may not support prefill (vLLM and SGLang do), or the model may not be a judge.",
                )
        if refused:
            raise ScoresRefused(out, dict(sorted(refused.items())))
        return out

    def _check_template(self, *, begun: bool) -> None:
        if self.processor is not None:
            check_server_template(self.processor, begun=begun)

    async def _ask(
        self,
        body: dict[str, Any],
        bound: Usage,
        gate: Gate | None,
        read: Callable[[Reply], Any],
        *,
        sure: bool = False,
        harmless: bool = False,
    ) -> Any:
        """read(reply) of the first valid reply. sure: a prompt that keeps failing is refused if the server answers another request,
        so EndpointFailed is about every prompt. harmless: the body is the harmless request itself.

        A failed attempt counts toward max_attempts only if the prompt itself may be the cause. It does not count if the server
        was unreachable, is known to be down, or was busy with other requests; the throttle handles those cases.
        """
        throttle, attempts, failures, last = self._throttle, 0, 0, ""
        while attempts < self.section.max_attempts:
            if failures and not throttle.open:
                await asyncio.sleep(backoff_seconds(failures))
            entered = await throttle.enter()
            probe = throttle.open  # the prompt may be what the server fails on, so it cannot tell whether the server is back
            try:
                if self._stopped is not None:
                    raise self._stopped
                if probe:
                    outcome = await self._attempt(*self._harmless(body), gate, _whole)
                else:
                    outcome = await self._attempt(body, bound, gate, read)
            except BaseException:
                throttle.left(entered)
                raise
            if outcome.kind in ("fault", "unreached"):
                attempts += outcome.kind == "fault" and not throttle.open
                throttle.fault(entered, outcome.what, outcome.pause_seconds)
            elif outcome.kind == "busy":
                attempts += throttle.under_way == 1 and not probe
                throttle.busy(entered, outcome.pause_seconds)
            else:
                throttle.answered()
                if isinstance(outcome.error, EndpointStopped):
                    await self._stop_unless_harmless_is_answered(outcome, body, gate, known=probe or harmless)
                if probe or outcome.kind == "again":
                    continue
                if outcome.error is not None:
                    raise outcome.error
                return outcome.value
            failures, last = failures + 1, outcome.what
        error = EndpointFailed(
            f"{self.section.url} gave no usable answer to one prompt in {attempts} attempts. Last attempt: {last}.\n"
            "Stored results are kept. Check the server's log, raise max_attempts or timeout_seconds, or lower "
            "max_concurrency; then run the same command again."
        )
        if sure and await self._ask_harmless(body, gate):
            raise RequestRefused(str(error), f"no usable answer in {attempts} attempts; the last one: {last}") from error
        raise error

    async def _stop_unless_harmless_is_answered(
        self, outcome: Outcome, body: dict[str, Any], gate: Gate | None, *, known: bool
    ) -> None:
        """Raises EndpointStopped, for this and all other requests, if the server also rejects the harmless request (known: the
        outcome is that of this request), and RequestRefused if not."""
        if not known and await self._ask_harmless(body, gate):
            raise self._client.rejected(outcome.what)
        self._stopped = self._stopped or outcome.error
        raise self._stopped

    async def _ask_harmless(self, body: dict[str, Any], gate: Gate | None) -> Reply | bool:
        """The server's reply to a request without content that has the fields of `body`. True if it rejects the request, since it
        works; False if it does not answer it either. A reply that comes after the call counts for all that wait."""
        called = time.monotonic()
        async with self._checking:
            if self._stopped is not None:
                return False
            if self._checked_at <= called:
                try:
                    self._harmless_reply = await self._ask(*self._harmless(body), gate, _whole, harmless=True)
                except RequestRefused:
                    self._harmless_reply = True
                except (EndpointFailed, EndpointStopped):
                    return False
                self._checked_at = time.monotonic()
            return self._harmless_reply

    def _harmless(self, body: dict[str, Any]) -> tuple[dict[str, Any], Usage]:
        """A request without content that has the fields of `body`, and its bound."""
        messages: Messages = [{"role": "user", "content": HARMLESS}]
        if body["messages"][-1]["role"] == "assistant":
            begun = [*messages, {"role": "assistant", "content": OPENING}]
            messages = begun_at_verdict(messages, self.rubric, self.verdict) if self.rubric is not None else begun
        asked = {key: value for key, value in body.items() if key != "n"} | {"messages": messages, "max_tokens": 1}
        return asked, bound_of(self.section, messages, Sampling(max_tokens=1), 1)

    async def _attempt(self, body: dict[str, Any], bound: Usage, gate: Gate | None, read: Callable[[Reply], Any]) -> Outcome:
        """One HTTP attempt; the gate admits it first and always settles it afterwards."""
        if gate is None:
            return self._counted(await self._client.send(body, read))
        ticket, used = await gate.admit(bound), None
        try:
            outcome = self._counted(await self._client.send(body, read))
            used = outcome.used
            return outcome
        finally:
            gate.settle(ticket, used)

    def _counted(self, outcome: Outcome) -> Outcome:
        if (used := outcome.used) is not None:
            self.usage.add(used.prompt_tokens, used.cached_tokens, used.completion_tokens)
        return outcome

    def _body(self, messages: Messages, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        if self._folds and messages[0]["role"] == "system" and len(messages) > 1:
            messages = fold_system(messages)
        return self._switches | request_body(self.section, messages, sampling, n=n, seed=seed)

    def _down(self, last_fault: str, seconds: float) -> EndpointStopped:
        return self._client.stop(
            f"has not answered for {seconds:.0f} s; last attempt: {last_fault}",
            "Start the server, correct the url, or raise max_down_seconds to wait longer.",
        )

    async def _each(self, count: int, one: Callable[[int], Coroutine]) -> None:
        """Runs one(index) for every index, at most max_concurrency at a time; the first error cancels all."""
        indices = iter(range(count))

        async def worker() -> None:
            for index in indices:
                await one(index)

        workers = [asyncio.ensure_future(worker()) for _ in range(min(count, self.section.max_concurrency))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self.aclose()

    def _run(self, work: Coroutine) -> None:
        """Runs `work` to completion; uses another thread if this thread already has an event loop, as in a notebook."""
        self._stopped, self._checking = None, asyncio.Lock()
        try:
            asyncio.get_running_loop()
            running = True
        except RuntimeError:
            running = False
        if not running:  # outside the except block, so that errors of `work` are not chained to the RuntimeError
            asyncio.run(work)
            return
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, work).result()


def _whole(reply: Reply) -> Reply:
    return reply


def _listed(reply: Reply | bool) -> dict[str, float]:
    """The tokens listed at the first position; empty if there are none."""
    return (isinstance(reply, Reply) and listed_tokens(reply)) or {}
