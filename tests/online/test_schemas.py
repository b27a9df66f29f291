"""The formats of the service: one scoring path under all of them."""

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from online_for_tests import TIERS, StubRouter, StubService, StudentRouter, app_of, post, send
from students_for_tests import some_pairs

from lore.online.schemas import PAIR_FIELDS
from lore.support.untrusted_json import parse_json

FORMATS = {
    "/v1/rerank": lambda query, texts: {"query": query, "documents": texts},
    "/v2/rerank": lambda query, texts: {"query": query, "documents": [{"text": text} for text in texts]},
    "/rerank": lambda query, texts: {"query": query, "documents": [{"title": text} for text in texts], "top_n": 0},
    "/rerank?": lambda query, texts: {"query": query, "texts": texts},
    "/score": lambda query, texts: {"text_1": query, "text_2": texts},
    "/v1/score": lambda query, texts: {"text_1": [query] * len(texts), "text_2": texts},
    "/score?": lambda query, texts: {"queries": query, "documents": [{"title": text} for text in texts]},
    "/judge": lambda query, texts: {"pairs": [{"query": query, "title": text} for text in texts]},
}


def by_index(path: str, reply: Any) -> dict[int, tuple]:
    """Score, tier, probabilities, source, band and failure of each pair, whatever the format."""
    if path == "/judge":
        return {
            index: (
                row["score"] or 0.0,
                row["tier"],
                None if row["p_L1"] is None else {tier: row[f"p_{tier}"] for tier in TIERS},
                *(row[name] for name in ("source", "band", "failure")),
            )
            for index, row in enumerate(reply["verdicts"])
        }
    results = reply if isinstance(reply, list) else reply["data"] if "data" in reply else reply["results"]
    found = {}
    for one in results:
        lore = one["lore"]
        score = one["relevance_score"] if "relevance_score" in one else one["score"]
        names = ("tier", "probabilities", "source", "band", "failure")
        found[one["index"]] = (score, *(lore[name] for name in names))
    return found


def through_all(app: Any, query: str, texts: list[str]) -> list[dict[int, tuple]]:
    requests = [{"url": path, "json": body(query, texts)} for path, body in FORMATS.items()]
    replies = asyncio.run(send(app, *requests))
    assert {reply.status_code for reply in replies} == {200}
    return [by_index(path, reply.json()) for path, reply in zip(FORMATS, replies, strict=True)]


