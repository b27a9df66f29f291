"""Traces reach a collector over OTLP/HTTP, and one that is down costs nothing."""

import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from online_for_tests import StubService, post, recipe

from lore.online.app import build_app
from lore.online.traces import open_traces
from lore.support.errors import LoreError

proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


@pytest.fixture
def collector():
    """(address, received requests)."""
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


def test_one_span_a_request_with_its_stages(collector):
    address, received = collector
    traces = open_traces(address)
    parent = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    traces.request("/judge", 200, 0.25, {"cache": 0.001, "model": 0.2}, {"lore.pairs": 7}, parent)
    app = build_app(recipe(), StubService(), traces=traces)
    pairs = [{"query": "secret lamp", "title": "Lamp"}] * 2
    headers = {"traceparent": parent["traceparent"].replace("a", "c"), "x-request-id": "r7"}
    assert post(app, "/judge", {"pairs": pairs}, headers=headers).status_code == 200
    traces.request("/rerank", 500, 0.01, {})
    traces.request("/score", 200, 0.01, {}, headers={"traceparent": "no trace"})
    traces.close()
    spans = []
    for path, body in received:
        assert path == "/v1/traces"
        message = proto.ExportTraceServiceRequest.FromString(body)
        spans += [span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans]
    first, posted, second, third = spans
    assert b"secret" not in b"".join(body for _, body in received)
    about = {one.key: one.value for one in posted.attributes}
    assert posted.trace_id.hex() == "c" * 32 and about["lore.request_id"].string_value == "r7"
    assert about["lore.answers.student"].int_value == 2 and about["lore.seconds.answer"].double_value > 0
    values = {one.key: one.value for one in first.attributes}
    assert first.name == "POST /judge" and first.trace_id.hex() == "a" * 32 and first.parent_span_id.hex() == "b" * 16
    assert abs(first.end_time_unix_nano - first.start_time_unix_nano - 0.25e9) < 1000
    assert values["lore.seconds.cache"].double_value == 0.001 and values["lore.pairs"].int_value == 7
    assert values["http.response.status_code"].int_value == 200
    assert (first.status.code, second.status.code) == (0, 2) and not second.parent_span_id and not third.parent_span_id


def test_a_collector_that_is_down_costs_nothing():
    traces = open_traces("http://127.0.0.1:9")
    began = time.process_time()
    for _ in range(100):
        traces.request("/judge", 200, 0.25, {"cache": 0.001})
    traces.close()
    assert time.process_time() - began < 30


@pytest.mark.parametrize(
    "address", ["127.0.0.1:4318", "ftp://h", "http://", "http://user:hunter2@h:1", "http://[", "http://h:99999"]
)
def test_what_is_no_address_is_named(address):
    with pytest.raises(LoreError, match="no address of a collector") as error:
        open_traces(address)
    assert "hunter2" not in str(error.value)
