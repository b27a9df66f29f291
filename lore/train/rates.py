"""Learning rates of their own for some of the weights."""

import re
from typing import Any

from lore.errors import LoreError


def scale_rates(trainer: Any, factors: dict[str, float]) -> None:
    """Has the trainer's optimiser learn weights at factor * train.lr when a pattern is found in their names; the first that is
    counts. Raises LoreError, once the optimiser is made, for a pattern that finds no weight which is trained."""
    if not factors:
        return
    create = trainer.create_optimizer

    def create_scaled(*arguments: Any, **options: Any) -> Any:
        optimizer = create(*arguments, **options)
        names = {id(weight): name for name, weight in trainer.model.named_parameters()}
        left = set(factors)
        for group in list(optimizer.param_groups):
            by_factor: dict[float, list[Any]] = {}
            for weight in group["params"]:
                found = next((pattern for pattern in factors if re.search(pattern, names.get(id(weight), ""))), None)
                left.discard(found)
                by_factor.setdefault(1.0 if found is None else factors[found], []).append(weight)
            group["params"] = by_factor.pop(1.0, [])
            others = {key: value for key, value in group.items() if key != "params"}
            for factor, weights in by_factor.items():
                optimizer.add_param_group({**others, "params": weights, "lr": group["lr"] * factor})
        if left:
            trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
            raise LoreError(
                f"train.lr_factors: {', '.join(map(repr, sorted(left)))} found in no name of a weight that is trained.\n"
                f"Names look like {', '.join(trained[:3])}."
            )
        return optimizer

    trainer.create_optimizer = create_scaled
