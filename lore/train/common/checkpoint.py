"""Checkpoints that survive SIGKILL, and the final weights of a run.

A checkpoint is valid once its `complete` marker exists. The marker is written after every process has saved its part.
"""

import shutil
from pathlib import Path
from typing import Any

from lore.run.run_folder import RunFolder
from lore.support.atomic_files import flush_folder, write_atomic
from lore.support.errors import LoreError
from lore.support.processes import is_main_process

COMPLETE = "complete"


def last_checkpoint(folder: RunFolder) -> Path | None:
    """The newest complete checkpoint. The main process deletes incomplete ones."""
    whole = []
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            whole.append(path)
        elif is_main_process():
            shutil.rmtree(path)
    return max(whole, key=step_of, default=None)


def mark_complete(checkpoint: Path) -> None:
    """Writes the marker once the files are flushed to disk: after a power loss a marker must not vouch for lost files."""
    flush_folder(checkpoint)
    write_atomic(checkpoint / COMPLETE, "")


def drop_old_checkpoints(folder: Path, keep: int) -> None:
    """Deletes all complete checkpoints but the newest `keep`. The marker goes first, so a partly deleted checkpoint is invalid."""
    whole = sorted((path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")), key=step_of)
    for checkpoint in whole[:-keep]:
        (checkpoint / COMPLETE).unlink()
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path | None) -> int:
    """The training step of a checkpoint; 0 for None."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def save_weights(trainer: Any, model: Path) -> None:
    """Saves the adapter or the full model, gathered from all processes. Raises LoreError if no weights were written."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")  # with the sharded type of the checkpoints the trainer would save no model
    trainer.save_model(str(model))
    trainer.accelerator.wait_for_everyone()
    if is_main_process():
        (model / "training_args.bin").unlink(missing_ok=True)  # an unused pickle file
        (model / "README.md").unlink(missing_ok=True)  # PEFT's empty model card template
        if not any(model.glob("*.safetensors")):
            raise LoreError(
                f"{model} holds no *.safetensors after the last step, so the run is not finished.\n"
                "The accelerate config saves the weights in another format. For FSDP see launch/accelerate/fsdp2.yaml; for "
                "DeepSpeed ZeRO stage 3 set zero3_save_16bit_model: true. The same command then resumes from the last "
                "checkpoint."
            )
