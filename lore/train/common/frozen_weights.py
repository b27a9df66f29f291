"""Freezes weights: the ones that train.freeze names, and the vision modules if training shows no photos."""

import re
from typing import Any

from lore.engines.loading import photo_parts
from lore.support.errors import LoreError


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
