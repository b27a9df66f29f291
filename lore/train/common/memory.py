"""Estimates what a process of training allocates, before step 0.

    weights       parameters and buffers, as they are loaded: packed in 4 bits where model.quantize asks for it
    gradients     one value per trained parameter, and once more in DDP's buckets
    optimizer     AdamW's two moments per trained parameter
    activations   the tensors that autograd keeps for the backward pass of the run's widest micro-batch
    logits        the tile of logits that TRL's fused output layer computes at a time, and what it derives from it

The tensors that autograd keeps are counted in a forward pass of the trainer's own model on tensors without data (torch's fake
tensors): no arithmetic, no memory. So adapters, grouped heads, masks, packed rows, shared prefixes, photos, frozen parts and the
casts of mixed precision count as they will be. Layers of one stack are alike, so the pass runs one of them, then two. With gradient
checkpointing a layer keeps its input, and one layer at a time is computed again.

Two moments can be the peak. When the backward pass begins, all activations are there, the logits, and the gradient of the output
layer (all gradients where they accumulate). When it reaches the first layer, all gradients are there, and what that layer keeps.

Left out: libraries and rows, sharding by DeepSpeed or FSDP, gradients of activations, which replace activations that are freed, and
what kernels and the allocator need for themselves.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.integrations import moe
from transformers.modeling_layers import GradientCheckpointingLayer

from lore.engines.row_independence import base_of
from lore.support.processes import world_size
from lore.train.common.arrow_rows import IGNORE
from lore.train.common.trl_internals import fused_logps, logit_tile

MOMENTS = 2  # of AdamW, in the dtype of the parameter
TORCH_TILES = 8.25
"""Tensors in float32 of the size of the tile, where torch computes its gradient: the tile, y, z, log_p, p, grad, the product with
the gradient of the log-probabilities and its second factor, and a mask of bytes (trl.kernels.chunked_logprob._backward_tile).
Triton computes in the tile."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak. missing: why activations are not counted; None if they are."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    missing: str | None = None

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "logits")}
        if self.missing:
            parts = {name: size for name, size in parts.items() if name not in ("activations", "logits")}
        listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
        return f"{'at least' if self.missing else 'about'} {self.total / 1e9:.2f} GB ({listed})" + (
            f", and activations, which cannot be counted: {self.missing}" if self.missing else ""
        )


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of a forward pass. stacks: for each stack of layers (number of layers, bytes that each keeps, bytes
    of its input); rest: outside the stacks."""

    stacks: list[tuple[int, float, float]]
    rest: float

    def peaks(self, checkpointing: bool) -> tuple[float, float]:
        """(when the backward pass begins, when it reaches the first layer)."""
        again = max((kept for _, kept, _ in self.stacks), default=0)
        if checkpointing:
            return self.rest + sum(count * given for count, _, given in self.stacks) + again, self.rest + again
        return self.rest + sum(count * kept for count, kept, _ in self.stacks), self.rest + again


def estimate(trainer: Any, batch: dict[str, Any]) -> Memory:
    """Memory of a process that trains on micro-batches like this one, as the trainer's collator returns it. Call it when the
    trainer has its model."""
    model, args = trainer.model, trainer.args
    head, source = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    weights = sum(size_of(weight) for weight in [*model.parameters(), *model.buffers()])
    trained = sum(size_of(weight) for weight in model.parameters() if weight.requires_grad)
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    gradients, optimizer = trained * (2 if world_size() > 1 and not sharded else 1), MOMENTS * trained
    try:
        kept = kept_by_autograd(model, batch, args.mixed_precision)
    except Exception as error:  # each model refuses fake tensors in its own way, and no estimate may stop a run
        return Memory(weights, gradients, optimizer, 0, 0, str(error).partition("\n")[0] or type(error).__name__)
    begin, end = kept.peaks(args.gradient_checkpointing)
    tile = logit_tile(int((batch["labels"][:, 1:] != IGNORE).sum()), shape_of(head)[0])
    logits = tile * (head.element_size() if args.device.type == "cuda" else 4 * TORCH_TILES)
    # A tied weight gets a gradient from the output layer and another from the embedding; earlier micro-batches leave gradients.
    of_head, of_source = (size_of(weight) * weight.requires_grad for weight in (head, source))
    before = gradients if args.gradient_accumulation_steps > 1 else 0
    new_source = of_source if before or source is head else 0
    new_head = of_head if before and source is head else 0
    if begin + logits + before + of_head >= end + gradients + new_source + new_head:
        return Memory(weights, before + of_head, optimizer, begin, logits)
    return Memory(weights, gradients + new_source + new_head, optimizer, end, 0)


def kept_by_autograd(model: Any, batch: dict[str, Any], precision: str) -> Kept:
    """What a forward pass up to the last hidden states keeps. precision: no, bf16 or fp16, as accelerate names them."""
    base = base_of(model)
    stacks = [
        (module, name, layers)
        for module in base.modules()
        for name, layers in module.named_children()
        if isinstance(layers, torch.nn.ModuleList) and len(layers) and isinstance(layers[0], GradientCheckpointingLayer)
    ]

    def kept(*counts: int) -> tuple[float, list[float]]:
        """(bytes, input of a layer of each stack) with so many layers of each stack."""
        for (module, name, layers), count in zip(stacks, counts, strict=True):
            setattr(module, name, torch.nn.ModuleList(layers[:count]))
        return _one_pass(model, batch, precision, [layers[0] for _, _, layers in stacks])

    try:
        with without_data(model), torch.random.fork_rng(devices=[]):  # some models draw which layers they skip
            ones = [1] * len(stacks)
            least, inputs = kept(*ones)
            found = []
            for number, (_, _, layers) in enumerate(stacks):
                count = min(len(layers), 2) if len({shapes(layer) for layer in layers}) == 1 else len(layers)
                more, _ = kept(*(count if at == number else 1 for at in range(len(stacks))))
                found.append((len(layers), (more - least) / max(1, count - 1), inputs[number]))
    finally:
        for module, name, layers in stacks:
            setattr(module, name, layers)
    return Kept(found, least - sum(each for _, each, _ in found))


def _one_pass(model: Any, batch: dict[str, Any], precision: str, watched: list[Any]) -> tuple[float, list[float]]:
    """(bytes that autograd keeps, bytes of the first input of each watched layer). The model's weights have no data."""
    own = {storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    kept, inputs = {}, dict.fromkeys(watched, 0)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if storage(tensor) not in own:
            kept[storage(tensor)] = tensor.untyped_storage()  # held, so that no other tensor gets its address
        return tensor

    def enter(layer: Any, given: tuple, options: dict[str, Any]) -> None:
        hidden = given[0] if given else options["hidden_states"]
        inputs[layer] = size_of(hidden)

    def leave(*_: Any) -> None:
        raise Reached

    with ExitStack() as stack:
        for layer in watched:
            stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(base_of(model).base_model.register_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        stack.enter_context(torch.autocast("cpu", dtype) if dtype else nullcontext())
        try:
            fused_logps(model, batch)
        except Reached:
            pass
    return sum(each.nbytes() for each in kept.values()), list(inputs.values())


class Reached(Exception):
    """The pass has reached the last hidden states."""


@contextmanager
def without_data(model: Any) -> Iterator[None]:
    """The model's weights are tensors without data in this context. Weights in 4 bits are those that the layer computes with.

    torch's product of all experts at once takes tensors without data in bfloat16 only; the one that transformers has for compiled
    models keeps the same tensors. Why a model refuses is in the estimate, not also a traceback in the log."""
    made: dict[int, torch.nn.Parameter] = {}
    was = [(m, name, weight) for m in model.modules() for name, weight in m._parameters.items() if weight is not None]
    forwards = [(m, m.forward) for m in model.modules() if type(m).__name__ == "Linear4bit"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module, _, weight in was:
            if id(weight) not in made:
                whole = hasattr(weight, "quant_state")  # of bitsandbytes
                shape = (module.out_features, module.in_features) if whole else shape_of(weight)
                dtype = module.compute_dtype if whole else weight.dtype
                made[id(weight)] = torch.nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=weight.requires_grad)
    logs, grouped = fake_tensor.log.disabled, vars(moe).get("_can_use_grouped_mm")
    try:
        fake_tensor.log.disabled, moe._can_use_grouped_mm = True, lambda *_: False
        for module, name, weight in was:
            module._parameters[name] = made[id(weight)]
        for module, _ in forwards:
            module.forward = MethodType(torch.nn.Linear.forward, module)
        yield
    finally:
        fake_tensor.log.disabled, moe._can_use_grouped_mm = logs, grouped
        for module, name, weight in was:
            module._parameters[name] = weight
        for module, forward in forwards:
            module.forward = forward


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def shape_of(weight: torch.Tensor) -> torch.Size:
    """The whole shape of a weight that DeepSpeed ZeRO-3 shards."""
    return getattr(weight, "ds_shape", weight.shape)


def size_of(tensor: torch.Tensor) -> int:
    """Bytes of a whole tensor."""
    return math.prod(shape_of(tensor)) * tensor.element_size()


def shapes(layer: torch.nn.Module) -> tuple:
    return tuple((name, shape_of(weight)) for name, weight in layer.named_parameters())
