"""What a map of a part of the town shows: outlines, places as points, and streets. Every reply is bounded: what is left out is
counted, and the same places are left out wherever the map is moved."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from lore.nearby.answer import shown
from lore.nearby.town import Town
from lore.places.place import parts
from lore.support.errors import LoreError
from lore.support.text import printable

MOST_OUTLINES, MOST_POINTS_OF_ONE, MOST_PLACES, MOST_STREETS = 200, 150, 700, 4000
LOOKS = ("natural", "waterway", "landuse", "leisure", "building")
"""Tags that say how an outline looks."""
SCATTER = 2_654_435_761
"""Knuth's multiplicative hash: an even sample of the rows."""


def read_box(text: str) -> tuple[float, float, float, float]:
    """(south, west, north, east) of `41.87,-87.64,41.89,-87.62`. Raises LoreError for anything else."""
    try:
        south, west, north, east = map(float, text.split(","))
    except ValueError:
        south = north = float("nan")
    if not south <= north:
        raise LoreError(f"{printable(text[:80])!r} is no box. Write south,west,north,east in degrees: 41.87,-87.64,41.89,-87.62.")
    return south, west, north, east


def map_shapes(town: Town, south: float, west: float, north: float, east: float) -> dict[str, Any]:
    """The shapes that touch a box, in degrees; see Town.in_box. Raises LoreError for coordinates out of range."""
    rows, kinds = town.in_box(south, west, north, east), _kinds(town)
    rows = rows[kinds[rows] != "post"]
    outlined = rows[town.outlined[rows]]
    largest = outlined[np.argsort(-_extents(town, outlined), kind="stable")[:MOST_OUTLINES]]
    others = rows[(kinds[rows] != "area") & ~np.isin(rows, largest)]
    points = others[np.argsort(others * SCATTER % 2**32)[:MOST_PLACES]]
    lines = _streets(town)
    near = (lines[:, [0, 2]].max(axis=1) >= south) & (lines[:, [0, 2]].min(axis=1) <= north)
    if west <= east:
        near &= (lines[:, [1, 3]].max(axis=1) >= west) & (lines[:, [1, 3]].min(axis=1) <= east)
    streets = lines[near]
    return {
        "outlines": [
            _named(town, row)
            | {"look": [f"{key}={place.tags[key]}" for key in LOOKS if key in place.tags]}
            | {"parts": [_thinned(part) for part in parts(place.outline or [])]}
            for row, place in zip(largest.tolist(), town.places(largest), strict=True)
        ],
        "places": [_named(town, row) | {"lat": float(town.lats[row]), "lon": float(town.lons[row])} for row in points.tolist()],
        "streets": np.round(streets[:MOST_STREETS], 6).tolist(),
        "left_out": {
            "outlines": len(outlined) - len(largest),
            "places": len(others) - len(points),
            "streets": max(0, len(streets) - MOST_STREETS),
        },
    }


def _named(town: Town, row: int) -> dict[str, Any]:
    return {"place_id": town.place_ids[row], "name": shown(town.names[row]), "classes": town.classes[row][:3]}


def _extents(town: Town, rows: np.ndarray) -> np.ndarray:
    """(n,) longer sides of the outlines, in degrees."""
    if not len(rows):
        return np.zeros(0)
    points, starts = town.outlines(rows)
    return (np.fmax.reduceat(points, starts) - np.fmin.reduceat(points, starts)).max(axis=1)


def _thinned(part: list[tuple[float, float]]) -> list[list[float]]:
    step = -(-len(part) // MOST_POINTS_OF_ONE)
    kept = part[:-1:step] + part[-1:]
    return [[round(lat, 6), round(lon, 6)] for lat, lon in kept]


@lru_cache(maxsize=4)
def _kinds(town: Town) -> np.ndarray:
    return np.array(town.kinds, dtype=np.str_)


@lru_cache(maxsize=4)
def _streets(town: Town) -> np.ndarray:
    """(m, 4) latitude and longitude of both ends of each street, the longest first."""
    arrays = [town.array(f"streets_{name}") for name in ("lats", "lons", "metres", "ends", "starts")]
    if arrays[0] is None:
        return np.empty((0, 4))
    lats, lons, metres, ends, starts = arrays
    begins = np.repeat(np.arange(len(lats)), np.diff(starts))
    once = np.flatnonzero(begins < ends)
    once = once[np.argsort(-metres[once], kind="stable")]
    a, b = begins[once], ends[once]
    return np.stack([lats[a], lons[a], lats[b], lons[b]], axis=1)
