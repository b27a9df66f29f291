"""Freezes weights: the ones that train.freeze names, and the vision modules if training shows no photos. Checks that no frozen
weight changes during training: a saved adapter is only right on the base that it was trained on.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from lore.engines.loading import photo_parts
from lore.engines.row_independence import base_of, length_rule
from lore.support.errors import LoreError
from lore.support.processes import say

WORDS = {"cpu": 1 << 16, "cuda": 1 << 22}  # 4-byte words per chunk: in a CPU's cache, and few launches on a GPU
STEP = 0x5851F42D4C957F2D  # odd; multiplies the checksum from chunk to chunk


def freeze_photo_parts(model: Any) -> None:
    """Freezes the vision modules. Without photos they get no gradient, and DDP would wait for one."""
    for _, module in photo_parts(model):
        module.requires_grad_(False)


def freeze_weights(model: Any, patterns: list[str]) -> None:
    """Freezes the weights whose names match one of the patterns (re.search). Raises LoreError if a pattern matches no trainable
    weight, or if no weight is left to train."""
    if not patterns:
        return
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = {name: weight for name, weight in trained.items() if any(re.search(pattern, name) for pattern in patterns)}
    idle = [pattern for pattern in patterns if not any(re.search(pattern, name) for name in frozen)]
    if idle or len(frozen) == len(trained):
        raise LoreError(
            f"train.freeze: {idle[0]!r} matches no trainable weight, so it would freeze nothing.\n"
            f"Names look like {', '.join(list(trained)[:3])}."
            if idle
            else f"train.freeze: {patterns} freeze every trainable weight, so nothing is left to train.\nName fewer weights.",
            same_on_every_rank=True,
        )

    def freeze() -> None:
        for weight in frozen.values():
            weight.requires_grad_(False)

    freeze()
    if hasattr(model, "set_adapter"):
        switch = model.set_adapter

        # After a pass of the reference adapter, set_adapter re-enables gradients for all weights of the trained adapter.
        def switch_and_freeze(*arguments: Any, **options: Any) -> Any:
            switched = switch(*arguments, **options)
            freeze()
            return switched

        model.set_adapter = switch_and_freeze


class FrozenWeights(TrainerCallback):
    """Fingerprint of the frozen weights: taken when training begins, compared at each hand-over to a sampler and at the end.

    Frozen are all parameters without a gradient when training begins: the base under an adapter, the reference adapter, the
    originals of modules_to_save, and what train.freeze names. `constant_buffers` count as well. Each process reads its
    own share of sharded weights.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.before: dict[str, tuple[Any, ...]] = {}
        self.buffers: dict[str, bool] = {}
        self._factors: dict[torch.device, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        began = time.perf_counter()
        names = [name for name, weight in self.trainer.model.named_parameters() if not weight.requires_grad]
        weights = self.fingerprints(names)
        self.buffers = constant_buffers(self.trainer.model)
        self.before = weights | self.fingerprints(list(self.buffers))
        if not names:
            return
        digest = hashlib.sha256(repr(sorted(weights.items())).encode()).hexdigest()[:16]
        values = sum(value.numel() for name, value in self._shares(names))
        say(
            f"frozen weights: {len(names):,} tensors, {values:,} values{' here' if self._sharded else ''}, fingerprint {digest} "
            f"({time.perf_counter() - began:.1f} s)"
        )

    def check(self, when: str) -> None:
        """Raises LoreError in every process if a frozen weight has changed in one of them since training began. Collective."""
        if not self.before:
            return
        after = self.fingerprints(list(self.before))
        changed = [name for name, found in self.before.items() if not self._same(name, found, after.get(name))]
        if changed := list(dict.fromkeys(gather_object(changed))):
            moved = sum(name in self.buffers for name in changed)
            counts = [(len(changed) - moved, len(self.before) - len(self.buffers), "frozen weights")]
            counts += [(moved, len(self.buffers), "constant buffers")]
            told = " and ".join(f"{some:,} of {of:,} {what}" for some, of, what in counts if some)
            merges = getattr(self.trainer, "use_vllm", False)  # the only place where an adapter is merged during training
            raise LoreError(
                f"{told} have changed since training began ({when}, step {self.trainer.state.global_step}): "
                f"{', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}.\n"
                "They are not saved, so the judge would answer from another base than the one it was trained on. Something wrote "
                f"to the base: {'an adapter merged in place for the sampler, ' if merges else ''}a callback, statistics that a "
                "layer keeps in training (BatchNorm), or code of the model (model.trust_remote_code). Remove it"
                f"{', or sample with rollout.engine: transformers' if merges else ''}; then start again under another `run` name.",
                same_on_every_rank=True,
            )

    def _same(self, name: str, before: tuple[Any, ...], after: tuple[Any, ...] | None) -> bool:
        """A buffer that no file holds is a cache if it comes back in another shape: tables of cosines grow with the rows."""
        rebuilt = after is None or after[:2] != before[:2]
        return after == before or (rebuilt and self.buffers.get(name) is False)

    def fingerprints(self, names: list[str]) -> dict[str, tuple[Any, ...]]:
        """name -> (dtype, shape, checksum) of this process's share of each weight. Synchronizes once per device."""
        shares, on = dict(self._shares(names)), {}
        for name, value in shares.items():
            on.setdefault(value.device, []).append((name, self._checksum(value)))
        sums = {
            name: found
            for sums in on.values()
            for (name, _), found in zip(sums, torch.stack([one for _, one in sums]).tolist(), strict=True)
        }
        return {name: (str(value.dtype), tuple(value.shape), sums[name]) for name, value in shares.items()}

    @property
    def _sharded(self) -> bool:
        return self.trainer.is_fsdp_enabled or any(hasattr(weight, "ds_tensor") for weight in self.trainer.model.parameters())

    def _shares(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        reshard(self.trainer.model)
        weights = dict(chain(self.trainer.model.named_buffers(), self.trainer.model.named_parameters()))
        for name in names:
            if (weight := weights.get(name)) is None:
                continue
            weight = getattr(weight, "ds_tensor", weight).detach()  # DeepSpeed ZeRO stage 3
            yield name, weight.to_local() if isinstance(weight, DTensor) else weight

    @torch.no_grad()
    def _checksum(self, weight: torch.Tensor) -> torch.Tensor:
        """An integer modulo 2**64 of the raw bytes, on the weight's device: each 4-byte word times a fixed odd random number, so
        that the order counts and a change of one word is always seen; a polynomial over the chunks."""
        size = WORDS.get(weight.device.type, WORDS["cuda"])
        if weight.device not in self._factors:  # with a generator of its own: training's random numbers stay the same
            drawn = torch.randint(-(2**63), 2**63 - 1, (size,), generator=torch.Generator().manual_seed(0))
            self._factors[weight.device] = (drawn | 1).to(weight.device)
        factors = self._factors[weight.device]
        raw = weight.contiguous().flatten().view(torch.uint8)
        total = torch.zeros((), dtype=torch.int64, device=weight.device)
        for part in raw.split(4 * size):
            if part.numel() % 4:
                part = torch.nn.functional.pad(part, (0, -part.numel() % 4))
            elif part.storage_offset() % 4:
                part = part.clone()
            words = part.view(torch.int32)
            total = total * STEP + (words * factors[: len(words)]).sum()
        return total


def constant_buffers(model: torch.nn.Module) -> dict[str, bool]:
    """Buffers that training does not change -> whether they are saved with the weights.

    Those that may change: what a trained layer keeps (statistics of BatchNorm), and frequencies of rope that depends on the longest
    row (longrope, dynamic), which each batch sets anew.
    """
    modules, found = dict(model.named_modules()), {}
    config = getattr(base_of(model), "config", None)
    by_length = hasattr(config, "get_text_config") and length_rule(config) is not None
    for name, _ in model.named_buffers():
        holder, _, own = name.rpartition(".")
        module = modules[holder]
        saved = own not in module._non_persistent_buffers_set
        if saved and _is_trained(modules, holder):
            continue
        if not saved and by_length and "original" not in own:
            continue
        found[name] = saved
    return found


def _is_trained(modules: dict[str, torch.nn.Module], name: str) -> bool:
    """Whether the layer has trained weights; for a layer without weights, the module around it."""
    while not (weights := list(modules[name].parameters())) and name:
        name = name.rpartition(".")[0]
    return any(weight.requires_grad for weight in weights)


def reshard(model: torch.nn.Module) -> None:
    """Under FSDP2, frees gathered weights, so that parameters are shares again. A pass without gradients leaves some gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
