"""Asks a judge about pairs and reads its verdicts.

- reason_first: write the answer, read it strictly, then score the tiers right behind the reason that was written.
- answer_only, answer_first: score the tiers at once; nothing is decoded. answer_first with `explain` writes the whole
  answer too.

Verdicts are saved every `chunk_pairs` pairs; a killed run goes on with the pairs that have none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from lore.engines import Engine, Sampling
from lore.engines.chat import photo_of
from lore.errors import LoreError
from lore.eval.predictions import Shards, Verdict
from lore.judgement import FormatFailure, PromptFormat, parse, render, verdict_tokens, with_verdict_prefix
from lore.pairs import Pair
from lore.rubric import Rubric


def predict(
    pairs: Iterable[Pair],
    engine: Engine,
    rubric: Rubric,
    fmt: PromptFormat,
    sampling: Sampling,
    *,
    chunk_pairs: int = 256,
    explain: bool = False,
) -> Iterator[list[Verdict]]:
    """Verdicts in chunks, in the order of the pairs.

    A pair whose query alone is too long for the prompt is a format failure `prompt_too_long`. Raises LoreError when not
    even a one-word query fits: then the recipe is wrong, not the pair.
    """
    if not getattr(engine, "takes_images", True):
        fmt = replace(fmt, photo=False)
    render(Pair(pair_id="-", query="a", title="a"), rubric, fmt, tokenizer=_renderer(engine))
    remaining = iter(pairs)
    while chunk := list(islice(remaining, chunk_pairs)):
        yield judge_chunk(chunk, engine, rubric, fmt, sampling, explain=explain)


def _renderer(engine: Engine) -> Any:
    """The chat template of a vision-language model belongs to its processor."""
    return getattr(engine, "processor", engine.tokenizer)


def judge_chunk(
    pairs: list[Pair], engine: Engine, rubric: Rubric, fmt: PromptFormat, sampling: Sampling, *, explain: bool = False
) -> list[Verdict]:
    """One verdict per pair."""
    verdicts, prompts, asked = [], [], []
    for pair in pairs:
        image, photo = photo_of(pair, fmt, _renderer(engine))
        verdict = Verdict(pair.pair_id, None, photo=photo)
        verdicts.append(verdict)
        # render would load a photo that could not be loaded here a second time, and fail.
        shown = fmt if image is not None else replace(fmt, photo=False)
        try:
            prompts.append(render(pair, rubric, shown, tokenizer=_renderer(engine), image=image))
        except LoreError:
            verdict.failure = "prompt_too_long"
            continue
        asked.append(verdict)
    if fmt.order == "reason_first" or explain:
        write_answers(prompts, asked, engine, rubric, fmt, sampling)
    score_answers(prompts, asked, engine, rubric, fmt, decide=not (fmt.order == "reason_first" or explain))
    return verdicts


def write_answers(
    prompts: list, verdicts: list[Verdict], engine: Engine, rubric: Rubric, fmt: PromptFormat, sampling: Sampling
) -> None:
    """Generates every answer and fills in what it says."""
    for verdict, completions in zip(verdicts, engine.generate(prompts, sampling), strict=True):
        answer = completions[0]
        verdict.text = answer.text
        judgement = parse(answer.text, rubric, fmt)
        if isinstance(judgement, FormatFailure):
            verdict.failure = "cut_at_max_tokens" if answer.finish_reason == "length" else judgement.reason
            continue
        verdict.tier, verdict.rationale = judgement.tier, judgement.rationale
        verdict.mismatch, verdict.rules = judgement.mismatch, judgement.rules


def score_answers(
    prompts: list, verdicts: list[Verdict], engine: Engine, rubric: Rubric, fmt: PromptFormat, *, decide: bool
) -> None:
    """Fills in the tier probabilities, behind the reason where one was written. decide: the most probable tier becomes
    the verdict."""
    tokens = verdict_tokens(engine.tokenizer, rubric) if engine.tokenizer is not None else None
    scored = [
        (prompt, verdict)
        for prompt, verdict in zip(prompts, verdicts, strict=True)
        if decide or verdict.failure is None
    ]
    if not scored:
        return
    begun = [
        with_verdict_prefix(prompt, rubric, fmt, tokens, rationale=verdict.rationale) for prompt, verdict in scored
    ]
    probabilities = np.asarray(engine.score(begun), dtype=np.float64)
    expected = (len(scored), len(rubric.tier_ids))
    if probabilities.shape != expected or not np.isfinite(probabilities).all():
        found = "nan or inf" if probabilities.shape == expected else f"an array {probabilities.shape}"
        raise LoreError(
            f"the engine gave {found}; expected tier probabilities {expected}, so no verdict can be read. "
            "A model that overflows in float16 does this: set model.dtype to bfloat16 or float32."
        )
    for (_, verdict), row in zip(scored, probabilities, strict=True):
        verdict.probabilities = row.tolist()
        if decide:
            verdict.tier = rubric.tier_ids[int(row.argmax())]


def predict_saved(shards: Shards, *arguments: Any, **options: Any) -> Iterator[Verdict]:
    """`predict`, each chunk saved before its verdicts are handed on."""
    for verdicts in predict(*arguments, **options):
        shards.add(verdicts)
        yield from verdicts
