"""A street graph as osmnx saves it: a grid with a river and one bridge."""

import math

import networkx

from lore.nearby.town import METRES_PER_DEGREE

LAT, LON = 41.88, -87.63


def at(east, north):
    """Coordinates of metres east and north."""
    return LAT + north / METRES_PER_DEGREE, LON + east / METRES_PER_DEGREE / math.cos(math.radians(LAT))


def grid(path, size=11, block=100.0, bridge=5):
    """Streets every 100 m, with a river between the rows 5 and 6 that one bridge crosses; texts, as osmnx writes them."""
    graph = networkx.MultiDiGraph(crs="epsg:4326")
    for column in range(size):
        for row in range(size):
            lat, lon = at(column * block, row * block)
            graph.add_node(f"{column},{row}", x=str(lon), y=str(lat))
    for column in range(size):
        for row in range(size):
            for other in ((column + 1, row), (column, row + 1)):
                if max(other) < size and (other[1] == row or row != 5 or column == bridge):
                    graph.add_edge(f"{column},{row}", f"{other[0]},{other[1]}", length=str(block), oneway="True")
    graph.add_edge("0,0", "1,0", length="500")  # a second, longer street
    networkx.write_graphml(graph, path)
    return path
