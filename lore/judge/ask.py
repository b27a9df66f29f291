"""Asks a judge about pairs and reads its verdicts, chunk by chunk. `lore.judge.resumable` saves each chunk.

- reason_first: generates the answer, parses it strictly, then scores the tiers after the generated reason.
- answer_only, answer_first: scores the tiers without decoding. answer_first with `explain` also generates the whole answer.
- without scores (for endpoints that return none): generates the answer in every order; there are no probabilities.
- guided: a generated answer without a readable verdict gets the most probable tier after its reason. The answer itself is generated
  freely, token for token as without it.

Within a chunk the engine gets the prompts of one query together, so that a prefix cache processes their shared part once.
"""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lore.codec.prompt import PromptFormat, render
from lore.codec.verdict_tokens import verdict_tokens, with_verdict_prefix
from lore.data.pair import Pair
from lore.engines.apart import generate_apart, score_apart
from lore.engines.chat import photo_of
from lore.engines.engine import MAX_WORDS, Completion, Engine, Sampling, ScoresRefused
from lore.engines.unanswered import AnswerWatch
from lore.judge.answer import read_answer, written_reason
from lore.judge.chunk_store import in_chunks
from lore.judge.verdict import GUIDED, UNSCORED, Verdict, unscored
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

REFUSED, TOO_LONG, ENGINE_DIED, RAISED = "refused", "prompt_too_long", "engine_died", "raised"
FINISHED_BADLY = {"length": "cut_at_max_tokens", "refused": REFUSED}
NO_ANSWER = (REFUSED, TOO_LONG, ENGINE_DIED, RAISED)
"""Failures of pairs that got no answer. All other failures are answers in a wrong format."""
FactsOf = Callable[[Pair], Sequence[str]]


def predict(
    pairs: Iterable[Pair],
    engine: Engine,
    rubric: Rubric,
    fmt: PromptFormat,
    sampling: Sampling,
    *,
    chunk_pairs: int = 256,
    explain: bool = False,
    scores: bool = True,
    guided: bool = False,
    facts: FactsOf | None = None,
    judge_id: str | None = None,
    timed: bool = False,
    watch: AnswerWatch | None = None,
    again: Container[str] = (),
) -> Iterator[list[Verdict]]:
    """Verdicts in chunks, in the order of the pairs.

    facts: texts shown as facts with a pair. judge_id: stored in every verdict. timed: stores seconds per pair in every verdict, the
    wall time of the chunk divided by its pairs; these differ from run to run. watch: stops when too many pairs get no answer,
    before their chunk is yielded. again: ids of pairs that got no answer in an earlier start, whose chunks were within the bounds;
    the watch counts them only if they get one now.

    A pair whose query alone is too long for the prompt is a format failure `prompt_too_long`. Raises LoreError when not
    even a one-word query fits, since the recipe is wrong then.
    """
    for chunk, shown in _chunks(pairs, engine, rubric, fmt, chunk_pairs):
        began = time.perf_counter()
        verdicts = judge_chunk(
            chunk, engine, rubric, shown, sampling, explain=explain, scores=scores, guided=guided, facts=facts
        )
        seconds = (time.perf_counter() - began) / len(chunk) if timed else None
        for verdict in verdicts:
            verdict.judge_id, verdict.seconds = judge_id, seconds
        _count(watch, verdicts, again)
        yield verdicts


def no_answer(verdict: Verdict) -> str | None:
    """Why a pair got no answer; None if it got one, readable or not."""
    if verdict.failure not in NO_ANSWER:
        return None
    return f"{verdict.failure}: {verdict.detail}" if verdict.detail else verdict.failure


def incomplete(verdict: Verdict) -> str | None:
    """Why the server gave no answer, or no scores after it; None if it gave all that was asked for."""
    return no_answer(verdict) or unscored(verdict)


def _count(watch: AnswerWatch | None, verdicts: list[Verdict], again: Container[str]) -> None:
    if watch is not None:
        whys = [(verdict.pair_id, incomplete(verdict)) for verdict in verdicts]
        watch.chunk([why for pair_id, why in whys if why is None or pair_id not in again])


