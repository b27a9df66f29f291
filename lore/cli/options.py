"""Options and groups that several commands have."""

from typing import Any

import typer
from typer.core import TyperGroup


class WithDefault(TyperGroup):
    """A group with one command that need not be named: `lore label pairs/ ...` is `lore label run pairs/ ...`."""

    default: str

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


FORCE = typer.Option(False, "--force", help="Replace existing output files even if this command did not write them.")
