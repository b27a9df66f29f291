"""How many labels of the judge are enough: students on growing numbers of them. The curve stops when it is flat.

The sizes nest: a larger one has all labels of a smaller one, and every size has all human labels. Flat: the 95 % interval of the
gain over the size before (paired, over the queries of dev) reaches 0 or below. Values on the test pairs decide nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lore.distill.config import DistillRecipe
from lore.distill.labels import Human
from lore.distill.table import Verdicts, metric_draws
from lore.eval.measures.bootstrap import Estimate, interval
from lore.support.processes import say


@dataclass(frozen=True)
class Point:
    """labels: of the judge; dev, test: the metric; gain: on dev over the point before, None for the first."""

    labels: int
    dev: Estimate
    test: Estimate
    gain: Estimate | None

    @property
    def is_flat(self) -> bool:
        return self.gain is not None and not (self.gain.value if np.isnan(self.gain.low) else self.gain.low) > 0

    def to_json(self) -> dict[str, Any]:
        gain = None if self.gain is None else self.gain.to_json()
        return {"labels": self.labels, "dev": self.dev.to_json(), "test": self.test.to_json(), "gain on dev": gain}


@dataclass(frozen=True)
class Curve:
    """metric: of the points; stopped: why there is no larger point."""

    metric: str
    points: list[Point]
    stopped: str

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric, "points": [point.to_json() for point in self.points], "stopped": self.stopped}


def curve_sizes(recipe: DistillRecipe, labels: int) -> list[int]:
    """The sizes of the recipe that `labels` labels can fill, and all of them."""
    return [*(size for size in recipe.curve.sizes if size < labels), labels]


def measure_curve(
    recipe: DistillRecipe, human: Human, labels: int, answered: Callable[[int], tuple[Verdicts, Verdicts]]
) -> Curve:
    """labels: of the judge that can be trained on. answered: trains a student on so many of them and returns its verdicts on dev
    and test."""
    rubric, metric = human.source.rubric, recipe.curve.metric
    points: list[Point] = []
    before: tuple[float, np.ndarray | None] | None = None
    for size in curve_sizes(recipe, labels):
        dev, test = answered(size)
        now = metric_draws(dev, human.dev, rubric, recipe, metric)
        tested = metric_draws(test, human.test, rubric, recipe, metric)
        gain = None
        if before is not None:
            paired = None if now[1] is None or before[1] is None else now[1] - before[1]
            gain = interval(metric, now[0] - before[0], paired, human.dev.n_queries)
        queries = (human.dev.n_queries, human.test.n_queries)
        estimates = [interval(metric, *one, count) for one, count in zip((now, tested), queries, strict=True)]
        points.append(Point(size, *estimates, gain))
        told = "" if gain is None else f", gain {gain}"
        say(f"curve: {size:,} labels of the judge, {metric} on dev {points[-1].dev}{told}")
        if points[-1].is_flat:
            return Curve(metric, points, f"flat: the gain from {points[-2].labels:,} to {size:,} labels is {gain} on dev")
        before = now
    return Curve(metric, points, "all labels are used")
