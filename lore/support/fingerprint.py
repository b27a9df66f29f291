"""Fingerprints of files, checkpoints and chat templates. Nothing here imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SAMPLED_BYTES = 65536
SAMPLES = 16
MODEL_FILES = (".safetensors", ".json", ".bin", ".jinja", ".model", ".txt")


def files_fingerprint(files: Iterable[str | Path]) -> str:
    """16 hex digits over the names, sizes and sampled bytes of files, not over where they lie."""
    digest = hashlib.blake2b(digest_size=8)
    for path in map(Path, files):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(size // SAMPLES, SAMPLED_BYTES)):
                file.seek(start)
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def model_fingerprint(name: str, adapter: str | None = None) -> str:
    """Fingerprint of a local checkpoint and adapter, so that new weights under an old path are noticed. A hub model is
    known by its name alone.
    """
    digest = hashlib.blake2b(digest_size=8)
    for place in (name, adapter):
        if place:
            known = files_fingerprint(_model_files(Path(place))) if Path(place).is_dir() else place
            digest.update(f"{known}\n".encode())
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file())


def template_fingerprint(processor: Any) -> str:
    """Fingerprint of the chat template that a tokenizer or processor writes prompts with."""
    return hashlib.blake2b(str(processor.chat_template).encode(), digest_size=8).hexdigest()
