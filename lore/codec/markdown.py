"""Text from outside in the Markdown files that LORE writes: dataset cards and reports."""

import re

from lore.codec.sanitize import neutralize
from lore.support.text import shortened

_MARKDOWN = re.compile(r"[\\`*_\[\]|~$@#]")
_ADDRESS = re.compile(r"(?i)(www)\.|(:)/(?=/)")


def markdown_text(text: str, limit: int | None = None) -> str:
    """Any text as one line of Markdown that only displays: it cannot form a tag, link, table cell or emphasis."""
    text = neutralize(text)
    if limit is not None:
        text = shortened(text, limit)
    text = _MARKDOWN.sub(r"\\\g<0>", text.replace("&", "&amp;"))
    return _ADDRESS.sub(lambda found: f"{found[1]}&#46;" if found[1] else ":&#47;", text)
