"""Guards lore/nearby/ask.py and `lore nearby ask`: from a question to a cited answer on a small town."""

import json
from datetime import datetime

import pytest
import typer
from nearby_town_for_tests import HERE, MONDAY, PLACES, relations_file, small_relations, small_town
from openai_server import MODEL, reply, serve
from openai_server import Answer as Reply
from typer.testing import CliRunner

from lore.cli.nearby_ask import ask as ask_command
from lore.engines.config import EndpointSection
from lore.engines.http.endpoint import EndpointEngine
from lore.nearby.answer import as_json
from lore.nearby.ask import ask
from lore.nearby.graph import Graph
from lore.places.local_life import local_life
from lore.places.place import Place
from lore.support.errors import LoreError


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    with small_town(tmp_path_factory.mktemp("town")) as opened:
        yield opened


@pytest.fixture(scope="module")
def graph(town):
    return Graph(town, small_relations(town.path.parent))


@pytest.fixture(scope="module")
def answers(town, graph):
    return lambda text, now=MONDAY, **options: ask(town, text, *HERE, now=now, graph=graph, **options)


def ids(answer):
    return [one.place.place_id for one in answer.candidates]


def test_coffee_in_english(answers):
    answer = answers("coffee, open now")
    assert ids(answer) == ["cafe1", "cafe2", "cafe3"], "open ones first, unknown hours behind them"
    assert answer.text.splitlines() == [
        "3 places within 15 min on foot:",
        "1. Blue Door [cafe1]: 1 min on foot (about 70 m), open until 18:00. Why: coffee → cafe.",
        "2. Starbucks [cafe2]: 4 min on foot (about 290 m), open all the time. Why: coffee → cafe.",
        "3. 星光咖啡 [cafe3]: 7 min on foot (about 580 m), hours unknown. Why: coffee → cafe.",
    ]


def test_a_part_of_the_question_that_was_not_understood_is_said(answers):
    assert answers("24 hour coffee").text.startswith("“24 hour” is no need that LORE knows.\n3 places within")
    assert answers("Starbucks").text.startswith("1 place within"), "found by its name"


def test_coffee_in_chinese(answers):
    assert answers("明天下午三点喝咖啡，走路五分钟").text.splitlines() == [
        "步行5分钟内，推荐2处：",
        "1. Blue Door [cafe1]：步行1分钟（约70米），营业至18:00。理由：咖啡 → 咖啡馆。",
        "2. Starbucks [cafe2]：步行4分钟（约290米），一直营业。理由：咖啡 → 咖啡馆。",
    ]


def test_only_places_that_meet_the_needs_are_shown(answers):
    assert set(ids(answers("somewhere quiet to work"))) == {"lib", "cafe1", "cafe2", "cafe3"}
    assert ids(answers("somewhere quiet to work, no chains, Tue 15:00")) == ["lib", "cafe1", "cafe3"]
    assert ids(answers("coffee but not Starbucks")) == ["cafe1", "cafe3"]
    assert ids(answers("coffee with my dog")) == ["cafe1", "cafe2"], "cafe3 has no dogs"
    assert "evil" not in ids(answers("coffee"))


def test_closed_places_are_left_out_and_overnight_hours_count(answers):
    assert ids(answers("a bar open now")) == ["evil"], "the hours of this bar cannot be read, and the other is closed"
    assert ids(answers("a bar at 1am"))[0] == "bar"
    assert ids(answers("a quiet place to study, open now", datetime(2026, 11, 29, 12))) == ["cafe2", "cafe3"]


def test_nothing_in_reach_names_the_nearest_beyond_apart(answers):
    answer = answers("a quiet place to study within 1 minute on Sunday at 11:00")
    assert ids(answer) == [] and answer.beyond.place.place_id == "cafe2"
    assert answer.text.splitlines()[-1].startswith("The nearest beyond that circle: Starbucks [cafe2]: 4 min on foot")
    assert answers("酒吧，一分钟内").text.splitlines()[-1].startswith("范围之外最近的是：")
    assert answers("unicorn stable").text.splitlines()[0] == "“unicorn stable” is no need that LORE knows."


def test_a_place_far_from_everything_gets_an_answer_too(town, graph):
    for text in ("coffee, open now", "Starbucks", "what is here?"):
        answer = ask(town, text, -80.0, 179.99, now=MONDAY, graph=graph)
        assert answer.candidates == [] and answer.beyond is None
        assert answer.text.splitlines()[-1] == "Nothing that meets this is within 15 min on foot."


def test_a_name_is_found_without_a_need(answers):
    assert ids(answers("starbucks")) == ["cafe2"]
    answer = answers("Blue Door near Union Station")
    assert answer.intent.around_id == "station" and ids(answer) == ["cafe1"]


def test_without_a_need_the_nearest_places_are_shown(answers):
    assert ids(answers("what is nearby?", k=2)) == ["cafe1", "bar"]


def test_a_post_speaks_for_its_place_and_is_never_a_place(answers):
    answer = answers("coffee", k=10)
    assert "post" not in ids(answer) and ids(answer).count("cafe1") == 1


def test_hostile_names_and_posts_stay_text(answers):
    answer = answers("a bar at 1am", k=10)
    assert "bar" in ids(answer) and "evil" in ids(answer)
    assert not any(mark in answer.text for mark in ("<", "\x1b", "](", "`", "http"))
    evil = next(one for one in answer.candidates if one.place.place_id == "evil")
    assert evil.opening.state == "unknown" and "Night" in answer.text


