"""Separate learning rates for parts of the model (train.lr_factors)."""

import re
from typing import Any

from lore.support.errors import LoreError


def scale_rates(trainer: Any, factors: dict[str, float]) -> None:
    """Sets the learning rate of weights to factor * train.lr if a pattern is found in their name; the first match applies.

    factors: regular expression -> factor. Weights whose name contains one of `trainer.own_lr` (PPO's value head) keep their own
    learning rate. Raises LoreError for a pattern that matches no trained weight.
    """
    if not factors:
        return
    own = getattr(trainer, "own_lr", ())

    def is_scaled(name: str) -> bool:
        return not any(part in name for part in own)

    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad and is_scaled(name)]
    for pattern in factors:
        if not any(re.search(pattern, name) for name in trained):
            raise LoreError(
                f"train.lr_factors: {pattern!r} matches no trained weight, so it would change nothing.\n"
                f"Names look like {', '.join(trained[:3])}.",
                same_on_every_rank=True,
            )
    create, scaled = trainer.create_optimizer, []

    def create_scaled(*arguments: Any, **options: Any) -> Any:
        optimizer = create(*arguments, **options)
        if scaled and optimizer is scaled[0]:  # DeepSpeed calls this twice and gets the same optimizer
            return optimizer
        scaled[:] = [optimizer]
        names = {id(weight): name for name, weight in trainer.model.named_parameters() if is_scaled(name)}
        for group in list(optimizer.param_groups):
            by_factor: dict[float, list[Any]] = {}
            for weight in group["params"]:
                found = next((pattern for pattern in factors if re.search(pattern, names.get(id(weight), ""))), None)
                by_factor.setdefault(1.0 if found is None else factors[found], []).append(weight)
            group["params"] = by_factor.pop(1.0, [])
            others = {key: value for key, value in group.items() if key != "params"}
            for factor, weights in by_factor.items():
                optimizer.add_param_group({**others, "params": weights, "lr": group["lr"] * factor})
        return optimizer

    trainer.create_optimizer = create_scaled
