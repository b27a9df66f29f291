"""Teachers: a program, a model in this process, or a server, with the same interface for every step.

A model's answers go through the run's journal, so no request repeats one of an earlier start, of another pair with the same
prompt, or of a reused run.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from lore.data.pair import Pair
from lore.data_synth.synthesis import knowledge, multimodal, rules
from lore.data_synth.synthesis.budget import Budget, RequestGate, cost
from lore.data_synth.synthesis.config import TeacherSection
from lore.data_synth.synthesis.facts import Fact
from lore.data_synth.synthesis.journal import Earlier, Journal, Shared
from lore.data_synth.synthesis.program import ProgramTeacher
from lore.data_synth.synthesis.teacher_prompts import Prompts, prompt_hash
from lore.data_synth.synthesis.trace import Evidence, Reply, Wish
from lore.engines.config import UnansweredSection
from lore.engines.engine import Completion, EndpointFailed, Messages, RequestRefused, Sampling, Usage
from lore.engines.unanswered import AnswerWatch, TooManyUnanswered
from lore.support.text import encodable


@dataclass
class Work:
    """Shared by all pairs of a chunk: its journal, the budget, and the answers of other runs and chunks."""

    journal: Journal
    budget: Budget
    earlier: Earlier | None = None
    shared: Shared | None = None
    fresh: set[str] = field(default_factory=set)
    """Keys of the answers that this start asked for."""
    unanswered: dict[str, str] = field(default_factory=dict)
    """Pairs that got no whole answer, and why, by pair_id."""
    again: bool = False
    """Whether its pairs were refused in an earlier start, in a stored chunk: another refusal is no sign of an outage."""


class Teacher(Protocol):
    """The steps as requests. `draw` numbers the attempts; each draw has its own answer."""

    name: str
    repeats: bool
    """Whether another draw can give another answer."""

    async def knowledge(self, work: Work, pair: Pair, facts: list[Fact], draw: int) -> Reply: ...

    async def multimodal(
        self, work: Work, pair: Pair, wishes: list[Wish], facts: list[Fact], draw: int, *, caption: str | None, photo: bool
    ) -> Reply: ...

    async def rules(
        self, work: Work, pair: Pair, wishes: list[Wish], evidence: list[Evidence], draw: int, *, hint: str | None
    ) -> Reply: ...


class ByProgram:
    """Answers of a program. They are recomputed instead of stored, because they cost nothing and do not change."""

    def __init__(self, program: ProgramTeacher):
        self.program, self.name, self.repeats = program, program.name, program.errors > 0

    async def knowledge(self, work, pair, facts, draw):
        return self._reply("knowledge", pair, draw, self.program.knowledge(pair, facts, draw))

    async def multimodal(self, work, pair, wishes, facts, draw, *, caption, photo):
        shown = pair if photo else replace(pair, image=None)
        return self._reply("multimodal", pair, draw, self.program.multimodal(shown, wishes, facts, draw))

    async def rules(self, work, pair, wishes, evidence, draw, *, hint):
        return self._reply("rules", pair, draw, self.program.rules(pair, wishes[: len(evidence)], evidence, draw))

    def _reply(self, step: str, pair: Pair, draw: int, text: str) -> Reply:
        return Reply(step, answer_key(step, pair.pair_id, self.name, draw), "", self.name, text)


Complete = Callable[[Messages, Sampling, RequestGate], Awaitable[list[Completion]]]


@dataclass
class ByModel:
    """A language model behind `complete`. name: stored with its answers."""

    name: str
    complete: Complete
    section: TeacherSection
    prompts: Prompts
    seed: int = 0
    close: Callable[[], Awaitable[None]] | None = None
    takes_images: bool = True
    watch: AnswerWatch = field(default_factory=lambda: AnswerWatch(UnansweredSection(), "teacher"))
    """Stops the run after too many requests of one step in a row without a whole answer."""
    identity: str = ""
    """What its answers depend on, a part of every key; by default its name."""
    _under_way: dict[str, asyncio.Future] = field(default_factory=dict)
    """Requests that are not answered yet, by key."""
    _gave_up: TooManyUnanswered | None = None

    @property
    def repeats(self) -> bool:
        return self.section.temperature > 0

    async def knowledge(self, work, pair, facts, draw):
        return await self.ask(work, "knowledge", pair, knowledge.prompt(self.prompts, pair, [f.text for f in facts]), draw)

    async def caption(self, work: Work, pair: Pair, draw: int) -> Reply:
        return await self.ask(work, "caption", pair, multimodal.caption_prompt(self.prompts, pair), draw)

    async def multimodal(self, work, pair, wishes, facts, draw, *, caption, photo):
        texts = [fact.text for fact in facts]
        messages = multimodal.prompt(self.prompts, pair, wishes, texts, caption=caption, photo=photo)
        return await self.ask(work, "multimodal", pair, messages, draw)

    async def rules(self, work, pair, wishes, evidence, draw, *, hint):
        return await self.ask(work, "rules", pair, rules.prompt(self.prompts, pair, wishes, evidence, hint), draw)

    async def ask(self, work: Work, step: str, pair: Pair, messages: Messages, draw: int) -> Reply:
        """One answer, from the journal if it has one. Raises BudgetReached, and the engine's errors."""
        asked = prompt_hash(messages)
        key = answer_key(step, asked, self.identity or self.name, draw)
        # A cut answer of an earlier start is asked again: a second start must not turn the cause of a stop into rejected pairs.
        known = work.journal.known(key, pair.pair_id)
        if known is not None and (key in work.fresh or not known.is_cut):
            if key not in work.fresh:  # else the refused requests of the earlier start, asked again, would stand in a row
                self._count(work, step, None)
            return known
        for others in (work.shared, work.earlier):
            if others is not None and (known := others.get(key)) is not None and not known.is_cut:
                work.journal.answered(pair.pair_id, known)
                return known
        if (other := self._under_way.get(key)) is not None:  # the same query with another item
            reply = await asyncio.shield(other)
            if key not in work.fresh:  # asked for a pair of another chunk
                work.fresh.add(key)
                work.journal.answered(pair.pair_id, reply.at_no_cost())
            return work.journal.known(key, pair.pair_id)
        promise = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            gate = RequestGate(work.budget, self.section.price, work.journal, key)
            section = self.section
            sampling = Sampling(section.temperature, section.top_p, section.max_tokens, 1, self.seed + draw)
            answer = await self._answer(work, step, pair, messages, sampling, gate)
            usage = Usage(answer.prompt_tokens, answer.tokens)
            usd = cost(usage, section.price).usd
            reply = Reply(step, key, asked, self.name, encodable(answer.text), usage.prompt_tokens, usage.completion_tokens, usd)
            reply.finish_reason = answer.finish_reason
            work.fresh.add(key)
            work.journal.answered(pair.pair_id, reply)
            if work.shared is not None:
                work.shared.add(reply)
            promise.set_result(reply)
        except BaseException as error:
            promise.set_exception(error if isinstance(error, Exception) else RuntimeError("stopped"))
            promise.exception()  # mark as retrieved, so asyncio does not log it if nobody awaits it
            raise
        finally:
            del self._under_way[key]
        self._count(work, step, f"an answer was cut, after {reply.completion_tokens:,} tokens" if reply.is_cut else None)
        return reply

    async def _answer(
        self, work: Work, step: str, pair: Pair, messages: Messages, sampling: Sampling, gate: RequestGate
    ) -> Completion:
        """Raises TooManyUnanswered if the server or the model refuses prompt after prompt: every pair would be lost."""
        if self._gave_up is not None:
            raise self._gave_up
        try:
            return (await self.complete(messages, sampling, gate))[0]
        except EndpointFailed as error:
            self._count(work, step, what_failed(error))
            if gate.key in gate.journal.failed_before:  # it also failed in an earlier start, so the prompt is the cause
                raise RequestRefused(f"no usable answer in two starts of the run: {what_failed(error)[:300]}") from error
            gate.journal.failed(pair.pair_id, gate.key)
            raise
        except RequestRefused as error:
            self._count(work, step, error.words)
            raise

    def _count(self, work: Work, step: str, why: str | None) -> None:
        if work.again and why is not None:
            return
        try:
            self.watch.add(why and f"{step}: {why}", step)
        except TooManyUnanswered as error:
            self._gave_up = self._gave_up or error
            raise self._gave_up from None  # of several prompts under way, all end with the error of the first


def what_failed(error: EndpointFailed) -> str:
    """What happened, without the advice that follows in the error: the run's own error brings it once."""
    return str(error).partition("\n")[0]


def answer_key(step: str, asked: str, teacher: str, draw: int) -> str:
    """16 hex digits over step, prompt hash, teacher and draw."""
    return hashlib.blake2b("\x1f".join((step, asked, teacher, str(draw))).encode(), digest_size=8).hexdigest()


