"""The sampled answers to one prompt, and what a step counts of them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lore.rewards.components import Answer
from lore.train.rl.config import RolloutRecipe


@dataclass
class Group:
    """The answers to one prompt. given: tokens at the start of each that were not sampled."""

    row: int
    prompt_ids: list[int]
    images: list | None
    completion_ids: list[list[int]]
    logprobs: list[list[float]] | None
    answers: list[Answer]
    parts: np.ndarray  # [answers, parts], nan where a part cannot judge
    totals: np.ndarray  # [answers]
    right: np.ndarray  # bool [answers]
    given: int = 0

    @property
    def spread(self) -> float:
        return float(np.nanstd(self.totals)) if np.isfinite(self.totals).any() else 0.0

    @property
    def tokens(self) -> int:
        return sum(len(ids) - self.given for ids in self.completion_ids)


@dataclass
class Tally:
    """Counts of one batch of rollouts on this process, summed over all for the metrics."""

    tokens: int = 0
    groups: int = 0
    spread: int = 0
    foreseen: int = 0
    extra: int = 0
    guided: int = 0
    solved: int = 0
    seen: list[tuple[int, int, int, bool]] = field(default_factory=list)


def longer(value: Any, begun: list[list[int]]) -> Any:
    """A per-token field of the prompts (lists), with zeros for the tokens that the answers begin with."""
    if isinstance(value, list) and value and isinstance(value[0], list) and any(begun):
        return [list(row) + [0] * len(start) for row, start in zip(value, begun, strict=True)]
    return value


def told(groups: list[Group], tally: Tally, least_spread: float) -> dict[str, Any]:
    """What a process tells the others of its groups."""
    return {
        "parts": np.concatenate([group.parts for group in groups]),
        "tally": tally,
        "flat": sum(group.spread <= least_spread for group in groups),
        "groups": len(groups),
        "cut": sum(answer.truncated for group in groups for answer in group.answers),
    }


def step_metrics(everyone: list[dict[str, Any]], names: list[str], recipe: RolloutRecipe) -> dict[str, float]:
    """Metrics of a step over all processes, each of which has `told`. names: of the reward's parts."""
    judged = np.concatenate([one["parts"] for one in everyone])
    metrics = {
        f"rewards/{name}/mean": float(np.nanmean(values))
        for name, values in zip(names, judged.T, strict=True)
        if np.isfinite(values).any()
    }
    seen = [one for each in everyone for one in each["tally"].seen]  # all that was sampled without help
    sums = {name: sum(getattr(one["tally"], name) for one in everyone) for name in Tally.__dataclass_fields__ if name != "seen"}
    metrics |= {
        "rollout/right": sum(right for _, right, *_ in seen) / max(1, sum(asked for _, _, asked, _ in seen)),
        "rollout/tokens": sums["tokens"],
        "rollout/groups_with_spread": sums["spread"],
        "rollout/share_with_spread": sums["spread"] / sum(one["groups"] for one in everyone),
        "rollout/share_without_spread": sum(one["flat"] for one in everyone) / sum(one["groups"] for one in everyone),
        "rollout/spread_per_1000_tokens": 1000 * sums["spread"] / max(1, sums["tokens"]),
        "rollout/truncated": sum(one["cut"] for one in everyone) / max(1, len(judged)),
    }
    if recipe.dynamic:
        metrics |= {"dynamic/foreseen": sums["foreseen"], "dynamic/extra_groups": sums["extra"]}
    if recipe.guided:
        metrics |= {"guided/groups": sums["guided"], "guided/solved": sums["solved"]}
    return metrics
