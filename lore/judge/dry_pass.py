"""The dry pass of the stages that ask models: evaluate, pool and synthesize. See lore.config.dry_pass for its checks.

It reads configs, tokenizers and the headers of weight files, but no weights, so that the last judge of an evaluation cannot fail
after hours of the first.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat, render
from lore.codec.verdict_tokens import verdict_tokens
from lore.data.pair import Pair
from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.judge.card import check_card, check_template
from lore.rubric.rubric import Rubric
from lore.run.dry_pass import dry_pass, together
from lore.support.errors import LoreError
from lore.support.progress import track

VERDICT_TOKENS = 16  # at most, to read the tier of an answer that is not written


@dataclass(frozen=True)
class Asked:
    """A model that a stage will ask.

    key: its recipe key; longest: (processor, limit or None) -> tokens of the longest prompt with its answer; text: what that is;
    fix: which recipe keys make it shorter; fmt: the judge's prompt format; None for a teacher.
    """

    key: str
    section: ModelSection | EndpointSection
    longest: Callable[[Any, int | None], int]
    text: str
    fix: str
    vllm: VllmSection | None = None
    fmt: PromptFormat | None = None


def judge_length(
    fmt: PromptFormat, rubric: Rubric, pairs: Callable[[], Iterable[Pair]], answer_tokens: int, *, other_budget: int = 0
) -> Callable[[Any, int | None], int]:
    """`Asked.longest` of a judge: the prompt budget, a photo like the first ones and an answer. If that is beyond the limit, the
    prompts of `pairs` are rendered, because they may be shorter than the budget.

    other_budget: prompt tokens of further questions, which are not rendered; 0 if there are none.
    """

    def longest(processor: Any, limit: int | None) -> int:
        from lore.engines.model_checks import longest_prompt, photo_tokens  # loads torch: only for a model in this process

        shown = fmt if hasattr(processor, "tokenizer") else replace(fmt, photo=False)
        most = max(fmt.max_prompt_tokens, other_budget) + photo_tokens(pairs(), shown, processor) + answer_tokens
        if limit is None or most <= limit or other_budget:
            return most
        return longest_prompt(_prompts(track(pairs(), "measuring prompts"), rubric, shown, processor), processor) + answer_tokens

    return longest


def _prompts(pairs: Iterable[Pair], rubric: Rubric, fmt: PromptFormat, processor: Any) -> Iterator[list[dict]]:
    from lore.engines.chat import photo_of  # loads Pillow: only for a model in this process

    for pair in pairs:
        image, _ = photo_of(pair, fmt, processor)
        try:
            yield render(pair, rubric, fmt if image else replace(fmt, photo=False), tokenizer=processor, image=image)
        except LoreError:  # a query that leaves no room is a failure of its pair, not of the run
            continue


def check_asking(stage: str, asked: Iterable[Asked], rubric: Rubric) -> None:
    """Runs the dry pass of a stage over the models that it asks; of a server, over its tokenizer if the recipe names one. Raises
    LoreError with all problems."""
    asked = list(asked)
    known = [one for one in asked if isinstance(one.section, ModelSection) or one.section.tokenizer]
    local = [one for one in known if isinstance(one.section, ModelSection)]
    loaded = cache(_loaded)

    def named(check: Callable, one: Asked) -> None:
        try:
            check(one, loaded, rubric)
        except LoreError as error:
            raise error if str(error).startswith(one.key) else LoreError(f"{one.key}: {error}") from error

    def each(check: Callable, among: list[Asked]) -> Callable[[], None]:
        return together(partial(named, check, one) for one in among)

    dry_pass(
        stage,
        {
            "engine": each(_engine, local),
            "verdict tokens": each(_verdict_tokens, known),
            "conversation": each(_conversation, [one for one in known if one.fmt is not None]),
            "positions": each(_positions, local),
            "vocabulary": each(_vocabulary, local),
        },
    )


def _loaded(name: str, *, trust_remote_code: bool = False, with_model: bool = True) -> tuple[Any, Any]:
    """(model without weights, processor); with_model: False leaves the model None, for a server's tokenizer."""
    from lore.engines.loading import load_processor, meta_model  # loads torch: only for a model in this process
    from lore.engines.weight_files import check_weights

    section = ModelSection(name=name, trust_remote_code=trust_remote_code)
    if not with_model:
        return None, load_processor(section, chat=True)
    model = meta_model(section, adapter=False)
    check_weights(section, model)
    return model, load_processor(section, chat=True)


def _parts(one: Asked, loaded: Any) -> tuple[Any, Any]:
    if isinstance(one.section, EndpointSection):
        return loaded(one.section.tokenizer, with_model=False)
    return loaded(one.section.name, trust_remote_code=one.section.trust_remote_code)


def _engine(one: Asked, loaded: Any, rubric: Rubric) -> None:
    # Loads torch: only for a model in this process.
    from lore.engines.loading import load_config, meta_model
    from lore.engines.vllm import check_vllm, engine_options
    from lore.engines.vllm_adapter import adapter_rank

    load_config(one.section)
    if one.fmt is not None:
        check_card(one.section, renderer_hash(rubric, one.fmt), one.key)
    check_template(one.section, _parts(one, loaded)[1], one.key)
    if one.vllm is not None:
        check_vllm()
        engine_options(one.section, one.vllm, adapter_rank(one.section), takes_images=False)
    elif one.section.adapter is not None:
        meta_model(one.section)


def _verdict_tokens(one: Asked, loaded: Any, rubric: Rubric) -> None:
    verdict_tokens(_parts(one, loaded)[1], rubric)


def _conversation(one: Asked, loaded: Any, rubric: Rubric) -> None:
    from lore.engines.conversation_check import check_conversation  # reads no photo here, but loads Pillow

    check_conversation(_parts(one, loaded)[1], rubric, one.fmt, written=one.fmt.order == "reason_first")


def _positions(one: Asked, loaded: Any, rubric: Rubric) -> None:
    from lore.engines.model_checks import check_positions, position_limit  # loads torch: only for a model in this process

    model, processor = _parts(one, loaded)
    most = one.vllm.max_model_tokens if one.vllm else None
    limit = min((tokens for tokens in (position_limit(model), most) if tokens is not None), default=None)
    tokens = one.longest(processor, limit)
    check_positions(model, tokens, f"{one.key}: {one.text}", one.fix, most=most, most_key="vllm.max_model_tokens")


def _vocabulary(one: Asked, loaded: Any, rubric: Rubric) -> None:
    from lore.engines.model_checks import check_vocabulary  # loads torch: only for a model in this process

    check_vocabulary(one.section, *_parts(one, loaded))