@settings(max_examples=10, deadline=None)
@given(st.text(min_size=1, max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_the_same_pairs_get_the_same_answers_through_every_format(query, texts):
    first, *others = through_all(APP, query, texts)
    assert sorted(first) == list(range(len(texts)))
    for other in others:
        assert other == first


APP = app_of()


def test_a_real_student_answers_alike_through_every_format(tmp_path):
    router = StudentRouter(tmp_path)
    app = app_of(StubService(router))
    texts = [pair.title for pair in some_pairs()]
    first, *others = through_all(app, "red mug", texts)
    assert all(other == first for other in others) and {one[2] for one in first.values() if isinstance(one[2], str)} == set()
    assert len({one[0] for one in first.values()}) > 1 and all(0 <= one[0] <= 1 for one in first.values())
    assert all(one[3] == "student" and one[5] is None for one in first.values())

    full = some_pairs()[0]
    item = {"title": full.title, "attributes": full.attributes, "price": full.price}
    verdict = router.student.score([full])[0]
    reply = post(app, "/judge", {"pairs": [{"query": full.query, "pair_id": "p0", **item}]}).json()["verdicts"][0]
    assert [reply[f"p_{tier}"] for tier in router.tier_ids] == verdict.probabilities
    reply = post(app, "/v1/rerank", {"query": full.query, "documents": [item]}).json()["results"][0]
    assert list(reply["lore"]["probabilities"].values()) == verdict.probabilities


def test_documents_come_back_best_first_and_ties_by_index():
    router = StubRouter()
    body = {"model": "rerank-v3.5", "query": "red mug", "documents": ["lamp", {"text": "red mug", "id": 7}, "lamp", "b", "c", "d"]}
    reply = post(app_of(StubService(router)), "/v2/rerank", body | {"return_documents": True}).json()
    assert reply["model"] == "rerank-v3.5" and reply["meta"]["api_version"]["version"] == "2"
    scores = [one["relevance_score"] for one in reply["results"]]
    assert scores == sorted(scores, reverse=True)
    order = [one["index"] for one in reply["results"]]
    assert sorted(order) == list(range(6)) and order.index(2) == order.index(0) + 1
    for one in reply["results"]:
        given = body["documents"][one["index"]]
        assert one["document"] == ({"text": given} if isinstance(given, str) else given)
    assert router.asked[1].item_id == "7"
    few = post(app_of(), "/v1/rerank", body | {"top_n": 2}).json()["results"]
    assert [one["index"] for one in few] == order[:2] and "document" not in few[0]


def test_the_texts_of_text_embeddings_inference_come_back_where_asked():
    body = {"query": "red mug", "texts": ["a", "b", "c"], "raw_scores": False, "return_text": True, "truncate": True}
    reply = post(app_of(), "/rerank", body).json()
    assert isinstance(reply, list) and all(one["text"] == body["texts"][one["index"]] for one in reply)
    assert [one["score"] for one in reply] == sorted((one["score"] for one in reply), reverse=True)


def test_objects_have_the_fields_of_an_item():
    router = StubRouter()
    app = app_of(StubService(router))
    item = {"title": "Lumo mug", "text": "A mug for tea.", "brand": "Lumo", "price": "7.50", "attributes": {"color": "red"}}
    item["id"] = 9
    post(app, "/rerank", {"query": "mug", "documents": [item, {"name": "mug", "color": "blue", "brand": "Vela"}, {}]})
    first = router.asked[0]
    assert (first.title, first.description, first.brand, first.price) == ("Lumo mug", "A mug for tea.", "Lumo", 7.5)
    assert first.attributes == {"color": "red"} and first.item_id == "9" and len(router.asked) == 1
    fields = ["name", "color", "brand"]
    reply = post(app, "/v1/rerank", {"query": "mug", "documents": [item, {"name": "mug", "color": "blue"}], "rank_fields": fields})
    first, second = router.asked[1:]
    assert (first.title, first.brand, first.price) == ("Lumo", None, None)  # the first of the ranked fields that it has
    assert (second.title, second.attributes) == ("mug", {"color": "blue"}) and reply.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"text_1": "red mug", "text_2": ["a", "b"]},
        {"queries": ["red mug", "red mug"], "documents": ["a", {"text": "b"}]},
        {"queries": "red mug", "items": ["a", {"title": "b"}]},
        {"data_1": "red mug", "data_2": ["a", {"content": [{"type": "text", "text": "b"}]}]},
    ],
)
def test_scores_of_vllm_keep_the_order_of_the_request(body):
    router = StubRouter()
    reply = post(app_of(StubService(router)), "/score", body).json()
    assert [(one["index"], one["object"]) for one in reply["data"]] == [(0, "score"), (1, "score")] and reply["object"] == "list"
    assert [(pair.query, pair.title) for pair in router.asked] == [("red mug", "a"), ("red mug", "b")]


