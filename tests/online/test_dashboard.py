"""The service's own page: its numbers by hand, its key, and that it loads and shows nothing foreign."""

import base64
import json
import re

import pytest
from online_for_tests import StubService, app_of, get, post, recipe

from lore.judge.verdict import Verdict
from lore.online.answer import Answer
from lore.online.app import build_app
from lore.online.dashboard import STEPS, Dashboard, rendered, spark
from lore.online.metrics import Metrics

KEY = "key-of-shop-1"


def answers(source: str, band: str, tiers: str, **more) -> list[Answer]:
    return [Answer(Verdict("p", tier, source=source), 0.5, band, **more) for tier in tiers.split()]


def board(metrics: Metrics) -> Dashboard:
    """A dashboard with one step of 10 s, in which the metrics are told of some requests."""
    found = Dashboard(metrics)
    metrics.request("/judge", 200, 0.5)  # before the first reading
    metrics.answered(answers("cache", "head", "L1"))
    metrics.stage("cache", 0.001)
    found.read(1000.0)
    for _ in range(18):
        metrics.request("/judge", 200, 0.03)
    metrics.request("/rerank", 429, 0.0001)
    metrics.shed("overloaded")
    metrics.request("/elsewhere", 404, 3.0)  # not of the service's own work
    metrics.answered(answers("cache", "head", "L1 L4 L4", age_seconds=7200.0))
    metrics.stage("cache", 0.002)
    metrics.answered(answers("student", "tail", "L4", late=True))
    metrics.stage("cache", 0.004)
    metrics.stage("model", 0.03)
    metrics.cache_asked("store", 3, 1)
    metrics.shadow("written", 5)
    found.read(1010.0)
    return found


def test_numbers_are_those_of_the_steps():
    found = board(Metrics()).numbers()
    assert found["seconds"] == 10 and found["ages"] == [0.0]
    requests, pairs = found["requests"], found["pairs"]
    assert requests["per_second"] == [1.9] and requests["by_status"] == {"200": 18, "429": 1}
    assert requests["shed"] == {"overloaded": 1} and requests["shed_per_second"] == [0.1]
    # 1 of 19 in the bucket up to 0.5 ms, 18 in the one from 25 to 50 ms: the median is at 8.5 of these 18
    assert requests["ms"]["p50"] == [pytest.approx(25 + 25 * 8.5 / 18, abs=0.01)]
    assert pairs["per_second"] == {"cache": [0.3], "student": [0.1], "judge": [0.0]}
    assert pairs["by_band"] == {"head": {"cache": 3}, "torso": {}, "tail": {"student": 1}}
    assert pairs["tiers"]["cache"] == {"L1": 1, "L4": 2} and pairs["late"] == {"tail": 1}
    assert set(found["stages_ms"]) == {"cache", "model"} and 25 < found["stages_ms"]["model"]["p50"][0] < 50
    assert found["cache"]["hit_share"] == [0.75] and found["cache"]["hits"] == 3
    assert 3600 < found["cache"]["age_seconds"]["p50"] < 86_400
    assert found["shadow"] == {"written": 5} and found["judge"]["breaker"] is None and found["psi"] == [None]
    json.dumps(found, allow_nan=False)


def test_the_window_is_bounded_and_a_service_that_starts_again_counts_from_nothing():
    metrics = Metrics()
    found = board(metrics)
    metrics.models("student", "judge")
    metrics.watch(lambda: 7, lambda: "open")
    for step in range(2 * STEPS):
        found.read(1020.0 + 10 * step)
    assert len(found.numbers()["ages"]) == STEPS and found.numbers()["pairs"]["tiers"]["cache"] == {}
    assert found.numbers()["judge"]["breaker"] == "open" and found.numbers()["pairs"]["queued"][-1] == 7
    found.metrics = Metrics()
    found.metrics.request("/judge", 200, 0.03)
    found.read(20_000.0)
    assert found.numbers()["requests"]["by_status"] == {"200": 1}


def test_the_page_loads_nothing_runs_nothing_and_escapes():
    metrics = Metrics()
    metrics.models("<script>alert(1)</script>", "judge&co")
    page = board(metrics).page()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "judge&amp;co" in page
    assert not re.search(r"""(src|href|url)\s*[=(]""", page) and "default-src 'none'" in page
    assert page.count("<svg") == page.count("</svg>") == 9 and "nan" not in page.lower().replace("canary", "")
    assert "L4" in page and "75.0%" in page and "overloaded 1" in page
    assert rendered(Dashboard(Metrics()).numbers()).count("no pairs") == 2  # before the first step


def test_plots_have_gaps_where_there_are_no_values():
    assert spark("a", [[1.0, None, 2.0, 4.0, None]]).count("<polyline") == 2
    assert "<polyline" not in spark("a", [[]]) and "<polyline" not in spark("a", [[None, None]])


def test_the_page_needs_a_key_if_there_is_one(monkeypatch):
    assert get(app_of(), "/dashboard").status_code == 200
    assert get(app_of(), "/dashboard.json").json()["requests"]["per_second"] == []
    monkeypatch.setenv("SHOP_KEYS", KEY)
    app = app_of(keys_variable="SHOP_KEYS")

    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()

    for path in ("/dashboard", "/dashboard.json"):
        for wrong in ({}, {"authorization": "Bearer other"}, {"authorization": basic("other")}, {"authorization": "Basic %%"}):
            reply = get(app, path, headers=wrong)
            assert reply.status_code == 401 and reply.headers["www-authenticate"].startswith("Basic realm")
        for right in (f"Bearer {KEY}", basic(KEY)):
            assert get(app, path, headers={"authorization": right}).status_code == 200
    assert post(app, "/rerank", {}, headers={"authorization": basic(KEY)}).headers["www-authenticate"] == "Bearer"


def test_the_page_shows_the_service_also_while_it_does_not_answer():
    metrics = Metrics()
    app = build_app(recipe(), StubService(ready=False), metrics=metrics)
    assert post(app, "/rerank", {"query": "a", "documents": ["b"]}).status_code == 503
    reply = get(app, "/dashboard")
    assert reply.status_code == 200 and reply.headers["cache-control"] == "no-store"
