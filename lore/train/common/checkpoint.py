"""Checkpoints that survive SIGKILL, and the weights that a run ends with.

A checkpoint counts once its `complete` marker is there, written after every process has saved its part.
"""

import shutil
from pathlib import Path
from typing import Any

from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process

COMPLETE = "complete"


def last_checkpoint(folder: RunFolder) -> Path | None:
    """The newest checkpoint that was written whole; half-written ones are removed by the main process."""
    whole = []
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            whole.append(path)
        elif is_main_process():
            shutil.rmtree(path)
    return max(whole, key=step_of, default=None)


def drop_old_checkpoints(folder: Path, keep: int) -> None:
    """Leaves the newest `keep` whole checkpoints. The marker goes first: a checkpoint that is half gone counts for none."""
    whole = sorted((path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")), key=step_of)
    for checkpoint in whole[:-keep]:
        (checkpoint / COMPLETE).unlink()
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path | None) -> int:
    """The step after which a checkpoint was written; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def save_weights(trainer: Any, model: Path) -> None:
    """The adapter or the whole model, gathered from all processes. Raises LoreError when no weights have arrived."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")  # with the checkpoints' sharded one the trainer writes nothing
    trainer.save_model(str(model))
    trainer.accelerator.wait_for_everyone()
    if is_main_process():
        (model / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nothing reads it
        (model / "README.md").unlink(missing_ok=True)  # PEFT's form for a model card, with nothing filled in
        if not any(model.glob("*.safetensors")):
            raise LoreError(
                f"{model} holds no *.safetensors after the last step, so the run is not finished.\n"
                "The launch file makes the trainer save its weights in another form: for FSDP see "
                "launch/accelerate/fsdp2.yaml, for DeepSpeed's stage 3 set zero3_save_16bit_model: true. The same "
                "command then goes on from the last checkpoint."
            )
