import json
import logging
import math
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

from lore.cli.nearby_recommend import recommend as command
from lore.nearby.familiarity import CognitiveMap, fit_exponents, meanings, recommend, score, tf_iwf, time_weights
from lore.nearby.town import Town, write_town
from lore.nearby.visits import Visits, days_of, forget_profile, read_visits, write_profile
from lore.places.place import Place
from lore.support.errors import LoreError

HERE = 41.88, -87.63
NOON = datetime(2026, 6, 1, 12)
PLACES = [
    *(Place(f"cafe{n}", f"Cafe {n}", 41.88 + n / 2000, -87.63, classes=["amenity=cafe"], hours="24/7") for n in range(4)),
    *(Place(f"bar{n}", f"Bar {n}", 41.88, -87.63 + (n + 1) / 2000, classes=["amenity=bar"]) for n in range(4)),
    Place("post", "A post", 41.88, -87.63, kind="post", about="cafe2"),
    Place("far", "Far cafe", 41.95, -87.63, classes=["amenity=cafe"]),
]


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    path = tmp_path_factory.mktemp("town") / "town.db"
    write_town(path, PLACES)
    with Town.open(path) as opened:
        yield opened


def visits_of(*rows):
    """Visits from (user, place row, hours before noon)."""
    users = sorted({user for user, _, _ in rows})
    days = [days_of(NOON - timedelta(hours=hours)) for _, _, hours in rows]
    return Visits.of(np.array([users.index(one[0]) for one in rows]), np.array([one[1] for one in rows]), np.array(days), users)


def names(suggestions):
    return [one.place.place_id for one in suggestions]


def test_tf_iwf_by_hand():
    """Three cafes and a bar at one place, four bars at the other: 8 in all, 3 cafes, 5 bars."""
    found = tf_iwf(csr_matrix([[3.0, 1.0], [0.0, 4.0]])).toarray()
    assert found == pytest.approx(np.array([[0.75 * math.log(8 / 3), 0.25 * math.log(8 / 5)], [0.0, math.log(8 / 5)]]))


def test_a_place_without_classes_means_what_stands_within_200_metres():
    lats = np.array([41.88, 41.881, 41.883])  # 111 and 334 m
    found = meanings([[], ["amenity=cafe"], ["amenity=bar"]], lats, np.full(3, -87.63)).toarray()
    assert found[0] == pytest.approx(found[1]) and found[0] @ found[2] == pytest.approx(0)


def test_old_visits_and_those_of_other_hours_weigh_less():
    now = 100.5
    found = time_weights(np.array([now, now - 60, now - 0.5]), now)
    assert found[0] == pytest.approx(1.1 * 1.1) and found[1] == pytest.approx((math.exp(-1) + 0.1) * 1.1)
    assert found[2] == pytest.approx((math.exp(-1 / 120) + 0.1) * (math.exp(-((12 / 1.5) ** 2) / 2) + 0.1))


def test_familiarity_of_places_by_hand(town):
    """Ann's visits at the same hour, one each day; Bob has been to cafe0 too."""
    visits = visits_of(("ann", 0, 24), ("ann", 0, 48), ("ann", 4, 24), ("bob", 0, 72))
    found = CognitiveMap(town.lats, town.lons, town.classes, visits).of_places(0, days_of(NOON))
    yesterday, before = (math.exp(-days / 60) + 0.1 for days in (1, 2))
    share = (yesterday + before) / (2 * yesterday + before)
    assert found[0] == pytest.approx(share * math.log(5 / 3)) and found[4] == pytest.approx((1 - share) * math.log(5))
    assert found[[1, 2, 3, 5, 6, 7]].tolist() == [0] * 6


