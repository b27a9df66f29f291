"""Stage synthesize: a teacher reasons about rated pairs in three steps, and checks verify every trace. Traces that pass become an
SFT data set with a card.

    lore run recipes/synthesize.yaml

The run folder holds answers/ (requests and answers), traces/ (one row per pair, accepted or not, with every check) and pairs/
(the data set: `data.path` of an SFT recipe, or datasets.load_dataset). The same command resumes a stopped run without repeating
any request.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data_synth.synthesis import knowledge, multimodal, rules
from lore.data_synth.synthesis.budget import Budget, BudgetReached, Spent
from lore.data_synth.synthesis.config import IN_PROCESS, SynthesizeRecipe
from lore.data_synth.synthesis.facts import open_facts
from lore.data_synth.synthesis.journal import Earlier, Journal, Shared, totals
from lore.data_synth.synthesis.open_teachers import open_teachers
from lore.data_synth.synthesis.output import write_set
from lore.data_synth.synthesis.progressive import Synthesis
from lore.data_synth.synthesis.summary import Counts, percent
from lore.data_synth.synthesis.teacher_prompts import Prompts, prompt_texts_hash
from lore.data_synth.synthesis.teachers import Work, what_failed
from lore.data_synth.synthesis.trace import Trace, refused_places, trace_store
from lore.data_synth.synthesis.verify import Verifier
from lore.engines.config import ModelSection
from lore.engines.engine import EndpointFailed
from lore.engines.unanswered import SHOWN_REASONS, AnswerWatch, TooManyUnanswered
from lore.judge.chunk_store import in_chunks
from lore.judge.dry_pass import Asked, check_asking
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.fingerprint import files_fingerprint
from lore.support.plain import flatten
from lore.support.processes import is_main_process, say
from lore.support.untrusted_json import parse_json

TICK_SECONDS = 2.0
PAIRS_PER_MODEL, MOST_MODELS = 512, 64  # in flight; the pairs of more models than that do not fit into memory
FIRST_PAIRS = 8  # whose prompts are compared with a teacher's positions


def run(recipe: SynthesizeRecipe, folder: RunFolder) -> None:
    """Writes traces, data set and card. Only the main process works; other processes return at once."""
    if not is_main_process():
        return
    source = PairSource(recipe.data, folder)
    rubric, data = source.rubric, source.fingerprint
    folder.note(data_fingerprint=data, rubric_hash=rubric.hash)
    facts = open_facts(recipe.facts.path, recipe.facts.top) if recipe.facts else None
    stamp = stamp_of(recipe, rubric, data, files_fingerprint(map(Path, facts.files)) if facts else "")
    shared = Shared()
    budget = Budget(recipe.budget, spent_before(folder, shared))
    earlier = Earlier(recipe.reuse) if recipe.reuse else None
    check_asking("synthesize", asked_models(recipe, source), rubric)
    teacher, captioner, critic = open_teachers(recipe, rubric)
    verifier = Verifier(
        recipe.checks,
        rubric,
        language=recipe.language,
        coverage=recipe.coverage,
        max_tokens=recipe.rationale.max_tokens,
        tokenizer=student_tokenizer(recipe),
        instructions=Prompts(rubric, recipe.language, recipe.prompts).instructions(),
        photos=recipe.photos != "none",
    )
    synthesis = Synthesis(recipe, rubric, teacher, verifier, captioner, critic, facts)
    error = None
    try:
        asyncio.run(Pipeline(recipe, folder, source, synthesis, budget, earlier, shared, stamp).run())
    except (BudgetReached, Unanswered, TooManyUnanswered) as unfinished:
        error = unfinished
    finally:
        write_seconds(folder, budget.seconds)
    counts = write_set(recipe, folder, source, budget, stamp, complete=error is None)
    if counts.pairs or error is None:
        report(counts, rubric, folder)
    if error is not None:
        raise LoreError(f"{error}\n{counts.pairs:,} pairs have a trace so far; {folder / 'pairs'} holds the accepted ones.")
    if not counts.accepted and recipe.unexplained != "keep":
        raise nothing_accepted(counts, folder)
    folder.finish(
        {
            "pairs": counts.pairs,
            "accepted": sum(counts.accepted.values()),
            "tokens": budget.spent.tokens,
            "usd": round(budget.spent.usd, 6),
            "seconds": round(budget.seconds, 1),
            "set": str(folder / "pairs"),
            "prompts": prompt_texts_hash(recipe.language, recipe.prompts),
        }
    )


def asked_models(recipe: SynthesizeRecipe, source: PairSource) -> Iterator[Asked]:
    """What the dry pass checks about each model that writes or checks reasoning."""
    for key in ("teacher", "captioner", "critic"):
        section = getattr(recipe, key)
        if section is None or section.kind == "program":
            continue

        def longest(processor: Any, limit: int | None, key: str = key, tokens: int = section.max_tokens) -> int:
            from lore.engines.model_checks import longest_prompt  # loads torch: only for a model in this process

            prompts = Prompts(source.rubric, recipe.language, recipe.prompts, recipe.max_photo_pixels, processor)
            return longest_prompt(_first_prompts(prompts, source) if key == "teacher" else [], processor) + tokens

        yield Asked(
            key,
            section.endpoint if section.kind == "endpoint" else section.model,
            longest,
            f"a prompt of one of the first pairs with an answer of {section.max_tokens:,} tokens",
            f"lower {key}.max_tokens",
            section.vllm if section.kind == "vllm" else None,
        )


def _first_prompts(prompts: Prompts, source: PairSource) -> Iterator[list[dict]]:
    """Prompts of the teacher's text steps about the first pairs, without answers of earlier steps: shorter than the real ones."""
    for pair in islice(source.labeled(), FIRST_PAIRS):
        yield knowledge.prompt(prompts, pair, [])
        yield multimodal.prompt(prompts, pair, [], [], caption=None, photo=False)
        yield rules.prompt(prompts, pair, [], [], None)


