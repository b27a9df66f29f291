from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore.nearby.fusion import FEATURES, LearnedFusion, candidates, fuse
from lore.nearby.graph import RELATIONS, Graph, Linker, load_relations
from lore.nearby.retrieval import Reach
from lore.nearby.town import Town, write_town
from lore.nearby.vectors import Vectors, hashed_words, place_text
from lore.places.hours import Opening
from lore.places.place import Place
from lore.places.question import Hit, Intent, Need
from lore.support.errors import LoreError

PARK = [(41.0, -87.0), (41.0, -86.99), (41.01, -86.99), (41.01, -87.0), (41.0, -87.0)]
PLACES = [
    Place("library", "City Library", 41.02, -87.0, classes=["amenity=library"], tags={"internet_access": "wlan"}),
    Place("cafe", "Bean", 41.021, -87.0, classes=["amenity=cafe"], tags={"internet_access": "no", "brand": "Bean"}),
    Place("cafe in the park", "Leaf", 41.005, -86.995, classes=["cafe"], tags={"outdoor_seating": "yes"}),
    Place("pastry", "Éclair", 41.022, -87.0, classes=["shop=pastry"], tags={"cuisine": "donut; bagel"}),
    Place("park", "Grant Park", 41.005, -86.995, kind="area", classes=["leisure=park"], outline=PARK),
    Place("hall", "Old Hall", 41.023, -87.0),
    Place("jazz", "Jazz Night", 41.023, -87.0, "event", tags={"live_music": "yes"}, about="hall", ends=datetime(2026, 1, 2, 1)),
    Place("bar", "Bob's <b>", 41.024, -87.0, classes=["amenity=bar"], tags={"wifi": "free"}),
]


@pytest.fixture(scope="module")
def relations():
    return load_relations()


@pytest.fixture(scope="module")
def town(tmp_path_factory, relations):
    path = tmp_path_factory.mktemp("town") / "town.db"
    write_town(path, PLACES, encode=lambda some: hashed_words([place_text(one, relations) for one in some]))
    with Town.open(path) as town:
        yield town


@pytest.fixture(scope="module")
def graph(town, relations):
    return Graph(town, relations)


def everywhere(town):
    return Reach(np.arange(len(town)), np.arange(len(town)) * 80.0, np.arange(len(town)) * 1.0)


def asked(*keys, **options):
    return Intent("words", 41, -87, needs=tuple(Need(key, key) for key in keys), **options)


def found(layer, town, intent, reach=None):
    return {town.place_ids[hit.row]: hit for hit in layer.retrieve(intent, reach or everywhere(town), 10)}


def test_a_need_leads_to_places_over_categories_and_names_its_path(graph, town):
    hits = found(graph, town, asked("quiet_work"))
    assert list(hits) == ["library", "cafe in the park", "cafe"] or list(hits) == ["library", "cafe", "cafe in the park"]
    assert hits["library"].why == "quiet to work -> library" and hits["cafe"].score == pytest.approx(0.5)
    assert found(graph, town, asked("quiet_work", language="zh"))["library"].why == "安静工作 -> 图书馆"


def test_each_hop_to_a_narrower_category_decays(graph, town, relations):
    hit = found(graph, town, asked("bread"))["pastry"]
    bagel, donut = 0.6, 0.4
    assert hit.score == pytest.approx(1 - (1 - relations.decay) * (1 - bagel) * (1 - donut))
    assert hit.why == "bakery -> bakery -> pastry shop".replace("bakery -> bakery", "bakery")


def test_a_condition_orders_and_lets_nothing_else_in(graph, town):
    hits = found(graph, town, asked("coffee", "wifi"))
    assert list(hits) == ["cafe in the park", "cafe"]  # nothing is known of one, the other has none; the bar is no cafe
    assert hits["cafe"].score == pytest.approx(1 - 0.5) and list(found(graph, town, asked("wifi"))) == ["library", "bar"]


def test_an_event_leads_to_its_place_until_it_is_over(graph, town):
    hits = found(graph, town, asked("live_music", when=datetime(2026, 1, 1, 22)))
    assert hits["hall"].why == "live music -> live music: yes -> Jazz Night" and hits["hall"].score < hits["jazz"].score
    later = asked("live_music", when=datetime(2026, 1, 2, 2))
    assert found(graph, town, later, graph.allowed(later, everywhere(town))) == {}


def test_a_place_in_an_area_inherits_beside_another_need_only(graph, town):
    hits = found(graph, town, asked("coffee", "park"))
    assert list(hits)[0] == "cafe in the park" and hits["cafe in the park"].why.endswith("park -> Grant Park")
    assert list(found(graph, town, asked("park"))) == ["park"]


def test_what_is_excluded_is_out_of_every_layer(graph, town):
    intent = replace(asked("coffee"), needs=(Need("coffee", "coffee"), Need("chains", "chain", excluded=True)))
    reach = graph.allowed(intent, everywhere(town))
    assert town.row("cafe") not in reach.rows and len(reach.rows) == len(reach.minutes) == len(town) - 1