def test_the_json_holds_the_evidence_of_each_layer(answers, town):
    found = json.loads(json.dumps(as_json(answers("coffee, open now"), town.place_ids)))
    assert found["places"][0]["place_id"] == "cafe1" and found["places"][0]["rules"] == ["circle-within", "hours-open"]
    assert found["places"][0]["opening"] == {"state": "open", "until": "2026-11-30T18:00:00"}
    assert {hit["place_id"] for hit in found["layers"]["graph"]} == {"cafe1", "cafe2", "cafe3"}
    assert found["intent"]["needs"] == [{"text": "coffee", "key": "coffee", "excluded": False}]


def engine_at(server):
    return EndpointEngine(EndpointSection(url=server.url, model=MODEL, max_attempts=1), local_life())


def test_a_language_model_reads_and_writes_and_both_are_checked(answers):
    reading = '{"needs": ["coffee"], "excluded": ["chain"], "time": "Tue 15:00", "minutes": 5, "around": null}'
    writing = "Blue Door [cafe1] is 1 min on foot, open until 18:00. Costa is better. Blue Door [cafe1] is 9 min away."
    with serve(lambda request: reply(reading if "JSON" in request.text else writing)) as server:
        answer = answers("somewhere for a flat white", engine=engine_at(server))
    assert answer.text == "Blue Door [cafe1] is 1 min on foot, open until 18:00." and answer.struck == 2
    assert ids(answer) == ["cafe1"] and answer.intent.minutes == 5 and f"{answer.intent.when:%a %H}" == "Tue 15"


@pytest.mark.parametrize(
    "reading", ["no JSON", '{"needs": "coffee"}', '{"minutes": 500}', '{"time": "soonish"}', "{" * 5000, '{"x": 1}']
)
def test_a_bad_reading_of_a_language_model_leaves_the_grammars(answers, reading):
    with serve(lambda request: reply(reading)) as server:
        answer = answers("coffee, 5 min walk", engine=engine_at(server))
    assert ids(answer) == ["cafe1", "cafe2"] and answer.intent.minutes == 5
    assert len(answer.notes) == 2 and answer.text.startswith("2 places within 5 min")


def test_a_language_model_that_fails_leaves_grammar_and_template(answers):
    with serve(lambda request: Reply(status=401)) as server:
        answer = answers("coffee, 5 min walk", engine=engine_at(server))
    assert ids(answer) == ["cafe1", "cafe2"] and len(answer.notes) == 2 and answer.text.startswith("2 places within 5 min")


def test_a_language_models_place_goes_through_the_names_of_the_town(answers):
    with serve(lambda request: reply('{"around": "Onion Station"}')) as server:
        answer = answers("coffee", engine=engine_at(server))
    assert answer.intent.unknown_places == ("Onion Station",) and (answer.intent.lat, answer.intent.lon) == HERE


@pytest.mark.parametrize("question", ["coffee ", ""])
def test_an_open_place_is_found_behind_many_that_are_closed(tmp_path, question):
    day = [Place(f"day{at}", "Day", 41.88, -87.63 + at * 1e-6, classes=["amenity=cafe"], hours="08:00-10:00") for at in range(150)]
    night = Place("night", "Night Owl", 41.8815, -87.63, classes=["amenity=cafe"], hours="24/7")
    with small_town(tmp_path, [*day, night]) as town:
        graph = Graph(town, small_relations(tmp_path))
        options = {"now": MONDAY, "graph": graph}
        assert ids(ask(town, f"{question}at 23:00", 41.88, -87.63, **options)) == ["night"]
        assert len(ask(town, f"{question}at 9:00", 41.88, -87.63, k=100, **options).candidates) == 100


def test_an_event_is_open_while_it_lasts(tmp_path):
    jazz = Place(
        "jazz",
        "Jazz",
        *HERE,
        kind="event",
        classes=["amenity=bar"],
        starts=datetime(2026, 11, 30, 20),
        ends=datetime(2026, 12, 1, 1),
    )
    with small_town(tmp_path, [*PLACES, jazz]) as opened:
        graph = Graph(opened, small_relations(tmp_path))
        shown = [
            ids(ask(opened, f"drinks {when}", *HERE, now=MONDAY, graph=graph)) for when in ("now", "at 9pm", "2026-12-01 02:00")
        ]
    assert ["jazz" in one for one in shown] == [False, True, False]


@pytest.fixture
def command(town):
    app = typer.Typer()
    app.command()(ask_command)

    def run(*arguments):
        file = relations_file(town.path.parent)
        return CliRunner().invoke(app, [str(town.path), *arguments, "--relations", str(file)])

    return run


def test_the_command_prints_what_it_understood_and_the_answer(command):
    done = command("coffee tomorrow", "--at", "41.88,-87.63", "--time", "Tue 15:00", "--minutes", "5", "-k", "1")
    assert done.exit_code == 0, done.output
    assert "understood: coffee · within 5 min on foot · Tue" in done.output and "1. Blue Door [cafe1]: 1 min" in done.output
    done = command("food", "--at", "41.88,-87.63", "--need", "quiet_work", "--around", "Harold's Library", "--json")
    found = json.loads(done.stdout)
    assert found["intent"]["around_id"] == "lib" and found["places"][0]["place_id"] == "lib"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--at", "95,0"],
        ["--at", "41.88,-87.63", "--time", "25:00"],
        ["--at", "x"],
        ["--at", "41.88,-87.63", "--time", "1800-01-01"],
    ],
)
def test_values_out_of_range_are_clear_errors(command, arguments):
    done = command("coffee", *arguments)
    assert isinstance(done.exception, LoreError) and any(word in str(done.exception) for word in ("expected", "Write", "outside"))
    assert command("coffee", "--at", "41.88,-87.63", "--minutes", "121").exit_code == 2
