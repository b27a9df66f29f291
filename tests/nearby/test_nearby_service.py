"""Guards lore/nearby/serve.py and map_shapes.py: the answers of the command over HTTP, bounded and private."""

import asyncio
import base64
import csv
import hashlib
import json
import logging
import random
import re
import threading
import time
import urllib.request
from dataclasses import replace

import httpx
import pytest
import typer
from nearby_streets_for_tests import grid
from nearby_town_for_tests import HERE, PLACES, relations_file, small_relations, small_town
from online_for_tests import get, post, send
from typer.testing import CliRunner

from lore.cli.nearby_ask import ask as ask_command
from lore.cli.nearby_recommend import recommend as recommend_command
from lore.nearby import serve as nearby
from lore.nearby.graph import Graph
from lore.nearby.map_shapes import map_shapes, read_box
from lore.nearby.model_in_time import LEFT_ALONE, ModelInTime
from lore.nearby.serve import Service, build_app
from lore.nearby.streets import read_streets
from lore.nearby.town import Town, write_town
from lore.online.config import ServeSection
from lore.online.server import Server, bound_socket
from lore.places.place import Place
from lore.support.errors import LoreError

AT = list(HERE)
PARK = [(41.87, -87.63), (41.88, -87.63), (41.88, -87.62), (41.87, -87.62), (41.87, -87.63)]
VISITS = [
    ("cafe1", "2026-11-20 09:00"),
    ("cafe2", "2026-11-22 09:30"),
    ("cafe1", "2026-11-27 08:45"),
    ("nowhere", "2026-11-28 10:00"),
]


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    with small_town(tmp_path_factory.mktemp("town")) as opened:
        yield opened


def service_of(town, **serve):
    layers = {"graph": Graph(town, small_relations(town.path.parent))}
    service = Service(town, layers, ServeSection(**{"port": 0, "deadline_ms": 30_000.0} | serve))
    service.ready = True
    return service


@pytest.fixture(scope="module")
def app(town):
    return build_app(service_of(town))


def command(function, *arguments):
    one = typer.Typer()
    one.command()(function)
    done = CliRunner().invoke(one, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def without_seconds(answer):
    return {key: value for key, value in answer.items() if key != "seconds"}


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"question": "coffee, open now", "time": "Tue 15:00"}, ["--time", "Tue 15:00"]),
        ({"question": "明天下午三点喝咖啡，走路五分钟", "k": 1}, ["-k", "1"]),
        ({"question": "a bar at 1am", "minutes": 30}, ["--minutes", "30"]),
        (
            {"question": "food", "needs": ["quiet_work"], "around": "Harold's Library"},
            ["--need", "quiet_work", "--around", "Harold's Library"],
        ),
        ({"question": "coffee near Onion Station at 9pm"}, []),
        ({"question": "coffee near Union Station at 9pm", "around": ""}, ["--around", ""]),
    ],
)
def test_an_answer_over_http_is_that_of_the_command(town, app, body, options):
    file = relations_file(town.path.parent)
    expected = command(ask_command, town.path, body["question"], "--at", "41.88,-87.63", "--relations", file, "--json", *options)
    for at in (AT, "41.88,-87.63"):
        reply = post(app, "/ask", {"at": at, **body})
        assert reply.status_code == 200 and without_seconds(reply.json()) == without_seconds(expected)
    assert reply.headers["cache-control"] == "no-store"


def test_around_nothing_is_the_position_of_the_person(app):
    near = post(app, "/ask", {"question": "coffee near Union Station", "at": AT}).json()["intent"]
    here = post(app, "/ask", {"question": "coffee near Union Station", "at": AT, "around": ""}).json()["intent"]
    assert near["around_id"] == "station" and here["around"] is None and here["unknown_places"] == []
    assert [here["lat"], here["lon"]] == AT


def test_recommendations_are_those_of_the_command_and_never_mixed(town, app, tmp_path):
    file = tmp_path / "visits.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("place_id", "time"), *VISITS])
    expected = command(recommend_command, town.path, "--user", file, "--at", "41.88,-87.63", "--time", "2026-11-30 09:00", "--json")
    visits = [{"place_id": place, "time": when} for place, when in VISITS]
    found = post(app, "/recommend", {"visits": visits, "at": AT, "time": "2026-11-30 09:00"}).json()
    assert found == expected and found["visits"] == 3 and found["rejected"] == {"place_unknown": 1}
    yours, new = ([one["place_id"] for one in found[name]] for name in ("your_places", "new_nearby"))
    assert yours[0] == "cafe1" and not set(yours) & set(new) and "cafe3" in new
    assert all({"familiarity", "distance", "popularity"} <= one.keys() for one in found["new_nearby"])
    by_position = [{"lat": 41.8805, "lon": -87.63, "time": 1.78e9}]
    assert [one["place_id"] for one in post(app, "/recommend", {"visits": by_position, "at": AT}).json()["your_places"]] == [
        "cafe1"
    ]


