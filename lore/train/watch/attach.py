"""Adds periodic evaluation to a trainer: loads the probe's pairs, creates the callback and averages the rewards."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import WITHOUT_PHOTO
from lore.data.splits import read_split
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
    """Adds a ProbeCallback over `pairs` (from `probe_pairs`) to the trainer; call its `finish` after training.

    The Recorder has to run after it; `lore.train.common.trainer.train` adds the Recorder last. recipe: has .watch and .seed;
    rewards: None uses the default weights.
    """
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
    """The probe: a fixed set of labeled pairs, spread evenly over the file; empty if watch.every is 0.

    photos: load the photos. A judge that is trained without photos gets pairs without photos, so the rewards do not accept photo
    citations. Raises LoreError if the file has no labeled pair.
    """
    if not watch.every:
        return []
    path = watch.path or source.path
    labels = (pair.label for pair in read_split(path, watch.split, source.dealt, columns=["label"]))
    labeled = sum(label is not None for label in labels)
    if not labeled:
        raise LoreError(
            f"watch: {path} holds no labeled pair of split {watch.split}, so the judge cannot be evaluated during training.\n"
            "Set watch.path and watch.split to labeled pairs that are held out from training, or set watch.every: 0.",
            same_on_every_rank=True,
        )
    # Counts the pairs first and then streams them, because a file with many photos may not fit in memory.
    columns = None if photos else WITHOUT_PHOTO
    read = read_split(path, watch.split, source.dealt, columns=columns, image_roots=source.image_roots)
    pairs = (pair for pair in track(read, "reading the probe") if pair.label is not None)
    count = min(watch.pairs, labeled)
    chosen = {place * labeled // count for place in range(count)}
    return [pair for place, pair in enumerate(pairs) if place in chosen]


def mean_rewards(rewards: Rewards) -> Callable[[list[Pair], list[list[Answer]]], dict[str, float]]:
    """Returns a function (pairs, answers per pair) -> mean of each reward component, with the total under `reward`."""

    def mean(pairs: list[Pair], groups: list[list[Answer]]) -> dict[str, float]:
        answers = [answer for group in groups for answer in group]
        asked = [pair for pair, group in zip(pairs, groups, strict=True) for _ in group]
        parts = rewards.parts(answers, asked)
        if rewards.needs_probabilities:  # the probe computes none, so only format failures would count
            parts[:, rewards.names.index("calibration")] = np.nan
        columns = {"reward": rewards.totals(parts), **dict(zip(rewards.names, parts.T, strict=True))}
        return {name: float(np.nanmean(values)) for name, values in columns.items() if np.isfinite(values).any()}

    return mean
