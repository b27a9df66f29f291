"""Pickle files of a checkpoint, before a run resumes from it: a checkpoint of somebody else's could run any code when it is loaded.

transformers reads its own files with torch's restricted loader. DeepSpeed and FSDP do not, so what their files would import is
compared here with what they need.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from lore.support.errors import LoreError

KINDS = (".pt", ".pth", ".bin")
NEVER_READ = ("training_args.bin",)
ALLOWED = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.ndarray",
    }
)
SHARDS = "torch.distributed.checkpoint"
ALLOWED_METADATA = frozenset(
    {
        "collections.OrderedDict",
        "pathlib.PosixPath",
        "torch.Size",
        "torch.serialization._get_layout",
        f"{SHARDS}.filesystem._StorageInfo",
        *(
            f"{SHARDS}.metadata.{name}"
            for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta")
        ),
        *(f"{SHARDS}.metadata.{name}" for name in ("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
    }
)


class _Metadata(pickle.Unpickler):
    """Reads the metadata of FSDP's shards, and imports nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and f"{module}.{name}" not in ALLOWED_METADATA:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def check_pickles(checkpoint: Path) -> None:
    """Raises LoreError if a file of the checkpoint would import more than a trainer's own files do when it is loaded."""
    for path in sorted(checkpoint.rglob("*")):
        if not path.is_file() or path.name in NEVER_READ:
            continue
        try:
            if path.suffix in KINDS:
                _check(path)
            elif path.name == ".metadata":
                _check_shards(path)
        except Exception as error:  # a damaged pickle raises errors of every kind
            raise LoreError(
                f"{path} is no file that this trainer writes, or it is damaged: loading it would import {str(error)[:200]}.\n"
                "A pickle file can run any code when it is loaded, so the run does not resume from it. Delete the folder "
                f"{checkpoint} to resume from an earlier checkpoint or to start over.",
                same_on_every_rank=True,
            ) from error


def _check(file: Any) -> None:
    if foreign := sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - ALLOWED):
        raise pickle.UnpicklingError(", ".join(foreign))


def _check_shards(path: Path) -> None:
    with open(path, "rb") as file:
        metadata = _Metadata(file).load()
    for index, place in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            with open(path.parent / place.relative_path, "rb") as file:
                file.seek(place.offset)
                _check(io.BytesIO(file.read(place.length)))
