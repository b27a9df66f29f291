"""Devices and processes of a launched run: what accelerate has to be told, and how a run leaves its process group."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lore.support.errors import LoreError
from lore.support.processes import world_size

STALE_LOCK_S = 1800


def visible_gpus() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def uses_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def settle_devices() -> None:
    """Tells accelerate that several processes without a GPU belong together; otherwise each of them trains alone.

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
    """Names the locks of builds that were killed, of DeepSpeed's parts say: torch waits for one without an end or a word."""
    from torch.utils.cpp_extension import get_default_build_root  # heavy, and only needed under DeepSpeed

    from lore.support.processes import say

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    for lock in sorted(Path(root).glob("**/lock")):
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:  # its build is done
            continue
        if age > STALE_LOCK_S:
            say(
                f"{lock} is {age / 3600:.1f} h old: a build was killed and has left it. Should this run stand still before its "
                f"first step, it waits for that: rm {lock}"
            )


def device_arguments() -> dict[str, Any]:
    """transformers TrainingArguments for the devices of this process.

    Under DeepSpeed on CPUs accelerate needs the backend by name (it sees one process otherwise), and use_cpu would
    switch DeepSpeed off; under plain data parallel it needs use_cpu.
    """
    if visible_gpus() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        return {}
    return {"ddp_backend": "gloo"} if uses_deepspeed() else {"use_cpu": True}


def check_world(processes: int) -> None:
    """Raises LoreError when the trainer sees another number of processes than were started."""
    if processes != world_size():
        raise LoreError(
            f"{world_size()} processes were started and the trainer sees {processes}: each would train its own model.\n"
            "Start the recipe with a file of launch/accelerate (lore launch x.yaml --config cpu2)."
        )


def main_process_checks(check: Callable[[], None]) -> None:
    """Runs a check in the main process alone; the LoreError it raises is raised in every process."""
    from lore.support.processes import is_main_process

    found: list[str | None] = [None]
    if is_main_process():
        try:
            check()
        except LoreError as error:
            found = [str(error)]
    if world_size() > 1:
        import torch

        torch.distributed.broadcast_object_list(found, src=0)
    if found[0] is not None:
        raise LoreError(found[0], same_on_every_rank=True)


def close_process_group() -> None:
    """Leaves the process group a trainer joined, where there is one, once all processes have come to their end."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def leave(status: int) -> NoReturn:
    """Ends the process. A launched one that has succeeded goes without Python's shutdown, in which threads of the
    communication libraries now and then abort it; everything is on disk by then.
    """
    if status == 0 and world_size() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    sys.exit(status)