def _chunks(
    pairs: Iterable[Pair], engine: Engine, rubric: Rubric, fmt: PromptFormat, size: int
) -> Iterator[tuple[list[Pair], PromptFormat]]:
    if not getattr(engine, "takes_images", True):
        fmt = replace(fmt, photo=False)
    render(Pair(pair_id="-", query="a", title="a"), rubric, fmt, tokenizer=_renderer(engine))
    for chunk in in_chunks(pairs, size):
        yield chunk, fmt


def _renderer(engine: Engine) -> Any:
    """The chat template of a vision-language model belongs to its processor."""
    return getattr(engine, "processor", engine.tokenizer)


def judge_chunk(
    pairs: list[Pair],
    engine: Engine,
    rubric: Rubric,
    fmt: PromptFormat,
    sampling: Sampling,
    *,
    explain: bool = False,
    scores: bool = True,
    guided: bool = False,
    facts: FactsOf | None = None,
) -> list[Verdict]:
    """One verdict per pair, in the order of the pairs.

    guided: needs scores. Every pair that gets an answer gets a tier; `lore.judge.verdict.guided` tells those whose written answer
    had no readable one.
    """
    verdicts, prompts, asked = render_chunk(pairs, engine, rubric, fmt, facts)
    judge_prompts(prompts, asked, engine, rubric, fmt, sampling, explain=explain, scores=scores, guided=guided)
    return verdicts


def judge_prompts(
    prompts: list,
    asked: list[Verdict],
    engine: Engine,
    rubric: Rubric,
    fmt: PromptFormat,
    sampling: Sampling,
    *,
    explain: bool = False,
    scores: bool = True,
    guided: bool = False,
) -> None:
    """Fills the verdicts of the prompts of `render_chunk`: generates the answers, scores the tiers, or both."""
    if guided and not scores:
        raise LoreError(
            "guided reads verdicts from the tier tokens, but scores is false, so those are not read.\n"
            "Set scores to true, or guided to false."
        )
    written = fmt.order == "reason_first" or explain or not scores
    if written:
        write_answers(prompts, asked, engine, rubric, fmt, sampling)
    if scores:
        score_answers(prompts, asked, engine, rubric, fmt, decide=not written, guided=guided)


def render_chunk(
    pairs: list[Pair], engine: Engine, rubric: Rubric, fmt: PromptFormat, facts: FactsOf | None = None
) -> tuple[list[Verdict], list, list[Verdict]]:
    """(verdicts, prompts, verdicts of the prompts): an empty verdict per pair, and prompts for the pairs that fit, by query."""
    verdicts = [Verdict(pair.pair_id, None) for pair in pairs]
    prompts, asked = [], []
    renderer, without_photo = _renderer(engine), replace(fmt, photo=False)
    for index in sorted(range(len(pairs)), key=lambda i: pairs[i].query):
        pair, verdict = pairs[index], verdicts[index]
        image, verdict.photo = photo_of(pair, fmt, renderer)
        # Without photo: render would load a broken photo again and fail.
        shown = fmt if image is not None else without_photo
        texts = facts(pair) if facts else ()
        try:
            prompts.append(render(pair, rubric, shown, tokenizer=renderer, image=image, facts=texts))
        except LoreError as error:
            verdict.failure, verdict.detail = TOO_LONG, str(error)[:MAX_WORDS]
            continue
        asked.append(verdict)
    return verdicts, prompts, asked


def write_answers(
    prompts: list, verdicts: list[Verdict], engine: Engine, rubric: Rubric, fmt: PromptFormat, sampling: Sampling
) -> None:
    """Generates the answers and fills the verdicts from them."""
    for verdict, completions in zip(verdicts, generate_apart(engine, prompts, sampling), strict=True):
        completion = completions[0]
        answer = read_answer(completion, rubric, fmt)
        verdict.text, verdict.tokens = answer.text, answer.tokens
        if answer.failure is not None:
            verdict.failure = FINISHED_BADLY.get(completion.finish_reason, answer.failure)
            verdict.detail = completion.detail or None
            continue
        judgement = answer.judgement
        verdict.tier, verdict.rationale = judgement.tier, judgement.rationale
        verdict.mismatch, verdict.rules = judgement.mismatch, judgement.rules


def note_refusal(verdict: Verdict, completions: Sequence[Completion]) -> None:
    """Marks the verdict of a prompt that the server refuses. One refused sample is enough: its siblings answer the same prompt."""
    refused = next((completion for completion in completions if completion.finish_reason == REFUSED), None)
    if refused is not None:
        verdict.failure, verdict.detail = REFUSED, refused.detail or None


