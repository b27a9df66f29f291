"""`lore nearby index`: the summary, the report as JSON, and errors before any work."""

import json

import pytest
from nearby_streets_for_tests import grid

from lore.nearby.streets import within
from lore.nearby.town import Town

ROWS = """place_id,name,lat,lon,amenity,opening_hours
1,Café,41.88,-87.63,cafe,24/7
2,Nowhere,91,0,bar,
3,\x1b[31mRed,41.88,-87.63,bar,
"""


@pytest.fixture
def places(tmp_path):
    (tmp_path / "places.csv").write_text(ROWS)
    return tmp_path / "places.csv"


def test_the_summary_counts_rows_and_shows_what_was_rejected(lore, tmp_path, places):
    done = lore("nearby", "index", places, "-o", tmp_path / "town.db", "--country", "us")
    assert done.returncode == 0, done.stderr
    for line in ("rows read", "town", "rows rejected", "out_of_range", "place_id from place_id"):
        assert line in done.stdout
    assert "found '91', expected degrees from -90 to 90" in done.stdout.replace("\n", " ")
    with Town.open(tmp_path / "town.db") as town:
        assert town.meta["country"] == "US" and town.classes == [["amenity=cafe"], ["amenity=bar"]] and town.hours == ["24/7", None]
    report = json.loads(lore("nearby", "index", places, "-o", tmp_path / "town.db", "--json").stdout)
    assert (report["rows"], report["town"], report["reasons"]) == (3, 2, {"out_of_range": 1})


def test_a_town_with_streets_walks_by_them(lore, tmp_path, places):
    grid(tmp_path / "graph.graphml")
    done = lore("nearby", "index", places, "-o", tmp_path / "town.db", "--streets", tmp_path / "graph.graphml")
    assert done.returncode == 0, done.stderr
    with Town.open(tmp_path / "town.db") as town:
        assert within(town, 41.88, -87.63, 5).by_streets


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--country", "XX"], "no known public holidays"),
        (["--timezone", "Mars/Base"], "no time zone"),
        (["--streets", "none.graphml"], "does not exist"),
        (["--map", "name=nme,lat=lat,lon=lon"], "column 'nme' is missing"),
    ],
)
def test_a_wrong_option_is_an_error_and_writes_nothing(lore, tmp_path, places, options, said):
    done = lore("nearby", "index", places, "-o", tmp_path / "town.db", *options)
    assert done.returncode == 1 and said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["places.csv"]
