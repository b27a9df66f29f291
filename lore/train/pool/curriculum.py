"""Selects the rows of a pool for a later stage, orders them as a curriculum, and finds their pairs.

    rows = chosen_rows(section, seed, start.hashes["renderer_hash"], recipe.model)
    pairs = chosen_pairs(rows, PairSource(recipe.data, folder))

The selection depends only on the pool file, the section and the seed, so all processes of a launch select the same rows.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import WITHOUT_PHOTO
from lore.data.tables.ids import known_as
from lore.data.tables.parquet_files import open_parquet
from lore.engines.config import ModelSection
from lore.support.console import Console, Table
from lore.support.errors import LoreError, reason
from lore.support.fingerprint import model_fingerprint
from lore.support.processes import is_main_process, say
from lore.support.untrusted_json import parse_json
from lore.train.judge.image_store import photo_file, store_photos, with_stored_photos
from lore.train.pool.config import JUDGE, RENDERER, TIERS, PoolSection

NEEDED = ("pair_id", "label", "label_weight", "slices", "confidence", "pass_rate", "samples")


def read_pool(path: str | Path) -> pa.Table:
    """All rows of a pool.parquet, in order. Raises LoreError for a file that is missing, damaged or not a pool."""
    how = "A finished run of stage pool writes <run>/pool.parquet: run recipes/pool.yaml, or correct the path."
    if not Path(path).is_file():
        raise LoreError(f"pool.path {path} cannot be read: there is no such file, so there is nothing to choose from.\n{how}")
    with open_parquet(path, how) as file:
        table = file.read()
    if missing := [name for name in NEEDED if name not in table.column_names]:
        raise LoreError(
            f"pool.path {path} has no column {', '.join(missing)}, so it is not a pool; "
            f"found {', '.join(table.column_names[:20])}.\n"
            "Give the pool.parquet of a run of stage pool."
        )
    return table


def pool_tiers(table: pa.Table) -> list[str]:
    """Tier ids of the pool's rubric, worst first; empty if the file has no such metadata. Raises LoreError for damaged metadata."""
    try:
        tiers = parse_json((table.schema.metadata or {}).get(TIERS.encode(), b"[]"))
        if not isinstance(tiers, list) or not all(isinstance(tier, str) for tier in tiers):
            raise ValueError("no list of texts")
    except ValueError as error:
        raise LoreError(
            f"The pool's metadata {TIERS} is damaged ({reason(error)}), so its tiers are unknown.\nRun the pool again."
        ) from error
    return tiers


def check_pool_matches(table: pa.Table, path: str, renderer: str, model: ModelSection) -> None:
    """Raises LoreError if the pool's prompts were rendered differently. Warns if another judge answered."""
    held = (table.schema.metadata or {}).items()
    metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in held if key.startswith(b"lore.")}
    if metadata.get(RENDERER, renderer) != renderer:
        raise LoreError(
            f"pool.path {path} was asked with renderer {metadata[RENDERER]}, and this run asks with {renderer}: its answers "
            "belong to other prompts.\nUse the prompt section and rubric of the pool's recipe, or run the pool again with these."
        )
    if is_main_process() and JUDGE in metadata and metadata[JUDGE] != model_fingerprint(model.name, model.adapter):
        say(
            f"{path} was sampled from other weights than those of {model.adapter or model.name}. Unless both are the same judge, "
            "merged or moved, its pass rates and answers are those of another judge: run the pool again."
        )


def chosen_rows(section: PoolSection, seed: int, renderer: str, model: ModelSection) -> pa.Table:
    """The rows that `select` chooses. The main process prints a summary. renderer, model: those of this run, see
    `check_pool_matches`."""
    before = read_pool(section.path)
    check_pool_matches(before, section.path, renderer, model)
    rows = select(section, seed, before)
    describe(before, rows)
    return rows


