"""Jinja templates of the HTML pages that a run writes. All values are escaped, direction marks and control characters are
made visible, and a missing value is an error."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lore.support.text import printable_lines


def page_template(folder: Path, name: str) -> jinja2.Template:
    """The Jinja template `name` of a folder."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def page_style() -> str:
    """The style sheet that all pages share."""
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def _visible(value: Any) -> Any:
    return printable_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value
