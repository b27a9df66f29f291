"""Renders a pair as chat messages: instructions, rubric, query, item. The part that all pairs share comes first, so
engines can cache it as a prefix.

Text from the pair is sanitized first. With a tokenizer the prompt is also cut to its token budget. The budget counts
the full chat-template text with one placeholder per image; only the engine's processor knows how many tokens the image
expands to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lore.codec.chat_template import template_text, text_ids
from lore.codec.item_text import ItemText, item_text
from lore.codec.prefix_ids import surely_within
from lore.codec.sanitize import control_strings, neutralize
from lore.data.images import bounded, load_image
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

if TYPE_CHECKING:  # loads pyarrow, which prompts and judgements do not need
    from lore.data.pair import Pair

PROMPTS = Path(__file__).parent / "prompts"
MAX_CHARACTERS_PER_TOKEN = 32
MAX_SYSTEM_TEXTS = 4096

Message = dict[str, Any]


@dataclass(frozen=True)
class PromptFormat:
    """How a pair is shown and in which order the answer is written.

    detail: how much of the rubric the prompt contains. `retrieved` selects about `retrieved_rules` rules that best match
    the words of query and item (BM25).
    """

    order: Literal["reason_first", "answer_first", "answer_only"] = "reason_first"
    detail: Literal["full", "retrieved", "tiers", "name"] = "full"
    photo: bool = True
    max_prompt_tokens: int = 2048
    language: Literal["en", "zh"] = "en"
    max_photo_pixels: int | None = None
    retrieved_rules: int = 12

    def __post_init__(self):
        allowed = {
            "order": ("reason_first", "answer_first", "answer_only"),
            "detail": ("full", "retrieved", "tiers", "name"),
            "language": ("en", "zh"),
        }
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise LoreError(f"prompt.{key} is {getattr(self, key)!r}; expected one of {', '.join(values)}.")
        if self.max_prompt_tokens < 1:
            raise LoreError(f"prompt.max_prompt_tokens is {self.max_prompt_tokens}; expected at least 1.")




def render(
    pair: "Pair", rubric: Rubric, fmt: PromptFormat, *, tokenizer: Any = None, image: Any = None, facts: Sequence[str] = ()
) -> list[Message]:
    """System and user message for one pair.

    image: the photo, if the caller has already loaded it; facts: texts that explain words of the query, shown before it
    and never cut. With `tokenizer` (or a processor) its control strings are removed from the pair's text and the prompt
    is cut to `fmt.max_prompt_tokens`: first the end of the description, then attributes and facts from the last to the
    first, then the end of the title. Raises LoreError if rubric and query leave no room for a title.
    """
    if not fmt.photo:
        image = None
    elif image is not None or pair.image is not None:
        image = bounded(load_image(pair.image) if image is None else image, fmt.max_photo_pixels)
    if tokenizer is None:
        control, item = frozenset(), item_text(pair)
    else:
        control = control_strings(tokenizer)
        # Bounds very long texts before tokenizing them: this many characters never fit into the budget.
        item = item_text(pair, control, fmt.max_prompt_tokens * MAX_CHARACTERS_PER_TOKEN)
    if facts:
        item = replace(item, facts=[text for fact in facts if (text := neutralize(fact, control))])
    if fmt.detail == "retrieved":
        from lore.codec.rule_retrieval import rules_about  # loads numpy: only for detail retrieved

        rubric = rules_about(rubric, item, fmt.retrieved_rules)
    system = system_text(rubric, fmt)
    if tokenizer is None:
        return _messages(system, item, image)
    return _fit(item, lambda it: _messages(system, it, image), tokenizer, fmt.max_prompt_tokens, rubric)




_system_texts: dict[tuple, str] = {}


def system_text(rubric: Rubric, fmt: PromptFormat) -> str:
    """Instructions and rubric. Cached, because it is the same for every pair unless detail is retrieved."""
    key = (rubric.hash, fmt.order, fmt.detail, fmt.language)
    if key not in _system_texts:
        if len(_system_texts) >= MAX_SYSTEM_TEXTS:
            _system_texts.clear()
        detail = "full" if fmt.detail == "retrieved" else fmt.detail
        _system_texts[key] = _template(fmt.language).render(rubric=rubric, order=fmt.order, detail=detail).strip()
    return _system_texts[key]


@lru_cache(maxsize=8)
def _template(language: str) -> Any:
    import jinja2  # only where a prompt is rendered

    source = (PROMPTS / f"judge.{language}.md").read_text(encoding="utf-8")
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(source)


def _messages(system: str, item: ItemText, image: Any) -> list[Message]:
    before, after = item.block(photo=image is not None)
    if image is None:
        return [{"role": "system", "content": system}, {"role": "user", "content": before}]
    parts = [{"type": "text", "text": before}, {"type": "image", "image": image}, {"type": "text", "text": after}]
    return [{"role": "system", "content": [{"type": "text", "text": system}]}, {"role": "user", "content": parts}]


def count_prompt_tokens(messages: list[Message], tokenizer: Any) -> int:
    """Tokens of the chat-template text up to the position where the answer begins."""
    return len(text_ids(tokenizer, _text(messages, tokenizer)))


def _text(messages: list[Message], tokenizer: Any) -> str:
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise LoreError(
            f"The tokenizer {getattr(inner, 'name_or_path', '')!r} has no chat template, so the prompt length is "
            "unknown. Use an instruction-tuned checkpoint or set tokenizer.chat_template."
        )
    return template_text(tokenizer, messages)


def _fit(item: ItemText, build: Callable[[ItemText], list[Message]], tokenizer: Any, budget: int, rubric: Rubric) -> list[Message]:
    """Messages with as much of `item` as fits into the budget; cuts description, then attributes and facts, then title.

    Counts tokens at most once if nothing has to be cut.
    """
    messages = build(item)
    text = _text(messages, tokenizer)
    if surely_within(getattr(tokenizer, "tokenizer", tokenizer), text, budget):
        return messages

    def count(candidate: ItemText) -> int:
        return count_prompt_tokens(build(candidate), tokenizer)

    total = len(text_ids(tokenizer, text))
    if total <= budget:
        return messages
    pieces = item.fields + item.attributes

    def with_pieces(n: int) -> ItemText:
        return replace(item, description="", fields=pieces[: min(n, len(item.fields))], attributes=pieces[len(item.fields) : n])

    stages = [
        (len(item.description), lambda n: replace(item, description=item.description[:n].rstrip())),
        (len(pieces), with_pieces),
        (len(item.title), lambda n: replace(with_pieces(0), title=item.title[:n].rstrip())),
    ]
    for size, cut in stages:
        if size == 0:
            continue
        least = count(cut(0))
        if least <= budget:
            kept = cut(_largest(size, least, total, lambda n, cut=cut: count(cut(n)), budget))
            if kept.title or not item.title:
                return build(kept)
        total = least
    raise LoreError(
        f"Rubric {rubric.name} and the query take {total} tokens and leave no room for a title within "
        f"prompt.max_prompt_tokens={budget}; neither is ever cut. Raise max_prompt_tokens well above {total}, or show "
        f"less of the rubric (prompt.detail: retrieved, tiers or name). Query: {item.query[:80]!r}."
    )


def _largest(size: int, count_none: int, count_all: int, count: Callable[[int], int], budget: int) -> int:
    """Largest n < size with count(n) <= budget, or a smaller n that already uses the full budget.

    Alternates interpolation and bisection. Tokens per character are nearly constant, so the first interpolation is close
    and few counts are needed.
    """
    low, high, tokens_low, tokens_high = 0, size, count_none, count_all
    guess = True
    while high - low > 1 and tokens_low < budget:
        share = (budget - tokens_low) / (tokens_high - tokens_low) if guess else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        tokens = count(middle)
        if tokens <= budget:
            low, tokens_low = middle, tokens
        else:
            high, tokens_high = middle, tokens
        guess = not guess
    return low
