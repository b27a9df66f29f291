"""Options that several commands have."""

import typer

FORCE = typer.Option(False, "--force", help="Replace existing output files even if this command did not write them.")
