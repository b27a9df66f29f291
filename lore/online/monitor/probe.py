"""The frozen probe set: the same pairs every night, so that whoever answers them differently has changed.

    lore monitor probe pairs.parquet -o probe/                                                  once
    lore label probe/pairs.parquet --judge runs/grpo --store none -o probe_judge/2026-11-30     every night
    lore label probe/pairs.parquet --judge student/  --store none -o probe_student/2026-11-30

`--store none` matters: a verdict store would answer from the first night.

The pairs are drawn in equal parts from all bands of query frequency and tiers, so that a judge that changes at one border is seen
on many pairs. Photos are frozen as bytes. A night is compared with the first one: the same weights and the same pairs give the same
tiers, except for what regrouped batches do to the last digits. `noise` is the share of pairs that may flip by that; a night on
which a binomial of this share would flip as many pairs with a smaller probability than that of one night is a change.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from lore.data.images import ImageError, image_bytes
from lore.data.pair import Pair
from lore.data.parquet import PairWriter, read_pairs
from lore.data.tables.parquet_files import open_parquet
from lore.label.read import opened_labels
from lore.online.monitor.charts import wilson
from lore.online.monitor.days import day_of, label_folders, read_label_folder
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.fingerprint import content_fingerprint
from lore.support.outputs import Output, begins_with
from lore.support.untrusted_json import read_object

PAIRS, ABOUT = "pairs.parquet", "probe.json"
MARK = '{\n "lore": "probe",'
KIND = b"lore.probe"
NO_TIER = "none"


def outputs(folder: Path) -> list[Output]:
    """The files of a probe set."""
    return [Output(folder / PAIRS, _is_probe), Output(folder / ABOUT, begins_with(MARK))]


def _is_probe(path: Path) -> bool:
    with open_parquet(path) as parquet:
        return KIND in (parquet.schema_arrow.metadata or {})


def freeze(source: str, folder: Path, count: int, band_of: Callable[[Pair], str], *, seed: int = 0) -> dict[str, Any]:
    """Draws `count` pairs and writes them. Returns what probe.json says. Which pairs are drawn depends on the seed and on their
    ids, not on their order. Raises LoreError if there are no pairs, or a photo cannot be read."""
    drawn: dict[tuple[str, str], list[tuple[int, str, Pair]]] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    for pair in read_pairs(source):
        stratum = (band_of(pair), pair.label or NO_TIER)
        sizes[stratum] += 1
        place = int.from_bytes(hashlib.blake2b(f"{seed}|{pair.pair_id}".encode(errors="surrogatepass"), digest_size=8).digest())
        kept = drawn.setdefault(stratum, [])
        entry = (-place, pair.pair_id, pair)
        if len(kept) < count:
            heapq.heappush(kept, entry)
        elif entry[:2] > kept[0][:2]:
            heapq.heapreplace(kept, entry)
    if not sizes:
        raise LoreError(f"{source} has no pairs, so there is nothing to freeze. Name pairs that the shop really shows.")
    shares = even_shares(sizes, count)
    metadata = {KIND.decode(): "1"}
    with PairWriter(folder / PAIRS, metadata=metadata) as writer:
        for stratum in sorted(drawn):
            for _, _, pair in heapq.nlargest(shares[stratum], drawn[stratum], key=lambda one: one[:2]):
                writer.write(_frozen(pair))
    about = {
        "lore": "probe",
        "pairs": writer.count,
        "fingerprint": content_fingerprint([folder / PAIRS]),
        "seed": seed,
        "from": str(source),
        "strata": [
            {"band": band, "tier": tier, "pairs": shares[band, tier], "of": size} for (band, tier), size in sorted(sizes.items())
        ],
    }
    write_atomic(folder / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return about


def even_shares(sizes: dict[Any, int], count: int) -> dict[Any, int]:
    """How many to take of each stratum: equally many, and all of one that is smaller."""
    shares, left = {}, min(count, sum(sizes.values()))
    for done, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        shares[name] = min(sizes[name], left // (len(sizes) - done))
        left -= shares[name]
    return shares


def _frozen(pair: Pair) -> Pair:
    if pair.image is None:
        return pair
    try:
        return replace(pair, image={"bytes": image_bytes(pair.image), "path": None})
    except ImageError as error:
        raise LoreError(
            f"The photo of pair {pair.pair_id} cannot be frozen: {error}.\nA probe has to stay readable, so repair the photo or "
            "leave the pair out."
        ) from error


@dataclass
class Probe:
    """A frozen probe set. labels: the raters' tier of each pair, None without."""

    folder: Path
    pair_ids: list[str]
    labels: list[str | None]
    fingerprint: str


