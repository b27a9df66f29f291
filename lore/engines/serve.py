"""vLLM's OpenAI-compatible server. Its settings match the other engines: the checkpoint's chat template and adapter, no generation
config of the checkpoint, and the model name that clients request. `lore teacher serve` and `lore serve judge` start it."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from lore.config.recipe import run_root
from lore.engines.config import ModelSection, VllmSection
from lore.engines.loading import load_processor
from lore.engines.vllm import check_vllm, engine_options
from lore.engines.vllm_adapter import adapter_rank
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.terminal import print_line, print_note

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SERVED = "served"
"""Folder under the run root with the chat templates that the servers read."""


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
    check_vllm()
    if vllm.scoring == "pooling":
        raise LoreError(
            "vllm.scoring is pooling, which a chat server cannot serve: it reads tiers from log-probabilities.\n"
            "Leave vllm.scoring at logprobs. Pooling works in process: lore label --engine vllm."
        )
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
        "enable_prefix_caching": True,  # prompts about one query share instructions, rubric and query
        "enable_prompt_tokens_details": True,  # clients count the tokens that the prefix cache saves
        "disable_uvicorn_access_log": True,
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
    folder = run_root() / SERVED
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
