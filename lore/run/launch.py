"""Starts a recipe in several processes with accelerate's launcher, and adds the settings that accelerate needs on CPUs.

`lore launch x.yaml --config zero2 train.lr=2e-4` checks the recipe, runs the recipes it needs, and then does the same as
`accelerate launch --config_file launch/accelerate/zero2.yaml x.yaml train.lr=2e-4`. `lore launch` passes options that it does
not know to accelerate unchanged.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lore.config.grid import is_grid, split_address
from lore.config.stages import load_recipe
from lore.config.yaml_text import OVERRIDE
from lore.run.dependencies import checked_plan, run_in_subprocess, run_needed
from lore.run.devices import visible_gpus
from lore.run.grid import run_grid
from lore.run.launch_settings import CONFIG_VARIABLE, accelerate_config, means_true
from lore.run.run_folder import RunFolder
from lore.run.runner import report_done, run_recipe
from lore.support.errors import LoreError
from lore.support.nearest import nearest
from lore.support.terminal import print_line, print_note

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_FOLDERS = (Path("launch/accelerate"), PACKAGE.parent / "launch" / "accelerate", PACKAGE / "launch_configs")


def config_names() -> list[str]:
    """Names that --config accepts."""
    return sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})


def find_config(name: str) -> Path:
    """The accelerate config for a name or a path. A name is looked up in the working directory, then among the shipped configs."""
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise LoreError(
            f"--config {name}: the file does not exist.\n"
            f"Correct the path, or use a shipped config by name: {', '.join(config_names())}."
        )
    for folder in CONFIG_FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    near = nearest(name, config_names())
    raise LoreError(
        f"--config {name} is unknown; expected one of {', '.join(config_names())}" + (f"; nearest: {near}" if near else "") + ".\n"
        "Give one of these names or the path of an accelerate config file."
    )


def split_arguments(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """(recipe, overrides, options for accelerate), in any order. The value of an option is the next word, or follows `=`."""
    recipes, overrides, options = [], [], []
    for number, argument in enumerate(arguments):
        behind_option = number > 0 and arguments[number - 1].startswith("--") and "=" not in arguments[number - 1]
        if argument.startswith("-"):
            options.append(argument)
        elif OVERRIDE.match(argument):
            overrides.append(argument)
        elif split_address(argument)[0].suffix in (".yaml", ".yml") and not (
            behind_option and arguments[number - 1].endswith("file")
        ):
            recipes.append(argument)
        else:
            options.append(argument)
    if not recipes:
        raise LoreError("No recipe given: lore launch recipes/sft.yaml --config ddp")
    if len(recipes) > 1:
        raise LoreError(
            f"lore launch starts one recipe and got {len(recipes)}: {', '.join(recipes)}.\n"
            "Launch them one after the other, or list the others under the recipe's `needs`."
        )
    return recipes[0], overrides, options


def take_config(options: list[str], config: str | None) -> tuple[list[str], str | None]:
    """Treats accelerate's --config_file like --config. Returns the other options and the config."""
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
        raise LoreError(
            f"--config and --config_file are the same option, found {', '.join(files) or 'nothing'}. Give one config, once."
        )
    return rest, files[0] if files else None


def accelerate_arguments(
    recipe: str, overrides: list[str], options: list[str], config: str | None, num_processes: int | None
) -> list[str]:
    """Arguments for accelerate's parser. `--module lore run x.yaml` also runs recipes without the Python line at the top."""
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
        given += ["--main_process_port", "0"]  # a free port: two launches on one machine must not share one
    return [*given, "--module", "lore", "run", recipe, *overrides]


def _names(options: list[str], name: str) -> bool:
    return any(option.partition("=")[0].replace("-", "_") == f"__{name}" for option in options)


def _several_machines(options: list[str], config: str | None) -> bool:
    if any(_names(options, name) for name in ("num_machines", "machine_rank", "main_process_ip")):
        return True
    content = accelerate_config(find_config(config)) if config is not None else {}
    return content.get("num_machines") not in (None, 0, 1, "1") or "main_process_port" in content


def _on_cpu(path: Path) -> bool:
    return means_true(accelerate_config(path).get("use_cpu"))


def launch(arguments: list[str], config: str | None = None, num_processes: int | None = None, dry_run: bool = False) -> int:
    """Runs a recipe in several processes; returns the exit status."""
    recipe, overrides, options = split_arguments(arguments)
    options, config = take_config(options, config)
    if is_grid(recipe):
        how = options + (["--config", config] if config else [])
        how += ["--num-processes", str(num_processes)] if num_processes else []
        run_grid(recipe, overrides, dry_run, start=lambda run, changes: run_in_subprocess(run, changes, "launch", how))
        return 0
    command = accelerate_arguments(recipe, overrides, options, config, num_processes)
    if dry_run:
        run_recipe(recipe, overrides, dry_run=True)
        print_line("# starts: accelerate launch " + " ".join(command))
        return 0
    loaded = load_recipe(recipe, overrides)
    folder = RunFolder.of(loaded)
    folder.check(loaded)
    if folder.is_done:
        report_done(loaded, folder)
        return 0
    loaded.check_packages()
    run_needed(folder, checked_plan(recipe, loaded, overrides), recipe, overrides)
    os.environ[CONFIG_VARIABLE] = str(find_config(config)) if config is not None else ""
    if config is not None and _on_cpu(find_config(config)):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return _accelerate(command)


def _accelerate(command: list[str]) -> int:
    # Loads torch: a dry run and a recipe's check start no process.
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(command))
    except ChildFailedError as error:
        first, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        print_note(f"rank {first} ended with status {failure.exitcode}; see its message above")
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0