def open_probe(folder: Path) -> Probe:
    """Raises LoreError if the pairs are not those that were frozen."""
    about = read_object(folder / ABOUT, "so it is unknown what was frozen.", "Freeze a probe set: lore monitor probe pairs -o DIR")
    found = content_fingerprint([folder / PAIRS])
    if found != about.get("fingerprint"):
        raise LoreError(
            f"{folder / PAIRS} has the fingerprint {found}, and {about.get('fingerprint')} was frozen: other pairs have other "
            "answers, so nights cannot be compared.\nRestore the file, or freeze a new probe set in another folder and start anew."
        )
    pairs = [(pair.pair_id, pair.label) for pair in read_pairs(str(folder / PAIRS))]
    return Probe(folder, [pair_id for pair_id, _ in pairs], [label for _, label in pairs], found)


@dataclass
class Night:
    """Answers to the probe on one night. flips: pairs with another tier than on the first night; moved: mean difference of a
    tier's probability; accuracy: share of the labels, with its interval; nan without labels."""

    day: int
    judge_ids: tuple[str, ...]
    answered: int
    flips: int
    pairs: int
    chance: float
    """Probability of as many flips by noise."""
    moved: float
    accuracy: float
    low: float
    high: float


@dataclass
class ProbeLine:
    """The nights of one judge or student on the probe. changed: first day on which it answers differently, None if it never did;
    why: in words."""

    who: str
    nights: list[Night]
    changed: int | None = None
    why: str = ""

    def was_asked(self, first: int, last: int) -> bool:
        """Whether a night lies between the days, after the night that all others are compared with."""
        return any(first <= night.day <= last for night in self.nights[1:])


def read_probe_line(who: str, probe: Probe, folder: Path, *, noise: float, chance: float, since: int | None = None) -> ProbeLine:
    """The nights of label folders that are named by days. chance: of a false alarm of one night."""
    nights: dict[int, dict[str, Any]] = {}
    tiers: list[str] | None = None
    for at in label_folders(folder):
        day = day_of(at.name)
        if day is None:
            raise LoreError(f"{at}: the night is unknown. Name the folder of a night by its day, such as {at.parent}/2026-11-30.")
        if since is not None and day < since:
            continue
        tiers = tiers or opened_labels(at).tier_ids
        nights[day] = read_label_folder(at, tiers)
    return probe_line(who, probe, nights, tiers or [], noise=noise, chance=chance)


def probe_line(
    who: str, probe: Probe, nights: dict[int, dict[str, Any]], tier_ids: list[str], *, noise: float, chance: float
) -> ProbeLine:
    """nights: by day, pair_id -> (tier from 0, probabilities or None, judge_id)."""
    line = ProbeLine(who, [])
    first: list[Any] | None = None
    for day, answers in sorted(nights.items()):
        found = [answers.get(pair_id, (-1, None, "")) for pair_id in probe.pair_ids]
        first = first or found
        night = _night(day, found, first, probe, tier_ids, noise)
        line.nights.append(night)
        before = line.nights[0]
        if line.changed is None and night.judge_ids and before.judge_ids and night.judge_ids != before.judge_ids:
            line.changed, line.why = day, f"its id is {_ids(night)}, and was {_ids(before)}"
        elif line.changed is None and night.chance < chance:
            line.changed = day
            line.why = f"{night.flips} of {night.pairs} frozen pairs have another tier than on the first night"
    return line


def _night(day: int, found: list[Any], first: list[Any], probe: Probe, tier_ids: list[str], noise: float) -> Night:
    pairs = len(found)
    flips = sum(one[0] != other[0] for one, other in zip(found, first, strict=True))
    both = [(one[1], other[1]) for one, other in zip(found, first, strict=True) if one[1] is not None and other[1] is not None]
    moved = float(np.abs(np.subtract(*zip(*both, strict=True))).mean()) if both else float("nan")
    rated = [
        tier_ids[one[0]] == label if one[0] >= 0 else False
        for one, label in zip(found, probe.labels, strict=True)
        if label is not None
    ]
    share = np.asarray([np.mean(rated) if rated else np.nan])
    low, high = wilson(share, np.asarray([float(len(rated))]))
    ids = tuple(sorted({one[2] for one in found if one[2]}))
    answered = sum(one[0] >= 0 for one in found)
    chance = float(binom.sf(flips - 1, pairs, noise))
    return Night(day, ids, answered, flips, pairs, chance, moved, float(share[0]), float(low[0]), float(high[0]))


def _ids(night: Night) -> str:
    return " and ".join(night.judge_ids)
