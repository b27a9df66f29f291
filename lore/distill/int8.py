"""INT8 of a graph, with ranges of the activations that are fixed at the export.

onnxruntime's dynamic quantization takes the range of an activation from the batch at hand, so that a pair's probabilities depend on
the pairs beside it, by up to .2 (docs/lab/student.md). Its static quantization fixes the ranges, but leaves every bias as an
operator by itself. Here each product with weights becomes a QuantizeLinear and one MatMulIntegerToFloat of onnxruntime, bias
included: as fast as dynamic quantization, and a pair has one answer.

- Ranges: smallest and largest value of each input, over pairs that the export is not compared on.
- Smoothing (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438, equation 4): a few channels of an encoder's activations are many
  times larger than the others and would leave them few of the 256 steps. Each channel is divided by a factor, and its weights are
  multiplied by it.
- Weights have 129 of the 256 steps, and one scale per output. With all of them, sums of two products overflow 16 bits on CPUs with
  AVX2 or AVX-512 but without VNNI, and the same file answers differently there (onnxruntime#14642).
- Word vectors are stored in FP16: half of the bytes of a small encoder are there, and rounding them changes nothing.

What has no tokens, such as the head, stays in FP32: it takes no time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

DOMAIN, PRODUCT = "com.microsoft", "MatMulIntegerToFloat"
STRENGTH = 0.8
"""Alpha of SmoothQuant: with 1 all channels of an activation get the same range, with 0 all inputs of the weights."""
WEIGHT_STEPS, ACTIVATION_STEPS = 64, 255
SMALLEST_CHANNEL = 1e-3
"""Of the largest channel of an activation. A channel that was nearly zero on the sample may not be so elsewhere."""
TABLE_ROWS = 1000
"""Smaller tables stay in FP32."""


@dataclass
class Linear:
    """A product with weights [K, N], and the bias that is added to it."""

    node: NodeProto
    weights: np.ndarray
    bias: str
    """Name of the bias [N]; "" for none."""
    output: str


def quantized(model: ModelProto, batches: Iterable[Mapping[str, np.ndarray]]) -> ModelProto:
    """The graph in INT8. batches: inputs of the graph; they fix the ranges."""
    graph = GraphProto()
    graph.CopyFrom(model.graph)
    linears: dict[str, list[Linear]] = {}
    for one in _linears(graph):
        linears.setdefault(one.node.input[0], []).append(one)
    ranges = _ranges(model, list(linears), batches)
    nodes, made = [], {one.output: one for several in linears.values() for one in several}
    products = {one.node.output[0] for one in made.values()}
    begun: set[str] = set()
    for node in graph.node:
        one = made.get(node.output[0])
        if one is None:
            if node.output[0] not in products:  # otherwise the product moves to where its bias is added
                nodes.append(node)
            continue
        name = one.node.input[0]
        if name not in begun:
            begun.add(name)
            nodes += _begin(graph, name, *ranges[name], linears[name])
        nodes.append(_product(graph, one))
    nodes = [part for node in nodes for part in _halved_table(graph, node)]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)
    used = {name for node in graph.node for name in node.input}
    kept = [TensorProto.FromString(one.SerializeToString()) for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    opsets = [*model.opset_import, helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version, producer_name="lore")


def _linears(graph: GraphProto) -> list[Linear]:
    """Products of [batch, tokens, K] with constant weights [K, N]."""
    constants = {one.name: one for one in graph.initializer}
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in (*graph.value_info, *graph.input)}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.node:
        weights = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weights is None or len(weights.dims) != 2 or ranks.get(node.input[0]) != 3:
            continue
        reads, bias, output = readers.get(node.output[0], []), "", node.output[0]
        if len(reads) == 1 and reads[0].op_type == "Add":
            for name in reads[0].input:
                if name in constants and list(constants[name].dims) == [weights.dims[1]]:
                    bias, output = name, reads[0].output[0]
        found.append(Linear(node, numpy_helper.to_array(weights), bias, output))
    return found


def _ranges(
    model: ModelProto, names: list[str], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(smallest, largest) value [K] of each channel of the named activations."""
    watched = ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for batch in batches:
        for name, values in zip(names, session.run(names, dict(batch)), strict=True):
            flat = values.reshape(-1, values.shape[-1])
            low, high = flat.min(axis=0), flat.max(axis=0)
            before = found.get(name, (low, high))
            found[name] = (np.minimum(before[0], low), np.maximum(before[1], high))
    return found


def _begin(graph: GraphProto, name: str, low: np.ndarray, high: np.ndarray, linears: list[Linear]) -> list[NodeProto]:
    """Smooths and quantizes an activation. Multiplies the weights of its products with the factors."""
    size = np.maximum(np.abs(low), np.abs(high))
    size = np.maximum(size, SMALLEST_CHANNEL * size.max() or 1.0)
    weights = np.max([np.abs(one.weights).max(axis=1) for one in linears], axis=0)
    weights = np.maximum(weights, SMALLEST_CHANNEL * weights.max() or 1.0)
    factors = size**STRENGTH / weights ** (1 - STRENGTH)
    factors = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    for one in linears:
        one.weights = one.weights * factors[:, None]
    least, most = min(0.0, float((low / factors).min())), max(0.0, float((high / factors).max()))
    scale = np.float32((most - least) / ACTIVATION_STEPS or 1.0)
    zero = np.uint8(np.clip(round(-least / float(scale)), 0, ACTIVATION_STEPS))
    for part, values in {"factors": 1 / factors, "scale": scale, "zero": zero}.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(values), f"{name}_{part}"))
    return [
        helper.make_node("Mul", [name, f"{name}_factors"], [f"{name}_smooth"], f"{name}_smoothing"),
        helper.make_node(
            "QuantizeLinear", [f"{name}_smooth", f"{name}_scale", f"{name}_zero"], [f"{name}_int8"], f"{name}_quantization"
        ),
    ]


def _product(graph: GraphProto, one: Linear) -> NodeProto:
    name, source = one.node.output[0], one.node.input[0]
    scales = np.maximum(np.abs(one.weights).max(axis=0), np.finfo(np.float32).tiny) / WEIGHT_STEPS
    weights = np.clip(np.round(one.weights / scales), -WEIGHT_STEPS, WEIGHT_STEPS).astype(np.int8)
    for part, values in {"weights": weights, "scales": scales.astype(np.float32)}.items():
        graph.initializer.append(numpy_helper.from_array(values, f"{name}_{part}"))
    inputs = [f"{source}_int8", f"{name}_weights", f"{source}_scale", f"{name}_scales", f"{source}_zero", "", one.bias]
    return helper.make_node(PRODUCT, inputs, [one.output], f"{name}_int8", domain=DOMAIN)


def _halved_table(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    """A Gather from a large table reads it in FP16."""
    table = next((one for one in graph.initializer if node.op_type == "Gather" and one.name == node.input[0]), None)
    if table is None or table.data_type != TensorProto.FLOAT or len(table.dims) != 2 or table.dims[0] < TABLE_ROWS:
        return [node]
    half, output = f"{table.name}_fp16", node.output[0]
    if half not in {one.name for one in graph.initializer}:
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(table).astype(np.float16), half))
    read = NodeProto.FromString(node.SerializeToString())
    read.input[0], read.output[0] = half, f"{output}_fp16"
    return [read, helper.make_node("Cast", [f"{output}_fp16"], [output], f"{output}_to_fp32", to=TensorProto.FLOAT)]
