"""Files of places: tables, hstore tags, GeoJSON, Overpass JSON, .osm.pbf; bad rows are kept with reasons, good rows go on."""

import csv
import json
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lore.nearby.sources import MAX_POINTS, class_table, hstore, index_town
from lore.nearby.town import Town
from lore.places.place import parts
from lore.support.errors import LoreError

RING = [[-87.63, 41.88], [-87.62, 41.88], [-87.62, 41.89], [-87.63, 41.89], [-87.63, 41.88]]


def indexed(tmp_path, *files, **options):
    """{place_id: Place}, the report and the reasons by row of the rejected rows."""
    report = index_town(files, tmp_path / "town.db", **options)
    with Town.open(tmp_path / "town.db") as town:
        places = {one.place_id: one for one in town.stream()}
    kept = tmp_path / "town.rejected.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    return places, report, {row["row"]: (row["field"], row["reason"]) for row in rows}


def written(path: Path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_table_by_the_names_of_its_columns_and_its_bad_rows(tmp_path):
    rows = [
        {"id": 7, "name": "Café  Ñ", "lat": 41.88, "lon": "-87.63", "class": "amenity=cafe;shop=bakery", "wifi": "yes"},
        {"id": 8, "name": "Nowhere", "lat": 91, "lon": 0},
        {"id": 9, "name": "NaN", "lat": "nan", "lon": 0},
        {"id": 10, "lat": 41.88, "lon": -87.63},
        {"id": 7, "name": "Another", "lat": 41.88, "lon": -87.63},
        {"id": 11, "name": "x" * 301, "lat": 41.88, "lon": -87.63},
        {"id": 12, "name": "Back", "lat": 41.88, "lon": -87.63, "starts": "2026-01-02T20:00", "ends": "2026-01-02T19:00"},
        {"id": 13, "name": "Half \ud83d", "lat": 41.88, "lon": -87.63},
        {"id": 14, "name": "List", "lat": [41.88], "lon": -87.63},
        {"id": 15, "name": "Post", "lat": 41.88, "lon": -87.63, "kind": "advert"},
        {"id": 16, "name": "When", "lat": 41.88, "lon": -87.63, "starts": "tomorrow"},
        {"id": 17, "name": "No cell", "lon": -87.63},
        {"id": 7, "name": "Café  Ñ", "lat": 41.88, "lon": "-87.63", "class": "amenity=cafe;shop=bakery", "wifi": "yes"},
        {"name": "No id", "lat": -90, "lon": 180, "opening_hours": "24/7"},
    ]
    places, report, rejected = indexed(tmp_path, written(tmp_path / "places.jsonl", rows))
    assert list(places) == ["7", "places.jsonl#14"] and places["places.jsonl#14"].hours == "24/7"
    cafe = places["7"]
    assert (cafe.name, cafe.lat, cafe.lon, cafe.kind) == ("Café Ñ", 41.88, -87.63, "place")
    assert cafe.classes == ["amenity=cafe", "shop=bakery"] and cafe.tags == {"wifi": "yes"}
    assert rejected == {
        2: ("lat", "out_of_range"),
        3: ("lat", "out_of_range"),
        4: ("name", "name_and_class_empty"),
        5: ("place_id", "place_repeated"),
        6: ("name", "text_too_long"),
        7: ("ends", "ends_before_start"),
        8: ("name", "encoding"),
        9: ("lat", "out_of_range"),
        10: ("kind", "field_type"),
        11: ("starts", "field_type"),
        12: ("lat", "out_of_range"),
    }
    assert (report.rows, report.kept, report.duplicates, report.rejected_rows) == (14, 2, 1, 11)


def test_a_map_names_the_columns_of_a_parquet_file(tmp_path):
    cells = {"no": [1.0, 2.0], "titel": ["A", "B"], "y": [1.0, 2.0], "x": [3.0, 4.0], "art": ["cafe", None], "w": ["yes", ""]}
    table = pa.table(cells)
    pq.write_table(table, tmp_path / "t.parquet")
    mapped = "place_id=no,name=titel,lat=y,lon=x,classes=art,tags.internet_access=w"
    places, _, _ = indexed(tmp_path, tmp_path / "t.parquet", map=mapped)
    assert {key: (one.name, one.classes, one.tags) for key, one in places.items()} == {
        "1": ("A", ["cafe"], {"internet_access": "yes"}),
        "2": ("B", [], {}),
    }
    for wrong, said in (("nam=titel,name=titel,lat=y,lon=x", "'nam' is no field"), ("name=titel", "no column for lat")):
        with pytest.raises(LoreError, match=said):
            indexed(tmp_path, tmp_path / "t.parquet", map=wrong)
    with pytest.raises(LoreError, match="'title' is missing"):
        indexed(tmp_path, tmp_path / "t.parquet", map="name=title,lat=y,lon=x")


def test_posts_and_events_take_the_place_they_are_about(tmp_path):
    first = written(tmp_path / "a.jsonl", [{"id": "a", "name": "Hall", "lat": 41.88, "lon": -87.63}])
    rows = [
        {"id": "p", "kind": "post", "about": "a", "text": "Quiet in the morning."},
        {"id": "e", "name": "Jazz", "about": "a", "starts": "2026-01-03T02:00:00Z", "ends": "2026-01-02T23:00:00-06:00"},
        {"id": "q", "kind": "post", "about": "nothing", "text": "?"},
    ]
    second = written(tmp_path / "b.jsonl", rows)
    places, report, rejected = indexed(tmp_path, first, second, timezone="America/Chicago")
    assert (places["p"].lat, places["p"].kind, places["p"].text) == (41.88, "post", "Quiet in the morning.")
    assert (places["e"].kind, places["e"].starts, places["e"].ends) == ("event", datetime(2026, 1, 2, 20), datetime(2026, 1, 2, 23))
    assert rejected == {3: ("about", "about_unknown")}
    assert {kind: report.counts[kind] for kind in ("places", "posts", "events")} == {"places": 1, "posts": 1, "events": 1}
    assert indexed(tmp_path, first, second)[2][2] == ("starts", "field_type")  # the wall clock is not known
    with pytest.raises(LoreError, match="no time zone"):
        indexed(tmp_path, first, timezone="Chicago")


TEXT = st.text(max_size=20)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(TEXT, TEXT, max_size=5), st.integers(0, 40))
def test_hstore_text_is_read_and_its_cut_end_is_left_out(tags, cut):
    quoted = {name: [one.replace("\\", "\\\\").replace('"', '\\"') for one in (name, value)] for name, value in tags.items()}
    text = ",".join(f'"{name}"=>"{value}"' for name, value in quoted.values())
    assert hstore(text) == (tags, False)
    found, is_cut = hstore(text[: len(text) - cut])
    assert found.items() <= tags.items() and (is_cut or cut >= len(text) or text[len(text) - cut :][:1] in ("", ","))
    assert hstore('"a"=>NULL, "b" => "c"') == ({"b": "c"}, False)


