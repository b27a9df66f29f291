from datetime import datetime

import numpy as np
import pytest

from lore.nearby.town import Town, write_town
from lore.places.place import Place
from lore.places.walk import haversine
from lore.support.errors import LoreError

PLACES = [
    Place("a", "Café A", 41.88, -87.63, classes=["amenity=cafe"], tags={"wifi": "yes"}, hours="Mo-Fr 08:00-18:00"),
    Place("b", "Jazz", 41.881, -87.63, kind="event", starts=datetime(2026, 1, 2, 20), ends=datetime(2026, 1, 3, 1), about="a"),
    Place("c", "River walk", 41.89, -87.62, kind="area", outline=[(41.88, -87.62), (41.9, -87.62)]),
]


def test_what_is_written_is_read_back(tmp_path):
    assert write_town(tmp_path / "town.db", PLACES, {"country": "US"}) == 3
    with Town.open(tmp_path / "town.db") as town:
        assert list(town.stream()) == PLACES and town.meta == {"country": "US"}
        assert town.row("b") == 1 and town.row("none") is None
        rows, metres = town.near(41.88, -87.63, 500)
        assert rows.tolist() == [0, 1] and metres[1] == pytest.approx(111.2, abs=0.1)


def test_a_repeated_id_leaves_the_file_that_was_there(tmp_path):
    write_town(tmp_path / "town.db", PLACES)
    with pytest.raises(LoreError, match="place_id a comes twice"):
        write_town(tmp_path / "town.db", [PLACES[0], PLACES[0]])
    assert [path.name for path in tmp_path.iterdir()] == ["town.db"] and len(Town.open(tmp_path / "town.db")) == 3


def test_another_file_is_no_town(tmp_path):
    (tmp_path / "town.db").write_text("places")
    with pytest.raises(LoreError, match="is no town"):
        Town.open(tmp_path / "town.db")


def test_haversine_across_the_date_line_and_at_the_pole():
    assert haversine(0, 179.5, np.array([0.0]), np.array([-179.5]))[0] == pytest.approx(111_195, abs=1)
    assert haversine(90, 10, np.array([89.0]), np.array([-100.0]))[0] == pytest.approx(111_195, abs=1)
