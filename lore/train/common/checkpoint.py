"""Checkpoints that survive SIGKILL, and the final weights of a run.

A checkpoint is valid once its `complete` marker exists. The marker is written after every process has saved its part.
"""

import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lore.run.nested import refuse_runs_in, remove_own
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import flush_folder, scratch_folder, write_atomic
from lore.support.errors import LoreError, reason
from lore.support.processes import is_main_process, world_size
from lore.support.untrusted_json import parse_json
from lore.train.common.config import TrainSection

COMPLETE, STATE = "complete", "trainer_state.json"
FLOAT32 = 4  # bytes
BEST_COPIES = 3  # the best weights, the best ones up to the newest checkpoint, and those that are being written
# Beside weights, optimizer and processor, a checkpoint holds configs, scheduler, training arguments and PEFT's model card; the
# random state of each process; and each logged line once more. Rounded up.
CHECKPOINT_BYTES, RANDOM_STATE_BYTES, LOGGED_BYTES = 200_000, 32_000, 4_000
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def last_checkpoint(folder: RunFolder) -> Path | None:
    """The newest complete checkpoint. The main process deletes incomplete ones. Raises LoreError if a file of it is damaged."""
    whole = []
    for path in _checkpoints(folder / "checkpoints"):
        if (path / COMPLETE).is_file():
            whole.append(path)
        elif is_main_process():
            remove_own(path)
    whole.sort(key=step_of)
    if whole:
        check_files(whole[-1], whole[:-1])
    return whole[-1] if whole else None


def check_files(checkpoint: Path, earlier: list[Path]) -> None:
    """Raises LoreError if a file of a checkpoint is cut, empty or something else. Reads only beginnings and ends of large files."""
    for path in sorted(checkpoint.rglob("*")):
        try:
            if path.suffix == ".json":
                content = parse_json(path.read_bytes())  # the trainer writes NaN where a step's loss or gradient was none
                if path.name == STATE and not (content and isinstance(content, dict)):
                    raise ValueError("no object with values")
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    file.keys()
            if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
                raise ValueError("it is not a file that torch.save has written completely")
        except (OSError, ValueError, SafetensorError) as error:
            then = f"goes on from {earlier[-1].name}" if earlier else "trains again from its beginning"
            raise LoreError(
                f"{path} is damaged ({reason(error)}), so training cannot resume from {checkpoint.name}.\n"
                f"Restore the file, or delete {checkpoint}: the run then {then}.",
                same_on_every_rank=True,
            ) from error


def mark_complete(checkpoint: Path) -> None:
    """Writes the marker once the files are flushed to disk: after a power loss a marker must not vouch for lost files."""
    flush_folder(checkpoint)
    write_atomic(checkpoint / COMPLETE, "")


def drop_old_checkpoints(folder: Path, keep: int) -> None:
    """Deletes all complete checkpoints but the newest `keep`. The marker goes first, so a partly deleted checkpoint is invalid."""
    whole = sorted((path for path in _checkpoints(folder) if (path / COMPLETE).is_file()), key=step_of)
    for checkpoint in whole[:-keep]:
        refuse_runs_in(checkpoint)
        (checkpoint / COMPLETE).unlink()
        remove_own(checkpoint)


def _checkpoints(folder: Path) -> list[Path]:
    """The folders checkpoint-<step>. Other names are not the trainer's."""
    return [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]