def report(counts: Counts, rubric: Rubric, folder: RunFolder) -> None:
    """Prints the acceptance per tier, and the most frequent failed checks."""
    if not counts.pairs:
        raise LoreError(
            "synthesize: the data section selects no labeled pair, so there is nothing to reason about.\n"
            "Check data.path, data.split, data.slices and data.limit against `lore data stats`."
        )
    tiers = [f"{tier} {percent(counts.accepted[tier], counts.given[tier])}" for tier in rubric.tier_ids if counts.given[tier]]
    accepted = sum(counts.accepted.values())
    say(f"accepted {accepted:,} of {counts.pairs:,} pairs: {', '.join(tiers)}")
    if accepted < counts.pairs:
        failed = ", ".join(f"{name} {pairs:,}" for name, pairs in counts.checks.most_common(4))
        say(f"rejected pairs failed {failed}; lore traces show {folder.path} --rejected")
    if lost := counts.no_answer:
        reasons = "; ".join(f"{pairs:,} x {why}" for why, pairs in lost.most_common(SHOWN_REASONS))
        say(f"{lost.total():,} pairs got no answer: {reasons}{'; …' * (len(lost) > SHOWN_REASONS)}")


def nothing_accepted(counts: Counts, folder: RunFolder) -> LoreError:
    """The error of a run whose set would be empty."""
    failed = ", ".join(f"{name} {pairs:,}" for name, pairs in counts.checks.most_common(4))
    return LoreError(
        f"synthesize: no trace of {counts.pairs:,} pairs was accepted, so {folder / 'pairs'} holds nothing to train on. They "
        f"failed {failed}. For example: {counts.samples[0]['why'][0][1]}\n"
        f"Read some with `lore traces show {folder.path} --rejected`, then change the teacher, its max_tokens, the prompts or the "
        f"checks, and give the recipe another `run` name; reuse: [{folder.path}] repeats no answered request. The same command "
        "asks only the refused pairs again."
    )


class Unanswered(LoreError):
    """Some pairs have no trace because the server did not answer."""


