"""The endpoint engine against a server that misbehaves in every way a server can."""

import asyncio
import gzip
import json
import shlex
import time
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import MODEL, Answer, error, reply, serve
from PIL import Image

from lore.codec.verdict_tokens import VerdictTokens
from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.engines.engine import (
    Completion,
    EndpointFailed,
    EndpointStopped,
    EngineUsage,
    RequestRefused,
    Sampling,
    ScoresRefused,
    Usage,
)
from lore.engines.http import throttle as backoff
from lore.engines.http.endpoint import EndpointEngine
from lore.engines.http.protocol import Dialect, error_text, redact, same_model
from lore.engines.http.throttle import Throttle, retry_after_seconds
from lore.engines.http.tier_logprobs import tier_ends, tier_probabilities
from lore.engines.open_engine import open_engine
from lore.engines.serve import _template_file, serve_environment
from lore.engines.serve import serve as serve_teacher
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("shop")
KEY = "sk-proj-abcdef0123456789"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waiting times in milliseconds."""
    monkeypatch.setattr(backoff, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(backoff, "FIRST_PROBE_SECONDS", 0.01)


def ask(text: str = "hi") -> list:
    return [{"role": "user", "content": text}]


def engine_of(server, **options) -> EndpointEngine:
    return EndpointEngine(EndpointSection(url=server.url, model=MODEL, **options), RUBRIC)


class Book:
    """A gate that lets everything in and writes down what happened."""

    def __init__(self):
        self.admitted, self.settled = [], []

    async def admit(self, bound):
        self.admitted.append(bound)
        return len(self.admitted)

    def settle(self, ticket, used):
        self.settled.append(used)


def complete(server, *, gate=None, sampling=None, messages=None, **options) -> list[Completion]:
    async def work():
        async with engine_of(server, **options) as engine:
            return await engine.complete(messages or ask(), sampling or Sampling(), gate)

    return asyncio.run(work())


def in_turn(*answers):
    """Answers one after another, the last one for ever."""
    return lambda request: answers[min(request.number, len(answers) - 1)]


def test_answers_come_in_the_order_of_the_prompts_with_their_tokens():
    with serve(lambda r: reply(r.text.upper(), seconds=0.001 * (r.number % 3))) as server:
        answers = engine_of(server, max_concurrency=8).generate([ask(f"p{i}") for i in range(50)], Sampling())
        assert [row[0].text for row in answers] == [f"P{i}" for i in range(50)]
        assert answers[0] == [Completion("P0", 3, "stop", 7)]
        assert server.peak <= 8


def test_the_engine_adds_up_the_tokens_that_replies_report():
    answers = [reply("a"), reply("b", prompt_tokens=40, tokens=2, cached=32), error(429, "slow down"), reply("c", cached=99)]
    book = Book()
    with serve(in_turn(*answers)) as server:
        engine = engine_of(server, max_concurrency=1)
        engine.generate([ask("1"), ask("2")], Sampling())
        assert engine.usage == EngineUsage(47, 32, 5)
        engine.generate([ask("3")], Sampling())
        assert engine.usage == EngineUsage(54, 39, 8)  # no more cached tokens than the prompt has
        complete(server, gate=book)
    assert book.settled == [Usage(7, 3, 7)]
    with serve(lambda r: reply("a", cached=-1)) as server, pytest.raises(EndpointFailed, match="cached_tokens"):
        engine_of(server, max_attempts=1).generate([ask("1")], Sampling())


def test_sampled_answers_are_collected_where_a_server_gives_one_at_a_time_and_greedy_ones_are_asked_once():
    with serve(lambda r: reply(f"a{r.body['seed']}" if "seed" in r.body else "a")) as server:
        sampled = complete(server, sampling=Sampling(temperature=1, n=3, seed=5))
        assert [c.text for c in sampled] == ["a5", "a6", "a7"]
        assert [r.body.get("n") for r in server.requests] == [3, 2, None]
        assert complete(server, sampling=Sampling(n=3)) == [Completion("a", 3, "stop", 7)] * 3
        assert len(server.requests) == 4


def test_several_samples_share_the_tokens_that_the_server_counts_together():
    with serve(lambda r: reply("a", "a longer answer", "b", tokens=5)) as server:
        found = complete(server, sampling=Sampling(temperature=1, n=3))
        assert sum(c.tokens for c in found) == 15 and found[1].tokens > found[0].tokens


@pytest.mark.parametrize(
    ("fault", "used"),
    [
        (error(429, "slow down"), Usage(0, 0)),
        (error(500, "oops"), Usage(0, 0)),
        (error(503, "loading"), Usage(0, 0)),
        (Answer(body=b"<html>"), None),
        (Answer(body=b"\xff\xfe{"), None),
        (Answer(body={"choices": []}), None),
        (Answer(body=["choices"]), None),
        (Answer(body={"model": MODEL, "choices": [{"message": {}, "finish_reason": "stop"}]}), None),
        (reply("L1", half=True), None),
        (reply("L1", model="other"), None),
        (Answer(silent=True), None),
    ],
    ids=["429", "500", "503", "html", "bytes", "empty", "list", "no text", "half", "other model", "silence"],
)
def test_a_fault_is_sent_again_and_settled_by_itself(fault, used):
    book = Book()
    with serve(in_turn(fault, reply("L4"))) as server:
        assert complete(server, gate=book, timeout_seconds=0.3)[0].text == "L4"
    assert book.settled == [used, Usage(7, 3)]


def test_the_bound_covers_text_photos_and_all_samples():
    book = Book()
    photo = {"type": "image", "image": Image.new("RGB", (8, 8), "red")}
    messages = [{"role": "user", "content": [{"type": "text", "text": "é" * 100}, photo]}]
    with serve(lambda r: reply("a", "b")) as server:
        complete(server, gate=book, messages=messages, sampling=Sampling(1.0, n=2, max_tokens=50), max_image_tokens=1000)
        (url,) = [part["image_url"]["url"] for part in server.requests[0].body["messages"][0]["content"] if "image_url" in part]
    (bound,) = book.admitted
    assert 1200 < bound.prompt_tokens < 2000 and bound.completion_tokens == 100
    assert url.startswith("data:image/png;base64,iVBOR")


def test_a_gate_that_refuses_ends_the_request_before_it_is_sent():
    class Shut(Book):
        async def admit(self, bound):
            raise LoreError("the budget is spent")

    with serve(lambda r: reply("a")) as server:
        with pytest.raises(LoreError, match="budget is spent"):
            complete(server, gate=Shut())
        assert server.requests == []


def test_a_refused_connection_costs_nothing_and_stops_with_advice():
    book = Book()
    with serve(lambda r: reply("a")) as server:
        pass
    with pytest.raises(EndpointStopped, match="(?s)not answered for .* no connection .*Stored results are kept.*Start the server"):
        complete(server, gate=book, max_down_seconds=0.3)
    assert set(book.settled) == {Usage(0, 0)} and len(book.settled) >= backoff.BREAKER_FAULTS


def test_retry_after_holds_every_request_back():
    times = []

    def answer(request):
        times.append(time.monotonic())
        return error(429, "slow down", **{"Retry-After": "0.4"}) if request.number == 0 else reply("a", seconds=0.01)

    with serve(answer) as server:
        engine_of(server, max_concurrency=1).generate([ask(), ask()], Sampling())
    assert times[1] - times[0] >= 0.39


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [("3", 3, 3), ("0.5", 0.5, 0.5), ("-1", 0, 0), ("soon", 0, 0), (None, 0, 0), ("nan", 0, 0), ("99999", 120, 120)],
)
def test_retry_after_is_read_and_bounded(header, low, high):
    assert low <= retry_after_seconds(header) <= high


def test_retry_after_may_be_a_date():
    assert 3 < retry_after_seconds(formatdate(time.time() + 5, usegmt=True)) <= 5
    assert retry_after_seconds("Thu, 99 Foo 2099") == 0


def test_after_max_attempts_the_error_names_the_last_fault():
    with serve(lambda r: error(500, "the model is on fire")) as server:
        with pytest.raises(EndpointFailed, match="(?s)in 3 attempts.*500 .*on fire.*max_attempts"):
            complete(server, max_attempts=3)
        assert len(server.requests) == 3


def test_one_prompt_that_is_refused_leaves_the_others_alone():
    with serve(lambda r: error(400, "maximum context length is 8 tokens") if "long" in r.text else reply("a")) as server:
        with pytest.raises(RequestRefused, match="maximum context length"):
            complete(server, messages=ask("long"))
        short, long_, more = engine_of(server).generate([ask("b"), ask("long"), ask("c")], Sampling(n=2))
        assert short == more == [Completion("a", 3, "stop", 7)] * 2
        assert long_ == [Completion("", 0, "refused")] * 2


def test_an_unknown_model_stops_at_once_and_the_nearest_is_named_first():
    with serve(lambda r: error(404, "The model `tiny` does not exist.")) as server:
        server.models = ["large", "tinny", "huge"]
        with pytest.raises(EndpointStopped, match="(?s)has no model 'tiny'.*one that it serves: tinny, large, huge"):
            engine_of(server).generate([ask()] * 500, Sampling())
        assert sum(r.text == "hi" for r in server.requests) <= 64 and len(server.requests) <= 65  # one harmless request


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_stops_at_once_and_is_never_shown(status, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    said = f"Incorrect API key provided: {KEY}. Header was: Authorization: Bearer {KEY}; masked sk-proj-***6789"
    with serve(lambda r: error(status, said)) as server:
        engine = engine_of(server, key_variable="TEACHER_KEY")
        with pytest.raises(EndpointStopped) as stopped:
            engine.generate([ask()] * 3, Sampling())
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    shown = str(stopped.value)
    assert "TEACHER_KEY" in shown and "[key]" in shown
    assert KEY not in shown and KEY[:8] not in shown and "6789" not in shown


def test_a_key_that_a_server_sends_back_in_any_fault_is_not_shown(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    for fault in (error(500, KEY), Answer(body=KEY.encode()), reply("a", model=KEY), Answer(400, KEY)):
        with serve(lambda r, fault=fault: fault) as server:
            with pytest.raises(LoreError) as failed:
                complete(server, key_variable="TEACHER_KEY", max_attempts=1)
            assert KEY not in str(failed.value)
    assert error_text(("x" * 395 + KEY).encode(), KEY).count("sk-") == 0  # not cut in the middle of it


def test_a_key_variable_that_is_empty_or_is_the_key_itself_says_so(monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(LoreError, match="TEACHER_KEY is not set"):
        EndpointEngine(EndpointSection(url="http://localhost/v1", model="m", key_variable="TEACHER_KEY"))
    monkeypatch.setenv("TEACHER_KEY", "a\nb")
    with pytest.raises(LoreError, match="does not hold a valid key"):
        EndpointEngine(EndpointSection(url="http://localhost/v1", model="m", key_variable="TEACHER_KEY"))
    with pytest.raises(ValueError, match="not the key"):
        EndpointSection(url="http://localhost/v1", model="m", key_variable=KEY)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://user:word@a/v1", "http://a/v1?key=b", "http:///v1"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ValueError, match="url"):
        EndpointSection(url=url, model="m")


def test_what_one_server_does_not_take_is_left_out_from_then_on():
    def answer(request):
        unknown = [name for name in ("repetition_penalty", "chat_template_kwargs") if name in request.body]
        if unknown:
            return error(400, f"Unrecognized request arguments supplied: {', '.join(unknown)}")
        if "max_tokens" in request.body:
            return error(400, "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
        return reply("a")

    with serve(answer) as server:
        engine = engine_of(server, max_attempts=1)
        assert all(row[0].text == "a" for row in engine.generate([ask()] * 40, Sampling(max_tokens=9)))
        before = len(server.requests)
        engine.generate([ask()] * 5, Sampling(max_tokens=9))
        assert len(server.requests) == before + 5
        assert server.requests[-1].body["max_completion_tokens"] == 9


def test_extra_fields_are_sent_and_must_not_say_what_other_keys_say():
    with serve(lambda r: reply("a")) as server:
        complete(server, extra={"service_tier": "flex"})
        assert server.requests[0].body["service_tier"] == "flex"
    with pytest.raises(ValueError, match="temperature"):
        EndpointSection(url="http://a/v1", model="m", extra={"temperature": 1})


def test_fewer_at_once_while_the_server_is_busy_and_more_when_it_is_not():
    def answer(request):
        return error(429, "busy") if server.under_way > 4 else reply("a", seconds=0.005)

    with serve(answer) as server:
        engine = engine_of(server, max_attempts=20, max_concurrency=32)
        assert len(engine.generate([ask()] * 200, Sampling())) == 200
        assert sum(r.number >= 0 for r in server.requests) < 400
        assert engine._throttle.limit < 16
    with serve(lambda r: reply("a", seconds=0.01)) as server:
        engine = engine_of(server, max_concurrency=32)
        engine.generate([ask()] * 300, Sampling())
        assert server.peak == 32


def test_a_rate_limit_slows_all_down_and_fails_no_prompt():
    last = [0.0]

    def answer(request):
        if time.monotonic() - last[0] < 0.005:
            return error(429, "10 requests per minute")
        last[0] = time.monotonic()
        return reply("a", seconds=0.02)

    with serve(answer) as server:
        assert len(engine_of(server, max_concurrency=64).generate([ask()] * 80, Sampling())) == 80
    with serve(lambda r: error(429, "insufficient quota")) as server:
        with pytest.raises(EndpointFailed, match="insufficient quota"):
            engine_of(server, max_concurrency=8, max_attempts=3).generate([ask()] * 8, Sampling())


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("Unrecognized request arguments supplied: seed, top_k", True),
        ("Unsupported parameter: 'seed' is not supported with this model.", True),
        ('[{"type": "extra_forbidden", "loc": ["body", "seed"]}]', True),
        ("prompt too long: <query>sunflower seed</query>", False),
        ("the field is full of seed", False),
    ],
)
def test_a_refusal_that_repeats_the_prompt_switches_nothing_off(message, named):
    assert Dialect().learn({"seed": 1}, message) is named


def test_a_server_that_comes_back_loses_no_prompt(monkeypatch):
    def answer(request):
        return error(503, "restarting") if 20 <= request.number < 60 else reply("a", seconds=0.001)

    with serve(answer) as server:
        engine = engine_of(server, max_down_seconds=20, max_concurrency=16)
        assert len(engine.generate([ask()] * 100, Sampling())) == 100


def test_while_the_server_is_down_one_request_at_a_time_looks_whether_it_is_back():
    async def work():
        stopped = []

        def stop(fault, seconds):
            stopped.append(fault)
            return EndpointStopped(fault)

        throttle = Throttle(64, max_down_seconds=0.4, stop=stop)
        throttle._probe_wait = 0.05
        under_way, peak, tries = 0, 0, []

        async def request():
            nonlocal under_way, peak
            while True:
                entered = await throttle.enter()
                under_way, peak = under_way + 1, max(peak, under_way + 1) if throttle.open else peak
                tries.append(time.monotonic())
                await asyncio.sleep(0.005)
                under_way -= 1
                throttle.fault(entered, "down")

        done = await asyncio.wait_for(asyncio.gather(*(request() for _ in range(30)), return_exceptions=True), 5)
        assert all(isinstance(error, EndpointStopped) for error in done)
        assert peak <= 1 and throttle.under_way == 0
        assert len(tries) < 40 + 8  # the first wave and a few looks

    asyncio.run(work())


def test_a_cancelled_request_gives_its_place_back_and_settles_as_unknown():
    book = Book()

    async def work():
        async with engine_of(server, max_concurrency=1) as engine:
            task = asyncio.create_task(engine.complete(ask(), Sampling(), book))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert engine._throttle.under_way == 0

    with serve(lambda r: Answer(silent=True)) as server:
        asyncio.run(work())
    assert book.settled == [None]


def test_a_reply_without_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr("lore.engines.http.client.MAX_REPLY_BYTES", 10_000)
    with serve(lambda r: reply("a" * 50_000)) as server:
        with pytest.raises(EndpointFailed, match="more than 10,000 bytes"):
            complete(server, max_attempts=1)


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", True),
        ("Qwen/Qwen3-8B", "qwen/qwen3-8b", True),
        ("a/judge", "b/judge", False),
        ("qwen3", "qwen3:latest", True),
        ("llama-3", "llama-3-70b", False),
        ("gemini-1.5-pro", "gemini-1.5-pro-002", True),
    ],
)
def test_versioned_names_are_the_same_model_and_variants_are_not(asked, answered, same):
    assert same_model(asked, answered) is same


def test_redaction_reaches_every_form_of_the_key():
    assert KEY not in redact(f'a {KEY} b "{KEY}" Bearer {KEY}', KEY)
    assert redact("nothing here", KEY) == "nothing here"
    assert redact("Bearer abc", None) == "[key]"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"upstream says {KEY[:-3]} is wrong", "upstream says [key] is wrong"),
        ("Incorrect key sk-abcdefghijkl", "Incorrect key [key]"),
        ("x-api-key: hunter2, and OPENAI_API_KEY=hunter2", "x-api-key: [key], and OPENAI_API_KEY=[key]"),
        ("request req_011CSHoEeqs5C35K2UUqR7Fy of 2025", "request req_011CSHoEeqs5C35K2UUqR7Fy of 2025"),
        ("stop_token_ids: Extra inputs are not permitted", "stop_token_ids: Extra inputs are not permitted"),
    ],
)
def test_other_keys_in_a_servers_words_are_not_shown_and_ids_of_requests_are(said, shown):
    assert redact(said, KEY) == shown


def test_a_short_key_of_a_server_that_needs_none_leaves_words_whole():
    assert redact("stop_token_ids is unknown, token is wrong", "token") == "stop_token_ids is unknown, [key] is wrong"
    dialect = Dialect()
    assert dialect.learn({"top_k": -1}, error_text(b"unsupported field top_k", "k"))


@pytest.mark.parametrize("escaped", [False, True])
def test_an_answer_that_repeats_the_key_is_stored_without_it(monkeypatch, escaped):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    told = reply(f"<verdict>L4</verdict> {KEY}", reason=KEY)
    empty = reply(" ", reason=KEY)
    for answer in (told, empty):
        if escaped:
            coded = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
            answer.body = json.dumps(answer.body).replace(KEY, coded).encode()
    with serve(lambda r: told if "told" in r.text else empty) as server:
        engine = engine_of(server, key_variable="TEACHER_KEY")
        (first,), (second,) = engine.generate([ask("told"), ask("empty")], Sampling())
    assert first.text == "<verdict>L4</verdict> [key]"
    assert (second.finish_reason, second.detail) == ("refused", "empty answer, finish_reason [key]")


def test_a_short_key_does_not_change_answers(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "EMPTY")
    with serve(lambda r: reply("the basket is EMPTY")) as server:
        ((answer,),) = engine_of(server, key_variable="TEACHER_KEY").generate([ask()], Sampling())
    assert answer.text == "the basket is EMPTY"


def test_open_engine_opens_an_endpoint_for_its_section():
    engine = open_engine(EndpointSection(url="http://127.0.0.1:9/v1", model="m"), RUBRIC)
    assert isinstance(engine, EndpointEngine) and engine.tokenizer is None


def test_a_system_text_that_the_served_template_refuses_is_sent_in_the_users_turn(tiny, tmp_path):
    from test_transformers_engine import GEMMA

    from lore.engines.loading import load_processor

    tokenizer = load_processor(ModelSection(name=str(tiny.text)))
    tokenizer.chat_template = GEMMA
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tiny.text / "config.json").read_text())
    with serve(lambda r: reply("a")) as server:
        for folder, roles in ((tmp_path, ["user"]), (tiny.text, ["system", "user"])):
            complete(server, messages=[{"role": "system", "content": "rules"}, *ask()], tokenizer=str(folder))
            body = server.requests[-1].body
            assert [message["role"] for message in body["messages"]] == roles
            assert "rules" in body["messages"][0]["content"] and body["stop_token_ids"]


def test_a_proxy_is_used_for_other_machines_alone(monkeypatch):
    from lore.engines.http.client import _proxy

    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert _proxy("https://api.example/v1") == "http://proxy:3128"
    assert _proxy("http://inside.example/v1") is None
    assert _proxy("http://127.0.0.1:8000/v1") is None and _proxy("http://localhost/v1") is None


def test_no_prompts_no_requests():
    with serve(lambda r: reply("a")) as server:
        assert engine_of(server).generate([], Sampling()) == []
        assert server.requests == []


def test_generate_works_where_a_loop_is_running_already():
    async def notebook():
        return engine_of(server).generate([ask()], Sampling())

    with serve(lambda r: reply("a")) as server:
        assert asyncio.run(notebook())[0][0].text == "a"


# Scores. The server below answers a scoring request as vLLM does, or as a server that knows nothing of vLLM.


def listing(listed: dict[str, float], chosen: str | None = None) -> Answer:
    answer = reply(chosen or max(listed, key=listed.get))
    entries = [{"token": token, "logprob": float(np.log(share))} for token, share in listed.items()]
    top = max(entries, key=lambda entry: entry["logprob"])
    answer.body["choices"][0]["logprobs"] = {"content": [top | {"top_logprobs": entries}]}
    return answer


def test_a_server_without_vllms_fields_is_scored_by_the_text_of_its_most_likely_tokens():
    def answer(request):
        unknown = [name for name in ("repetition_penalty", "chat_template_kwargs") if name in request.body]
        if unknown:
            return error(400, f"unknown: {unknown}")
        if request.body["top_logprobs"] > 5:
            return error(400, "Invalid value for 'top_logprobs': must be at most 5.")
        assert request.text.endswith("<verdict>L") and request.body["continue_final_message"]
        return listing({"1": 0.5, "2": 0.2, "2</": 0.1, "5": 0.05, "L": 0.05})

    with serve(answer) as server:
        (row,) = engine_of(server).score([ask()])
    # L3 and L4 are not listed: each gets at most the least that is, 0.05.
    np.testing.assert_allclose(row, np.array([0.5, 0.3, 0.05, 0.05]) / 0.9)


def test_a_begun_answer_that_stops_at_the_verdict_is_taken_up_to_the_tier():
    with serve(lambda r: listing({"4": 0.9, "1": 0.1})) as server:
        begun = [*ask(), {"role": "assistant", "content": [{"type": "text", "text": "<reason>r</reason>\n<verdict>"}]}]
        assert engine_of(server).score([begun]).argmax() == 3
        assert server.requests[0].text == "<reason>r</reason>\n<verdict>L"


def test_a_server_that_lists_no_tier_or_nothing_at_all_does_not_judge():
    with serve(lambda r: listing({"Sure": 0.6, "I": 0.4})) as server:
        with pytest.raises(EndpointStopped, match="none of the tiers L1, L2, L3, L4"):
            engine_of(server).score([ask()] * 3)
    with serve(lambda r: reply("L1")) as server:
        with pytest.raises(EndpointStopped, match="returns no log-probabilities"):
            engine_of(server).score([ask()])


def test_a_server_that_goes_on_with_no_begun_answer_says_so():
    with serve(lambda r: error(400, "Unrecognized request argument supplied: continue_final_message")) as server:
        with pytest.raises(EndpointStopped, match="does not support prefill"):
            engine_of(server).score([ask()])


@given(st.lists(st.floats(-60, 0), min_size=4, max_size=4))
def test_exact_lists_give_the_softmax_over_the_tiers(logs):
    verdict = VerdictTokens("<verdict>L", (11, 12, 13, 14))
    listed = {f"token_id:{token}": value for token, value in zip(verdict.tier_ids, logs, strict=True)} | {"token_id:99": -0.1}
    found, any_tier = tier_probabilities(listed, tier_ends(RUBRIC, verdict), verdict)
    expected = np.exp(np.array(logs) - max(logs))
    np.testing.assert_allclose(found, expected / expected.sum())
    assert any_tier


# The server that a recipe's teacher is served by.


def test_the_serving_command_holds_the_checkpoints_template_and_no_key(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("vllm")
    monkeypatch.setenv("LORE_RUNS", str(tmp_path))
    monkeypatch.setenv("TEACHER_KEY", KEY)
    for model, content in ((tiny.vision, "openai"), (tiny.text, "string")):
        serve_teacher(
            ModelSection(name=str(model)), VllmSection(), "127.0.0.1", 8123, "teacher", key_variable="TEACHER_KEY", dry_run=True
        )
        words = shlex.split(capsys.readouterr().out)
        options = dict(zip(words, words[1:], strict=False))
        assert options["--served-model-name"] == "teacher" and options["--port"] == "8123" and options["--host"] == "127.0.0.1"
        assert options["--generation-config"] == "vllm" and options["--load-format"] == "safetensors"
        assert options["--chat-template-content-format"] == content
        assert "<|im_start|>" in Path(options["--chat-template"]).read_text()
        assert KEY not in str(words) and "--trust-remote-code" not in words
    assert serve_environment("TEACHER_KEY")["VLLM_API_KEY"] == KEY


@pytest.mark.parametrize("torn", ["", "{{ messa", "{{ messages }} and more"])
def test_a_torn_template_file_is_written_again(tmp_path, monkeypatch, torn):
    monkeypatch.setenv("LORE_RUNS", str(tmp_path))
    path = _template_file("{{ messages }}\r\n")
    before = path.stat()
    assert path.read_bytes() == b"{{ messages }}\r\n"
    after = _template_file("{{ messages }}\r\n").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # reading may change the access time
    path.write_text(torn)
    assert _template_file("{{ messages }}\r\n") == path and path.read_bytes() == b"{{ messages }}\r\n"


def _choice(reason: str, **message) -> Answer:
    return Answer(body={"model": MODEL, "choices": [{"finish_reason": reason, "message": {"role": "assistant", **message}}]})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(400, "the account is suspended"), "400 Bad Request: the account is suspended"),
        (_choice("content_filter", content=""), "finish_reason content_filter"),
        (_choice("SAFETY", content=""), "finish_reason SAFETY"),
        (_choice("stop", content=None, refusal="I cannot assist with that."), "I cannot assist with that."),
    ],
)
def test_the_words_of_a_refusal_travel_with_the_completion(answer, words):
    with serve(lambda request: answer) as server:
        engine = EndpointEngine(EndpointSection(url=server.url, model=MODEL))
        ((found,),) = engine.generate([[{"role": "user", "content": "a"}]], Sampling())
    assert found.finish_reason == "refused" and words in found.detail and "http" not in found.detail


@pytest.mark.parametrize("reason", ["length", "model_length", "MAX_TOKENS"])
def test_every_name_of_a_cut_answer_is_length(reason):
    with serve(lambda request: _choice(reason, reasoning_content="so L4?")) as server:
        engine = EndpointEngine(EndpointSection(url=server.url, model=MODEL))
        assert engine.generate([[{"role": "user", "content": "a"}]], Sampling()) == [[Completion("", 0, "length")]]


def test_an_answer_that_the_server_broke_off_is_asked_again():
    def answer(request):
        return _choice("abort" if request.number == 0 else "stop", content="half" if request.number == 0 else "whole")

    with serve(answer) as server:
        engine = EndpointEngine(EndpointSection(url=server.url, model=MODEL))
        assert engine.generate([[{"role": "user", "content": "a"}]], Sampling())[0][0].text == "whole"


# One prompt that the server cannot answer, among others that it can.

ODD = [
    error(500, "the model is on fire"),
    error(400, "no"),
    error(401, "not with this prompt"),
    error(403, "blocked by the firewall"),
    error(404, "No endpoints found that support this"),
    error(413, "too large"),
    error(422, "unprocessable"),
    error(429, "Request too large for this tier"),
    error(400, "chat_template_kwargs and continue_final_message stand in the quoted prompt"),
    Answer(302, b"", {"Location": "/login"}),
    Answer(body=b""),
    reply("L4", half=True),
    Answer(silent=True),
]


@pytest.mark.parametrize("odd", ODD, ids=[str(answer.status) + str(answer.body)[:20] for answer in ODD])
@pytest.mark.parametrize("others", [3, 0])
def test_a_prompt_that_fails_for_ever_is_refused_alone_also_where_it_is_the_only_one_left(odd, others, monkeypatch):
    monkeypatch.setattr(backoff, "BREAKER_FAULTS", 3)  # fewer than the attempts: the odd prompts open the breaker
    prompts = [ask("odd"), *[ask("b")] * others, ask("odd")]
    with serve(lambda r: odd if "odd" in str(r.body["messages"]) else listing({"4": 0.9, "1": 0.1})) as server:
        options = {"max_attempts": 4, "timeout_seconds": 0.3, "max_down_seconds": 0.1}
        engine = engine_of(server, **options)
        (first,), *_, (last,) = engine.generate(prompts, Sampling())
        assert first.finish_reason == last.finish_reason == "refused" and first.detail and "http" not in first.detail
        engine = engine_of(server, **options)
        with pytest.raises(ScoresRefused) as refused:
            engine.score(prompts)
    assert list(refused.value.refused) == [0, others + 1]
    assert (refused.value.probabilities[1:-1].argmax(axis=1) == 3).all()


@pytest.mark.parametrize("odd", [reply("L1"), listing({"Sure": 0.6, "I": 0.4})], ids=["no logprobs", "no tier"])
def test_one_prompt_without_scores_does_not_stop_the_others(odd):
    with serve(lambda r: odd if "odd" in str(r.body["messages"]) else listing({"4": 0.9, "1": 0.1})) as server:
        engine = engine_of(server)
        what = "lists no tier" if odd.body["choices"][0].get("logprobs") else "returns no log-probabilities"
        with pytest.raises(ScoresRefused, match=f"{what} .*for this prompt") as refused:
            engine.score([ask("odd"), ask("b")])
        assert list(refused.value.refused) == [0] and not refused.value.probabilities[0].any()
        np.testing.assert_allclose(refused.value.probabilities[1, [0, 3]], [0.1, 0.9])
        with pytest.raises(ScoresRefused, match=what):
            engine.score([ask("odd")])


@pytest.mark.parametrize(
    ("answer", "error_type", "said"),
    [
        (error(500, "on fire"), EndpointStopped, "has not answered .*on fire"),
        (error(401, "no such key"), EndpointStopped, "denies access"),
        (Answer(302, b"", {}), EndpointStopped, "answers 302"),
        (error(429, "insufficient quota"), EndpointFailed, "insufficient quota"),
    ],
)
def test_a_server_that_fails_on_everything_stops_and_turns_nothing_into_failures(answer, error_type, said, monkeypatch):
    monkeypatch.setattr(backoff, "BREAKER_FAULTS", 3)
    with serve(lambda r: answer) as server:
        for ask_it in (lambda engine: engine.generate([ask()] * 4, Sampling()), lambda engine: engine.score([ask()] * 4)):
            engine = engine_of(server, max_attempts=4, max_down_seconds=0.1)
            with pytest.raises(error_type, match=said):
                ask_it(engine)


def test_a_key_that_is_revoked_in_the_middle_stops():
    with serve(lambda r: reply("a") if r.number < 20 else error(401, "the key was revoked")) as server:
        with pytest.raises(EndpointStopped, match="denies access"):
            engine_of(server, max_concurrency=4).generate([ask()] * 100, Sampling())
    assert len(server.requests) <= 20 + 4 + 1


# Replies that are no answers.


def raw(text: str) -> Answer:
    return Answer(body=text.encode(errors="surrogatepass"))


def _with(position: str = "", usage: str = "null", message: str = "", reason: str = '"stop"', more: str = "") -> Answer:
    position, message = position or '{"token": "4", "logprob": -0.1}', message or '{"content": "L4"}'
    choice = f'{{"finish_reason": {reason}, "message": {message}, "logprobs": {{"content": [{position}]}}}}'
    return raw(f'{{"model": "{MODEL}", "usage": {usage}, "choices": [{choice}]{more}}}')


def _listing(tokens: int) -> Answer:
    one = '{"token": "4", "logprob": -1}'
    return _with(f'{one[:-1]}, "top_logprobs": [{",".join([one] * tokens)}]}}')


DEEP, DIGITS = "[" * 100_000 + "]" * 100_000, "9" * 4000
NO_ANSWERS = {
    "deep": raw(DEEP),
    "deep inside": _with(more=f', "x": {DEEP}'),
    "top_logprobs": _with('{"token": "4", "logprob": -0.1, "top_logprobs": 5}'),
    "token": _with('{"token": [1], "logprob": -0.1}'),
    "long logprob": _with(f'{{"token": "4", "logprob": -{DIGITS}}}'),
    "longer logprob": _with(f'{{"token": "4", "logprob": -{DIGITS * 2}}}'),
    "nan": _with('{"token": "4", "logprob": NaN}'),
    "infinity": _with('{"token": "4", "logprob": -Infinity}'),
    "positive": _with('{"token": "4", "logprob": 3}'),
    "bool": _with('{"token": "4", "logprob": true}'),
    "many": _listing(5000),
    "usage 1e30": _with(usage='{"prompt_tokens": 1e30, "completion_tokens": 1}'),
    "usage true": _with(usage='{"prompt_tokens": true, "completion_tokens": 1}'),
    "usage negative": _with(usage='{"prompt_tokens": 1, "completion_tokens": -1}'),
    "usage digits": _with(usage=f'{{"prompt_tokens": 1, "completion_tokens": {DIGITS}}}'),
    "usage list": _with(usage="[1, 2]"),
    "content list": _with(message='{"content": ["L4"]}'),
    "content number": _with(message='{"content": 4}'),
    "content dict": _with(message='{"content": {"text": "L4"}}'),
    "message list": _with(message='["L4"]'),
    "reason list": _with(reason='["stop"]'),
    "model number": raw('{"model": 5, "choices": [{"finish_reason": "stop", "message": {"content": "L4"}}]}'),
    "two contents": _with(message='{"content": "L4", "content": "L1"}'),
    "garbage after": raw('{"choices": []} and more'),
    "error with 200": Answer(body={"error": {"message": "overloaded", "code": 529}}),
    "gzip": Answer(body=gzip.compress(b'{"choices": []}')),
    "choices dict": Answer(body={"choices": {"0": {}}}),
    "number": Answer(body=5),
    "a million": _listing(10**6),
}


@pytest.mark.parametrize("odd", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_a_reply_that_is_no_answer_is_a_fault_of_its_request(odd):
    with serve(in_turn(odd, listing({"4": 0.9, "1": 0.1}))) as server:
        assert engine_of(server).score([ask()]).argmax() == 3
        assert len(server.requests) == 2
    with serve(lambda r: odd if "odd" in str(r.body["messages"]) else reply("a")) as server:
        (found,), (other,) = engine_of(server, max_attempts=2).generate([ask("odd"), ask()], Sampling())
        assert other.text == "a" and found.finish_reason == "refused" and len(found.detail) < 500


def test_what_differs_from_the_standard_without_harm_is_read():
    odd = '{"index": "x", "finish_reason": "stop", "message": {"content": "L4", "tool_calls": 5, "refusal": []}}'
    sent = f'\ufeff{{"choices": [{odd}], "model": null, "usage": {{"prompt_tokens": 7.0, "completion_tokens": 3}}, "id": 5}}'
    with serve(lambda r: raw(sent)) as server:
        assert complete(server) == [Completion("L4", 3, "stop", 7)]


HALF = "\\ud83d"


def test_half_a_character_anywhere_in_a_reply_can_be_stored():
    token = _with(f'{{"token": "{HALF}", "logprob": -3, "top_logprobs": [{{"token": "4", "logprob": -0.1}}]}}')
    with serve(lambda r: token) as server:
        assert engine_of(server).score([ask()]).argmax() == 3
    for odd in (
        raw(f'{{"choices": [{{"finish_reason": "stop", "message": {{"content": "L4 {HALF}", "reasoning": "{HALF}"}}}}]}}'),
        raw(f'{{"choices": [{{"finish_reason": "content_filter", "error": {{"{HALF}": "{HALF}"}}}}]}}'),
        raw(f'{{"choices": [{{"finish_reason": "stop", "message": {{"refusal": "no {HALF}"}}}}]}}'),
        raw(f'{{"choices": [{{"finish_reason": "safety{HALF}", "message": {{"content": ""}}}}]}}'),
        raw(f'{{"model": "{HALF}", "choices": [{{"finish_reason": "stop", "message": {{"content": "a"}}}}]}}'),
        Answer(400, f'{{"error": {{"message": "no {HALF}"}}}}'.encode()),
        Answer(500, b"\xff\xed\xa0\xbd"),
    ):
        with serve(lambda r, odd=odd: reply("a") if r.text != "hi" else odd) as server:
            ((found,),) = engine_of(server, max_attempts=1).generate([ask()], Sampling())
        assert f"{found.text} {found.detail}".encode() and (found.text or found.detail)


LONG_WAITS = ["1e30", "inf", "-inf", "1" * 8000, "Mon, 01 Jan 0001 00:00:00 -0000", "\udcff", "Fri, 31 Dec 9999 23:59:59 GMT"]


@pytest.mark.parametrize("header", LONG_WAITS)
def test_no_retry_after_waits_long_or_raises(header):
    assert 0 <= retry_after_seconds(header) <= 120


@settings(max_examples=50)
@given(st.text())
def test_any_retry_after_is_a_number_of_seconds(header):
    assert 0 <= retry_after_seconds(header) <= 120


# Time and secrets in a server's words.

LONG = {
    "letters": "a",
    "stars": "**",
    "bearer": "bearer ",
    "urls": "://",
    "signs": "://a",
    "spaces": " ",
    "fields": "field a, ",
    "heads": KEY[:8],
    "keys": KEY,
    "brackets": "[",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_servers_words_take_time_in_proportion_to_their_length(text):
    def seconds(characters: int) -> float:
        said = (text * characters)[:characters]
        began = time.process_time()
        error_text(said.encode(), KEY)
        error_text(json.dumps({"error": said}).encode(), KEY)
        redact(said, KEY)
        Dialect().learn({"seed": 1, "max_tokens": 1, "top_logprobs": 20}, error_text(said.encode(), None))
        return time.process_time() - began

    seconds(1000)
    assert seconds(100_000) < max(30 * min(seconds(10_000) for _ in range(3)), 0.5)  # ten minutes where it was quadratic


def test_a_long_model_name_takes_no_time_and_is_cut():
    with serve(lambda r: error(404, "no such model")) as server:
        server.models = ["x" * 200_000, "tinny\ud83d"]
        began = time.perf_counter()
        with pytest.raises(EndpointStopped) as stopped:
            engine_of(server).generate([ask()], Sampling())
        assert time.perf_counter() - began < 3
    assert len(str(stopped.value)) < 1000 and "serves: tinny\ufffd, xxx" in str(stopped.value)


@pytest.mark.parametrize("models", [b"[" * 100_000, b"5", b'{"data": [5]}', b'{"data": {"a": 1}}', b'{"data": []}', b"\xff"])
def test_a_list_of_models_that_is_none_is_advice_about_the_url(models):
    from lore.engines.http.client import Client

    class Listing:
        url = "http://127.0.0.1:9/v1"

    client = Client(EndpointSection(url=Listing.url, model=MODEL))

    async def work():
        async def handle(request):
            return web.Response(body=models)

        app = web.Application()
        app.router.add_get("/v1/models", handle)
        async with TestServer(app) as served:
            client.section = EndpointSection(url=str(served.make_url("/v1")), model=MODEL)
            said = await client._models()
            await client.aclose()
        return said

    assert "does not list its models" in asyncio.run(work())


@settings(max_examples=200)
@given(st.integers(0, 450), st.sampled_from(["x", KEY + " ", KEY, "Bearer ", "a b "]))
def test_no_cut_leaves_a_part_of_the_key(before, filler):
    text = filler * before + KEY + " " + KEY
    found = error_text(text.encode(), KEY)
    assert "sk-" not in found and KEY[-8:] not in found and len(found) <= 400
