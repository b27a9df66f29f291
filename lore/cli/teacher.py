"""`lore teacher serve`: vLLM's OpenAI-compatible server for the teacher of a recipe (lore/engines/serve.py).

    lore teacher serve recipes/synthesize.yaml --port 8000

Imports inside functions keep `lore --help` fast.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import typer

from lore.support.errors import LoreError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Serve the model that writes training data.",
)


@app.callback()
def _teacher() -> None:
    """Serve the model that writes training data."""


@app.command("serve")
def serve_command(
    recipe: Path = typer.Argument(..., help="Recipe with teacher.model and optionally teacher.vllm."),
    overrides: list[str] = typer.Argument(None, metavar="[KEY=VALUE]..."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; the default is only reachable from this machine."),
    port: int = typer.Option(
        None, min=1, max=65535, help="Port to listen on; default: the port of teacher.endpoint.url, otherwise 8000."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the command without starting it."),
) -> None:
    """Start vLLM's OpenAI-compatible server for a recipe's teacher. The API key comes from VLLM_API_KEY, or from the variable
    that teacher.endpoint.key_variable names.
    """
    from lore.config.stages import load_recipe
    from lore.engines.config import VllmSection

    teacher = getattr(load_recipe(recipe, overrides or []), "teacher", None)
    if getattr(teacher, "model", None) is None:
        raise LoreError(
            f"{recipe} names no model under teacher.model, so there is nothing to serve.\n"
            "Set teacher.model.name to the checkpoint that the server should run, also with kind: endpoint."
        )
    from lore.engines.serve import serve

    endpoint = getattr(teacher, "endpoint", None)
    serve(
        teacher.model,
        getattr(teacher, "vllm", None) or VllmSection(),
        host,
        port or (urlsplit(endpoint.url).port if endpoint else None) or 8000,
        endpoint.model if endpoint else teacher.model.name,
        key_variable=endpoint.key_variable if endpoint else None,
        dry_run=dry_run,
    )
