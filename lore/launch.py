"""Starts a recipe in several processes with accelerate's own launcher, and tells accelerate what it misses on CPUs.

`lore launch x.yaml --config zero2 train.lr=2e-4` checks the recipe, runs what it needs first, then does what
`accelerate launch --config_file launch/accelerate/zero2.yaml x.yaml train.lr=2e-4` does. Options that `lore launch`
does not know go to accelerate as they are.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lore.errors import LoreError
from lore.recipe_file import OVERRIDE, nearest

PACKAGE = Path(__file__).resolve().parent
STALE_LOCK_S = 1800
CONFIG_FOLDERS = (Path("launch/accelerate"), PACKAGE.parent / "launch" / "accelerate", PACKAGE / "launch_configs")


def config_names() -> list[str]:
    """Names that --config takes."""
    return sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})


def find_config(name: str) -> Path:
    """The accelerate config of a name (working directory first, then the one shipped) or of a path."""
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise LoreError(f"--config {name}: there is no such file.\nShipped configs go by name: {', '.join(config_names())}.")
    for folder in CONFIG_FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    near = nearest(name, config_names())
    raise LoreError(
        f"--config {name} is none of {', '.join(config_names())}" + (f"; nearest: {near}" if near else "") + ".\n"
        "Give one of these names or the path of an accelerate config file."
    )


def split_arguments(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """(recipe, overrides, options for accelerate), wherever they stand. An option's own value follows it, as one word or
    behind `=`.
    """
    recipes, overrides, options = [], [], []
    for number, argument in enumerate(arguments):
        behind_option = number > 0 and arguments[number - 1].startswith("--") and "=" not in arguments[number - 1]
        if argument.startswith("-"):
            options.append(argument)
        elif OVERRIDE.match(argument):
            overrides.append(argument)
        elif argument.endswith((".yaml", ".yml")) and not (behind_option and arguments[number - 1].endswith("file")):
            recipes.append(argument)
        else:
            options.append(argument)
    if not recipes:
        raise LoreError("No recipe given: lore launch recipes/sft.yaml --config ddp")
    if len(recipes) > 1:
        raise LoreError(
            f"lore launch starts one recipe and got {len(recipes)}: {', '.join(recipes)}.\n"
            "Start them one after the other; what a recipe needs stands under its `needs`."
        )
    return recipes[0], overrides, options


def take_config(options: list[str], config: str | None) -> tuple[list[str], str | None]:
    """accelerate's own --config_file means --config. Returns the other options and the config."""
    rest, files = [], []
    words = iter(options)
    for word in words:
        name, given, value = word.partition("=")
        if name.replace("-", "_") == "__config_file":
            files.append(value if given else next(words, ""))
        else:
            rest.append(word)
    if config is not None:
        files.append(config)
    if len(files) > 1 or "" in files:
        raise LoreError(f"--config and --config_file name one file, found {', '.join(files) or 'nothing'}. Give it once.")
    return rest, files[0] if files else None


def accelerate_arguments(
    recipe: str, overrides: list[str], options: list[str], config: str | None, num_processes: int | None
) -> list[str]:
    """What accelerate's parser gets. `--module lore run x.yaml` also takes recipes without the two Python lines."""
    given = list(options)
    if config is not None:
        path = find_config(config)
        given += ["--config_file", str(path)]
        if num_processes is None and not _names(options, "num_processes"):
            num_processes = None if _on_cpu(path) else visible_gpus() or None
    if num_processes is not None:
        given += ["--num_processes", str(num_processes)]
        if config is None and num_processes > 1:
            given.append("--multi_gpu")
    several = config is not None or (num_processes or 1) > 1
    if several and not _names(options, "main_process_port") and not _several_machines(options, config):
        given += ["--main_process_port", "0"]  # a free one: two launches on one machine do not meet
    return [*given, "--module", "lore", "run", recipe, *overrides]


def _names(options: list[str], name: str) -> bool:
    return any(option.partition("=")[0].replace("-", "_") == f"__{name}" for option in options)


def _several_machines(options: list[str], config: str | None) -> bool:
    if any(_names(options, name) for name in ("num_machines", "machine_rank", "main_process_ip")):
        return True
    content = yaml.safe_load(find_config(config).read_text(encoding="utf-8")) if config is not None else {}
    return (content.get("num_machines") or 1) > 1 or "main_process_port" in content


def _on_cpu(path: Path) -> bool:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and bool(content.get("use_cpu"))


def visible_gpus() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def launch(arguments: list[str], config: str | None = None, num_processes: int | None = None, dry_run: bool = False) -> int:
    """Runs a recipe in several processes; returns the exit status."""
    from lore.folder import RunFolder
    from lore.needs import plan, run_needed
    from lore.run import report_done, run_recipe
    from lore.stages import load_recipe

    recipe, overrides, options = split_arguments(arguments)
    options, config = take_config(options, config)
    command = accelerate_arguments(recipe, overrides, options, config, num_processes)
    if dry_run:
        run_recipe(recipe, overrides, dry_run=True)
        print("# starts: accelerate launch " + " ".join(command))
        return 0
    loaded = load_recipe(recipe, overrides)
    folder = RunFolder.of(loaded)
    folder.check(loaded)
    if folder.is_done:
        report_done(loaded, folder)
        return 0
    run_needed(folder, plan(recipe, loaded))
    if config is not None and _on_cpu(find_config(config)):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return _accelerate(command)


def _accelerate(command: list[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(command))
    except ChildFailedError as error:
        first, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        print(f"rank {first} ended with status {failure.exitcode}; its message stands above", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


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

    from lore.folder import say

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
    from lore.folder import is_main_process

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
