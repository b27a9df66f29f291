"""launch/{elasticsearch,opensearch,vespa}: the service and the student answer what these engines ask."""

import asyncio
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from conftest import ROOT
from online_for_tests import StubRouter, StubService, app_of, recipe, send
from search_engines import (
    VespaRanking,
    elasticsearch_ranking,
    elasticsearch_request,
    opensearch_request,
    opensearch_scores,
)
from students_for_tests import some_pairs, write_student

from lore.codec.pair_text import PairTextFormat, pair_texts
from lore.data.parquet import PairWriter
from lore.online.answer import relevance
from lore.student.scorer import open_student

LAUNCH = ROOT / "launch"
KEY = "key-of-shop-1"
QUERY = 'red "mug" \\ <b>50 % & more</b> été 😀'
TITLES = ["Lumo mug", 'a "quoted" \\ title\nof two lines', "", "</b> été 😀 'single'", "[1, 2]", "Lumo mug"]


def launch_file(name: str) -> dict:
    text = (LAUNCH / name).read_text(encoding="utf-8")
    return json.loads(text.replace("LORE_HOST", "lore").replace("LORE_API_KEY", KEY))


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("SHOP_KEYS", KEY)
    router = StubRouter()
    return router, app_of(StubService(router), keys_variable="SHOP_KEYS")


def asked(app, request) -> dict:
    (reply,) = asyncio.run(send(app, request))
    assert reply.status_code == 200, reply.text
    return reply.json()


def expected(router) -> list[float]:
    """The scores of the titles by the router itself; 0 for the empty one, which is none."""
    pairs = iter(router.asked)
    return [relevance(router._answer(next(pairs)).verdict, router.tier_ids) if title else 0.0 for title in TITLES]


def test_elasticsearch_gets_a_rank_for_every_document(service):
    router, app = service
    settings = launch_file("elasticsearch/inference.json")["service_settings"]
    reply = asked(app, elasticsearch_request(settings, QUERY, TITLES))
    ranking = elasticsearch_ranking(settings, reply)
    assert router.asked[0].query == "red \"mug\" \\ 50 % & more été 😀"
    assert sorted(index for index, _ in ranking) == list(range(len(TITLES)))
    assert [score for _, score in sorted(ranking)] == expected(router)
    assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)
    search = launch_file("elasticsearch/search.json")["retriever"]["text_similarity_reranker"]
    assert search["rank_window_size"] <= recipe().serve.max_pairs and search["inference_id"] == "lore"


def test_opensearch_gets_a_score_for_every_document(service):
    router, app = service
    connector = launch_file("opensearch/connector.json")
    request = opensearch_request(connector, QUERY, TITLES)
    trusted = launch_file("opensearch/settings.json")["persistent"]["plugins.ml_commons.trusted_connector_endpoints_regex"]
    assert any(re.match(one, request["url"]) for one in trusted)
    scores = opensearch_scores(connector, asked(app, request))
    assert scores == expected(router)


def test_a_score_of_0_or_1_stays_a_number_with_a_point(service):
    """OpenSearch casts it to a Double."""
    router, app = service
    for score in (0.0, 1.0):
        router._answer = lambda pair, score=score: set_score(StubRouter()._answer(pair), score)
        connector = launch_file("opensearch/connector.json")
        assert opensearch_scores(connector, asked(app, opensearch_request(connector, "mug", ["mug"]))) == [score]


def set_score(answer, score):
    answer.score = score
    return answer


def vespa_schema(special: tuple[int, int] = (2, 3)) -> str:
    """The schema with the special tokens of the tests' tokenizer, which has no BERT vocabulary."""
    text = (LAUNCH / "vespa/schemas/item.sd").read_text(encoding="utf-8")
    assert text.count("(101, 102, 128, ") == 1
    return text.replace("(101, 102, ", f"({special[0]}, {special[1]}, ")


FORMAT = PairTextFormat(max_tokens=128)


@pytest.mark.parametrize(
    ("profile", "head"), [("lore", "softmax"), pytest.param("lore_ordinal", "ordinal", marks=pytest.mark.slow)]
)
def test_vespa_builds_the_inputs_and_the_score_of_the_student(profile, head, tmp_path):
    student = open_student(write_student(tmp_path, fmt=FORMAT, head=head), runtime="torch")
    vespa = VespaRanking(vespa_schema(), profile, student.encoder.tokenizer.backend_tokenizer)
    for pair, verdict in zip(some_pairs(), student.score(some_pairs()), strict=True):
        own = student.encoder.batch(student.encoder.rows([pair]))
        made = vespa.inputs(*pair_texts(pair, FORMAT))
        length = own["input_ids"].shape[1]
        if length - int(own["token_type_ids"].argmax()) > 93 + 1:  # a long item is cut earlier: the query keeps 32 tokens
            ids, cut = made["input_ids"][0], int(made["attention_mask"].sum())
            assert np.array_equal(ids[: cut - 1], own["input_ids"][0, : cut - 1]) and ids[cut - 1] == own["input_ids"][0, -1]
            continue
        for name, array in made.items():
            assert array.shape == (1, 128) and np.array_equal(array[:, :length], own[name]) and not array[:, length:].any()
        score = vespa.relevance(student.session.logits(made))
        assert score == pytest.approx(relevance(verdict, student.tier_ids), abs=1e-5)


def test_the_files_of_vespa_name_each_other():
    schema, services = vespa_schema(), ElementTree.parse(LAUNCH / "vespa/services.xml")
    (component,) = services.iter("component")
    assert component.get("type") == "hugging-face-tokenizer" and component.find("special-tokens").text == "false"
    assert component.find("model").get("path") == "models/tokenizer.json"
    assert f"embed {component.get('id')} |" in schema and services.find(".//document").get("type") == "item"
    search = json.loads((LAUNCH / "vespa/search.json").read_text(encoding="utf-8"))
    assert f"rank-profile {search['ranking']} " in schema
    assert search["input.query(query_tokens)"] == f"embed({component.get('id')}, @query)"


@pytest.mark.slow
def test_vespa_runs_the_exported_file(tmp_path):
    # Loads slowly, and only for this test.
    import onnxruntime

    from lore.distill.export import export_student

    with PairWriter(tmp_path / "pairs.parquet") as writer:
        for pair in some_pairs():
            writer.write(pair)
    write_student(tmp_path / "model", fmt=FORMAT)
    export_student(tmp_path / "model", tmp_path / "student", pairs=tmp_path / "pairs.parquet", precisions=["fp32"])
    schema = vespa_schema()
    file = onnxruntime.InferenceSession(tmp_path / "student/model.onnx", providers=["CPUExecutionProvider"])
    assert {one.name for one in file.get_inputs()} == set(re.findall(r"\n        input (\w+): ", schema))
    assert [one.name for one in file.get_outputs()] == re.findall(r"\n        output (\w+): ", schema)
    student = open_student(tmp_path / "student")
    vespa = VespaRanking(schema, "lore", student.encoder.tokenizer.backend_tokenizer)
    for pair, verdict in list(zip(some_pairs(), student.score(some_pairs()), strict=True))[:2]:
        (logits,) = file.run(None, vespa.inputs(*pair_texts(pair, FORMAT)))
        assert vespa.relevance(logits) == pytest.approx(relevance(verdict, student.tier_ids), abs=1e-4)