def test_visits_are_in_no_log_metric_or_error(app, caplog):
    secret = [{"place_id": "secret-place", "time": "1999-09-09 09:09"}, {"lat": 12.3456789, "lon": 3.0, "time": "secret-time"}]
    with caplog.at_level(logging.INFO, "lore.online.requests"):
        replies = [
            post(app, "/recommend", {"visits": visits, "at": AT})
            for visits in (secret, [*secret, {"time": []}], [*secret, {"place_id": {"secret-key": 1}}], secret * 6000)
        ]
        replies.append(post(app, "/recommend", json.dumps({"visits": secret, "at": AT})[:-1]))
    assert [one.status_code for one in replies] == [200, 422, 422, 422, 400] and len(caplog.records) == 5
    metrics = get(app, "/metrics").text
    assert 'lore_requests_total{schema="/recommend",status="200"}' in metrics
    for text in (caplog.text, metrics, *(one.text for one in replies)):
        assert not any(word in text for word in ("secret", "1999", "12.345"))


HUGE = "1" + "0" * 400
BAD_BODIES = [
    ('{"question": "coffee"}', "at"),
    ('{"question": "", "at": [41, -87]}', "question"),
    (json.dumps({"question": "a" * 2001, "at": AT}), "2000"),
    ('{"question": "coffee", "at": [95, 0]}', "-90 to 90"),
    ('{"question": "coffee", "at": [0, 181]}', "-180 to 180"),
    ('{"question": "coffee", "at": "nan,nan"}', "Earth"),
    ('{"question": "coffee", "at": "41.88"}', "latitude and longitude"),
    ('{"question": "coffee", "at": [41, -87, 3]}', "at"),
    ('{"question": "coffee", "at": ["41", "-87"]}', "at"),
    ('{"question": "coffee", "at": [true, false]}', "at"),
    (f'{{"question": "coffee", "at": [{HUGE}, 0]}}', "at"),
    ('{"question": "coffee", "at": [NaN, 0]}', "NaN"),
    ('{"question": "coffee", "at": [41, -87], "k": 0}', "k"),
    ('{"question": "coffee", "at": [41, -87], "k": 101}', "100"),
    ('{"question": "coffee", "at": [41, -87], "k": 1.5}', "k"),
    ('{"question": "coffee", "at": [41, -87], "minutes": 0.5}', "minutes"),
    ('{"question": "coffee", "at": [41, -87], "minutes": 121}', "120"),
    ('{"question": "coffee", "at": [41, -87], "minutes": "5"}', "minutes"),
    ('{"question": "coffee", "at": [41, -87], "time": "25:00"}', "0:00 to 24:00"),
    ('{"question": "coffee", "at": [41, -87], "time": "1800-01-01"}', "1970"),
    ('{"question": "coffee", "at": [41, -87], "time": 5}', "time"),
    ('{"question": "coffee", "at": [41, -87], "needs": "coffee"}', "needs"),
    (json.dumps({"question": "coffee", "at": AT, "needs": ["x"] * 21}), "20"),
    ('{"question": "coffee", "at": [41, -87], "minuts": 5}', "Nearest: 'minutes'"),
    ('{"question": "coffee within 900 km", "at": [41, -87]}', "1 to 120"),
    ('{"question": {"a": "b"}, "at": [41, -87]}', "question"),
    ("[]", None),
    ("null", None),
    ('{"question": ' + "[" * 50_000, None),
    ('{"a":' * 20 + "1" + "}" * 20, "nested"),
    ('{"question": "a", "question": "b", "at": [41, -87]}', "twice"),
]