def test_the_words_of_fclass_become_tags(tmp_path):
    rows = ["bar", "guesthouse", "bar;supermarket", "salon", " "]
    tags = ['"amenity"=>"cafe","opening_hours"=>"24/7","cut', "", "", "", ""]
    with open(tmp_path / "osm.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["osm_id", "name", "other_tags", "fclass", "lat", "lon"])
        table.writerows([at, f"N{at}", cell, word, 41, -87] for at, (cell, word) in enumerate(zip(tags, rows, strict=True)))
    places, report, _ = indexed(tmp_path, tmp_path / "osm.csv")
    expected = [["amenity=cafe"], ["tourism=guest_house"], ["amenity=bar", "shop=supermarket"], ["fclass=salon"], []]
    assert [one.classes for one in places.values()] == expected
    assert places["0"].hours == "24/7" and places["0"].tags == {"amenity": "cafe"}
    assert report.repairs == Counter({"tags cut off at the end of their text": 1})


def test_no_word_of_fclass_is_listed_twice():
    from importlib import resources

    import yaml

    table = yaml.safe_load(resources.files("lore.nearby").joinpath("fclass.yaml").read_text())
    words = [word.partition("=")[0] for listed in table["fclass"].values() for word in listed.split()]
    assert [word for word, times in Counter(words).items() if times > 1] == []
    assert set(table["fclass"]) <= {*class_table()[0]}


def test_geojson_with_all_its_geometries(tmp_path):
    hole = [[-87.628, 41.882], [-87.622, 41.882], [-87.622, 41.888], [-87.628, 41.888], [-87.628, 41.882]]
    across = [[[179.9, -17], [180, -17], [180, -16], [179.9, -16]], [[-180, -17], [-179.9, -17], [-179.9, -16], [-180, -16]]]
    geometries = {
        "point": {"type": "Point", "coordinates": [-87.63, 41.88, 180]},
        "points": {"type": "MultiPoint", "coordinates": [[-87.63, 41.88], [-87.61, 41.9]]},
        "line": {"type": "LineString", "coordinates": RING[:3]},
        "lines": {"type": "MultiLineString", "coordinates": [RING[:2], RING[2:4]]},
        "park": {"type": "Polygon", "coordinates": [RING, hole]},
        "fiji": {"type": "MultiPolygon", "coordinates": [[ring] for ring in across]},
        "both": {
            "type": "GeometryCollection",
            "geometries": [{"type": "Point", "coordinates": [0, 0]}, {"type": "LineString", "coordinates": RING[:2]}],
        },
        "none": None,
        "wrong": {"type": "Polygon", "coordinates": [[[-87, "x"], [200, 4], [1, 2]]]},
        "odd": {"type": "Circle", "coordinates": [1, 2]},
        "long": {"type": "LineString", "coordinates": [[0, 0]] * (MAX_POINTS + 1)},
    }
    features = [
        {"type": "Feature", "id": name, "geometry": geometry, "properties": {"name": name, "leisure": "park"}}
        for name, geometry in geometries.items()
    ]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    places, _, rejected = indexed(tmp_path, path)
    found = {name: (one.kind, [len(part) for part in parts(one.outline or [])]) for name, one in places.items()}
    assert found == {
        "point": ("place", []),
        "points": ("place", []),
        "line": ("place", [3]),
        "lines": ("place", [2, 2]),
        "park": ("area", [5, 5]),
        "fiji": ("area", [5, 5]),
        "both": ("place", [2]),
    }
    assert (places["points"].lat, places["points"].lon) == pytest.approx((41.89, -87.62))
    assert abs(places["fiji"].lon) == 180 and places["park"].classes == ["leisure=park"]
    assert rejected == {
        8: ("geometry", "field_type"),
        9: ("lat", "out_of_range"),
        10: ("geometry", "field_type"),
        11: ("outline", "outline_too_long"),
    }
    assert indexed(tmp_path, written(tmp_path / "a.jsonl", features[:2]))[0].keys() == {"point", "points"}


def test_overpass_json(tmp_path):
    elements = [
        {"type": "node", "id": 1, "lat": 41.88, "lon": -87.63, "tags": {"amenity": "cafe", "name": "A", "opening_hours": "24/7"}},
        {"type": "node", "id": 2, "lat": 41.88, "lon": -87.63},
        {"type": "way", "id": 1, "center": {"lat": 41.5, "lon": -87.5}, "tags": {"shop": "mall"}},
        {"type": "way", "id": 3, "geometry": [{"lat": lat, "lon": lon} for lon, lat in RING], "tags": {"leisure": "park"}},
        {"type": "way", "id": 4, "geometry": [{"lat": 0, "lon": 0}], "tags": {"highway": "residential", "name": "Road"}},
        {"type": "way", "id": 5, "tags": {"amenity": "bar"}},
        {"type": "node", "lat": 1, "lon": 1, "tags": {"amenity": "bar"}},
        7,
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 0.6, "elements": elements}))
    places, report, rejected = indexed(tmp_path, path)
    assert {name: (one.lat, one.lon, one.kind, one.classes, one.hours) for name, one in places.items()} == {
        "node/1": (41.88, -87.63, "place", ["amenity=cafe"], "24/7"),
        "way/1": (41.5, -87.5, "place", ["shop=mall"], None),
        "way/3": (pytest.approx(41.885), pytest.approx(-87.625), "area", ["leisure=park"], None),
    }
    assert report.left_out == 2 and rejected == {6: ("lat", "out_of_range"), 7: ("row", "field_type"), 8: ("row", "field_type")}


