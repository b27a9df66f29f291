"""Run folders, resuming, dependencies between recipes, launching.

`main` is what a recipe's first line calls: `from lore.run import main`.
"""


def main(name: str, file: str) -> None:
    """Runs the recipe `file` with the overrides of the command line. Does nothing in spawned workers, which execute the file."""
    if name == "__main__":
        # Imported here for start-up time: a spawned worker needs none of it.
        import sys

        from lore.run.devices import leave
        from lore.run.runner import run_command

        leave(run_command([file, *sys.argv[1:]]))