@pytest.mark.parametrize(("body", "said"), BAD_BODIES)
def test_what_is_out_of_bounds_is_refused_with_words(app, body, said):
    reply = post(app, "/ask", body)
    assert reply.status_code in (400, 413, 422), reply.text
    message = reply.json()["error"]["message"]
    assert (said or "") in message and len(message) < 600


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"visits": {}}, "visits"),
        ({"visits": ["cafe1"]}, "visits.0"),
        ({"visits": [{"place_id": "cafe1"}]}, "time"),
        ({"visits": [{"place_id": "cafe1", "time": "2026-11-20", "user": "me"}]}, "'user' is no field"),
        ({"visits": [{"place_id": "a" * 201, "time": 5}]}, "200"),
        ({"visits": [{"time": 5}] * 10_001}, "10000"),
        ({"visits": [], "minutes": 1e9}, "120"),
        ({"visits": [], "time": "soonish"}, "no time"),
        ({"visits": [], "at": [1, 999]}, "Earth"),
    ],
)
def test_visits_out_of_bounds_are_refused_with_words(app, body, said):
    reply = post(app, "/recommend", {"at": AT} | body)
    assert reply.status_code == 422 and said in reply.json()["error"]["message"]


def test_visits_that_cannot_be_read_are_counted_and_the_others_count(app):
    visits = [{"place_id": "cafe1", "time": 1.78e9}, {"lat": 95, "lon": 0, "time": 5}, {"lat": 0, "lon": 0, "time": 5}]
    visits += [
        {"lat": None, "lon": 0.0, "time": 5},
        {"place_id": "cafe1", "time": "yesterday"},
        {"place_id": "cafe1", "time": 1e300},
    ]
    found = post(app, "/recommend", {"visits": visits, "at": AT}).json()
    assert found["visits"] == 1 and found["rejected"] == {"out_of_range": 1, "no_place_here": 1, "field_type": 3}
    nothing = post(app, "/recommend", {"visits": [], "at": AT})
    assert nothing.status_code == 200 and nothing.json()["your_places"] == [] and nothing.json()["new_nearby"]


def test_no_body_made_of_odd_values_is_an_error_of_the_service(app):
    draw = random.Random(5)
    values = [
        None,
        True,
        -1,
        0,
        1e308,
        2**63,
        "",
        "\ud800",
        "café\u202e",
        [],
        [[]],
        {},
        {"a": None},
        "41,-87",
        AT,
        ["coffee"],
        "x" * 3000,
    ]
    fields = ["question", "at", "time", "minutes", "around", "needs", "excluded", "k", "visits", "other"]
    for _ in range(60):
        body = {"question": "coffee", "at": AT, "visits": []} | {
            name: draw.choice(values) for name in draw.sample(fields, draw.randint(1, 3))
        }
        for path in ("/ask", "/recommend"):
            given = {name: value for name, value in body.items() if name != ("visits" if path == "/ask" else "question")}
            assert post(app, path, json.dumps(given)).status_code in (200, 400, 422), given


def test_questions_at_the_same_time_have_the_answers_of_one_after_the_other(town, app):
    texts = ["coffee, open now", "a bar at 1am", "somewhere quiet to work", "咖啡", "park", "Blue Door near Union Station"] * 8
    bodies = [{"url": "/ask", "json": {"question": text, "at": AT, "time": "Tue 15:00"}} for text in texts]

    async def at_once():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(service_of(town))), base_url="http://lore") as client:
            return await asyncio.gather(*(client.post(**one) for one in bodies))

    alone = {one["json"]["question"]: without_seconds(post(app, "/ask", one["json"]).json()) for one in bodies[:6]}
    for text, reply in zip(texts, asyncio.run(at_once()), strict=True):
        assert without_seconds(reply.json()) == alone[text]


def test_a_full_queue_a_late_answer_and_a_shutdown_are_said_with_a_time_to_try_again(town, monkeypatch):
    service = service_of(town, deadline_ms=30.0)
    slow, end = build_app(service), threading.Event()
    monkeypatch.setattr(service, "ask", lambda body: end.wait(10) or {})
    monkeypatch.setattr(nearby, "MOST_WAITING", 2)
    body = {"url": "/ask", "json": {"question": "coffee", "at": AT}}
    replies = asyncio.run(send(slow, body, body, body))
    assert [one.status_code for one in replies] == [503, 503, 429], "late answers keep their threads"
    assert [one.json()["error"]["type"] for one in replies] == ["too_late", "too_late", "overloaded"]
    end.set()
    while service._running:
        time.sleep(0.005)
    service.ready, service.draining = False, True
    (reply,) = asyncio.run(send(slow, body))
    assert reply.status_code == 503 and reply.json()["error"]["type"] == "draining"
    assert get(slow, "/ready").status_code == 503 and get(slow, "/health").status_code == 200
    assert all(int(one.headers["retry-after"]) >= 1 for one in (*replies[1:], reply))


