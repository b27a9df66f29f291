"""ONNX graphs of a student, in FP32, FP16 and INT8, with free batch and sequence lengths.

    model.onnx      a cross-encoder: token ids to the outputs of its head
    encoder.onnx    a bi-encoder: token ids to a unit vector
    head.onnx       a bi-encoder: the vectors of query and item to the outputs of its head; in FP32 alone, since it takes no time
    photo.onnx      with a vision tower: pixels to the photo's tokens, which model.onnx or encoder.onnx takes

FP32 and FP16 use operators of ai.onnx alone, so that any runtime takes them. INT8 (lore.distill.int8) has one operator of
onnxruntime. Left out: the fusions of onnxruntime.transformers, which need more of its operators and are not faster on a CPU.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from lore.distill.first_token import keep_first_token
from lore.distill.int8 import DOMAIN, PRODUCT, quantized
from lore.student.networks import BiEncoder, Student
from lore.student.onnx_session import MAX_BYTES, OnnxSession, Precision, file_name
from lore.support.errors import LoreError

OPSET = 20
"""The first in which GELU is one operator, which makes INT8 a sixth faster. onnxruntime reads it since version 1.17."""
BATCH, TOKENS = 2, 16
"""Size of the example that a graph is traced with."""


class Vectors(nn.Module):
    """The encoder of a bi-encoder as a module of its own."""

    def __init__(self, student: BiEncoder):
        super().__init__()
        self.student = student

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        photo: torch.Tensor | None = None,
        photo_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.student.encode(input_ids, attention_mask, token_type_ids, photo, photo_mask)


def write_graphs(
    model: Student, folder: Path, names: Sequence[str], precisions: Sequence[Precision], ask: Callable[[OnnxSession], object]
) -> dict[str, list[str]]:
    """Writes the files of a student whose config is in the folder. Returns the operators of each file, by its name.

    names: the token arrays that the student reads, such as input_ids and attention_mask. ask: asks a session the pairs that fix
    the ranges of INT8. The model is changed: do not use it again. Raises LoreError for a student that is too large for one file, or
    that needs operators which other runtimes do not have.
    """
    size = 4 * sum(one.numel() for one in model.parameters())
    if size > MAX_BYTES:
        raise LoreError(
            f"The student has {size / 1e9:.1f} GB of weights, and one ONNX file holds {MAX_BYTES / 1e9:.1f} GB.\nServe it with "
            "torch, or distill a smaller student."
        )
    graphs = _graphs(model, names)
    for part, graph in graphs.items():
        onnx.save(graph, folder / file_name(part, "fp32"))
    small = [part for part in graphs if part != "head"]
    if "fp16" in precisions:
        for part in small:
            with _quiet():
                onnx.save(_halved(graphs[part]), folder / file_name(part, "fp16"))
    if "int8" in precisions:
        asked = _recorded(folder, model, ask)
        for part in small:
            onnx.save(quantized(graphs[part], asked[part]), folder / file_name(part, "int8"))
    return {path.name: _operators(path) for path in sorted(folder.glob("*.onnx"))}


def _graphs(model: Student, names: Sequence[str]) -> dict[str, ModelProto]:
    """The FP32 graph of each part."""
    model.eval().requires_grad_(False)
    model.encoder.set_attn_implementation("eager")  # its graph is faster than that of sdpa, which guards against rows of nan
    example = {name: torch.zeros(BATCH, TOKENS, dtype=torch.int64) for name in names}
    example["attention_mask"][0], example["attention_mask"][1, :-2] = 1, 1
    graphs = {}
    if model.photo is not None:
        shape = (model.config.embedding_size,)
        if (tower := model.photo.tower) is not None:
            tower.set_attn_implementation("eager")
            pixels = torch.zeros(BATCH, 3, model.config.tower.image_size, model.config.tower.image_size)
            graphs["photo"] = traced(model.photo, {"photo": pixels}, "tokens")
            shape = tuple(model.photo(pixels).shape[1:])
            model.photo = nn.Identity()  # from here on, the photo's tokens are an input
        example |= {"photo": torch.zeros(BATCH, *shape), "photo_mask": torch.ones(BATCH, dtype=torch.int64)}
    if not isinstance(model, BiEncoder):
        return graphs | {"model": traced(model, example, "logits")}
    vectors = {name: torch.zeros(BATCH, model.encoder.get_input_embeddings().embedding_dim) for name in ("query", "item")}
    return graphs | {"encoder": traced(Vectors(model), example, "vector"), "head": traced(model.interaction, vectors, "logits")}


class _Recorder:
    """A part of a session that keeps what it is asked."""

    def __init__(self, part: Any):
        self.part, self.asked = part, []

    def run(self, names: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.asked.append(inputs)
        return self.part.run(names, inputs)


def _recorded(folder: Path, model: Student, ask: Callable[[OnnxSession], object]) -> dict[str, list[dict[str, np.ndarray]]]:
    """What the FP32 files are asked, by their part."""
    session = OnnxSession(folder, model.config, "fp32", parallel=1)
    session.parts = {name: _Recorder(part) for name, part in session.parts.items()}
    ask(session)
    return {name: part.asked for name, part in session.parts.items()}


def traced(module: nn.Module, example: dict[str, torch.Tensor], output: str) -> ModelProto:
    """The FP32 graph of a module. Free axes: the first of every input, and the second of token arrays."""
    batch, tokens = torch.export.Dim("batch", max=2**20), torch.export.Dim("tokens", max=2**20)
    free = {name: {0: batch, 1: tokens} if array.shape[1:] == (TOKENS,) else {0: batch} for name, array in example.items()}
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            module,
            (),
            kwargs=example,
            input_names=list(example),
            output_names=[output],
            dynamic_shapes=free,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    graph = program.model_proto
    keep_first_token(graph)
    # The exporter notes where each node comes from, with source lines and paths of this machine.
    del graph.metadata_props[:]
    for one in (*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.value_info, *graph.graph.initializer):
        del one.metadata_props[:]
        one.doc_string = ""
    onnx.checker.check_model(graph)
    return onnx.shape_inference.infer_shapes(graph)


def _halved(graph: ModelProto) -> ModelProto:
    """The graph in FP16, with inputs and outputs in FP32."""
    copy = ModelProto()
    copy.CopyFrom(graph)
    return convert_float_to_float16(copy, keep_io_types=True)


def _operators(path: Path) -> list[str]:
    """The operators of a file. Raises LoreError for one that other runtimes do not have, INT8's own apart."""
    graph = onnx.load(path).graph
    found = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.node)
    if foreign := sorted(one for one in found if "::" in one and one != f"{DOMAIN}::{PRODUCT}"):
        raise LoreError(
            f"{path.name} needs the operators {', '.join(foreign)}, which are not of ai.onnx, so other runtimes would refuse it.\n"
            "Take an encoder of the kind of BERT or ModernBERT."
        )
    return sorted(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides notes of exporter and quantizer: neither is about the student."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