def select(section: PoolSection, seed: int, pool: pa.Table | None = None) -> pa.Table:
    """The selected rows in the order of the curriculum. pool: the table at section.path, if it was read already.

    Applies the windows first, then samples rows: `balance` the same number from each tier or slice, `weighted` in proportion to
    label_weight, `limit` at most that many. Without `weighted` no row repeats. With it a row appears in proportion to its weight,
    rounded up or down, so some rows disappear and others repeat. Raises LoreError, with the number of rows that each window
    removed, when no row is left.
    """
    table = read_pool(section.path) if pool is None else pool
    index_N = _inside_windows(section, table)
    rng = np.random.default_rng([seed, 0x706F6F6C])
    weight_N = np.array([1.0 if weight is None else weight for weight in table["label_weight"].to_pylist()])
    if section.weighted and ((weight_N[index_N] < 0).any() or not weight_N[index_N].sum() > 0):
        raise LoreError(
            f"pool.weighted draws rows of {section.path} in proportion to label_weight, and these are "
            f"{'negative in some rows' if (weight_N[index_N] < 0).any() else 'all zero'}.\n"
            "Give the pairs weights above zero, or remove pool.weighted."
        )
    place_N = _places(section.slices, table)
    groups = _groups(section, table, index_N, place_N)
    wanted = len(index_N) if section.limit is None else min(section.limit, len(index_N))
    if section.balance != "none":
        share = min(len(group) for group in groups)
        wanted_each = share if section.limit is None else -(-section.limit // len(groups))
        drawn = [_draw(group, min(wanted_each, len(group)), weight_N, section.weighted, rng) for group in groups]
        index_N = _draw(np.concatenate(drawn), min(wanted, sum(map(len, drawn))), weight_N, False, rng)
    else:
        index_N = _draw(groups[0], wanted, weight_N, section.weighted, rng)
    return table.take(pa.array(_ordered(section, table, index_N, place_N)))


def _inside_windows(section: PoolSection, table: pa.Table) -> np.ndarray:
    """Numbers of the rows inside both windows."""
    kept_N, removed = np.ones(len(table), bool), []
    for name in ("confidence", "pass_rate"):
        window = getattr(section, name)
        if window is None:
            continue
        value_N = table[name].to_numpy(zero_copy_only=False).astype(float)
        inside_N = (value_N >= window[0]) & (value_N <= window[1])  # nan (an unreadable greedy answer) is outside every window
        removed.append(f"pool.{name} {list(window)} excludes {int((kept_N & ~inside_N).sum()):,}")
        kept_N &= inside_N
    if not kept_N.any():
        raise LoreError(
            f"No row of {section.path} is chosen: of {len(table):,} rows {' and '.join(removed) or 'there is none'}.\n"
            "Widen the windows; pool.md next to the pool shows the distribution of its rows."
        )
    return np.flatnonzero(kept_N)


def _places(slices: list[str], table: pa.Table) -> np.ndarray:
    """[N] position in `slices` of each row's first slice; len(slices) for a row without any."""
    places = []
    for has in table["slices"].to_pylist():
        places.append(min((slices.index(name) for name in has or [] if name in slices), default=len(slices)))
    return np.array(places, dtype=int)


def _groups(section: PoolSection, table: pa.Table, index_N: np.ndarray, place_N: np.ndarray) -> list[np.ndarray]:
    if section.balance == "none":
        return [index_N]
    key_N = np.array(table["label"].to_pylist()) if section.balance == "tier" else place_N
    return [index_N[key_N[index_N] == key] for key in np.unique(key_N[index_N])]


def _draw(index_N: np.ndarray, count: int, weight_N: np.ndarray, weighted: bool, rng: np.random.Generator) -> np.ndarray:
    """`count` random rows. weighted: systematic sampling, so a row appears count * weight / sum of weights times, rounded up or
    down."""
    shuffled = rng.permutation(index_N)
    if not weighted:
        return shuffled[:count]
    edges = np.cumsum(weight_N[shuffled])
    if not edges[-1] > 0:
        return shuffled[:0]
    points = (np.arange(count) + rng.random()) * edges[-1] / count
    return shuffled[np.minimum(np.searchsorted(edges, points, side="right"), len(shuffled) - 1)]


def _ordered(section: PoolSection, table: pa.Table, index_N: np.ndarray, place_N: np.ndarray) -> np.ndarray:
    """The rows in the order of the curriculum. index_N: in random order, which ties keep."""
    if section.order in ("easy_to_hard", "hard_to_easy"):
        rate_N = table["pass_rate"].to_numpy()[index_N]
        confidence_N = np.nan_to_num(table["confidence"].to_numpy(zero_copy_only=False).astype(float))[index_N]
        sign = -1 if section.order == "easy_to_hard" else 1
        return index_N[np.lexsort((sign * confidence_N, sign * rate_N))]
    if section.order == "slice":
        return index_N[np.argsort(place_N[index_N], kind="stable")]
    return index_N


def describe(before: pa.Table, after: pa.Table) -> list[dict[str, Any]]:
    """Prints and returns the selection by tier: rows before and after, their mean pass rates (nan without rows), and the number of
    distinct pairs."""
    labels = (np.array(before["label"].to_pylist()), np.array(after["label"].to_pylist()))
    rates = (before["pass_rate"].to_numpy(), after["pass_rate"].to_numpy())
    ids_N = np.array(after["pair_id"].to_pylist())
    rows = []
    for tier in [*(pool_tiers(before) or sorted(set(labels[0]))), "all"]:
        masks = [found == tier if tier != "all" else np.ones(len(found), bool) for found in labels]
        means = [float(rate[mask].mean()) if mask.any() else float("nan") for rate, mask in zip(rates, masks, strict=True)]
        rows.append(
            {
                "tier": tier,
                "before": int(masks[0].sum()),
                "after": int(masks[1].sum()),
                "pairs": len(set(ids_N[masks[1]])),
                "pass_rate_before": means[0],
                "pass_rate_after": means[1],
            }
        )
    if is_main_process():
        _print(rows)
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    shown = Table(title="selected from the pool", title_justify="left")
    for index, column in enumerate(("tier", "pool", "selected", "distinct pairs", "pass@1 of pool", "of selected")):
        shown.add_column(column, justify="right" if index else "left")
    for row in rows:
        rates = [f"{row[key]:.3f}" for key in ("pass_rate_before", "pass_rate_after")]
        shown.add_row(row["tier"], *(f"{row[key]:,}" for key in ("before", "after", "pairs")), *rates)
    Console().print(shown)


def chosen_pairs(table: pa.Table, source: PairSource, *, photos: bool = False) -> list[Pair]:
    """The pair of every row, in order; a repeated row repeats its pair.

    photos: adds the pairs' photos, from a file in the run folder that the main process writes and every process reads. Without it
    pairs have no photo, so a judge that is shown none is not rewarded for describing one.

    Raises LoreError when the data section lacks a pair of the pool, or has another label for it or another rubric.
    """
    data, known, tiers = source.section, source.rubric.tier_ids, pool_tiers(table)
    if tiers and tiers != known:
        raise LoreError(
            f"The pool was made with the tiers {', '.join(tiers)}, and data.rubric {data.rubric} has {', '.join(known)}.\n"
            "The two sets of verdicts have different meanings: use the rubric of the pool's recipe."
        )
    ids, labels = table["pair_id"].to_pylist(), table["label"].to_pylist()
    label_of = dict(zip(ids, labels, strict=True))
    found: dict[str, Pair] = {}
    for pair in _labeled_among(label_of, source, WITHOUT_PHOTO):
        found.setdefault(pair.pair_id, pair)
    if missing := [pair_id for pair_id in label_of if pair_id not in found]:
        raise LoreError(
            f"{len(missing):,} of {len(label_of):,} pairs of the pool are not among those of {data.path} "
            f"(the first one: {missing[0]}), so they have no text to train on.\n"
            "Use the data section of the pool's recipe: data.path, data.split, data.slices and data.limit."
        )
    if other := [pair_id for pair_id, label in label_of.items() if found[pair_id].label != label]:
        raise LoreError(
            f"{len(other):,} of {len(label_of):,} pairs have another label in {data.path} than in the pool (the first one: "
            f"{other[0]}, {label_of[other[0]]} in the pool and {found[other[0]].label} now).\n"
            "The pool's pass rates compare with the old labels: run the pool again on these pairs."
        )
    if photos:
        path = photo_file(source.folder)
        if is_main_process() and not path.is_file():
            store_photos(_labeled_among(label_of, source, ["label", "slices", "image"]), path)
        found = {pair.pair_id: pair for pair in with_stored_photos(found.values(), path)}
    return [found[pair_id] for pair_id in ids]


def _labeled_among(ids: Collection[str], source: PairSource, columns: list[str]) -> Iterator[Pair]:
    """The pairs with these ids, spelled as in the pool: an earlier version may have written it."""
    spelled = known_as(ids)
    for pair in source.labeled(columns=columns):
        pair.pair_id = spelled(pair.pair_id)
        if pair.pair_id in ids:
            yield pair
