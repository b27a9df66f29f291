"""Runs the ONNX files of an exported student on the CPU. Nothing here imports torch or transformers, whose start takes seconds.

A run has one thread, and several runs go side by side (`parallel`). That is faster than one run with several threads: its products
are small, and the threads of onnxruntime spin while they wait for each other.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from lore.student.config import StudentConfig, read_config
from lore.student.encode import Batch
from lore.student.exported import ADVICE, read_export
from lore.support.errors import LoreError, translated

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
MAX_BYTES = 2_000_000_000
"""Of one file: protobuf holds no more."""
BATCH_TOKENS = 256
"""Tokens per run. The activations of a small encoder then stay in the cache of one core: 1024 take an eighth longer per token."""
SLOWER = ["SkipLayerNormFusion"]
"""A fusion that onnxruntime makes by itself and that takes longer on a CPU than addition and normalization apart."""


def file_name(part: str, precision: Precision) -> str:
    """The file of a part: model.onnx in FP32, otherwise model_fp16.onnx and model_int8.onnx. A head is in FP32 always."""
    return f"{part}.onnx" if precision == "fp32" or part == "head" else f"{part}_{precision}.onnx"


def part_files(folder: Path, config: StudentConfig, precision: Precision) -> dict[str, Path]:
    """The files that a precision needs, by part. The first part reads the tokens."""
    parts = ["model"] if config.kind == "cross_encoder" else ["encoder", "head"]
    parts += ["photo"] if config.photo == "tower" else []
    return {part: folder / file_name(part, precision) for part in parts}


@dataclass(frozen=True)
class SavedTokenizer:
    """A tokenizer as PairEncoder needs it, from tokenizer.json."""

    backend_tokenizer: Tokenizer
    pad_token_id: int | None
    model_input_names: list[str]


def saved_tokenizer(folder: Path) -> SavedTokenizer:
    """The tokenizer of an exported folder."""
    note = read_export(folder).tokenizer
    with translated(lambda _: (f"{folder / 'tokenizer.json'} cannot be loaded", ADVICE)):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return SavedTokenizer(tokenizer, note.pad_token_id, note.model_input_names)


class OnnxSession:
    """The files of one precision. parallel: how many batches are run at the same time."""

    batch_tokens = BATCH_TOKENS

    def __init__(self, folder: Path, config: StudentConfig, precision: Precision, parallel: int):
        self.precision, self.parallel = precision, parallel
        self._config = config
        self.parts: dict[str, Any] = {part: _opened(path) for part, path in part_files(folder, config, precision).items()}
        self._reader = next(iter(self.parts))
        self._inputs = {one.name: one.shape for one in self.parts[self._reader].get_inputs()}

    def logits(self, batch: Batch) -> np.ndarray:
        """See lore.student.scorer.Session."""
        batch = self._with_photo(batch)
        if self._config.kind == "cross_encoder":
            return self._encode(batch)
        queries = {name.removeprefix("query_"): array for name, array in batch.items() if name.startswith("query_")}
        queries |= self._no_photo(len(queries["input_ids"]))
        vectors = {"query": self._encode(queries)[batch["query_index"]], "item": self._encode(batch)}
        return _run(self.parts["head"], vectors)

    def close(self) -> None:
        self.parts = {}

    def _encode(self, batch: Batch) -> np.ndarray:
        return _run(self.parts[self._reader], {name: batch[name] for name in self._inputs})

    def _with_photo(self, batch: Batch) -> Batch:
        """The batch with what the graph takes of its photos: their tokens, or their vectors."""
        if "photo" not in self._inputs:
            return batch
        if "photo" not in batch:
            return batch | self._no_photo(len(batch["input_ids"]))
        if "photo" not in self.parts:
            return batch
        seen = np.flatnonzero(batch["photo_mask"])
        empty = self._no_photo(len(batch["input_ids"]))
        empty["photo"][seen] = _run(self.parts["photo"], {"photo": batch["photo"][seen]})
        return batch | {"photo": empty["photo"]}

    def _no_photo(self, rows: int) -> Batch:
        if "photo" not in self._inputs:
            return {}
        size = self._inputs["photo"][1:]
        return {"photo": np.zeros((rows, *size), dtype=np.float32), "photo_mask": np.zeros(rows, dtype=np.int64)}


def open_session(folder: Path, *, precision: Precision, threads: int | None = None) -> OnnxSession:
    """The session of an exported folder. threads: null takes the cores of this process. Raises LoreError for damaged files."""
    return OnnxSession(folder, read_config(folder), precision, threads or len(os.sched_getaffinity(0)))


def _run(part: Any, inputs: Batch) -> np.ndarray:
    with translated(lambda _: ("the student's ONNX file cannot answer", ADVICE)):
        return part.run(None, inputs)[0]


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise LoreError(f"{path} does not exist, so the student cannot answer.\n{ADVICE}")
    if path.stat().st_size > MAX_BYTES:
        raise LoreError(f"{path} has {path.stat().st_size:,} bytes, and an ONNX file has {MAX_BYTES:,} at most.\n{ADVICE}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with translated(lambda _: (f"{path} cannot be loaded", ADVICE)):
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER)
