"""What lies within a walk: by the streets of a town that was indexed with a street graph, else by the straight distance.

    lore nearby index places.csv --streets graph.graphml -o town.db

The graph is GraphML as osmnx saves it (`osmnx.save_graphml(osmnx.graph_from_place(..., network_type="walk"), ...)`): nodes with x
and y in degrees, edges with their length in metres, both directions open to walkers. osmnx itself is not needed: networkx reads the
file, scipy walks. A walk begins and ends at one of the nearest crossings, and the way to it is straight. Without a graph, a walk is
1.3 times the straight distance. Left out: walks that join a street between two crossings, stairs and slopes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from lore.nearby.retrieval import Reach
from lore.nearby.town import Town, check_point, on_sphere
from lore.places.walk import DETOUR, METRES_PER_MINUTE
from lore.support.errors import LoreError, reason

CROSSINGS = 3
"""Nearest crossings at which a walk may begin or end."""
NEXT_DOOR_METRES = 50.0
"""Between two crossings a walk may be shorter than by either of them."""
MAX_TO_STREET_METRES = 300.0
"""Farther from every crossing, the graph does not cover a point."""
MAX_OUTLINE_POINTS = 16
"""Points of an outline at which a walk may end."""
MAX_GRAPH_BYTES = 2**29


def within(town: Town, lat: float, lon: float, minutes: float) -> Reach:
    """Everything within a walk. By the straight distance if the town has no streets, or none near the point. Raises LoreError for
    coordinates out of range, and for minutes that are not above 0."""
    if not minutes > 0:
        raise LoreError(f"{minutes} minutes on foot reach nothing. Expected a number above 0, such as 15.")
    check_point(lat, lon)
    metres, streets = minutes * METRES_PER_MINUTE, _streets_of(town)
    by_streets = streets is not None and streets.covers(lat, lon)
    rows, straight = town.near(lat, lon, metres if by_streets else metres / DETOUR)  # no walk is shorter than straight
    walked = straight * DETOUR
    if by_streets:
        by_street = np.maximum(straight, streets.walks(town, lat, lon, rows, metres))
        walked = np.where(straight <= NEXT_DOOR_METRES, np.minimum(walked, by_street), by_street)
    order = np.argsort(walked, kind="stable")
    order = order[walked[order] <= metres]
    return Reach(rows[order], walked[order], walked[order] / METRES_PER_MINUTE, by_streets)


@lru_cache(maxsize=4)
def _streets_of(town: Town) -> Streets | None:
    arrays = [town.array(f"streets_{name}") for name in ("lats", "lons", "metres", "ends", "starts")]
    return None if arrays[0] is None else Streets(*arrays)


class Streets:
    """lats, lons (n,): crossings, in degrees. metres, ends, starts: lengths of the streets between two crossings, in the rows of a
    sparse matrix (n, n)."""

    def __init__(self, lats: np.ndarray, lons: np.ndarray, metres: np.ndarray, ends: np.ndarray, starts: np.ndarray):
        self._lengths = csr_array((metres, ends, starts), shape=(len(lats), len(lats)))
        self._crossings = cKDTree(on_sphere(lats, lons))

    def covers(self, lat: float, lon: float) -> bool:
        return bool(np.isfinite(self._nearest([lat], [lon])[0]).any())

    def _nearest(self, lats: np.ndarray, lons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metres to the nearest crossings (n, k), infinite beyond MAX_TO_STREET_METRES, and their numbers (n, k). Only crossings
        about as near as the nearest count: others may lie across a river."""
        points = on_sphere(np.asarray(lats), np.asarray(lons))
        metres, numbers = self._crossings.query(points, k=CROSSINGS, distance_upper_bound=MAX_TO_STREET_METRES)
        return np.where(metres <= 1.5 * metres[:, :1] + 10, metres, np.inf), numbers

    def walks(self, town: Town, lat: float, lon: float, rows: np.ndarray, most: float) -> np.ndarray:
        """Metres (n,) from a point to rows by the streets; infinite for a walk longer than `most`."""
        to_first, first = (one[0] for one in self._nearest([lat], [lon]))
        near = np.isfinite(to_first)
        walked = dijkstra(self._lengths, indices=first[near], limit=most) + to_first[near][:, None]
        walked = np.append(walked.min(axis=0), np.inf)  # the last for the crossing that a query does not find
        lats, lons, owners = town.lats[rows], town.lons[rows], np.arange(len(rows))
        if len(outlined := np.flatnonzero(town.outlined[rows])):
            points, starts = town.outlines(rows[outlined])
            sizes = np.diff(starts, append=len(points))
            steps = np.repeat(np.maximum(1, sizes // MAX_OUTLINE_POINTS), sizes)
            kept = (np.arange(len(points)) % steps == 0) & np.isfinite(points[:, 0])
            lats, lons = np.append(lats, points[kept, 0]), np.append(lons, points[kept, 1])
            owners = np.append(owners, np.repeat(outlined, sizes)[kept])
        to_last, last = self._nearest(lats, lons)
        found = np.full(len(rows), np.inf)
        np.minimum.at(found, owners, (walked[last] + to_last).min(axis=1))
        return found


def read_streets(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of a GraphML file for write_town. Raises LoreError for a file that is no street graph."""
    import networkx  # takes a second to load

    path = Path(path)
    if not path.is_file():
        raise LoreError(f"{path} does not exist. `osmnx.save_graphml` writes a street graph.")
    if (size := path.stat().st_size) > MAX_GRAPH_BYTES:
        raise LoreError(f"{path} has {size:,} bytes, and at most {MAX_GRAPH_BYTES:,} are read. Cut the town out of it.")
    try:
        graph = networkx.read_graphml(path)
        places = np.array([(float(node["y"]), float(node["x"])) for _, node in graph.nodes(data=True)]).reshape(-1, 2)
        number = {name: at for at, name in enumerate(graph)}
        ends = np.array([(number[a], number[b]) for a, b in graph.edges()]).reshape(-1, 2)
        metres = np.array([float(edge["length"]) for _, _, edge in graph.edges(data=True)])
    except (networkx.NetworkXError, SyntaxError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise LoreError(f"{path} is no street graph as osmnx saves it ({reason(error)}). Expected x, y and length.") from error
    if not len(ends) or not (np.abs(places) <= (90, 180)).all() or not (np.isfinite(metres) & (metres >= 0)).all():
        raise LoreError(f"{path} has no streets, or coordinates or lengths out of range. Expected degrees and metres.")
    both, twice = np.concatenate([ends, ends[:, ::-1]]), np.tile(np.maximum(metres, 0.01), 2)
    order = np.lexsort((twice, both[:, 1], both[:, 0]))
    both, twice = both[order], twice[order]
    shortest = np.append(True, (both[1:] != both[:-1]).any(axis=1))  # of several streets between two crossings
    graph = csr_array((twice[shortest], both[shortest].T), shape=(len(places), len(places)))
    arrays = {"lats": places[:, 0], "lons": places[:, 1], "metres": graph.data, "ends": graph.indices, "starts": graph.indptr}
    return {f"streets_{name}": value for name, value in arrays.items()}
