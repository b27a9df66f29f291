"""The OpenAPI description of the service, and requests that schemathesis makes from it."""

import pytest
from hypothesis import HealthCheck, given, settings
from online_for_tests import app_of, get

POSTS = ("/v1/rerank", "/v2/rerank", "/rerank", "/score", "/v1/score", "/judge")
KEY = "key-of-shop-1"


def test_every_path_says_what_it_takes_and_answers():
    found = get(app_of(), "/openapi.json").json()
    assert set(found["paths"]) == {*POSTS, "/health", "/ready", "/metrics", "/dashboard", "/dashboard.json"}
    for path in POSTS:
        operation = found["paths"][path]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"] and operation["description"]
        assert set(operation["responses"]) == {"200", "400", "408", "413", "415", "422", "429", "500", "503"}
        for status, response in operation["responses"].items():
            schema = response["content"]["application/json"]["schema"]
            assert schema if status == "200" else schema == {"$ref": "#/components/schemas/ErrorReply"}
    assert "text_1" in found["components"]["schemas"]["TextScoreBody"]["required"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", POSTS)
def test_requests_made_from_the_description_get_the_replies_that_it_promises(path, mode, monkeypatch):
    """Valid and invalid bodies, with a key and without one."""
    # Loads slowly, and only for this test.
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    monkeypatch.setenv("SHOP_KEYS", KEY)
    description = schemathesis.openapi.from_asgi("/openapi.json", app_of(keys_variable="SHOP_KEYS"))
    # No JSON schema can say that the numbers of texts depend on each other.
    excluded = [positive_data_acceptance] if "score" in path else []
    cases = description[path]["POST"].as_strategy(schemathesis.GenerationMode(mode))

    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def asks(case):
        case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, excluded_checks=excluded)

    asks()
