"""The command `lore serve online`: the recipe, its dry run, and the start of the service. Nothing here loads a model or a server
before the recipe is checked."""

from typing import Any

from lore.config.stages import load_recipe
from lore.config.yaml_text import to_yaml
from lore.online.config import OnlineRecipe
from lore.support.errors import LoreError
from lore.support.terminal import print_line, print_lines


def run(recipe: OnlineRecipe, folder: Any) -> None:
    """What `lore run` does with a recipe of the service, which has no end and no run folder."""
    raise LoreError(
        "A recipe with stage online describes a service, which runs until it is stopped and writes no run folder.\nStart it with "
        "`lore serve online RECIPE`."
    )


def serve_command(path: str, overrides: list[str], *, dry_run: bool = False) -> int:
    """Loads the recipe and runs the service. Returns the exit status. dry_run: prints every value and checks nothing else."""
    recipe = load_recipe(path, overrides)
    if not isinstance(recipe, OnlineRecipe):
        raise LoreError(f"{path} has the stage {recipe.stage}, and a service needs stage: online.\nRun it with `lore run {path}`.")
    recipe.check_packages()
    if dry_run:
        print_line(f"# {path}, every value (defaults included)")
        print_lines(to_yaml(recipe.resolved()))
        print_line("# derived from these values")
        print_lines(to_yaml(recipe.derived()))
        return 0
    from lore.online.serve import serve  # loads fastapi, uvicorn and the student's runtime: not for a dry run

    return serve(recipe)