class Pipeline:
    """Streams pairs through the teacher: many at once, without pauses between chunks, in bounded memory."""

    def __init__(
        self,
        recipe: SynthesizeRecipe,
        folder: RunFolder,
        source: PairSource,
        synthesis: Synthesis,
        budget: Budget,
        earlier: Earlier | None,
        shared: Shared,
        stamp: str,
    ):
        self.recipe, self.folder, self.source, self.synthesis = recipe, folder, source, synthesis
        self.budget, self.earlier, self.shared, self.store = budget, earlier, shared, trace_store(folder.path, stamp)
        self.window = asyncio.Semaphore(pairs_at_once(recipe))
        self.stop: Exception | None = None
        self.done = self.accepted = self.unanswered = 0
        self.last_failure = ""
        self.watch = getattr(synthesis.teacher, "watch", None) or AnswerWatch(recipe.unanswered, "teacher")
        self.held: list[tuple[int, list[dict[str, Any]]]] = []

    async def run(self) -> None:
        """Raises BudgetReached, or the error that stopped the teacher, after all requests in flight are finished and stored."""
        ticker = asyncio.create_task(self._tick())
        chunks: list[asyncio.Task] = []
        try:
            for number, pairs in enumerate(in_chunks(self.source.labeled(), self.recipe.chunk_pairs)):
                places = None  # of the pairs to ask again in a stored chunk
                if self.store.is_current(number):
                    places = refused_places(self.store, number)
                    self.done += len(pairs) - len(places)
                    self.watch.answered = self.watch.answered or len(places) < len(pairs)
                    if not places:
                        continue
                    pairs = [pairs[at] for at in places]
                else:
                    self.store.path(number).unlink(missing_ok=True)  # written with other prompts; its answers stay in the journal
                work = Work(Journal(self.folder / "answers" / f"{number:06d}.jsonl"), self.budget, self.earlier, self.shared)
                work.again = places is not None
                tasks = []
                for pair in pairs:
                    await self.window.acquire()
                    if self.stop is not None:
                        self.window.release()
                        break
                    tasks.append(asyncio.create_task(self._pair(pair, work)))
                chunks = [task for task in chunks if not task.done()]
                chunks.append(asyncio.create_task(self._chunk(tasks, pairs, work, number, places)))
                if self.stop is not None:
                    break
            await asyncio.gather(*chunks)
            await self._write_held()
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker
            await self._close()
        if self.stop is not None:
            raise self.stop
        if self.unanswered:
            raise Unanswered(
                f"{self.unanswered:,} pairs got no usable answer. The last one: {self.last_failure}\n"
                "The same command repeats them; pairs that fail a second time are rejected."
            )

    async def _pair(self, pair: Pair, work: Work) -> Trace | None:
        try:
            trace = await self.synthesis.trace(pair, work)
            self.done += 1
            self.accepted += trace.accepted
            return trace
        except EndpointFailed as error:  # other pairs may succeed; the next start repeats this one
            self.unanswered, self.last_failure = self.unanswered + 1, what_failed(error)
            work.unanswered[pair.pair_id] = self.last_failure
            return None
        except Exception as error:  # the first error stops the run after the pairs in flight have finished
            self._halt(error)
            return None
        finally:
            self.window.release()

    def _halt(self, error: Exception) -> None:
        if self.stop is None or isinstance(self.stop, BudgetReached):
            self.stop = error

    async def _chunk(
        self, tasks: list[asyncio.Task], pairs: list[Pair], work: Work, number: int, places: list[int] | None
    ) -> None:
        """places: of the pairs in their stored chunk, whose other traces stay; None for a new chunk."""
        traces = await asyncio.gather(*tasks)
        try:
            work.journal.close()
            if len(traces) < len(pairs):  # the run stopped
                return
            whys = [work.unanswered.get(pair.pair_id) for pair in pairs]
            if places is not None:
                whys = [why for why in whys if why is None]  # see Work.again
            self.watch.share(whys)  # raises before the chunk is stored, so the next start asks its pairs again
            if any(trace is None for trace in traces):
                return
            rows = [trace.row() for trace in traces]
            if places is not None:
                stored = dict(enumerate(self.store.rows([number])))
                rows = list((stored | dict(zip(places, rows, strict=True))).values())
            if self.watch.may_store:
                await asyncio.to_thread(self.store.write, number, rows)  # the first one imports pandas
            else:
                self.held.append((number, rows))
        except Exception as error:  # a chunk without its file must not count as finished
            self._halt(error)

    async def _write_held(self) -> None:
        """Writes the chunks that were held until the first answer. Halts if no pair at all got one."""
        try:
            self.watch.end()
        except TooManyUnanswered as error:
            self._halt(error)
            return
        for number, rows in self.held:
            await asyncio.to_thread(self.store.write, number, rows)

    async def _tick(self) -> None:
        """Records the seconds of work and prints the progress."""
        said = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            write_seconds(self.folder, self.budget.seconds)
            if time.monotonic() - said > 15 * TICK_SECONDS:
                said = time.monotonic()
                spent = self.budget.spent
                say(f"{self.done:,} pairs, {self.accepted:,} accepted so far; {spent.tokens:,} tokens, {spent.usd:.4f} US dollars")

    async def _close(self) -> None:
        for teacher in (self.synthesis.teacher, self.synthesis.captioner, self.synthesis.critic):
            close = getattr(teacher, "close", None)
            if close is not None:
                await close()


