"""`lore init`: write recipes, a rubric to fill in and launch files into a new project. Imports inside functions keep `lore --help`
fast.

The recipes are those of this repository, which lie in the package as lore/recipes. In a project they use the project's own rubric.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import typer

from lore.support.terminal import print_line

PACKAGE = Path(__file__).resolve().parents[1]
RECIPES, LAUNCH, PROJECT = PACKAGE / "recipes", PACKAGE / "launch_configs", Path(__file__).resolve().parent / "project"
STUDIES = ("crowdflower", "experiments")  # written only when asked for: they need data that a new project does not have
RECIPE = re.compile(r"\brecipes/([\w/-]+)\.yaml")
IN_A_PROJECT = {
    "rubric: rair": "rubric: my_rubric.yaml",
    "--rubric rair": "--rubric my_rubric.yaml",
    "      (make quickstart installs first)": "",
    " docs/robustness.md says what to expect.": "",
    " (docs/rewards.md)": "",
    ": launch/ray, launch/slurm": "",
}
"""Texts of the recipes and what a project has in their place: its own rubric, and nothing of this repository."""


def init(
    folder: str = typer.Argument(None, help="Folder of the project. Created if it does not exist."),
    names: list[str] = typer.Argument(None, metavar="[RECIPE]...", help="Write only these recipes and those that they need."),
    only: list[str] = typer.Option([], "--only", metavar="RECIPE", help="The same as a RECIPE argument."),
    show: bool = typer.Option(False, "--list", help="List the recipes that can be written."),
) -> None:
    """Start a project: recipes, a rubric to fill in, launch files. Existing files stay."""
    from lore.support.errors import LoreError
    from lore.support.outputs import output_path

    if show:
        print_recipes()
        return
    if folder is None:
        raise LoreError("No folder given: lore init my_project. `lore init --list` lists the recipes that it writes.")
    start(output_path(folder, "FOLDER", folder=True), [*(names or []), *only])


def recipes() -> list[str]:
    """Names of all shipped recipes, such as sft and quickstart/eval: those of a folder together, the how-to recipes first."""
    names = [path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml")]
    return sorted(names, key=lambda name: (name.startswith(STUDIES), "/" in name, name))


def print_recipes() -> None:
    """Lists the recipes with the first sentence of each."""
    from lore.run.summary import print_table

    print_table("recipes that `lore init FOLDER RECIPE...` writes", ["recipe", "what it does"], [[n, about(n)] for n in recipes()])
    print_line(f"Without names it writes all but those of {' and '.join(f'{folder}/' for folder in STUDIES)}.")


def about(name: str) -> str:
    """The first sentence of a recipe's comment."""
    lines = []
    for line in (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("#  "):
            lines.append(line[2:].strip())
        elif lines:
            break
    return " ".join(lines).split(". ")[0].rstrip(".:") + "."


def chosen(asked: list[str]) -> list[str]:
    """The asked recipes (or all of an asked folder) and those that they need; without any, the how-to recipes and the quickstart.
    Raises LoreError for a name that is no recipe."""
    from lore.support.errors import LoreError
    from lore.support.nearest import nearest_hint

    known = recipes()
    if not asked:
        return [name for name in known if not name.startswith(STUDIES)]
    folders = {name.split("/")[0] for name in known if "/" in name}
    found: dict[str, None] = {}
    for word in (word.strip() for words in asked for word in words.split(",")):
        name = word.removeprefix("recipes/").removesuffix(".yaml").rstrip("/")
        if name in known:
            found[name] = None
        elif name in folders:
            found.update(dict.fromkeys(one for one in known if one.startswith(f"{name}/")))
        else:
            raise LoreError(
                f"There is no recipe {word!r}, so nothing was written.{nearest_hint(name, [*known, *folders])}\n"
                "`lore init --list` lists the recipes."
            )
    waiting = list(found)
    while waiting:
        for need in needs(waiting.pop()):
            if need not in found:
                found[need] = None
                waiting.append(need)
    return [name for name in known if name in found]


def needs(name: str) -> list[str]:
    """The recipes that a shipped recipe, or a run of a shipped grid, needs or starts from."""
    from lore.config.grid import split_address
    from lore.config.yaml_text import read_recipe_text

    path = RECIPES / f"{name}.yaml"

    def listed(value: dict) -> list[str]:
        inner = [one for part in value.values() if isinstance(part, dict) for one in listed(part)]
        named = [value.get("base"), *(value.get("needs") or [])]
        return inner + [path for path in named if isinstance(path, str) and ".yaml" in path]

    found = (split_address(path.parent / need)[0] for need in listed(read_recipe_text(path).data))
    return [Path(os.path.relpath(file, RECIPES)).with_suffix("").as_posix() for file in found]


def files(names: list[str]) -> dict[str, str]:
    """Every file of a project by its path, with its text."""
    texts = {f"recipes/{name}.yaml": RECIPES / f"{name}.yaml" for name in names}
    texts |= {f"launch/accelerate/{path.name}": path for path in sorted(LAUNCH.glob("*.yaml"))}
    texts |= {path.relative_to(PROJECT).as_posix(): path for path in sorted(PROJECT.rglob("*")) if path.is_file()}
    found = {name: path.read_text(encoding="utf-8") for name, path in texts.items()}
    for name in found:
        if name.startswith("recipes/"):
            for theirs, own in IN_A_PROJECT.items():
                found[name] = found[name].replace(theirs, own)
    # The README of a project with some of the recipes shows no command of another one.
    lines = found["README.md"].splitlines(keepends=True)
    found["README.md"] = "".join(line for line in lines if set(RECIPE.findall(line)) <= set(names))
    return found


def start(folder: Path, asked: list[str]) -> None:
    """Writes the files that do not exist and lists the others."""
    from lore.support.atomic_files import write_atomic
    from lore.support.errors import LoreError
    from lore.support.outputs import checked_folder

    texts = files(chosen(asked))
    for place in {parent for name in texts for parent in (folder / name).parents}:
        if os.path.lexists(place) and not place.is_dir():
            raise LoreError(f"{place} is a file, so no project can be written to {folder}. Choose another folder or move the file.")
    checked_folder(folder)
    kept = [name for name in texts if os.path.lexists(folder / name)]
    written = [name for name in texts if name not in kept]
    for name in written:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, texts[name])
    print_line(f"{folder}: wrote {len(written)} files")
    if kept:
        print_line(f"Kept {len(kept)} files that exist: {', '.join(kept)}")
    print_line(f"Next: cd {shlex.quote(str(folder))}, fill in my_rubric.yaml, and follow README.md.")
