"""Devices and processes of a launched run: settings that accelerate needs, checks, and how a run leaves its process group."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lore.support.errors import LoreError, os_error_message
from lore.support.processes import is_main_process, say, world_size
from lore.support.terminal import flush_streams

STALE_LOCK_S = 1800


def visible_gpus() -> int:
    import torch  # a dry run loads this module

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def uses_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def settle_devices() -> None:
    """Makes accelerate join several processes without a GPU into one process group. Otherwise each process trains alone.

    `use_cpu` in a config file does not reach processes that accelerate starts with its multi-GPU launcher.
    """
    if uses_deepspeed():
        note_build_locks()
    if world_size() == 1 or visible_gpus():
        return
    if uses_deepspeed():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"


def note_build_locks() -> None:
    """Warns about old locks of torch extension builds. torch waits forever, without a message, for the lock of a killed build."""
    from torch.utils.cpp_extension import get_default_build_root  # here for start-up time: only DeepSpeed needs it

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    for lock in sorted(Path(root).glob("**/lock")):
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:  # the build has finished
            continue
        if age > STALE_LOCK_S:
            say(
                f"{lock} is {age / 3600:.1f} h old: a killed build has probably left it. If this run hangs before its first step, "
                f"it is waiting for this lock. Remove it: rm {lock}"
            )


def device_arguments() -> dict[str, Any]:
    """transformers TrainingArguments for the devices of this process.

    On CPUs, DeepSpeed needs the name of the backend: without it accelerate sees one process, and use_cpu would turn DeepSpeed
    off. Plain data parallel training needs use_cpu.
    """
    if visible_gpus() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        return {}
    return {"ddp_backend": "gloo"} if uses_deepspeed() else {"use_cpu": True}


def check_world(processes: int) -> None:
    """Raises LoreError when the trainer sees a different number of processes than the launcher started."""
    if processes != world_size():
        raise LoreError(
            f"{world_size()} processes were started and the trainer sees {processes}: each would train its own model.\n"
            "Start the recipe with a config from launch/accelerate (lore launch x.yaml --config cpu2)."
        )


def main_process_checks(check: Callable[[], None]) -> None:
    """Runs a check in the main process only. Raises its LoreError or OSError, as a LoreError, in every process: the others would
    wait for a main process that has ended."""
    found: list[str | None] = [None]
    if is_main_process():
        try:
            check()
        except LoreError as error:
            found = [str(error)]
        except OSError as error:
            found = [os_error_message(error)]
    if world_size() > 1:
        import torch  # a dry run loads this module

        torch.distributed.broadcast_object_list(found, src=0)
    if found[0] is not None:
        raise LoreError(found[0], same_on_every_rank=True)


def close_process_group() -> None:
    """Waits for all processes, then destroys the process group. Does nothing without a process group."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def leave(status: int) -> NoReturn:
    """Ends the process. A launched process that succeeded skips Python's shutdown, where threads of the communication libraries
    occasionally abort it. All results are on disk by then.
    """
    if status == 0 and world_size() > 1:
        logging.shutdown()
        flush_streams()
        os._exit(0)
    flush_streams()
    sys.exit(status)
