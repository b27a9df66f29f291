"""The command `lore serve online`: the recipe, its dry run, and the start of the service. Nothing here loads a model or a server
before the recipe is checked."""

from typing import Any

from lore.config.recipe import resolve_need
from lore.config.stages import load_recipe
from lore.online.config import OnlineRecipe
from lore.run.dependencies import plan, recipes_of
from lore.run.input_hashes import missing_inputs
from lore.run.run_folder import RunFolder
from lore.run.runner import print_dry_run
from lore.support.errors import LoreError


def run(recipe: OnlineRecipe, folder: Any) -> None:
    """What the table of stages has for a service, which has no end and no run folder: `lore run` names `lore serve online`."""
    raise LoreError("A service is not run like a stage. Start it with `lore serve online RECIPE`.")


def serve_command(path: str, overrides: list[str], *, dry_run: bool = False, try_pairs: str | None = None) -> int:
    """Loads the recipe and runs the service. Returns the exit status. dry_run: prints every value, and what is missing. try_pairs:
    a file of pairs; one request with the pairs of its first query is sent to the service, which then ends."""
    recipe = load_recipe(path, overrides)
    if not isinstance(recipe, OnlineRecipe):
        raise LoreError(f"{path} has the stage {recipe.stage}, and a service needs stage: online.\nRun it with `lore run {path}`.")
    recipe.check_packages()
    needed = plan(path, recipe)
    if dry_run:
        print_dry_run(path, recipe, RunFolder.of(recipe), needed)
        return 0
    own = {other for need in recipe.needs for other in recipes_of(resolve_need(path, need))}
    lacks = [f"{other} has to run first: lore run {other}" for other, run in needed if other in own and not run.is_done]
    lacks = lacks or [f"{key}: {lack}" for key, lack in missing_inputs(recipe)]
    if lacks:
        raise LoreError("\n".join([f"{path}: the service does not start, because something is missing.", *lacks]))
    from lore.online.serve import serve  # loads fastapi, uvicorn and the student's runtime: not for a dry run

    return serve(recipe, try_pairs=try_pairs)
