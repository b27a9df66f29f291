"""`lore export`: a trained judge as one model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer


def export(
    run: Path = typer.Argument(..., help="Run folder of a trained judge."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder to write the model to."),
    merge: bool = typer.Option(False, "--merge", help="Fold the adapter into the weights and re-score a sample."),
    dtype: Literal["float32", "bfloat16"] = typer.Option(None, help="Of the merged weights; by default the base's own."),
    tolerance: float = typer.Option(None, min=0, help="How far rounding to the dtype may move a tier probability."),
) -> None:
    """Write a trained judge as one model folder. A merge that moves a tier probability by more than 0.001 is refused."""
    from lore.train.export import export as write  # here: it loads torch, which `lore --help` need not

    write(run, out, merge=merge, dtype=dtype, tolerance=tolerance)