def pairs_at_once(recipe: SynthesizeRecipe) -> int:
    """Pairs in flight: enough to keep every connection, or a large batch, busy."""
    if recipe.teacher.kind == "endpoint":
        return 2 * recipe.teacher.endpoint.max_concurrency
    if recipe.teacher.kind in IN_PROCESS:
        return PAIRS_PER_MODEL * min(recipe.ray.workers if recipe.ray is not None else 1, MOST_MODELS)
    return 16


def stamp_of(recipe: SynthesizeRecipe, rubric: Rubric, data: str, facts: str) -> str:
    """16 hex digits over everything that a trace depends on."""
    left_out = {*type(recipe).irrelevant_keys, "run", "needs", "reuse", "label", "unexplained", "tasks"}
    values = {key: value for key, value in flatten(recipe.resolved()).items() if key not in left_out}
    prompts = prompt_texts_hash(recipe.language, recipe.prompts) if recipe.asks_models else ""
    content = json.dumps([values, rubric.hash, data, facts, prompts], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def student_tokenizer(recipe: SynthesizeRecipe):
    """The tokenizer that counts rationales; None if the recipe names none."""
    if recipe.rationale.tokenizer is None:
        return None
    from lore.engines.loading import load_processor  # loads torch: a synthesis without this tokenizer needs none

    processor = load_processor(ModelSection(name=recipe.rationale.tokenizer), chat=True)
    return getattr(processor, "tokenizer", processor)


def spent_before(folder: RunFolder, shared: Shared) -> Spent:
    """The cost of earlier starts. Also adds their answers about queries to `shared`. Requests in flight when a start was killed
    count with their bound.
    """
    total = totals(folder / "answers", shared)
    path = folder / "answers" / "seconds.json"
    return Spent(total.tokens, total.usd, _seconds_in(path) if path.is_file() else 0.0)


def _seconds_in(path: Path) -> float:
    try:
        seconds = parse_json(path.read_bytes())["seconds"]
        if isinstance(seconds, bool) or not 0 <= seconds < inf:
            raise ValueError(f"{seconds} seconds")
    except (ValueError, LookupError, TypeError) as error:
        raise LoreError(
            f"{path} cannot be read ({error}), so the seconds of earlier starts are unknown. Delete it to count them from zero; no "
            "answer is lost."
        ) from error
    return float(seconds)


def write_seconds(folder: RunFolder, seconds: float) -> None:
    path = folder / "answers" / "seconds.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"seconds": round(seconds, 3)}) + "\n")
