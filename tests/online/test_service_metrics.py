"""The service's metrics: what is counted, the drift of scores, several workers, the Grafana dashboard."""

import asyncio
import json
import math
import os
import random
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from online_for_tests import StubRouter, StubService, post, recipe, send
from prometheus_client.parser import text_string_to_metric_families

import lore.online.metrics as metrics_module
from lore.judge.verdict import Verdict
from lore.online.answer import Answer, Overloaded
from lore.online.app import build_app
from lore.online.metrics import BINS, Metrics, ScoreHistory, psi
from lore.online.metrics_folder import VARIABLE, shared_metrics


def answer(source="student", tier="L1", score=0.5, band="tail", **more) -> Answer:
    return Answer(Verdict("p", tier, source=source), score, band, **more)


def read(metrics: Metrics | bytes) -> dict[str, float]:
    """Samples as Prometheus reads them: `name{label="value"}` -> value."""
    text = metrics.rendered()[0] if isinstance(metrics, Metrics) else metrics
    families = text_string_to_metric_families(text.decode())
    samples = (sample for family in families for sample in family.samples)
    return {f"{one.name}{{{','.join(f'{k}={v}' for k, v in sorted(one.labels.items()))}}}": one.value for one in samples}


def test_psi_by_hand():
    assert psi([10, 20, 30], [10, 20, 30]) == 0
    assert psi([0.5, 0.5], [2.5, 0.5]) == pytest.approx(0.25 * math.log(3))  # shares 1/2, 1/2 and 3/4, 1/4
    # with .5 on every bin: shares 1/4, 3/4 and 1/2, 1/2: .25 ln 2 - .25 ln(2/3)
    assert psi([0, 1], [0, 0]) == pytest.approx(0.25 * math.log(2) - 0.25 * math.log(2 / 3))
    with pytest.raises(ValueError):
        psi([1, 2], [1, 2, 3])


counts = st.lists(st.integers(0, 10_000), min_size=4, max_size=4)


@settings(max_examples=50, deadline=None)
@given(counts, counts, st.permutations(range(4)))
def test_psi_is_never_negative_symmetric_and_does_not_depend_on_the_order_of_bins(some, others, order):
    found = psi(some, others)
    assert found >= 0 and found == pytest.approx(psi(others, some), abs=1e-12)
    assert found == pytest.approx(psi([some[at] for at in order], [others[at] for at in order]), abs=1e-12)


def test_the_index_stays_near_its_mean_without_a_shift_and_sees_one():
    draw = random.Random(0)
    history = ScoreHistory()
    history.add(draw.betavariate(2, 2) for _ in range(metrics_module.REFERENCE_SCORES))
    assert sum(history.recent) == 0
    for _ in range(400):
        history.add(draw.betavariate(2, 2) for _ in range(50))
    chance = (BINS - 1) * (1 / sum(history.reference) + 1 / sum(history.recent))
    assert psi(history.reference, history.recent) < 4 * chance < 0.05
    assert sum(history.recent) < metrics_module.HALF_LIFE / math.log(2) + 50
    for _ in range(400):
        history.add(draw.betavariate(2, 3) for _ in range(50))
    assert psi(history.reference, history.recent) > 0.1


