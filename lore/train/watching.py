"""Puts a training run under watch: the probe's pairs, the callback, and what answers are worth to the rewards."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lore.errors import LoreError
from lore.folder import RunFolder
from lore.judgement import PromptFormat
from lore.pairs import Pair, read_pairs
from lore.progress import track
from lore.recipe import DataSection
from lore.rubric import Rubric
from lore.sources import materialise
from lore.train.probe import ProbeCallback
from lore.train.rewards import Answer, Rewards
from lore.train.watch_config import WatchSection


def probe_of(
    watch: WatchSection,
    data: DataSection,
    folder: RunFolder,
    rubric: Rubric,
    fmt: PromptFormat,
    processor: Any,
    seed: int,
    **options: Any,
) -> ProbeCallback:
    """The callback of a recipe's watch. options: of ProbeCallback."""
    pairs = probe_pairs(watch, data, folder) if watch.every else []
    return ProbeCallback(watch, folder, pairs, rubric, fmt, processor, seed, **options)


def watched(probe: ProbeCallback, trainer: Any) -> None:
    """Hands the trainer its watch. The Recorder comes after it: `lore.train.loop.train` adds it last."""
    probe.trainer = trainer
    trainer.add_callback(probe)


def probe_pairs(watch: WatchSection, data: DataSection, folder: RunFolder) -> list[Pair]:
    """The fixed pairs of the watch: spread evenly over its file. Raises LoreError where there is none with a label."""
    path = watch.path or materialise(data, folder)
    pairs = [pair for pair in track(read_pairs(path, split=watch.split), "reading the probe") if pair.label is not None]
    if not pairs:
        raise LoreError(
            f"watch: {path} holds no labelled pair of split {watch.split}, so nothing can be watched.\n"
            "Give watch.path and watch.split of pairs that are not trained on, or watch.every: 0."
        )
    return pairs[:: max(1, len(pairs) // watch.pairs)][: watch.pairs]


def mean_rewards(rewards: Rewards) -> Callable[[list[Pair], list[list[Answer]]], dict[str, float]]:
    """Mean of each reward part, and of the total under `reward`, over the answers to pairs."""

    def mean(pairs: list[Pair], groups: list[list[Answer]]) -> dict[str, float]:
        answers = [answer for group in groups for answer in group]
        asked = [pair for pair, group in zip(pairs, groups, strict=True) for _ in group]
        parts = rewards.parts(answers, asked)
        columns = {"reward": rewards.totals(parts), **dict(zip(rewards.names, parts.T, strict=True))}
        return {name: float(np.nanmean(values)) for name, values in columns.items() if np.isfinite(values).any()}

    return mean
