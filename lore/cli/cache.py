"""`lore cache`: verdicts of label folders for the service (lore/online/cache.py). Imports inside functions keep `lore --help` fast.

lore cache load labels/ --store cache.sqlite
lore cache load labels/ --store redis://127.0.0.1:6379/0 --judge runs/grpo
"""

from __future__ import annotations

from pathlib import Path

import typer

from lore.support.bounds import MAX_SECONDS
from lore.support.errors import LoreError
from lore.support.terminal import print_line
from lore.support.text import counted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fill the cache of the service.",
)


@app.callback()
def _cache() -> None:
    """Fill the cache of the service."""


@app.command()
def load(
    folders: list[Path] = typer.Argument(..., metavar="FOLDER...", help="Folders of `lore label`."),
    store: str = typer.Option(..., metavar="STORE", help="A verdict store (a file), or redis://HOST:PORT/DB: cache.store."),
    judge: str = typer.Option(None, metavar="FOLDER", help="The judge that the labels have to be of; default: any."),
    base: str = typer.Option(None, help="Folder or hub id of an adapter's base model, if it has moved since the training."),
    password_variable: str = typer.Option(None, metavar="NAME", help="Environment variable with Redis' password."),
    max_age_seconds: float = typer.Option(
        None, min=1, max=MAX_SECONDS, help="cache.max_age_seconds of the service: Redis removes older verdicts."
    ),
) -> None:
    """Load verdicts into the cache of a service.

    Running services answer them at once. Files that were loaded before are skipped.
    """
    from lore.engines.config import variable_name
    from lore.online.cache import load_folders
    from lore.online.cache_store import cached_judge
    from lore.online.config import CacheSection

    try:
        variable_name(password_variable)
    except ValueError as error:
        raise LoreError(f"--password-variable: expected {error}. Export the password under a name, and give that.") from None
    if not store:
        raise LoreError("--store is empty. Name a verdict store (a file), or redis://HOST:PORT/DB.")
    section = CacheSection(store=store, password_variable=password_variable, max_age_seconds=max_age_seconds)
    count = load_folders(section, folders, cached_judge(judge, base) if judge is not None else None)
    print_line(f"{store}: {counted(count, 'new verdict')}")
