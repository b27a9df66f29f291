"""A circle holds what brute force finds: across the date line, at the poles, and with outlines."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lore.nearby.town import Town, outline_metres, write_town
from lore.places.place import Place, parts
from lore.places.walk import haversine
from lore.support.errors import LoreError

NAN = (math.nan, math.nan)
LATS = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, -89.999, 0.0, 89.99, 90.0]))
LONS = st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, -179.99, 0.0, 179.99, 180.0]))
METRES = st.one_of(st.floats(0, 3000), st.floats(0, 25_000), st.floats(0, 2.1e7))


def square(lat, lon, half, closed=True):
    """About `half` degrees to each side, in metres the same at every latitude below 80 degrees."""
    wide = half / math.cos(math.radians(lat))
    ring = [(lat + y * half, (lon + x * wide + 540) % 360 - 180) for y, x in ((-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1))]
    return ring if closed else ring[:3]


@st.composite
def towns(draw):
    """Points close to each other, and outlines of up to 10 km, anywhere on Earth."""
    lat, lon = draw(LATS), draw(LONS)
    places = []
    for at in range(draw(st.integers(1, 12))):
        far = draw(st.sampled_from([1e-5, 0.01, 0.1, 3.0]))
        here = max(-90, min(90, lat + far * draw(st.floats(-1, 1)))), (lon + far * draw(st.floats(-1, 1)) + 540) % 360 - 180
        outline = None
        if abs(here[0]) < 80 and draw(st.booleans()):
            outline = square(*here, draw(st.floats(1e-4, 0.05)), draw(st.booleans()))
        places.append(Place(str(at), "x", *here, outline=outline))
    return lat, lon, places


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(towns(), METRES)
def test_a_circle_is_what_brute_force_finds(tmp_path_factory, made, metres):
    lat, lon, places = made
    path = tmp_path_factory.getbasetemp() / "circle.db"
    write_town(path, places)
    expected = []
    for place in places:
        if place.outline:
            points = np.array([*place.outline, NAN])
            expected.append(outline_metres(lat, lon, points, np.array([0]))[0])
        else:
            expected.append(haversine(lat, lon, np.array([place.lat]), np.array([place.lon]))[0])
    with Town.open(path) as town:
        rows, distances = town.near(lat, lon, metres)
    assert set(rows.tolist()) == {row for row, one in enumerate(expected) if one <= metres}
    assert distances.tolist() == pytest.approx(sorted(one for one in expected if one <= metres))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(-79, 79), LONS, st.floats(1e-4, 0.05), st.floats(-1, 1), st.floats(-1, 1))
def test_the_distance_to_an_outline_is_that_to_its_nearest_point(lat, lon, half, y, x):
    """Compared with the points of a square's edges, one every ten thousandth, and with its sides."""
    ring = square(lat, lon, half)
    here = max(-90, min(90, lat + 3 * half * y)), (lon + 3 * half * x / math.cos(math.radians(lat)) + 540) % 360 - 180
    (found,) = outline_metres(*here, np.array([*ring, NAN]), np.array([0]))
    if abs(y) < 0.33 and abs(x) < 0.33:
        assert found == 0
    elif abs(y) > 0.34 or abs(x) > 0.34:
        steps = np.linspace(0, 1, 1001)
        edges = [[(a[k] + ((b[k] - a[k] + 540) % 360 - 180) * steps) for k in (0, 1)] for a, b in zip(ring, ring[1:], strict=False)]
        dense = min(haversine(*here, lats, lons).min() for lats, lons in edges)
        assert found == pytest.approx(dense, abs=max(12, 0.002 * dense))  # a parallel is no great circle, and half a step


def test_holes_parts_lines_and_a_ring_around_the_pole():
    ring, hole = square(41.9, -87.6, 0.02), square(41.9, -87.6, 0.01)
    other = square(42.0, -87.6, 0.02)
    points = np.array([*ring, NAN, *hole, NAN, *other, NAN])
    inside, in_hole, in_other = (outline_metres(lat, -87.6, points, np.array([0]))[0] for lat in (41.915, 41.9, 42.0))
    assert inside == in_other == 0 and in_hole == pytest.approx(1112, abs=2)
    line = np.array([*square(41.9, -87.6, 0.02, closed=False), NAN])
    assert outline_metres(41.9, -87.61, line, np.array([0]))[0] > 1000  # within the line's box, but a line has no inside
    pole = np.array([(80.0, 0.0), (80.0, 120.0), (80.0, -120.0), (80.0, 0.0), NAN])
    assert outline_metres(90, 0, pole, np.array([0]))[0] == 0
    assert [len(one) for one in parts([*ring, NAN, *hole])] == [5, 5]


def test_areas_hold_a_point_and_circles_reach_outlines(tmp_path):
    places = [
        Place("hood", "Wicker Park", 41.9, -87.6, "area", outline=square(41.9, -87.6, 0.02)),
        Place("lake", "Lake", 41.9, -87.6, "area", outline=[*square(41.9, -87.6, 0.02), NAN, *square(41.9, -87.6, 0.01)]),
        Place("path", "Trail", 41.9, -87.6, "area", outline=square(41.9, -87.6, 0.02, closed=False)),
        Place("cafe", "Café", 41.9, -87.6),
        Place("far", "Fiji", -17.0, 179.9, "area", outline=square(-17.0, 180.0, 0.5)),
        Place("pole", "Pole", 90.0, 0.0, "area", outline=[(80.0, 0.0), (80.0, 120.0), (80.0, -120.0), (80.0, 0.0)]),
    ]
    write_town(tmp_path / "t.db", places)
    with Town.open(tmp_path / "t.db") as town:
        points = (41.9, -87.6), (41.915, -87.6), (-17, -179.8), (89, 90)
        found = [{town.place_ids[row] for row in town.areas(*at)} for at in points]
        assert found == [{"hood"}, {"hood", "lake"}, {"far"}, {"pole"}]
        rows, metres = town.near(41.9, -87.6, 1200)
        assert dict(zip((town.place_ids[row] for row in rows), metres.round(), strict=True)) == {"hood": 0, "cafe": 0, "lake": 1112}
        assert [len(list(parts(one.outline))) for one in town.places([1, 0])] == [2, 1]


@pytest.mark.parametrize("at", [(91, 0), (0, 181), (math.nan, 0), (0, math.inf), (-90.0001, 0)])
def test_coordinates_out_of_range_are_an_error_that_names_them(tmp_path, at):
    write_town(tmp_path / "t.db", [Place("a", "A", 0, 0)])
    with Town.open(tmp_path / "t.db") as town, pytest.raises(LoreError, match="expected a latitude"):
        town.near(*at, 100)


def test_vectors_arrays_and_posts_come_back_by_row(tmp_path):
    places = [Place(str(at), "x", 0.0, 0.0, about="7" if at > 2000 else None) for at in range(2100)]
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2100, 8)).astype(np.float16)
    parts = iter(np.split(vectors, [1024, 2048]))
    write_town(tmp_path / "t.db", places, encode=lambda chunk: next(parts).astype(np.float32), arrays={"mine": np.arange(5)})
    with Town.open(tmp_path / "t.db") as town:
        assert np.array_equal(town.vectors, vectors)
        assert town.array("mine").tolist() == [0, 1, 2, 3, 4] and town.array("other") is None
        assert town.about([7, 8]) == {7: list(range(2001, 2100))}
        assert [one.place_id for one in town.places([2050, 3])] == ["2050", "3"]
