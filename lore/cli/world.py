"""`lore world`: the embedded shop as files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer


def world(
    out: Path = typer.Option(..., help="Folder to write; a file that is there is kept, so a killed run goes on."),
    pairs: int = typer.Option(100_000, min=1, help="Rated pairs over all splits."),
    seed: int = typer.Option(0, min=0, help="The same seed writes the same shop, on any machine."),
    language: str = typer.Option("en", help="Lexicon: en or zh."),
    prior: Literal["balanced", "natural"] = typer.Option(
        "balanced", help="Tiers in equal shares (balanced) or as in search traffic (natural)."
    ),
) -> None:
    """Write the embedded shop: rated pairs, photos and search log. It streams, so any size fits into memory."""
    from lore.data_synth.shop.write import write_world  # here: it loads numpy, which `lore --help` need not

    write_world(out, pairs=pairs, seed=seed, language=language, prior=prior)