def test_a_language_model_that_is_down_costs_seconds_at_most_and_names_no_server(town, caplog):
    asked = []

    class Down:
        def generate(self, prompts, sampling):
            asked.append(prompts)
            raise LoreError("http://10.0.0.5:8000/v1 has not answered\nStart the server.")

    class Late:
        def generate(self, prompts, sampling):
            time.sleep(0.2)

    for engine in (Down(), Late()):
        service = service_of(town)
        service.layers = service.layers | {"engine": ModelInTime(engine, seconds=0.05)}
        app = build_app(service)
        for _ in range(2):
            reply = post(app, "/ask", {"question": "coffee", "at": AT})
            assert reply.status_code == 200 and reply.json()["notes"] == [LEFT_ALONE] * 2 and "10.0.0.5" not in reply.text
            assert reply.json()["answer"].startswith("3 places")
    assert len(asked) == 2, "then it is left alone"
    assert "10.0.0.5" in caplog.text and "no answer within 0.05 s" in caplog.text


def test_keys_open_the_page_and_its_requests(town, monkeypatch):
    monkeypatch.setenv("NEARBY_KEYS", "key-of-the-town")
    app = build_app(service_of(town, keys_variable="NEARBY_KEYS"))
    password = "Basic " + base64.b64encode(b"me:key-of-the-town").decode()
    body = {"question": "coffee", "at": AT}
    for header, status in (({}, 401), ({"authorization": "Bearer wrong-key"}, 401), ({"authorization": password}, 200)):
        assert get(app, "/", headers=header).status_code == status
        assert get(app, "/map?bbox=41,-88,42,-87", headers=header).status_code == status
        assert post(app, "/ask", body, headers=header).status_code == status
    assert post(app, "/ask", body, headers={"authorization": "Bearer key-of-the-town"}).status_code == 200
    monkeypatch.delenv("NEARBY_KEYS")
    with pytest.raises(LoreError, match="NEARBY_KEYS"):
        build_app(service_of(town, keys_variable="NEARBY_KEYS"))