def step_of(checkpoint: Path | None) -> int:
    """The training step of a checkpoint; 0 for None."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def check_room(folder: Path, needed: int, what: str, fixes: list[str], *, replaced: tuple[str, ...] = ()) -> None:
    """Raises LoreError if the file system of `folder` has less than `needed` free bytes.

    what: what takes them; fixes: what to change; replaced: names of existing parts of the folder whose space is used again.
    """
    held = sum(path.stat().st_size for name in replaced for path in (folder / name).rglob("*") if path.is_file())
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free + held
    if needed > free:
        raise LoreError(
            f"{folder} needs {size(needed)} for {what}, and its file system has {size(free)} free. The run would stop at a save.\n"
            f"{', or '.join(['Free some space', *fixes])}."
        )


def saved_bytes(model: Any, new: int | None, *, whole: bool = True, deepspeed: bool = False) -> tuple[int, int]:
    """(bytes of the weights, bytes of AdamW's two moments) in a checkpoint.

    new: parameters of an adapter that the trainer will add, in float32; None if it adds none. whole: all weights are saved, not
    only the trained ones of an adapter. deepspeed: its checkpoints repeat the weights and hold float32 copies of trained ones.
    """
    if new is not None:
        trained, weights, moments = new, FLOAT32 * new, 2 * FLOAT32 * new
    else:
        sizes = [(p.requires_grad, getattr(p, "ds_numel", p.numel()), p.element_size()) for p in model.parameters()]
        trained = sum(count for learns, count, _ in sizes if learns)
        weights = sum(count * width for learns, count, width in sizes if learns or whole)
        moments = 2 * sum(count * width for learns, count, width in sizes if learns)
    return weights, weights + 3 * FLOAT32 * trained if deepspeed else moments


def processor_bytes(processor: Any, beside: Path) -> int:
    """Bytes of the processor's files, which lie beside all saved weights."""
    with scratch_folder(beside) as folder:
        processor.save_pretrained(folder)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_disk(
    train: TrainSection, folder: RunFolder, saved: tuple[int, int], steps: int, processor: Any, *, best: bool = False
) -> None:
    """Raises LoreError if the checkpoints and weights of a run do not fit the file system of its folder.

    saved: from `saved_bytes`; best: the run also keeps its best weights.
    """
    weights, optimizer = saved
    beside_weights = processor_bytes(processor, folder / "dry_pass")
    logged = LOGGED_BYTES * (1 + steps // train.log_every)
    beside_optimizer = beside_weights + CHECKPOINT_BYTES + RANDOM_STATE_BYTES * world_size() + logged
    # A new checkpoint is complete before an old one is deleted.
    checkpoints = min(train.keep_checkpoints + 1, math.ceil(steps / train.save_every)) if train.save_every else 0
    copies = BEST_COPIES if best else 0
    each = f"weights {size(weights)}, optimizer {size(optimizer)}, other files {size(beside_optimizer)}"
    parts = [f"{checkpoints} checkpoints ({each} each)"] * (checkpoints > 0)
    parts += [f"up to {copies} copies of the best weights"] * best
    parts += [f"the final weights ({size(weights + beside_weights)} with the processor)"]
    fix = "lower train.keep_checkpoints" if checkpoints > 1 else "train fewer weights (model.lora)"
    check_room(
        folder.path,
        checkpoints * (weights + optimizer + beside_optimizer) + (1 + copies) * (weights + beside_weights),
        ", ".join(parts),
        [fix, "set LORE_RUNS to a larger disk"],
        replaced=("checkpoints", *(path.name for path in folder.path.glob("best-*"))),
    )


def size(count: float) -> str:
    """A number of bytes in words, such as 3.2 GB."""
    power = min(int(math.log10(max(count, 1)) / 3), len(UNITS) - 1)
    return f"{count / 1000**power:.3g} {UNITS[power]}"


def check_gathering(args: Any, in_full: bool) -> None:
    """Raises LoreError if DeepSpeed ZeRO stage 3 would not gather the weights of a fully trained model for a save.

    args: the trainer's arguments. FSDP weights are always gathered, see `save_weights`.
    """
    plugin = getattr(args, "deepspeed_plugin", None)
    zero = {} if plugin is None else plugin.deepspeed_config.get("zero_optimization", {})
    if in_full and zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise LoreError(
            "DeepSpeed ZeRO stage 3 shards the weights, and the accelerate config does not gather them for a save, so the run "
            "would end without weights.\nSet zero3_save_16bit_model: true (deepspeed_config of launch/accelerate/zero3.yaml), or "
            "stage3_gather_16bit_weights_on_model_save: true in your own DeepSpeed file."
        )


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
