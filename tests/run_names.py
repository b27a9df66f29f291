"""Checks that a run left only names that its stage declares (`writes` of its recipe class)."""

from pathlib import Path

from lore.config.stages import load_recipe
from lore.run.nested import is_run


def undeclared(folder: Path) -> list[str]:
    """Names in a run folder that its stage does not declare. Temporary names begin with a dot and are refused as run names."""
    writes = load_recipe(folder / "recipe.yaml").writes
    return sorted(
        path.name
        for path in folder.iterdir()
        if not writes(path.name) and not path.name.endswith(".part") and not (path.is_dir() and is_run(path))
    )
