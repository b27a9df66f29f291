"""OpenTelemetry traces of the service: one span a request, with the seconds of its stages. No span holds a text of a request.

    traces = open_traces("http://127.0.0.1:4318")
    traces.request("/judge", 200, 0.012, {"cache": 0.001, "model": 0.009}, {"lore.pairs": 10}, headers)

Spans are sent in the background, over OTLP/HTTP. A collector that cannot be reached costs spans and nothing else. The headers of a
request (W3C Trace Context) decide whose trace it belongs to.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from lore.support.errors import LoreError

PATH = "/v1/traces"
SEND_SECONDS, CLOSE_SECONDS = 5.0, 2.0
SERVICE = "lore"


class Traces:
    """Records requests. The spans of OpenTelemetry are made when the request has ended."""

    def __init__(self, provider: Any):
        from opentelemetry.trace import SpanKind, Status, StatusCode  # an extra: only for a recipe with traces
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # as above

        self._provider, self._tracer = provider, provider.get_tracer(SERVICE)
        self._kind, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)
        self._caller = TraceContextTextMapPropagator()

    def request(
        self,
        schema: str,
        status: int,
        seconds: float,
        seconds_by_stage: Mapping[str, float],
        more: Mapping[str, str | int | float | bool] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A request that has just ended. schema: its path, as the service spells it; more: other attributes; headers: traceparent
        and tracestate, if the request had them. Does not raise and does not wait."""
        now = time.time_ns()
        attributes = {"http.request.method": "POST", "http.route": schema, "http.response.status_code": status, **(more or {})}
        attributes |= {f"lore.seconds.{stage}": spent for stage, spent in seconds_by_stage.items()}
        span = self._tracer.start_span(
            f"POST {schema}",
            context=self._caller.extract(dict(headers or {})),
            kind=self._kind,
            attributes=attributes,
            start_time=now - int(seconds * 1e9),
        )
        if status >= 500:
            span.set_status(self._failed)
        span.end(now)

    def close(self) -> None:
        """Sends what waits to be sent, for a few seconds at most. Blocks."""
        self._provider.force_flush(int(CLOSE_SECONDS * 1000))
        self._provider.shutdown()


def open_traces(endpoint: str) -> Traces:
    """endpoint: address of a collector, such as http://127.0.0.1:4318; without a path, /v1/traces is added. Raises LoreError if
    OpenTelemetry is not installed, and for what is no address."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # an extra: only for traces
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise LoreError(
            "serve.traces is set, and OpenTelemetry is not installed.\nInstall it: pip install 'lore-relevance[traces]', or leave "
            "serve.traces out."
        ) from error
    try:
        address = urlsplit(endpoint)
        named = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        named = False
    if not named or "@" in address.netloc:
        raise LoreError(
            "serve.traces is no address of a collector: expected http://HOST:PORT without a user or password, for example "
            "http://127.0.0.1:4318. Headers with a key belong into OTEL_EXPORTER_OTLP_HEADERS."
        )
    if address.path in ("", "/"):
        endpoint = f"{endpoint.rstrip('/')}{PATH}"
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=SEND_SECONDS)))
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # a traceback a batch while the collector is down
    return Traces(provider)