def test_people_with_the_same_places_count_more_and_each_once():
    visits = visits_of(
        ("ann", 0, 30), ("bob", 0, 24), ("bob", 1, 24), ("cy", 2, 24), ("cy", 3, 24), ("cy", 3, 48), ("cy", 3, 72)
    )  # fmt: skip
    known = CognitiveMap(np.linspace(41.8, 41.9, 4), np.full(4, -87.6), [[]] * 4, visits)
    found = known.popularity(0, days_of(NOON))
    assert found[1] > 100 * found[2] and found[3] == pytest.approx(found[2], rel=0.1)


hours = st.integers(-50, 2000)
logs = st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.integers(0, len(PLACES) - 1), hours), min_size=1, max_size=25)


@settings(max_examples=25, deadline=None)
@given(logs, st.floats(-0.01, 0.01), st.integers(1, 100))
def test_the_two_lists_never_share_a_place(town, log, aside, k):
    visits = visits_of(*log)
    found = recommend(town, visits, 0, NOON, (HERE[0] + aside, HERE[1]), k=k)
    past = {row for user, row, before in log if user == visits.user_ids[0] and before > 0}
    known, new = [{one.row for one in ones} for ones in (found.your_places, found.new_nearby)]
    assert not known & new and known <= past and not new & past
    assert all(one.minutes <= 15 for one in found.new_nearby) and all(one.place.kind == "place" for one in found.new_nearby)
    if k == 100:
        assert known == {row for row in past if PLACES[row].kind == "place"}


def test_visits_at_the_moment_and_later_change_nothing(town):
    past = [("ann", 0, 24), ("ann", 4, 3), ("bob", 1, 30)]
    now = recommend(town, visits_of(*past), 0, NOON, HERE)
    later = recommend(town, visits_of(*past, ("ann", 2, 0), ("bob", 3, -1), ("ann", 4, -24)), 0, NOON, HERE)
    assert (now.your_places, now.new_nearby) == (later.your_places, later.new_nearby)
    assert "3 visits at 2026-06-01 12:00 or later are not counted." in later.notes


def test_a_person_without_visits_gets_new_places_by_distance_and_popularity(town):
    found = recommend(town, visits_of(("bob", 3, 24)), None, NOON, HERE, k=3)
    assert found.your_places == [] and "distance and popularity alone" in found.notes[0]
    assert names(found.new_nearby)[:2] == ["cafe3", "cafe0"] and all(one.familiarity is None for one in found.new_nearby)
    with pytest.raises(LoreError, match="Say it with --at"):
        recommend(town, visits_of(("bob", 3, 24)), None, NOON)


def test_places_known_to_be_closed_come_last(tmp_path):
    hours = {"night": "22:00-04:00", "day": "08:00-18:00", "unknown": None, "near night": "22:00-04:00", "near": "08:00-18:00"}
    kept = enumerate(hours.items())
    places = [Place(name, name, 41.88, -87.63 + n / 2000, classes=["bar"], hours=known) for n, (name, known) in kept]
    write_town(tmp_path / "town.db", places)
    with Town.open(tmp_path / "town.db") as town:
        visits = visits_of(("ann", 0, 24), ("ann", 0, 48), ("ann", 1, 72), ("ann", 2, 400))
        found = recommend(town, visits, 0, NOON, HERE)
        first = recommend(town, visits, 0, NOON, HERE, k=2)
    assert names(found.your_places) == ["day", "unknown", "night"] and names(first.your_places) == ["day", "unknown"]
    assert names(found.new_nearby) == ["near", "near night"] and found.new_nearby[1].opening.state == "closed"


def test_without_other_people_posts_stand_for_popularity(town):
    found = recommend(town, visits_of(("ann", 4, 24)), 0, NOON, HERE)
    assert "posts about a place" in found.notes[0]
    assert [one.place.place_id for one in found.new_nearby if one.popularity == 1] == ["cafe2"]


