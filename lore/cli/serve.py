"""`lore serve judge`: a trained judge behind vLLM's OpenAI-compatible server (lore/engines/serve.py), under the name that
`lore label --endpoint` expects (lore/judge/served.py). `lore serve online`: the service of cache, student and judge (lore/online).
`lore serve nearby`: questions about a town, and a page with a map (lore/nearby/serve.py).

    lore serve judge runs/grpo --port 8000
    lore serve online recipes/online.yaml
    lore serve nearby town.db

Imports inside functions keep `lore --help` fast.
"""

from __future__ import annotations

from pathlib import Path

import typer

from lore.support.terminal import print_note

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Serve a judge, verdicts over HTTP, or a town.",
)


@app.callback()
def _serve() -> None:
    """Serve a judge, verdicts over HTTP, or a town."""


@app.command("judge")
def judge_command(
    judge: str = typer.Argument(..., help="Run folder of its training (runs/grpo), its model folder, or an exported folder."),
    settings: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Settings of vLLM, with the keys of a recipe: vllm.max_model_tokens=4096."
    ),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; the default is only reachable from this machine."),
    port: int = typer.Option(8000, min=1, max=65535, help="Port to listen on."),
    base: str = typer.Option(None, help="Folder or hub id of an adapter's base model, if it has moved since the training."),
    rubric: str = typer.Option(None, help="Name or path of the judge's rubric, if it has moved since the training."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check the judge and print the command without starting it."),
) -> None:
    """Start vLLM's OpenAI-compatible server for a trained judge. The API key comes from VLLM_API_KEY."""
    from lore.config.validation import validate
    from lore.config.yaml_text import RecipeText, apply_override
    from lore.engines.config import ServeSection

    text = RecipeText(Path("lore serve judge"), {})
    for setting in settings or []:
        apply_override(text, setting)
    vllm = validate(text, ServeSection).vllm
    from lore.engines.serve import serve
    from lore.judge.served import check_servable, served_name
    from lore.judge.trained import trained_judge

    found = trained_judge(judge, rubric=rubric, base=base)
    check_servable(found)
    name = served_name(found)
    print_note(f"model name for clients: {name}")
    serve(found.model, vllm, host, port, name, dry_run=dry_run)


@app.command("online")
def online_command(
    recipe: str = typer.Argument(..., help="Recipe with stage: online."),
    settings: list[str] = typer.Argument(None, metavar="[KEY=VALUE]...", help="Overrides: serve.port=8081."),
    try_pairs: str = typer.Option(
        None, "--try", metavar="PAIRS", help="Send one request with pairs of this file, print it with its answer, and end."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check the recipe and print all values, without starting the service."),
) -> None:
    """Start the HTTP service of cache, student and judge."""
    from lore.online.start import serve_command

    raise typer.Exit(serve_command(recipe, settings or [], dry_run=dry_run, try_pairs=try_pairs))


@app.command("nearby")
def nearby_command(
    town: Path = typer.Argument(..., metavar="TOWN", help="Town that `lore nearby index` wrote."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; the default is only reachable from this machine."),
    port: int = typer.Option(8080, min=0, max=65535, help="Port to listen on. 0: any free one, which is printed."),
    keys_variable: str = typer.Option(
        None, metavar="NAME", help="Environment variable with the API keys, separated by commas. Default: no key is asked for."
    ),
    judge: Path = typer.Option(None, metavar="FOLDER", help="Judge or student of rubric local_life that orders the places."),
    model: Path = typer.Option(None, metavar="FILE", help="YAML with a section model or endpoint: a language model."),
    relations: Path = typer.Option(None, metavar="FILE", help="Your own relations. Default: those of LORE."),
    encoder: str = typer.Option(None, metavar="FOLDER", help="Where the town's encoder lies now. Default: as at indexing."),
) -> None:
    """Start the HTTP service of a town.

    POST /ask answers questions, POST /recommend lists places for a person, and GET / is a page with a map.
    """
    from lore.online.config import need_packages

    need_packages()
    from lore.nearby.serve import serve_nearby  # loads fastapi and uvicorn

    files = {"relations": relations, "encoder": encoder, "judge": judge, "model": model}
    raise typer.Exit(serve_nearby(town, host, port, keys_variable, **files))
