"""`lore world`: write the embedded shop to files. Imports inside functions keep `lore --help` fast."""

from __future__ import annotations

from typing import Literal

import typer

from lore.cli.options import FORCE
from lore.support.bounds import MAX_COUNT, MAX_SEED


def world(
    out: str = typer.Option(
        ..., metavar="FOLDER", help="Folder to write. Existing files are kept, so an interrupted command can continue."
    ),
    force: bool = FORCE,
    pairs: int = typer.Option(100_000, min=1, max=MAX_COUNT, help="Number of rated pairs over all splits."),
    seed: int = typer.Option(
        0, min=0, max=MAX_SEED, help="Seed of the shop. The same seed gives the same files on every machine."
    ),
    language: str = typer.Option("en", help="Language of the lexicon: en or zh."),
    prior: Literal["balanced", "natural"] = typer.Option(
        "balanced", help="Shares of the tiers: equal (balanced) or as in search traffic (natural)."
    ),
) -> None:
    """Write the embedded shop: rated pairs, photos and search log. The memory use does not depend on the number of pairs."""
    from lore.data_synth.shop.write import write_world
    from lore.support.outputs import output_path

    write_world(output_path(out, "--out", folder=True), force=force, pairs=pairs, seed=seed, language=language, prior=prior)
