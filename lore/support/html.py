"""Jinja templates of the HTML pages that a run writes. All values are escaped, and a missing value is an error."""

from pathlib import Path

import jinja2


def page_template(folder: Path, name: str) -> jinja2.Template:
    """The Jinja template `name` of a folder."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def page_style() -> str:
    """The style sheet that all pages share."""
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")