def score_answers(
    prompts: list,
    verdicts: list[Verdict],
    engine: Engine,
    rubric: Rubric,
    fmt: PromptFormat,
    *,
    decide: bool,
    guided: bool = False,
) -> None:
    """Fills in the tier probabilities, scored after the reason if there is one. decide: the most probable tier becomes the
    verdict, and a pair whose scores are refused has none. Without `decide` it keeps its written verdict (`unscored`); with `guided`
    an unreadable answer gets the most probable tier."""
    unread = {id(verdict) for verdict in verdicts if guided and verdict.failure not in (None, *NO_ANSWER)}

    def refuse(verdict: Verdict, words: str) -> None:
        if decide:
            verdict.failure, verdict.detail = REFUSED, words
        elif id(verdict) not in unread:
            verdict.detail = f"{UNSCORED}: {words}"

    tokens = verdict_tokens(_renderer(engine), rubric) if engine.tokenizer is not None else None
    scored = [
        (prompt, verdict)
        for prompt, verdict in zip(prompts, verdicts, strict=True)
        if decide or verdict.failure is None or id(verdict) in unread
    ]
    if not scored:
        return
    for _, verdict in scored:
        if id(verdict) in unread:
            verdict.rationale = written_reason(verdict.text or "", fmt)
    begun = [
        with_verdict_prefix(prompt, fmt, tokens, rationale=verdict.rationale) for prompt, verdict in scored
    ]
    refused: dict[int, str] = {}
    try:
        probabilities = score_apart(engine, begun, len(rubric.tier_ids))
    except ScoresRefused as error:
        probabilities, refused = error.probabilities, error.refused
    for index, ((_, verdict), row) in enumerate(zip(scored, probabilities, strict=True)):
        if index in refused:
            refuse(verdict, refused[index])
            continue
        verdict.probabilities = row.tolist()
        if decide or id(verdict) in unread:
            verdict.tier = rubric.tier_ids[int(row.argmax())]
        if id(verdict) in unread:
            verdict.failure, verdict.detail = None, f"{GUIDED}: {verdict.failure}"


def sample(
    pairs: Iterable[Pair],
    engine: Engine,
    rubric: Rubric,
    fmt: PromptFormat,
    sampling: Sampling,
    *,
    chunk_pairs: int = 256,
    explain: bool = False,
    scores: bool = True,
    watch: AnswerWatch | None = None,
    again: Container[str] = (),
) -> Iterator[list[tuple[str, list[str | None], str | None]]]:
    """(pair_id, `sampling.n` sampled tiers, failure) of each pair, in chunks. A tier is None for a format failure; failure: one of
    NO_ANSWER, or None. watch, again: see `predict`.

    When the verdict comes first, samples only the tier, from the tier probabilities at `sampling.temperature`, without decoding.
    """
    for chunk, shown in _chunks(pairs, engine, rubric, fmt, chunk_pairs):
        verdicts, prompts, asked = render_chunk(chunk, engine, rubric, shown)
        drawn: dict[str, list[str | None]] = {}
        if not prompts:
            pass
        elif shown.order == "reason_first" or explain or not scores:
            for verdict, completions in zip(asked, generate_apart(engine, prompts, sampling), strict=True):
                note_refusal(verdict, completions)
                drawn[verdict.pair_id] = [read_answer(completion, rubric, shown).tier for completion in completions]
        else:
            score_answers(prompts, asked, engine, rubric, shown, decide=True)
            for verdict in asked:
                if verdict.probabilities is None:
                    continue
                rng = np.random.default_rng([sampling.seed, *verdict.pair_id.encode(errors="surrogatepass")])
                powers = np.asarray(verdict.probabilities) ** (1 / sampling.temperature)
                picks = rng.choice(len(powers), size=sampling.n, p=powers / powers.sum())
                drawn[verdict.pair_id] = [rubric.tier_ids[pick] for pick in picks]
        _count(watch, verdicts, again)
        yield [
            (verdict.pair_id, drawn.get(verdict.pair_id, [None] * sampling.n), verdict.failure if no_answer(verdict) else None)
            for verdict in verdicts
        ]
