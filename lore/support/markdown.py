"""Markdown tables. Text from outside needs lore.codec.markdown, which also removes links, emphasis and tags."""

from lore.support.text import printable


def table_cell(text: str) -> str:
    """A text as one cell of a Markdown table: it can end neither the cell nor the row, and starts no tag and no link."""
    text = printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return text.replace("](", "]\\(").replace("`", "\\`")