def test_exponents_of_simulated_choices_are_found_again():
    draw = np.random.default_rng(0)
    choices = []
    for _ in range(800):
        numbers = draw.uniform(0.01, 1, (30, 3))
        odds = score(numbers, (2.0, 0.5, 1.0))
        choices.append((numbers, int(draw.choice(30, p=odds / odds.sum()))))
    assert fit_exponents(choices) == pytest.approx((2.0, 0.5, 1.0), abs=0.2)
    choices = [(np.where([False, False, True], np.nan, numbers), at) for numbers, at in choices]
    assert fit_exponents(choices).popularity == pytest.approx(1), "where nothing is known, the paper's exponent stays"


def test_made_up_people_with_habits_are_learned():
    """Each person has one place for 8 o'clock and another for 19 o'clock, anywhere in the town: the hour tells what comes next, and
    the distance to the last place does not."""
    draw = np.random.default_rng(1)
    places, people, days = 60, 40, 20
    lats, lons = 41.8 + draw.random(places) / 10, -87.7 + draw.random(places) / 10
    habit = np.stack([draw.choice(places, 2, replace=False) for _ in range(people)])
    events = [
        (person, int(draw.integers(places)) if draw.random() < 0.2 else int(habit[person, meal]), day + hour / 24)
        for person in range(people)
        for day in range(days)
        for meal, hour in enumerate((8, 19))
    ]
    users, rows, times = map(np.array, zip(*events, strict=True))
    known = CognitiveMap(lats, lons, [[]] * places, Visits.of(users, rows, times, [str(one) for one in range(people)]))

    def choice_at(person, day):
        own = known.own(person, day)
        candidates = np.unique(own.rows)
        metres = 111_000 * np.hypot(lats - lats[own.rows[-1]], lons - lons[own.rows[-1]])[candidates]
        numbers = known.numbers(person, day, candidates, metres, visited=True)
        meal = 0 if day % 1 < 0.5 else 1
        target = np.flatnonzero(candidates == habit[person, meal])
        return (numbers, int(target[0])) if len(target) else None

    learned, held_out = (
        [found for person in range(people) if (found := choice_at(person, day))] for day in (days - 1 + 8 / 24, days - 1 + 19 / 24)
    )
    exponents = fit_exponents(learned)
    assert exponents.familiarity > exponents.distance and exponents.familiarity > exponents.popularity
    first = np.mean([score(numbers, exponents).argmax() == at for numbers, at in held_out])
    nearest = np.mean([numbers[:, 1].argmax() == at for numbers, at in held_out])
    assert first > 0.8 > 0.5 > nearest


