"""LORE: relevance labels and a rule book in, a model that judges query-item pairs and says why, out."""

import os
import sys

__version__ = "0.1.0"


def leave_recipe_folder() -> None:
    """Takes the recipe's folder off the import path, where `python recipes/x.yaml` puts it first.

    Runs when the recipe's first line imports lore: nothing that lies beside a recipe may stand in for a package.
    """
    if sys.argv and sys.argv[0].endswith((".yaml", ".yml")):
        folder = os.path.dirname(os.path.realpath(sys.argv[0]))
        sys.path[:] = [entry for entry in sys.path if not entry or os.path.realpath(entry) != folder]


leave_recipe_folder()