def test_what_is_reported_is_what_prometheus_reads():
    metrics = Metrics(reference=[100.0] * BINS)
    waiting, state = [3], ["closed"]
    metrics.watch(lambda: waiting[0], lambda: state[0])
    given_answers = [
        answer(),
        answer(late=True),
        answer("cache", "L4", 1.0, "head", age_seconds=7200.0),
        answer("judge", "L2", 0.3),
        answer(tier=None, score=None),
    ]
    metrics.answered(given_answers)
    metrics.stage("model", 0.3)
    metrics.request("/judge", 200, 0.4)
    metrics.request("/a/secret/path", 404, 0.001)
    metrics.shed("overloaded")
    metrics.cache_asked("memory", 2, 5)
    metrics.cache_failed("timeout", 5)
    metrics.judge_outcome("late")
    metrics.photo_refused("image_too_large")
    metrics.photo_refused("whatever a request says")
    metrics.canary(0.004)
    metrics.models("s:r:n", None)
    waiting[0], state[0] = 8, "open"
    found = read(metrics)
    expected = {
        "lore_pairs_total{band=tail,source=student,tier=L1}": 2,
        "lore_pairs_total{band=head,source=cache,tier=L4}": 1,
        "lore_pairs_total{band=tail,source=judge,tier=L2}": 1,
        "lore_pairs_total{band=tail,source=student,tier=none}": 1,
        "lore_late_answers_total{band=tail}": 1,
        "lore_stage_seconds_sum{stage=model}": 0.3,
        "lore_stage_seconds_bucket{le=0.2,stage=model}": 0,
        "lore_stage_seconds_bucket{le=0.35,stage=model}": 1,
        "lore_requests_total{schema=/judge,status=200}": 1,
        "lore_requests_total{schema=other,status=404}": 1,
        "lore_shed_requests_total{reason=overloaded}": 1,
        "lore_cache_lookups_total{layer=memory,result=hit}": 2,
        "lore_cache_lookups_total{layer=memory,result=miss}": 5,
        "lore_cache_errors_total{reason=timeout}": 5,
        "lore_cache_age_seconds_sum{}": 7200,
        "lore_judge_requests_total{outcome=late}": 1,
        "lore_judge_breaker{}": 2,
        "lore_queued_pairs{}": 8,
        "lore_photos_refused_total{reason=image_too_large}": 1,
        "lore_photos_refused_total{reason=other}": 1,
        "lore_canary_difference{}": 0.004,
        "lore_service_info{judge=none,student=s:r:n}": 1,
        "lore_score_bins{bin=10,window=recent}": 2,  # the student's, and no one else's
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "lore_score_psi{}" not in found and "secret" not in metrics.rendered()[0].decode()  # too few scores
    metrics.answered([answer(score=0.99)] * 1000)
    assert read(metrics)["lore_score_psi{}"] > 0.25
    assert metrics.rendered("application/openmetrics-text; version=1.0.0")[1].startswith("application/openmetrics-text")


WORKERS = """
import os
from lore.judge.verdict import Verdict
from lore.online.answer import Answer, Overloaded
from lore.online.app import build_app
from lore.online.metrics import BINS, Metrics
from lore.online.metrics_folder import forget_worker

children = []
for worker in range(2):
    child = os.fork()
    if child == 0:
        metrics = Metrics(reference=[500.0] * BINS)
        waiting = [99]
        metrics.watch(lambda: waiting[0], lambda: ("closed", "open")[worker])
        answers = [Answer(Verdict("p", "L1", source="student"), at / 1000, "tail") for at in range(1000)]
        metrics.answered(answers)
        metrics.stage("model", 0.1 * (worker + 1))
        metrics.request("/judge", 200, 0.2)
        metrics.rendered()
        waiting[0] = 10 * (worker + 1)
        metrics.request("/judge", 200, 0.2)  # shown without a scrape of this worker
        os._exit(0)
    children.append(child)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(Metrics(reference=[0.0] * BINS).rendered()[0].decode())
print("# ---")
forget_worker(children[1])
print(Metrics(reference=[0.0] * BINS).rendered()[0].decode())
"""


def test_one_worker_answers_for_all():
    with shared_metrics(2):
        done = subprocess.run([sys.executable, "-c", WORKERS], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    found, later = (read(text.encode()) for text in done.stdout.split("# ---"))
    assert found["lore_pairs_total{band=tail,source=student,tier=L1}"] == 2000
    assert found["lore_requests_total{schema=/judge,status=200}"] == 4
    assert found["lore_stage_seconds_sum{stage=model}"] == pytest.approx(0.3)
    assert (found["lore_queued_pairs{}"], found["lore_judge_breaker{}"]) == (30, 2)
    assert found["lore_score_bins{bin=3,window=reference}"] == 1000 and found["lore_score_psi{}"] < 0.01
    assert (later["lore_queued_pairs{}"], later["lore_judge_breaker{}"]) == (10, 0)
    assert later["lore_requests_total{schema=/judge,status=200}"] == 4
    assert VARIABLE not in os.environ
    with shared_metrics(1):
        assert VARIABLE not in os.environ


def test_requests_are_seen_at_the_path_for_prometheus_without_their_texts():
    metrics = Metrics()
    app = build_app(recipe(keys_variable=None, max_pairs=3), StubService(), metrics=metrics)
    pairs = [{"query": "secret lamp", "title": f"Lamp {n}", "image": "data:no photo"} for n in range(3)]
    assert post(app, "/judge", {"pairs": pairs}).status_code == 200
    assert post(app, "/judge", {"pairs": pairs * 2}).status_code == 413
    assert post(app, "/secret", {}).status_code == 404
    busy = StubService(StubRouter(refuse=Overloaded("full", 1.0)))
    assert post(build_app(recipe(), busy, metrics=metrics), "/rerank", {"query": "a", "documents": ["b"]}).status_code == 429
    (reply,) = asyncio.run(send(app, {"method": "GET", "url": "/metrics"}))
    assert reply.headers["content-type"].startswith("text/plain; version=")
    found = read(reply.content)
    expected = {
        "lore_requests_total{schema=/judge,status=200}": 1,
        "lore_requests_total{schema=/judge,status=413}": 1,
        "lore_requests_total{schema=/rerank,status=429}": 1,
        "lore_shed_requests_total{reason=overloaded}": 1,
        "lore_photos_refused_total{reason=image_corrupt}": 3,
        "lore_stage_seconds_count{stage=photos}": 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert sum(value for name, value in found.items() if name.startswith("lore_pairs_total{")) == 3
    assert "secret" not in reply.text and not any("404" in name for name in found)


def test_the_dashboard_asks_for_metrics_that_exist():
    board = json.loads((ROOT / "launch" / "grafana" / "lore.json").read_text())
    metrics = Metrics()
    known = {sample.split("{")[0] for sample in read(metrics)}
    for family in metrics.collect():
        known |= {
            f"{family.name}{end}"
            for end in {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        }
    labels = {family.name: set() for family in metrics.collect()}
    for metric in metrics.registry._names_to_collectors.values():
        labels[metric._name] = {*metric._labelnames, "le"}
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 15
    used = set()
    for query in asked:
        names = re.findall(r"\blore_\w+", query)
        assert names and set(names) <= known, query
        used |= set(names)
        own = set().union(*(labels[re.sub(r"_(total|bucket|sum|count)$", "", name)] for name in names))
        for group in re.findall(r"(?:by|on|ignoring) \(([\w, ]+)\)", query) + re.findall(r"\{(\w+)=", query):
            assert {one.strip() for one in group.split(",")} <= own, query
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
    places = [panel["gridPos"] for panel in board["panels"]]
    taken = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    assert {family.name for family in metrics.collect()} - shown == {"lore_score_bins"}