@pytest.mark.slow  # loads vLLM
def test_replies_fit_the_clients_of_vllm():
    """The models that vLLM's own client code reads replies with."""
    protocol = pytest.importorskip("vllm.entrypoints.pooling.scoring.protocol")
    app = app_of()
    reply = post(app, "/score", {"text_1": "red mug", "text_2": ["a", "b"]}).json()
    assert [one.score for one in protocol.ScoreResponse.model_validate(reply).data] == [one["score"] for one in reply["data"]]
    reply = post(app, "/rerank", {"query": "red mug", "documents": ["a", "b"], "return_documents": True}).json()
    found = protocol.RerankResponse.model_validate(reply)
    assert [one.document.text for one in found.results] == [["a", "b"][one.index] for one in found.results]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "1 and N"),
        ("/score", {"text_1": ["a", "b"], "text_2": "a"}, "1 and N"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/score", {"text_1": "a", "text_2": "b", "queries": "a", "items": "b"}, "several formats"),
        ("/rerank", {"query": "a", "documents": ["a"], "texts": ["a"]}, "several formats"),
        ("/rerank", {"query": "a"}, "documents"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": [5]}, "documents"),
        ("/rerank", {"query": "", "texts": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": "1"}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 1e999}, "top_n"),
        ("/judge", {"pairs": [{"query": "a", "title": "b"}], "deadline_ms": 0}, "deadline_ms"),
        ("/judge", {"pairs": {"query": "a"}}, "pairs"),
        ("/judge", [], "body"),
    ],
)
def test_a_body_of_another_form_is_refused_with_its_place(path, body, said):
    reply = post(app_of(), path, json.dumps(body).replace("Infinity", "1e999"))
    error = reply.json()["error"]
    assert reply.status_code == 422 and error["type"] == "invalid_request" and said in error["message"]


BAD = {
    "no title": ({"query": "red mug"}, "title_empty"),
    "no query": ({"title": "red mug"}, "query_empty"),
    "a NUL": ({"query": "red mug", "title": "a\0b"}, "nul_byte"),
    "a long title": ({"query": "red mug", "title": "a" * 301}, "text_too_long"),
    "a long attribute": ({"query": "red mug", "title": "a", "attributes": {"color": "a" * 301}}, "text_too_long"),
    "a long listed attribute": (
        {"query": "red mug", "title": "a", "attributes": [{"key": "a", "value": "a" * 301}]},
        "text_too_long",
    ),
    "a long name": ({"query": "red mug", "title": "a", "attributes": {"a" * 301: "red"}}, "text_too_long"),
    "attributes that are none": ({"query": "red mug", "title": "a", "attributes": 5}, "field_type"),
    "a price that is none": ({"query": "red mug", "title": "a", "price": "cheap"}, "field_type"),
    "a title that is a list": ({"query": "red mug", "title": ["a"]}, "field_type"),
    "a misspelled field": ({"query": "red mug", "titel": "a"}, "unknown_field"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_pair_fails_alone_and_comes_last(name):
    row, failure = BAD[name]
    good = {"query": "red mug", "title": "mug"}
    app = app_of(max_text_characters=300)
    verdicts = post(app, "/judge", {"pairs": [row, good]}).json()["verdicts"]
    assert (verdicts[0]["failure"], verdicts[0]["tier"], verdicts[0]["score"]) == (failure, None, None)
    assert verdicts[1]["failure"] is None and verdicts[1]["score"] is not None
    if "query" in row and failure != "unknown_field":
        document = {name: value for name, value in row.items() if name != "query"}
        results = post(app, "/rerank", {"query": "red mug", "documents": [document, "mug"]}).json()["results"]
        assert [one["index"] for one in results] == [1, 0] and results[1]["relevance_score"] == 0
        assert results[1]["lore"]["failure"] == failure and results[1]["lore"]["source"] is None


TEXTS = st.text(max_size=8) | st.sampled_from(["key", "value", "data:image/png;base64,AA"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = [*PAIR_FIELDS, "text", "id", "content", "label", "split", "titel"]


@settings(max_examples=12, deadline=None)
@example([{"title": "a", "price": float("inf")}])
@given(st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), min_size=1, max_size=3))
def test_no_content_of_a_pair_fails_its_request(rows):
    good = {"query": "red mug", "title": "mug"}
    bodies = {
        "/judge": {"pairs": [*rows, good]},
        "/rerank": {"query": "red mug", "documents": [*rows, good], "return_documents": True, "rank_fields": ["title", "label"]},
        "/score": {"text_1": "red mug", "text_2": [*rows, good]},
    }
    for path, body in bodies.items():
        reply = post(APP, path, re.sub("-?Infinity", "1e999", json.dumps(body)))  # a number that no float holds
        assert reply.status_code == 200, reply.text
        found = by_index(path, parse_json(reply.text, constants=False))
        assert len(found) == len(rows) + 1 and found[len(rows)][5] is None


def test_half_a_character_is_replaced():
    router = StubRouter()
    body = b'{"query": "red \\ud83d", "documents": ["\\uDE00 mug", "\\ud83d\\ude00"]}'
    reply = post(app_of(StubService(router)), "/rerank", body)
    assert reply.status_code == 200 and router.asked[0].query == "red \ufffd"
    assert [pair.title for pair in router.asked] == ["\ufffd mug", "😀"]
