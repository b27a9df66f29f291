"""`lore export`: write a trained judge, or a student, as one folder. Imports inside functions keep `lore --help` fast.

lore export runs/grpo --merge -o judge/
lore export student runs/distill -o student/
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from lore.cli.options import FORCE, WithDefault
from lore.support.bounds import MAX_COUNT


class JudgeByDefault(WithDefault):
    default = "judge"


app = typer.Typer(
    cls=JudgeByDefault,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Write a trained judge or a student as one folder. `lore export RUN ...` is short for `lore export judge RUN ...`; write "
    "a run folder that is called judge or student as ./student.",
)


@app.command()
def judge(
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


@app.command()
def student(
    run: Path = typer.Argument(..., help="Run folder of stage distill, or the model folder of a student (with --pairs)."),
    out: str = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder to write the student to."),
    pairs: str = typer.Option(None, help="Pairs to compare on: a file, folder or glob; default: test and dev of the run's data."),
    sample: int = typer.Option(2000, min=2, max=MAX_COUNT, help="Compare on this many pairs."),
    fp16: bool = typer.Option(True, help="Write FP16 files, for GPUs."),
    int8: bool = typer.Option(True, help="Write INT8 files, for CPUs."),
    f1_loss: float = typer.Option(0.005, min=0, max=1, help="Macro-F1 that int8 may lose on the labeled pairs, beyond chance."),
    changed: float = typer.Option(0.05, min=0, max=1, help="Share of the pairs that int8 may give another tier."),
    photo_embeddings: str = typer.Option(None, help="Vectors of the items' photos, for a student that reads them."),
    force: bool = FORCE,
) -> None:
    """Write a student as ONNX files. FP32, FP16 and INT8 are compared with the student on a sample of pairs."""
    from lore.support.outputs import checked_folder, output_path

    target = output_path(out, "--out", folder=True)
    checked_folder(target, [run, *([pairs] if pairs else [])])  # before the libraries load
    from lore.distill.export import export_student

    export_student(
        run,
        target,
        pairs=pairs,
        sample=sample,
        precisions=["fp32", *(["fp16"] if fp16 else []), *(["int8"] if int8 else [])],
        f1_loss=f1_loss,
        changed=changed,
        photo_embeddings=photo_embeddings,
        force=force,
    )
