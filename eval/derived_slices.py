"""Slices derived from a pair's other fields, for kinds of slices that the data does not define itself."""

import re
from collections.abc import Sequence

import numpy as np

PARTS = ("head", "middle", "tail")
LEVELS = re.compile(r"[>/|›»]")


def derived_slices(
    slices: Sequence[list[str]],
    queries: Sequence[str],
    frequencies: Sequence[float | None],
    categories: Sequence[str | None],
    mismatches: Sequence[str | None],
) -> list[list[str]]:
    """Adds slices of the missing kinds to each pair: `frequency:head`, `frequency:middle` and `frequency:tail`,
    `industry:<first level of the category>`, and `dimension:<mismatch>`. Every argument has one entry per pair. If any pair
    already has a slice of a kind, that kind is not derived. Pairs in the same slices share one list."""
    kinds = {name.partition(":")[0] for names in {tuple(names) for names in slices} for name in names if ":" in name}
    columns: list[Sequence[str | None]] = []
    if "frequency" not in kinds:
        columns.append(frequency_parts(queries, frequencies))
    if "industry" not in kinds:
        columns.append([_named("industry", category and LEVELS.split(category, maxsplit=1)[0].strip()) for category in categories])
    if "dimension" not in kinds:
        columns.append([_named("dimension", mismatch) for mismatch in mismatches])
    one: dict[tuple[str, ...], list[str]] = {}
    found = []
    for names, *added in zip(slices, *columns, strict=True):
        whole = (*names, *filter(None, added))
        found.append(one.setdefault(whole, list(whole)))
    return found


def frequency_parts(queries: Sequence[str], frequencies: Sequence[float | None]) -> list[str | None]:
    """`frequency:head` for the most frequent queries that make up the first third of the traffic, `frequency:middle` for the
    second third, `frequency:tail` for the rest. None for a query of unknown frequency, and for all if all frequencies are
    equal."""
    traffic: dict[str, float] = {}
    for query, frequency in zip(queries, frequencies, strict=True):
        if frequency is not None and frequency > traffic.get(query, 0.0):
            traffic[query] = frequency
    # Queries of equal frequency go into the same part: their order carries no information.
    levels, queries_at = np.unique(np.asarray(list(traffic.values())), return_counts=True)
    if len(levels) < 2:
        return [None] * len(queries)
    thirds = traffic_thirds(levels, queries_at)
    part_of = {level: f"frequency:{PARTS[third]}" for level, third in zip(levels.tolist(), thirds, strict=True)}
    return [part_of.get(traffic.get(query)) for query in queries]


def traffic_thirds(levels: np.ndarray, queries_at: np.ndarray) -> np.ndarray:
    """[L] third of the traffic for each frequency, 0 for the most frequent queries. levels: different frequencies, ascending;
    queries_at: number of queries of each. A frequency whose queries reach over the end of a third belongs to the earlier one."""
    mass = (levels * queries_at)[::-1]
    before = np.cumsum(mass) - mass
    return np.minimum(3 * before / mass.sum(), 2).astype(int)[::-1]


def _named(kind: str, value: str | None) -> str | None:
    return f"{kind}:{value}" if value else None
