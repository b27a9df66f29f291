"""`lore export`: write a trained judge as one model folder. Imports inside functions keep `lore --help` fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from lore.cli.options import FORCE


def export(
    run: Path = typer.Argument(..., help="Run folder of a training stage that ends with a judge: sft, grpo, ppo, dpo or kto."),
    out: str = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder to write the model to."),
    merge: bool = typer.Option(
        False, "--merge", help="Merge the adapter into the weights and check the tier probabilities of sample prompts."
    ),
    dtype: Literal["float32", "bfloat16"] = typer.Option(
        None, help="Dtype of the merged weights; default: the dtype of the base model."
    ),
    force: bool = FORCE,
    tolerance: float = typer.Option(
        None, min=0, max=1, help="Largest allowed change of a tier probability by rounding to the dtype."
    ),
    trust_remote_code: bool = typer.Option(
        False,
        "--trust-remote-code",
        help="Allow Python code from the base model's repository to run. What the run's recipe says does not count, because a run "
        "folder may come from another machine. Enable it only after you have read that code.",
    ),
) -> None:
    """Write a trained judge as one model folder. A merge that changes a tier probability by more than 0.001 is an error."""
    from lore.support.outputs import checked_folder, output_path

    target = output_path(out, "--out", folder=True)
    checked_folder(target, [run])  # before the libraries load
    from lore.train.export import export as write

    write(run, target, merge=merge, dtype=dtype, tolerance=tolerance, trust_remote_code=trust_remote_code, force=force)
