"""The text of an answer outside the model's reasoning, in every notation that open models use.

Some chat templates end the prompt with the opening mark; then the answer holds only the closing one. Reasoning that is opened and
not closed was cut: whatever stands in it is a draft and no answer.
"""

import re
from collections import Counter
from collections.abc import Iterator

NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "scratchpad", "analysis", "cot", "seed:think")
STYLES = (
    *((rf"<{name}\s*>", rf"</\s*{name}\s*>") for name in NAMES),
    *((rf"<\|{name}\|>", rf"<\|/{name}\|>") for name in NAMES),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<\|begin_of_(?:thought|thinking)\|>", r"<\|end_of_(?:thought|thinking)\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<\|channel>", r"<channel\|>"),
    (r"◁think▷", r"◁/think▷"),
    (r"<unused94>", r"<unused95>"),  # MedGemma
    (r"\[unused16\]", r"\[unused17\]"),  # openPangu
    (r"Here is my thought process:", r"Here is my response:"),  # Granite 3.2
)
"""Patterns of opening and closing marks; case does not matter."""
_ANY_MARK = "|".join(f"(?P<o{number}>{opening})|(?P<c{number}>{closing})" for number, (opening, closing) in enumerate(STYLES))
# The first letters come first, because most text is no mark.
_MARKS = re.compile(rf"(?=<[/|\w]|\[/?[tu]|◁|Here is)(?:{_ANY_MARK})", re.IGNORECASE)
# gpt-oss: channels with headers. Decoded without special tokens, only the words of the headers are left.
_CHANNELS = re.compile(r"(?:<\|start\|>[^<]*)?<\|channel\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*+(\w++)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>")
_BARE_CHANNELS = re.compile(r"(?:assistant)?(?:analysis|commentary)(?=[^\s:.,;!?)'-])")
_BARE_FINAL = "assistantfinal"
_TURN_END = re.compile(r"<\|(?:return|end|call)\|>\s*$")


def after_reasoning(text: str) -> str | None:
    """The text after all reasoning; None if some reasoning is opened and not closed by the mark of its own style."""
    text = _final_channel(text.strip())
    if text is None:
        return None
    opened, end = Counter(), 0
    for opens, style, found in _marks(text):
        if opens:
            opened[style] += 1
        elif opened[style]:
            opened[style] -= 1
        end = end if opens else found.end()
    return None if opened.total() else text[end:].strip()


def after_first_reasoning(text: str, own: str) -> str | None:
    """The text after one block of reasoning at the beginning; None if it is not closed. own: a mark of the answer itself; a closing
    mark after it belongs to the answer's text.
    """
    text = _final_channel(text.strip())
    if text is None:
        return None
    opened, block, first, answer = Counter(), None, None, text.find(own)
    for opens, style, found in _marks(text):
        if opens:
            opened[style] += 1
            block = style if found.start() == 0 else block  # of this style alone is its end: inside, other marks are text
            continue
        if block is None and 0 <= answer <= found.start() - len(own):
            break
        if block is None and not opened[style]:
            return text[found.end() :].strip()  # the template opened it
        opened[style] -= 1
        if block == style and not opened[style]:
            return text[found.end() :].strip()
        if block is None and first is None:
            first = found.end()
    return None if block is not None else text[first or 0 :].strip()


def without_marks(text: str) -> str:
    """The text with a dash for each mark of reasoning. What stood around it does not form another one."""
    return _MARKS.sub("-", text)


def _marks(text: str) -> Iterator[tuple[bool, int, re.Match[str]]]:
    """(whether it opens, style, mark) of every mark in a text."""
    for found in _MARKS.finditer(text):
        yield found.lastgroup[0] == "o", int(found.lastgroup[1:]), found


def _final_channel(text: str) -> str | None:
    """The final channel of an answer in channels; None if it has only others, or begins another one after it. Other answers are
    returned as they are.
    """
    if _CHANNELS.match(text):
        last = list(_CHANNEL.finditer(text))
        if not last or last[-1][1] != "final":
            return None
        rest = text[last[-1].end() :]
        return None if "<|start|>" in rest or "<|channel|>" in rest else _TURN_END.sub("", rest).strip()
    if _BARE_CHANNELS.match(text):
        _, final, rest = text.partition(_BARE_FINAL)
        return rest.strip() if final else None
    return text
