"""Walks by a street graph, and by the straight distance without one."""

import math

import networkx
import numpy as np
import pytest
from nearby_streets_for_tests import at, grid

from lore.nearby.streets import read_streets, within
from lore.nearby.town import Town, write_town
from lore.places.place import Place
from lore.places.walk import DETOUR, METRES_PER_MINUTE
from lore.support.errors import LoreError


@pytest.fixture
def town(tmp_path):
    places = [
        Place("start", "Start", *at(0, 500)),
        Place("bank", "Across the river", *at(0, 600)),
        Place("east", "East", *at(300, 500)),
        Place("door", "Next door", *at(45, 500)),
        Place("park", "Park", *at(-400, 500), outline=[at(x, y) for x, y in ((-900, 0), (-3, 0), (-3, 1000), (-900, 0))]),
        Place("inside", "Around the start", *at(0, 500), outline=[at(x, y) for x, y in ((-5, 495), (5, 495), (0, 510), (-5, 495))]),
        Place("field", "Off the streets", *at(-500, 500)),
    ]
    write_town(tmp_path / "with.db", places, arrays=read_streets(grid(tmp_path / "graph.graphml")))
    write_town(tmp_path / "without.db", places)
    with Town.open(tmp_path / "with.db") as streets, Town.open(tmp_path / "without.db") as straight:
        yield streets, straight


def named(town, reach):
    return {town.place_ids[row]: metres for row, metres in zip(reach.rows, reach.metres, strict=True)}


def test_a_walk_goes_over_the_bridge(town):
    streets, straight = town
    reach = within(streets, *at(0, 500), 15)
    found = named(streets, reach)
    assert reach.by_streets and found == {
        "start": pytest.approx(0, abs=0.5),
        "inside": 0,
        "door": pytest.approx(45, abs=0.5),
        "park": pytest.approx(3 * DETOUR, abs=0.5),
        "east": pytest.approx(300, abs=1),
        "bank": pytest.approx(1100, abs=2),  # 500 m east, the bridge, and back
    }
    assert np.allclose(reach.minutes, reach.metres / METRES_PER_MINUTE) and (np.diff(reach.metres) >= 0).all()
    assert "bank" not in named(streets, within(streets, *at(0, 500), 13))
    assert "east" in named(streets, within(streets, *at(0, 500), 4))
    reach = within(straight, *at(0, 500), 15)
    assert not reach.by_streets and named(straight, reach)["bank"] == pytest.approx(100 * DETOUR, abs=0.5)
    assert named(straight, reach).keys() == found.keys() | {"field"}


def test_where_the_graph_does_not_reach_the_straight_distance_counts(town):
    streets, _ = town
    reach = within(streets, *at(-500, 500), 15)
    assert not reach.by_streets and {"field", "start", "park"} <= named(streets, reach).keys()


def test_by_streets_nothing_is_nearer_than_straight(town):
    streets, straight = town
    for east, north in ((0, 0), (250, 730), (500, 560), (990, 1000)):
        by_streets, by_air = (named(one, within(one, *at(east, north), 120)) for one in town)
        assert all(metres >= by_air[name] / DETOUR - 1e-6 for name, metres in by_streets.items())


def test_values_out_of_range_are_errors(town):
    for values in ((91, 0, 15), (math.nan, 0, 15), (0, 181, 15), (0, 0, 0), (0, 0, -1), (0, 0, math.nan)):
        for one in town:
            with pytest.raises(LoreError, match="Expected|expected"):
                within(one, *values)


LAUGHS = "<!DOCTYPE a [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {name} '{f'&{before};' * 10}'>" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", ["", "streets", "<graphml/>", f"{LAUGHS}]><graphml>&i;</graphml>"])
def test_another_file_is_no_street_graph(tmp_path, text):
    (tmp_path / "g.graphml").write_text(text)
    with pytest.raises(LoreError, match="street"):
        read_streets(tmp_path / "g.graphml")


@pytest.mark.parametrize(
    ("node", "length"),
    [({"x": "200", "y": "0"}, "1"), ({"x": "0"}, "1"), ({"x": "0", "y": "0"}, "nan"), ({"x": "0", "y": "0"}, "-1")],
)
def test_coordinates_and_lengths_out_of_range_are_an_error(tmp_path, node, length):
    graph = networkx.MultiDiGraph()
    graph.add_node("a", x="0", y="0")
    graph.add_node("b", **node)
    graph.add_edge("a", "b", length=length)
    networkx.write_graphml(graph, tmp_path / "g.graphml")
    with pytest.raises(LoreError, match="x, y and length|out of range"):
        read_streets(tmp_path / "g.graphml")
