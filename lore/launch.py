"""Starts a recipe in several processes with accelerate's own launcher, and tells accelerate what it misses on CPUs.

`lore launch x.yaml --config zero2 train.lr=2e-4` checks the recipe, runs what it needs first, then does what
`accelerate launch --config_file launch/accelerate/zero2.yaml x.yaml train.lr=2e-4` does. Options that `lore launch`
does not know go to accelerate as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lore.errors import LoreError
from lore.recipe_file import nearest

PACKAGE = Path(__file__).resolve().parent
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
    """(recipe, overrides, options for accelerate). Options with a value that holds `=` stand before the recipe."""
    at = next((i for i, a in enumerate(arguments) if a.endswith((".yaml", ".yml")) and not a.startswith("-")), None)
    if at is None:
        raise LoreError("No recipe given: lore launch recipes/sft.yaml --config ddp")
    rest = arguments[at + 1 :]
    overrides = [a for a in rest if "=" in a and not a.startswith("-")]
    return arguments[at], overrides, arguments[:at] + [a for a in rest if a not in overrides]


def accelerate_arguments(
    recipe: str, overrides: list[str], options: list[str], config: str | None, num_processes: int | None
) -> list[str]:
    """What accelerate's parser gets. `--module lore run x.yaml` also takes recipes without the two Python lines."""
    given = list(options)
    if config is not None:
        path = find_config(config)
        given += ["--config_file", str(path)]
        if num_processes is None and not any(o.replace("-", "_").startswith("__num_processes") for o in options):
            num_processes = None if _on_cpu(path) else visible_gpus() or None
    if num_processes is not None:
        given += ["--num_processes", str(num_processes)]
        if config is None and num_processes > 1:
            given.append("--multi_gpu")
    return [*given, "--module", "lore", "run", recipe, *overrides]


def _on_cpu(path: Path) -> bool:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and bool(content.get("use_cpu"))


def visible_gpus() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def launch(arguments: list[str], config: str | None = None, num_processes: int | None = None, dry_run: bool = False) -> int:
    """Runs a recipe in several processes; returns the exit status."""
    from lore.folder import RunFolder, say
    from lore.needs import plan, run_needed
    from lore.recipe import load_recipe
    from lore.run import print_summary, run_recipe

    recipe, overrides, options = split_arguments(arguments)
    command = accelerate_arguments(recipe, overrides, options, config, num_processes)
    if dry_run:
        run_recipe(recipe, overrides, dry_run=True)
        print("# starts: accelerate launch " + " ".join(command))
        return 0
    loaded = load_recipe(recipe, overrides)
    folder = RunFolder.of(loaded)
    folder.check(loaded)
    if folder.is_done:
        say(f"already done: {folder.path}")
        print_summary(folder)
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
    if world_size() == 1 or visible_gpus():
        return
    if uses_deepspeed():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"


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


def close_process_group() -> None:
    """Leaves the process group a trainer joined, where there is one; torch warns otherwise."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