def test_osm_pbf(tmp_path, monkeypatch):
    osmium = pytest.importorskip("osmium")
    from osmium.osm.mutable import Node, Relation, Way

    path = tmp_path / "a.osm.pbf"
    with osmium.SimpleWriter(str(path)) as writer:
        for at, (lon, lat) in enumerate(RING[:4], 1):
            writer.add_node(Node(id=at, location=(lon, lat), version=1))
        writer.add_node(Node(id=5, location=(-87.625, 41.885), tags={"amenity": "cafe", "name": "Café"}, version=1))
        writer.add_way(Way(id=10, nodes=[1, 2, 3, 4, 1], tags={"leisure": "park"}, version=1))
        writer.add_way(Way(id=11, nodes=[1, 2, 3], tags={"highway": "residential", "name": "Road"}, version=1))
        writer.add_way(Way(id=12, nodes=[1, 2, 3], tags={"tourism": "attraction"}, version=1))
        writer.add_way(Way(id=13, nodes=[3, 4, 1], version=1))
        tags = {"type": "multipolygon", "place": "neighbourhood", "name": "Hood"}
        writer.add_relation(Relation(id=20, members=[("w", 12, "outer"), ("w", 13, "outer")], tags=tags, version=1))
    places, _, rejected = indexed(tmp_path, path)
    assert {name: (one.kind, one.classes, len(one.outline or [])) for name, one in places.items()} == {
        "node/5": ("place", ["amenity=cafe"], 0),
        "way/12": ("place", ["tourism=attraction"], 3),
        "way/10": ("area", ["leisure=park"], 5),
        "relation/20": ("area", ["place=neighbourhood"], 5),
    }
    assert not rejected
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LoreError, match="damaged"):
        indexed(tmp_path, path)
    monkeypatch.setitem(sys.modules, "osmium", None)
    with pytest.raises(LoreError, match=r"pip install 'lore-relevance\[nearby-osm\]'"):
        indexed(tmp_path, path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", "[1]"), ("a.json", '{"a": 1}'), ("a.geojson", "{"), ("a.json", "[" * 100_000), ("a.csv", "a,b\n1,2\n")],
)
def test_other_files_are_an_error_and_leave_the_town_that_was_there(tmp_path, name, text):
    indexed(tmp_path, written(tmp_path / "ok.jsonl", [{"id": "a", "name": "Hall", "lat": 41.88, "lon": -87.63}]))
    before = (tmp_path / "town.db").read_bytes()
    (tmp_path / name).write_text(text)
    with pytest.raises(LoreError):
        index_town([tmp_path / name], tmp_path / "town.db")
    assert (tmp_path / "town.db").read_bytes() == before
    with pytest.raises(LoreError, match="does not exist"):
        index_town([tmp_path / "none.csv"], tmp_path / "town.db")


@pytest.mark.parametrize(
    ("city", "places", "classes"),
    [
        ("Chicago-2020", 6157, 0.98),
        pytest.param("DC-2017", 10108, 0.98, marks=pytest.mark.slow),
        pytest.param("NYC-2017", 10018, 0.98, marks=pytest.mark.slow),
    ],
)
def test_real_places(public_data, tmp_path, city, places, classes):
    report = index_town([public_data / "osm_poi" / f"{city}.csv"], tmp_path / "t.db", country="US")
    with Town.open(tmp_path / "t.db") as town:
        known = sum(any("=" in one and not one.startswith("fclass=") for one in listed) for listed in town.classes)
        print(f"{city}: {len(town):,} places, {known / len(town):.1%} with a known class, {report.counts['with hours']} with hours")
        assert len(town) == places and known / len(town) > classes
        assert town.meta == {"country": "US", "timezone": None, "encoder": None, "sources": [f"{city}.csv"]}