def test_one_log_in_three_formats(town, tmp_path):
    rows = [
        {"place_id": "cafe0", "time": "2026-05-30T08:15:00-05:00", "user": "ann"},
        {"place_id": "bar1", "time": "2026-05-31T19:00:00", "user": "ann"},
    ]
    (tmp_path / "a.csv").write_text("place_id,time,user\n" + "".join(f"{','.join(row.values())}\n" for row in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        found = read_visits(tmp_path / f"a.{suffix}", town)
        assert found.visits.rows.tolist() == [0, 5] and found.visits.user_ids == ["ann"] and not found.rejected
        assert found.visits.days.tolist() == [days_of(datetime(2026, 5, 30, 8, 15)), days_of(datetime(2026, 5, 31, 19))]


def test_bad_rows_are_rejected_with_reasons(town, tmp_path):
    path = tmp_path / "visits.csv"
    cells = ["cafe0,,,1780000000", "nowhere,,,1780000000", ",41.88001,-87.63,1780000000", ",0,0,1780000000", ",91,0,1", ",x,0,1"]
    path.write_text("place_id,lat,lon,time\n" + "\n".join([*cells, "cafe0,,,soon", "cafe0,,,nan", "cafe0,,,90000000000"]) + "\n")
    found = read_visits(path, town)
    assert found.visits.rows.tolist() == [0, 0]
    assert found.reasons == {"place_unknown": 1, "no_place_here": 1, "out_of_range": 2, "field_type": 3}
    assert [one.row for one in found.rejected] == [2, 4, 5, 6, 7, 8, 9]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LoreError, match="needs a time, and place_id or lat and lon"):
        read_visits(tmp_path / "other.csv", town)
    with pytest.raises(LoreError, match="'where' is no field of a visit"):
        read_visits(path, town, "time=time,where=lat")


def test_several_people_have_to_be_told_apart():
    visits = visits_of(("ann", 0, 1), ("bob", 0, 2))
    assert visits.person("bob") == 1
    for given_name in (None, "eve"):
        with pytest.raises(LoreError, match="2 people") as caught:
            visits.person(given_name)
        assert "ann" not in str(caught.value) and "bob" not in str(caught.value)


def test_a_profile_is_for_its_owner_and_can_be_deleted(town, tmp_path):
    path, own = tmp_path / "me.json", tmp_path / "visits.csv"
    own.write_text("place_id,time\nnowhere,2026-05-30 12:00\n")
    found = read_visits(own, town)
    write_profile(path, {"visits": 0}, found.rejected, [own], force=False)
    assert path.stat().st_mode & 0o077 == 0 and json.loads(path.read_text()) == {"lore_profile": 1, "visits": 0}
    write_profile(path, {"visits": 1}, found.rejected, [own], force=False)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["me.json", "me.rejected.jsonl", "visits.csv"]
    with pytest.raises(LoreError, match="is an input"):
        write_profile(own, {}, [], [own], force=True)
    with pytest.raises(LoreError, match="is no profile"):
        forget_profile(own)
    forget_profile(path)
    assert [one.name for one in tmp_path.iterdir()] == ["visits.csv"]


@pytest.fixture
def run(town, tmp_path, caplog):
    """The command on a log of two people, with a row of a place that the town lacks."""
    app = typer.Typer()
    app.command()(command)
    (tmp_path / "visits.csv").write_text(
        "place_id,time,user\ncafe0,2026-05-30 12:00,ann\nfar,2026-05-31 09:00,ann\n"
        "cafe1,2026-05-30 12:00,bob\nsecret-place,2026-05-30 12:00,ann\n"
    )
    caplog.set_level(logging.DEBUG)

    def invoke(*options):
        given = [str(town.path), "--user", str(tmp_path / "visits.csv"), "--person", "ann", "--time", "2026-06-01 12:00", *options]
        result = CliRunner().invoke(app, given, catch_exceptions=False)
        return SimpleNamespace(out=result.stdout, err=result.stderr, logged=caplog.text, folder=tmp_path)

    return invoke


def test_the_command_shows_two_lists_with_three_numbers(run):
    shown = json.loads(run("--at", "41.88,-87.63", "--json").out)
    assert {one["place_id"] for one in shown["your_places"]} == {"cafe0", "far"} and shown["visits"] == 3
    first = shown["new_nearby"][0]
    assert first["place_id"] == "cafe1" and first["opening"]["state"] == "open"
    assert all(0 < first[name] <= 1 for name in ("familiarity", "distance", "popularity"))
    out = run("--at", "41.88,-87.63").out
    assert out.index("your places now") < out.index("Cafe 0") < out.index("new nearby") < out.index("Cafe 1")


def test_nothing_of_a_profile_is_logged_or_kept(run, town):
    before = town.path.read_bytes()
    done = run("--at", "41.88,-87.63")
    private = ["cafe0", "Cafe 0", "far", "Far cafe", "secret-place", "ann", "bob"]
    assert "1 row rejected: 1 place_unknown" in done.err
    assert not [one for one in private if one in done.err or one in done.logged]
    assert town.path.read_bytes() == before and [one.name for one in done.folder.iterdir()] == ["visits.csv"]
    run("--profile", str(done.folder / "me.json"))
    assert list(json.loads((done.folder / "me.json").read_text())["places"]) == ["cafe0", "far"]
    run("--forget", str(done.folder / "me.json"))
    assert [one.name for one in done.folder.iterdir()] == ["visits.csv"] and town.path.read_bytes() == before
