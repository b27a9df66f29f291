"""The text of an answer outside the model's reasoning, in every notation that open models use.

Some chat templates end the prompt with the opening mark; then the answer holds only the closing one. Reasoning that is opened and
not closed was cut: whatever stands in it is a draft and no answer.
"""

import re

STYLES = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>", "<channel|>"),
    ("◁think▷", "◁/think▷"),
)
"""Opening and closing marks; case does not matter."""
_CLOSING = {opening.casefold(): re.compile(re.escape(closing), re.IGNORECASE) for opening, closing in STYLES}
_OPEN = re.compile("|".join(re.escape(opening) for opening, _ in STYLES), re.IGNORECASE)
_CLOSE = re.compile("|".join(re.escape(closing) for _, closing in STYLES), re.IGNORECASE)
# gpt-oss: channels with headers. Decoded without special tokens, only the words of the headers are left.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_BARE_CHANNELS = re.compile(r"analysis(?=\S).*?assistantfinal", re.DOTALL)
_TURN_END = re.compile(r"<\|(?:return|end|call)\|>\s*$")


def after_reasoning(text: str) -> str | None:
    """The text after all reasoning; None if some reasoning is opened and not closed."""
    text = _final_channel(text.strip())
    if text is None:
        return None
    ends = [found.end() for found in _CLOSE.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return None if _OPEN.search(rest) else rest.strip()


def after_first_reasoning(text: str, own: str) -> str | None:
    """The text after one block of reasoning at the beginning; None if it is not closed. own: a mark of the answer itself; a closing
    mark after it belongs to the answer's text.
    """
    text = _final_channel(text.strip())
    if text is None:
        return None
    opened = _OPEN.match(text)
    closed = (_CLOSING[opened[0].casefold()] if opened else _CLOSE).search(text)
    if opened:
        return text[closed.end() :].strip() if closed else None
    return text[closed.end() :].strip() if closed and own not in text[: closed.start()] else text


def _final_channel(text: str) -> str | None:
    """The final channel of an answer in channels; None if it has only others. Other answers are returned as they are."""
    if text.startswith("<|channel|>"):
        last = list(_CHANNEL.finditer(text))
        if not last or last[-1][1] != "final":
            return None
        return _TURN_END.sub("", text[last[-1].end() :]).strip()
    bare = _BARE_CHANNELS.match(text)
    return text[bare.end() :].strip() if bare else text