def test_the_page_names_no_other_host_and_runs_only_its_own_script(app):
    reply = get(app, "/")
    (script,) = re.findall(r"(?s)<script>(.*?)</script>", reply.text)
    (style,) = re.findall(r"(?s)<style>(.*?)</style>", reply.text)
    policy = reply.headers["content-security-policy"]
    for kind, text in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert set(re.findall(r"\w+://[^\s\"'`]+", reply.text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b| on\w+=|style=", reply.text)
    words = [set(re.findall(r'(?:^|,)\s*"?([\w-]+)"?: "', part)) for part in re.findall(r"(?s)\b(?:en|zh): \{(.*?)\n  \},", script)]
    assert len(words) == 2 and words[0] == words[1] and len(words[0]) > 60, "both languages have the same words"
    assert set(re.findall(r'data-(?:t|p|label)="(\w+)"', reply.text)) <= words[0]


def areas(tmp_path, count=3, arrays=None):
    """A town with a park, a river, and `count` cafes and small outlines."""
    park = Place("park", "Grant <b>Park", 41.875, -87.625, kind="area", classes=["leisure=park"], outline=PARK)
    river = Place("river", "River", 41.885, -87.63, tags={"waterway": "river"}, outline=[(41.885, -87.64), (41.885, -87.62)])
    cafes = [Place(f"c{at}", f"Cafe {at}", 41.88 + at / 1e5, -87.63, classes=["amenity=cafe"]) for at in range(count)]
    square = [(41.88, -87.63), (41.8801, -87.63), (41.8801, -87.6299), (41.88, -87.63)]
    small = [Place(f"s{at}", "", 41.88, -87.63, kind="area", outline=square) for at in range(count)]
    post_ = Place("post", "Best!", 41.88, -87.63, kind="post")
    far = Place("far", "Far", 10.0, 10.0)
    write_town(tmp_path / "areas.db", [park, river, *cafes, *small, post_, far], {}, arrays=arrays)
    return Town.open(tmp_path / "areas.db")


def test_the_map_shows_outlines_places_and_streets_of_its_box(tmp_path):
    with areas(tmp_path, arrays=read_streets(grid(tmp_path / "streets.graphml"))) as town:
        found = map_shapes(town, 41.87, -87.64, 41.89, -87.62)
        assert [one["place_id"] for one in found["outlines"]][:2] == ["river", "park"], "the largest first"
        assert found["outlines"][0]["look"] == ["waterway=river"]
        assert found["outlines"][1]["parts"] == [[list(point) for point in PARK]] and "<" not in found["outlines"][1]["name"]
        assert {one["place_id"] for one in found["places"]} == {"c0", "c1", "c2"}, "no post, and nothing from elsewhere"
        assert found["left_out"] == {"outlines": 0, "places": 0, "streets": 0}
        lines = map_shapes(town, 41.8, -87.7, 41.9, -87.6)["streets"]
        assert len(lines) == 2 * 11 * 10 - 10 and len({tuple(sorted([(a, b), (c, d)])) for a, b, c, d in lines}) == len(lines)
        empty = map_shapes(town, 50.0, 50.0, 51.0, 51.0)
        assert not empty["outlines"] and not empty["places"] and not empty["streets"]


def test_a_map_is_bounded_says_what_it_leaves_out_and_moves_without_flicker(tmp_path):
    ring = [(41.87 + at / 1e6, -87.63) for at in range(5000)]
    with areas(tmp_path, count=1000) as town:
        found = map_shapes(town, -90, -180, 90, 180)
        assert len(found["places"]) == 700 and len(found["outlines"]) == 200
        assert found["left_out"] == {"outlines": 802, "places": 301, "streets": 0}
        kept = {one["place_id"] for one in found["places"]}
        part = map_shapes(town, 41.88, -87.64, 41.9, -87.62)
        assert len(part["places"]) <= 700 and len(kept & {one["place_id"] for one in part["places"]}) > 600
    write_town(tmp_path / "ring.db", [Place("ring", "", 41.87, -87.63, outline=[*ring, ring[0]])])
    with Town.open(tmp_path / "ring.db") as town:
        (part,) = map_shapes(town, 41, -88, 42, -87)["outlines"][0]["parts"]
        assert len(part) <= 152 and part[0] == part[-1]


def test_a_box_across_the_date_line_has_both_sides(tmp_path):
    write_town(tmp_path / "fiji.db", [Place("west", "", 0.0, 179.9), Place("east", "", 0.0, -179.9), Place("other", "", 0.0, 0.0)])
    with Town.open(tmp_path / "fiji.db") as town:
        assert {one["place_id"] for one in map_shapes(town, -1, 179, 1, -179)["places"]} == {"west", "east"}


@pytest.mark.parametrize(
    "box", ["", "1,2,3", "1,2,3,x", "nan,0,1,1", "2,0,1,1", "-91,0,1,1", "0,0,1,181", "1" * 201, "inf,0,inf,1"]
)
def test_a_box_out_of_bounds_is_refused(app, box):
    reply = get(app, "/map", params={"bbox": box})
    assert reply.status_code == 422 and reply.json()["error"]["message"]
    assert get(app, "/map").status_code == 422


def test_a_box_is_read():
    assert read_box("41.87, -87.64,41.89,-87.62") == (41.87, -87.64, 41.89, -87.62)


def test_a_served_town_warms_up_answers_and_drains(town):
    service = service_of(town)
    service.ready = False
    listener = bound_socket("127.0.0.1", 0)
    server = Server(build_app(service), service.serve, service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        body = json.dumps({"question": "coffee", "at": AT}).encode()
        asked = urllib.request.Request(f"{address}/ask", body, {"content-type": "application/json"})
        until = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(asked, timeout=10) as reply:
                    assert json.load(reply)["places"][0]["place_id"] == "cafe1"
                break
            except urllib.error.HTTPError as error:  # a busy machine is behind while it warms up, and says so
                assert error.code == 429 and error.headers["retry-after"] and time.monotonic() < until
                time.sleep(0.1)
    finally:
        server.leaving = True
        thread.join(20)
    assert not thread.is_alive() and service.draining


def test_a_hostile_town_stays_data(tmp_path):
    hostile = [replace(one, tags={**one.tags, "website": "javascript:alert(1)"}) for one in PLACES]
    with small_town(tmp_path, hostile) as opened:
        reply = post(build_app(service_of(opened)), "/ask", {"question": "a bar at 1am", "at": AT, "k": 9})
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-content-type-options"] == "nosniff"
    found = reply.json()
    assert "evil" in {one["place_id"] for one in found["places"]} and "<" not in found["answer"]
    assert next(one for one in found["places"] if one["place_id"] == "evil")["opening"]["state"] == "unknown"
