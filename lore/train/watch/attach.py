"""Puts a training run under watch: the probe's pairs, the callback, and what answers are worth to the rewards."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import WITHOUT_PHOTO, read_pairs
from lore.judge.answer import Answer
from lore.rewards.config import RewardsSection
from lore.rewards.reward import Rewards
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.progress import track
from lore.train.judge.session import Start
from lore.train.watch.callback import ProbeCallback
from lore.train.watch.config import WatchSection


def watched(
    trainer: Any,
    recipe: Any,
    folder: RunFolder,
    start: Start,
    pairs: list[Pair],
    *,
    title: str,
    max_tokens: int,
    rewards: Rewards | None = None,
) -> ProbeCallback:
    """Puts a trainer under its recipe's watch over `probe_pairs`; call `finish` of what it returns after training. The Recorder
    comes after it: `lore.train.common.trainer.train` adds it last. recipe: .watch .seed; rewards: none takes those of an empty section."""
    rewards = rewards or Rewards(RewardsSection(), start.rubric, start.fmt)
    probe = ProbeCallback(
        recipe.watch,
        folder,
        pairs,
        start.rubric,
        start.fmt,
        start.processor,
        recipe.seed,
        title=title,
        max_tokens=max_tokens,
        rewards=mean_rewards(rewards),
        card=start.card,
    )
    probe.trainer = trainer
    trainer.add_callback(probe)
    return probe


def probe_pairs(watch: WatchSection, source: PairSource, *, photos: bool) -> list[Pair]:
    """The fixed pairs of the watch: spread evenly over its file; none where it is off. Raises LoreError where there is none
    with a label. photos: with theirs; a judge that is shown none gets pairs without, as in training: no reward for what it says
    to see."""
    if not watch.every:
        return []
    path = watch.path or source.path
    labels = (pair.label for pair in read_pairs(path, split=watch.split, columns=["label"]))
    labelled = sum(label is not None for label in labels)
    if not labelled:
        raise LoreError(
            f"watch: {path} holds no labelled pair of split {watch.split}, so nothing can be watched.\n"
            "Give watch.path and watch.split of pairs that are not trained on, or watch.every: 0.",
            same_on_every_rank=True,
        )
    # A file of many photos is never in memory: the pairs are counted first, then taken as they stream by.
    read = read_pairs(path, split=watch.split, columns=None if photos else WITHOUT_PHOTO)
    pairs = (pair for pair in track(read, "reading the probe") if pair.label is not None)
    count = min(watch.pairs, labelled)
    chosen = {place * labelled // count for place in range(count)}
    return [pair for place, pair in enumerate(pairs) if place in chosen]


def mean_rewards(rewards: Rewards) -> Callable[[list[Pair], list[list[Answer]]], dict[str, float]]:
    """Mean of each reward part, and of the total under `reward`, over the answers to pairs."""

    def mean(pairs: list[Pair], groups: list[list[Answer]]) -> dict[str, float]:
        answers = [answer for group in groups for answer in group]
        asked = [pair for pair, group in zip(pairs, groups, strict=True) for _ in group]
        parts = rewards.parts(answers, asked)
        if rewards.needs_probabilities:  # which the probe's answers have not: it would judge those without a verdict alone
            parts[:, rewards.names.index("calibration")] = np.nan
        columns = {"reward": rewards.totals(parts), **dict(zip(rewards.names, parts.T, strict=True))}
        return {name: float(np.nanmean(values)) for name, values in columns.items() if np.isfinite(values).any()}

    return mean
