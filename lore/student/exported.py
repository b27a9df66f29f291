"""export.json in the folder of an exported student: its files, how their answers differ from the student's, and on which machine.

Nothing here imports torch or onnxruntime.
"""

import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from lore.config.sections import Share, StrictModel
from lore.support.environment import version_of
from lore.support.errors import LoreError
from lore.support.untrusted_json import read_object

EXPORT = "export.json"
LOST, ADVICE = "it is unknown how to run the student", "Copy the exported folder again, or export the student again."
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_tile", "asimddp", "i8mm")
"""Instruction sets that change how onnxruntime multiplies, by their names in /proc/cpuinfo."""
PACKAGES = ("lore-relevance", "onnxruntime", "onnx", "torch", "transformers", "tokenizers", "numpy")

Count = Annotated[int, Field(ge=0)]
Texts = Annotated[list[str], Field(max_length=1000)]


class TokenizerNote(StrictModel):
    """What of a tokenizer is not in tokenizer.json."""

    pad_token_id: Annotated[int, Field(ge=0)] | None = None
    model_input_names: Texts


class FileNote(StrictModel):
    """One ONNX file."""

    bytes: Count
    operators: Texts
    """Operators of ai.onnx in it, each once."""


class Check(StrictModel):
    """Answers of one precision beside those of the student in PyTorch, on a sample of pairs."""

    pairs: Count
    largest_difference: Share
    """Of a tier's probability, before calibration."""
    changed_tiers: Count
    """Pairs with another tier than before."""
    moves: Annotated[dict[str, Count], Field(max_length=1_000_000)] = {}
    """How many pairs went from one tier to another, by "from > to"."""
    labeled: Count = 0
    """Pairs with a human label."""
    macro_f1_before: Share | None = None
    """On the labeled pairs. null: none is labeled."""
    macro_f1: Share | None = None
    macro_f1_loss: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """95 % interval of the loss, paired, over queries. null: labels of fewer than two queries."""
    batch_difference: Share = 0
    """Largest difference of a tier's probability between the canaries scored alone and among the sample."""


class Machine(StrictModel):
    """Where the canaries were scored."""

    capability: str
    """The instruction set that PyTorch chose, such as AVX512."""
    architecture: str
    flags: Texts
    """Those of CPU_FLAGS that the CPU has."""


class Export(StrictModel):
    """The content of export.json."""

    opset: Annotated[int, Field(ge=1, le=1000)]
    tokenizer: TokenizerNote
    files: Annotated[dict[str, FileNote], Field(max_length=100)]
    checks: Annotated[dict[Literal["fp32", "fp16", "int8"], Check], Field(max_length=3)] = {}
    canaries: Count = 0
    machine: Machine
    versions: Annotated[dict[str, str], Field(max_length=100)]


def read_export(folder: str | Path) -> Export:
    """The record of an exported folder. Raises LoreError for a damaged or missing one."""
    path = Path(folder) / EXPORT
    if not path.is_file():
        raise LoreError(f"{folder} has no {EXPORT}, so {LOST}.\n{ADVICE}")
    content: dict[str, Any] = read_object(path, LOST, ADVICE)
    try:
        return Export.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LoreError(f"{path} is damaged ({where}: {first['msg']}), so {LOST}.\n{ADVICE}") from error


def cpu_flags() -> list[str]:
    """Those of CPU_FLAGS that this machine's CPU has. [] where /proc/cpuinfo does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = next((line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return [flag for flag in CPU_FLAGS if flag in found]


def this_machine(capability: str) -> Machine:
    """This machine. capability: of torch.backends.cpu.get_cpu_capability."""
    return Machine(capability=capability, architecture=platform.machine(), flags=cpu_flags())


def versions() -> dict[str, str]:
    """Installed versions of the packages that an export depends on."""
    found = {name: version_of(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version is not None}