def test_an_area_across_the_date_line_holds_places_on_both_sides(tmp_path, relations):
    ring = [(41.0, 179.99), (41.0, -179.99), (41.01, -179.99), (41.01, 179.99), (41.0, 179.99)]
    cafes = [Place(f"at {lon}", "Leaf", 41.005, lon, classes=["cafe"]) for lon in (179.995, -179.995, 179.985, -179.985)]
    park = Place("park", "Park", 41.005, 180, kind="area", classes=["leisure=park"], outline=ring)
    write_town(tmp_path / "town.db", [*cafes, park])
    with Town.open(tmp_path / "town.db") as town:
        hits = found(Graph(town, relations), town, asked("coffee", "park"))
    assert {name for name, hit in hits.items() if hit.why.endswith("park -> Park")} == {"at 179.995", "at -179.995"}


@given(st.sets(st.integers(0, len(PLACES) - 1)), st.sampled_from(["coffee", "park", "live_music", "wifi", "food"]))
def test_nothing_beyond_reach_is_found(graph, town, relations, rows, key):
    reach = Reach(np.array(sorted(rows), dtype=np.int64), np.zeros(len(rows)), np.zeros(len(rows)))
    for layer in (graph, Vectors(town.vectors, hashed_words, relations)):
        assert {hit.row for hit in layer.retrieve(asked(key), reach, 5)} <= rows


def test_words_without_a_key_are_linked_to_needs(town, relations):
    intent = Intent("x", 41, -87, needs=(Need("a coffee shop, please"),))
    assert found(Graph(town, relations), town, intent) == {}
    hits = found(Graph(town, relations, Linker(relations, hashed_words)), town, intent)
    assert next(iter(hits)) in ("cafe", "cafe in the park")


def test_an_unknown_need_names_the_nearest(graph, town):
    with pytest.raises(LoreError, match="'cofee' is no need .* Nearest: coffee"):
        graph.retrieve(asked("cofee"), everywhere(town), 3)


def test_all_problems_of_a_file_are_reported_together(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "decay: 1.5\nhops: 3\ncategories: {amenity=cafe: {en: cafe, zh: 咖啡馆, broader: [drinks]}}\nneeds:\n"
        "- {key: coffee, en: [Coffee], zh: [咖啡], classes: {amenity=caffe: 1.0}}\n"
        "- {key: tea, en: [coffee], zh: [茶], tags: {cuisine: 1.0}}\n"
    )
    with pytest.raises(LoreError) as error:
        load_relations(path)
    for part in ("decay", "hops", "drinks", "nearest:  amenity=cafe", "'coffee', also of coffee", "key=value"):
        assert part in str(error.value)


def test_the_shipped_relations_hold_every_language_and_only_known_categories(relations):
    assert len(relations.needs) >= 60 and all(need.en and need.zh for need in relations.needs)
    assert RELATIONS.is_file() and relations.by_word["cafe"] == "amenity=cafe"


def test_the_vector_layer_finds_by_name_and_is_silent_without_vectors(town, relations):
    intent = Intent("the old hall", 41, -87, needs=(Need("old hall"),))
    assert next(iter(found(Vectors(town.vectors, hashed_words, relations), town, intent))) == "hall"
    assert Vectors(None, hashed_words, relations).retrieve(intent, everywhere(town), 3) == []
    some = Reach(np.array([5, 1]), np.zeros(2), np.zeros(2))
    layer = Vectors(town.vectors, hashed_words, relations)
    whole = {hit.row: hit.score for hit in layer.retrieve(intent, everywhere(town), 10)}
    assert {hit.row: pytest.approx(hit.score) for hit in layer.retrieve(intent, some, 10)} == {row: whole[row] for row in (5, 1)}


def test_equal_scores_share_a_rank():
    hits = {"graph": [Hit(0, 1.0, ""), Hit(1, 1.0, ""), Hit(2, 0.5, "")], "vector": [Hit(1, 0.9, "")]}
    fused = fuse(Reach(np.array([2, 1, 0]), np.zeros(3), np.zeros(3)), hits)
    assert [row for row, _ in fused] == [1, 0, 2]
    assert [score for _, score in fused] == pytest.approx([2 / 61, 1 / 61, 1 / 63])


def test_the_learned_fusion_is_read_back_and_orders_as_it_learned(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.random((400, len(FEATURES)))
    learned = LearnedFusion.fit(features, features[:, 2] > 0.5)
    learned.save(tmp_path / "fusion.json")
    assert LearnedFusion.load(tmp_path / "fusion.json") == learned and np.argmax(learned.weight) == 2
    hits = {"graph": [Hit(0, 0.9, "")], "vector": [Hit(1, 0.9, ""), Hit(0, 0.1, "")]}
    assert fuse(Reach(np.arange(2), np.zeros(2), np.zeros(2)), hits, learned)[0][0] == 1
    (tmp_path / "fusion.json").write_text('{"features": ["graph"], "mean": [], "scale": [0], "weight": [1e99]}')
    with pytest.raises(LoreError, match="scale"):
        LearnedFusion.load(tmp_path / "fusion.json")


def test_candidates_are_open_and_carry_their_evidence(graph, town):
    intent = asked("quiet_work", when=datetime(2026, 1, 5, 9), open_then=True)
    hits = {"graph": graph.retrieve(intent, everywhere(town), 10)}
    states = {"library": Opening("closed"), "cafe": Opening("unknown")}
    some = candidates(town, intent, everywhere(town), hits, lambda place: states.get(place.place_id, Opening("open")), 4)
    assert {one.place.place_id for one in some} == {"cafe", "cafe in the park"}
    assert all(one.hits["graph"].row == one.row and one.metres == 80.0 * one.row for one in some)
    assert LearnedFusion.load().features == list(FEATURES)
