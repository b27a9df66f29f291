"""Fingerprints of files, checkpoints and chat templates. Nothing here imports torch.

There are two kinds. Neither depends on the folder of a file:

- `content_fingerprint` reads every byte. It decides whether an import or a result belongs to its data. A process hashes a file once
  as long as its size, modification time and change time stay the same. `known_digests` and `remember_digests` pass digests to other
  processes.
- `files_fingerprint` and `model_fingerprint` sample at most 1 MiB of a large file. They name weights in verdicts and cards, and
  compare the inputs of runs that an earlier version made. lore.support.input_files compares those of newer runs, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SAMPLED_BYTES = 65536
SAMPLES = 16
READ_WHOLE_BYTES = 16 * 2**20
"""`files_fingerprint` reads files up to this size completely and also caches their full digest."""
MODEL_FILES = (".safetensors", ".json", ".bin", ".jinja", ".model", ".txt")

# By absolute path: size, modification time and change time in ns, hex digest of all bytes.
_digests: dict[str, tuple[int, int, int, str]] = {}


def content_fingerprint(files: Iterable[str | Path], *, digest_size: int = 16, named: bool = False) -> str:
    """Hash of all bytes of the files, in order, as 2 * digest_size hex digits. named: also of their names and sizes."""
    total = hashlib.blake2b(digest_size=digest_size)
    for path in map(Path, files):
        digest = file_digest(path)
        if named:
            total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        total.update(bytes.fromhex(digest))
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """Hex digest of all bytes of a file, cached as long as its size, modification time and change time stay the same."""
    state = _state(path)
    known = _digests.get(os.path.abspath(path))
    if known is None or known[:3] != state:
        with open(path, "rb") as file:
            known = (*state, hashlib.file_digest(file, "blake2b").hexdigest())
        _digests[os.path.abspath(path)] = known
    return known[3]


def _state(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def known_digests(files: Iterable[Path]) -> dict[str, list[Any]]:
    """The cached digests of these files, as plain data for `remember_digests` in another process."""
    paths = map(os.path.abspath, files)
    return {path: list(_digests[path]) for path in paths if path in _digests}


def remember_digests(found: dict[str, list[Any]]) -> None:
    """Adds digests that another process has computed. Digests that this process has computed take precedence. Entries of earlier
    versions, without a change time, are left out."""
    for path, known in found.items():
        if isinstance(known, list) and [type(part) for part in known] == [int, int, int, str]:
            _digests.setdefault(path, tuple(known))


def files_fingerprint(files: Iterable[str | Path]) -> str:
    """16 hex digits over the names, sizes and sampled bytes of files."""
    digest = hashlib.blake2b(digest_size=8)
    for path in map(Path, files):
        state = _state(path)
        size = state[0]
        digest.update(f"{path.name} {size}".encode())
        starts = range(0, size, max(size // SAMPLES, SAMPLED_BYTES))
        with open(path, "rb") as file:
            if size <= READ_WHOLE_BYTES:
                content = file.read()
                _digests[os.path.abspath(path)] = (*state, hashlib.blake2b(content).hexdigest())
                samples = (content[start : start + SAMPLED_BYTES] for start in starts)
            else:
                samples = (_read_at(file, start) for start in starts)
            for sample in samples:
                digest.update(sample)
    return digest.hexdigest()


def _read_at(file: Any, start: int) -> bytes:
    file.seek(start)
    return file.read(SAMPLED_BYTES)


def model_fingerprint(name: str, adapter: str | None = None) -> str:
    """Fingerprint of a local checkpoint and adapter. It changes if the weights at the same path change. For a hub model only the
    name counts.
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
    """Fingerprint of the chat template of a tokenizer or processor."""
    return hashlib.blake2b(str(processor.chat_template).encode(), digest_size=8).hexdigest()
