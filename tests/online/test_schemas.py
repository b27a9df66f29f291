"""The formats of the service: one scoring path under all of them."""

import asyncio

import pytest
from online_for_tests import StubRouter, StubService, app_of, post, send


def test_cohere_and_jina_get_the_best_documents_first():
    router = StubRouter()
    app = app_of(StubService(router))
    body = {"model": "rerank-v3.5", "query": "red mug", "documents": ["blue mug", {"text": "red mug"}, "lamp"], "top_n": 2}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        reply = post(app, path, body | {"return_documents": True}).json()
        assert reply["model"] == "rerank-v3.5" and reply["id"]
        scores = [one["relevance_score"] for one in reply["results"]]
        assert len(scores) == 2 and scores == sorted(scores, reverse=True)
        for one in reply["results"]:
            given = body["documents"][one["index"]]
            assert one["document"] == ({"text": given} if isinstance(given, str) else given)
            assert set(one["lore"]["probabilities"]) == set(router.tier_ids) and one["lore"]["source"] == "student"
    assert [pair.title for pair in router.asked[:3]] == ["blue mug", "red mug", "lamp"]


@pytest.mark.parametrize(
    "body",
    [
        {"text_1": "red mug", "text_2": ["a", "b"]},
        {"queries": ["red mug", "red mug"], "documents": ["a", "b"]},
        {"queries": "red mug", "items": ["a", {"title": "b"}]},
        {"data_1": "red mug", "data_2": ["a", {"content": [{"type": "text", "text": "b"}]}]},
    ],
)
def test_scores_of_vllm_keep_the_order_of_the_request(body):
    router = StubRouter()
    first, second = asyncio.run(send(app_of(StubService(router)), *({"url": url, "json": body} for url in ("/score", "/v1/score"))))
    assert [one["index"] for one in first.json()["data"]] == [0, 1] and first.json()["data"] == second.json()["data"]
    assert [(pair.query, pair.title) for pair in router.asked[:2]] == [("red mug", "a"), ("red mug", "b")]
