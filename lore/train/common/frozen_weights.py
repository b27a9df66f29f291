"""Weights that stay as they are while the others are trained: those that train.freeze names, and the parts that only read photos
where no photo is ever shown."""

import re
from collections.abc import Iterator
from typing import Any

from lore.support.errors import LoreError


def photo_parts(model: Any) -> list[tuple[str, Any]]:
    """(name, module) of the outermost modules that a prompt without photos never runs: vision tower and connector."""
    text = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    used = {id(p) for module in text if module is not None for p in module.parameters()}

    def walk(module: Any, at: str) -> Iterator[tuple[str, Any]]:
        for name, child in module.named_children():
            inside = [id(p) in used for p in child.parameters()]
            if inside and not any(inside):
                yield f"{at}{name}", child
            elif not all(inside):
                yield from walk(child, f"{at}{name}.")

    return list(walk(model, ""))


def freeze_photo_parts(model: Any) -> None:
    """Without a photo these get no gradient: they are nothing to train, and data parallel training would wait for them."""
    for _, module in photo_parts(model):
        module.requires_grad_(False)


def freeze_weights(model: Any, patterns: list[str]) -> None:
    """Takes the weights whose names a pattern is found in out of training. Raises LoreError for a pattern that finds none, or
    when nothing is left to train."""
    if not patterns:
        return
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = {name: weight for name, weight in trained.items() if any(re.search(pattern, name) for pattern in patterns)}
    idle = [pattern for pattern in patterns if not any(re.search(pattern, name) for name in frozen)]
    if idle or len(frozen) == len(trained):
        raise LoreError(
            f"train.freeze: {idle[0]!r} is found in no name of a weight that would be trained.\n"
            f"Names look like {', '.join(list(trained)[:3])}."
            if idle
            else f"train.freeze: {patterns} leave no weight to train.\nName fewer of them.",
            same_on_every_rank=True,
        )

    def freeze() -> None:
        for weight in frozen.values():
            weight.requires_grad_(False)

    freeze()
    if hasattr(model, "set_adapter"):
        switch = model.set_adapter

        # A reference adapter's pass ends with the switch back to the trained one, all of whose weights PEFT then wants trained.
        def switch_and_freeze(*arguments: Any, **options: Any) -> Any:
            switched = switch(*arguments, **options)
            freeze()
            return switched

        model.set_adapter = switch_and_freeze
