"""`lore teacher serve`: vLLM's OpenAI-compatible server for the teacher of a recipe. Its settings match the other engines: the
checkpoint's chat template, no generation config of the checkpoint, and the model name that clients request.

    lore teacher serve recipes/synthesize.yaml --port 8000

Imports inside functions keep `lore --help` fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from lore.support.errors import LoreError
from lore.support.terminal import print_line, print_note

if TYPE_CHECKING:
    from lore.engines.config import ModelSection, VllmSection

LOOPBACK = ("127.0.0.1", "localhost", "::1")

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


def serve(
    model: ModelSection,
    vllm: VllmSection,
    host: str,
    port: int,
    name: str,
    *,
    key_variable: str | None = None,
    dry_run: bool = False,
) -> None:
    """Replaces this process with the server, so that signals reach it. dry_run: only print the command.

    name: the model name that clients request; it includes the adapter. Raises LoreError for models that vLLM cannot run.
    """
    command = serve_command_line(model, vllm, host, port, name)
    environment = serve_environment(key_variable)
    if dry_run:
        print_line(shlex.join(command))
        return
    if host not in LOOPBACK and not environment.get("VLLM_API_KEY"):
        print_note(f"warning: anyone who can reach {host}:{port} can use the model; set VLLM_API_KEY to require a key.")
    os.execvpe(command[0], command, environment)


def serve_command_line(model: ModelSection, vllm: VllmSection, host: str, port: int, name: str) -> list[str]:
    """The server command. Writes the chat template to a file under the run root, unless the same text stands there
    already; the file name contains a hash of the template.
    """
    from lore.engines.loading import load_processor
    from lore.engines.vllm import check_vllm, engine_options
    from lore.engines.vllm_adapter import adapter_rank

    check_vllm()
    processor = load_processor(model, chat=True)
    rank = adapter_rank(model)
    takes_images = hasattr(processor, "tokenizer")
    options = engine_options(model, vllm, rank, takes_images=takes_images)
    options |= {
        "host": host,
        "port": port,
        "served_model_name": f"{name}-base" if rank else name,
        "chat_template": str(_template_file(str(processor.chat_template))),
        # Same as lore.codec.chat_template: lists of content parts for a processor's template, plain text for a tokenizer's.
        "chat_template_content_format": "openai" if takes_images else "string",
        "disable_uvicorn_access_log": True,
        "enable_prompt_tokens_details": True,  # clients count the tokens that the prefix cache saves
    }
    if rank:
        options["lora_modules"] = f"{name}={model.adapter}"
    # Not `vllm serve`, which looks up metadata of the distribution `vllm`: the CPU build has another distribution name.
    flags = [word for key, value in options.items() for word in _flag(key, value)]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]


def serve_environment(key_variable: str | None = None) -> dict[str, str]:
    """The environment of the server. It carries the API key, because every user of the machine can see command lines."""
    environment = {"VLLM_NO_USAGE_STATS": "1", **os.environ}
    key = os.environ.get(key_variable or "", "").strip()
    if key and not environment.get("VLLM_API_KEY"):
        environment["VLLM_API_KEY"] = key
    return environment


def _template_file(template: str) -> Path:
    from lore.config.recipe import run_root
    from lore.support.atomic_files import write_atomic

    folder = run_root() / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"chat-template-{hashlib.sha256(template.encode()).hexdigest()[:12]}.jinja"
    # A file that was cut or edited would serve another prompt than the one that the judge is trained on.
    if not path.is_file() or path.read_bytes() != template.encode():
        write_atomic(path, template)
    return path.absolute()


def _flag(key: str, value: Any) -> list[str]:
    flag = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else [f"--no-{flag.removeprefix('--')}"]
    return [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
