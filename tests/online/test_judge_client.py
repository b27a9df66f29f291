"""The judge behind a server, asked while a request waits. The server is a stub; the judge's tokenizer, prompt and card are real."""

import asyncio
import math
import socket
import time

import pytest
from openai_server import Answer, error, reply, serve
from students_online import pair
from tiny import adapter_judge

from lore.judge.served import served_name
from lore.judge.trained import trained_judge
from lore.online.config import OnlineJudgeSection
from lore.online.judge_client import JudgeClient
from lore.support.errors import LoreError

SHARES = {"L1": 0.1, "L2": 0.2, "L3": 0.6, "L4": 0.1}


@pytest.fixture(scope="module")
def judges(tiny, tmp_path_factory):
    """Trained judges by the order of their answers."""
    folder = tmp_path_factory.mktemp("judges")
    return {order: trained_judge(adapter_judge(tiny.text, folder / order, order)) for order in ("answer_first", "reason_first")}


class Cache:
    def __init__(self):
        self.stored = {}

    async def put(self, contents, verdicts):
        self.stored |= dict(zip(contents, verdicts, strict=True))


def scores(request) -> Answer:
    """The log-probabilities of the tiers, as vLLM returns them."""
    ids = request.body["logprob_token_ids"]
    entries = [
        {"token": f"token_id:{number}", "logprob": math.log(share)} for number, share in zip(ids, SHARES.values(), strict=True)
    ]
    answer = reply("L3", model=request.body["model"])
    answer.body["choices"][0]["logprobs"] = {"content": [entries[2] | {"top_logprobs": entries}]}
    return answer


def run(judge, answer, test, *, models=None, url=None, cache=None, **section):
    """Runs test(client, server) with a server that answers `answer(request)`."""
    with serve(answer) as server:
        server.models = [served_name(judge)] if models is None else models
        endpoint = {"url": url or server.url, "model": served_name(judge)}
        client = JudgeClient(
            judge, OnlineJudgeSection(path=str(judge.folder), endpoint=endpoint, **{"deadline_ms": 60_000.0} | section), cache=cache
        )
        client.outcomes = []
        client.count = client.outcomes.append

        async def inside():
            client.why = await client.start()
            try:
                return await test(client, server)
            finally:
                await client.close()

        return asyncio.run(inside())


def test_a_judge_that_answers_first_gives_its_probabilities_and_they_are_stored(judges):
    judge, cache = judges["answer_first"], Cache()

    async def test(client, server):
        verdict = await client.ask(pair("a"), b"a")
        assert client.typical_seconds > 0 and client.breaker.state == "closed"
        while b"a" not in cache.stored:
            await asyncio.sleep(0.001)
        assert client.under_way <= 1 and len(server.requests) == 1
        return verdict, client

    verdict, client = run(judge, scores, test, cache=cache)
    assert verdict.tier == "L3" and verdict.probabilities == pytest.approx(list(SHARES.values()))
    assert verdict.judge_id == client.judge_id == f"{judge.weights}:{judge.rubric.hash}:{judge.renderer}"
    assert verdict.source == "judge" and cache.stored[b"a"].tier == "L3"
    assert client.outcomes == ["answered"]


def test_a_judge_that_reasons_first_writes_and_is_then_scored(judges):
    judge = judges["reason_first"]

    def answer(request):
        if "logprobs" in request.body:
            assert "It is red." in str(request.body["messages"][-1])
            return scores(request)
        return reply("<reason>It is red.</reason><verdict>L3</verdict>", model=request.body["model"])

    async def test(client, server):
        return await client.ask(pair("a"), None)

    verdict = run(judge, answer, test)
    assert verdict.tier == "L3" and verdict.rationale == "It is red." and verdict.probabilities[2] == pytest.approx(0.6)


def test_several_pairs_are_asked_at_the_same_time_and_no_more_than_the_concurrency(judges):
    judge = judges["answer_first"]

    def answer(request):
        found = scores(request)
        found.seconds = 0.3
        return found

    async def test(client, server):
        futures = [client.ask(pair(str(at), f"mug {at}"), None) for at in range(4)]
        assert futures[3] is None  # the student answers
        verdicts = await asyncio.gather(*futures[:3])
        assert server.peak == 3
        again = await client.ask(pair("4"), None)
        return [*verdicts, again], client.outcomes

    verdicts, outcomes = run(judge, answer, test, concurrency=3)
    assert [verdict.tier for verdict in verdicts] == ["L3"] * 4
    assert outcomes == ["busy", *["answered"] * 4]


def test_two_requests_about_the_same_content_ask_once(judges):
    judge = judges["answer_first"]

    async def test(client, server):
        first, second = client.ask(pair("a"), b"same"), client.ask(pair("b"), b"same")
        assert first is second and (await first).tier == "L3"
        await client.ask(pair("c"), b"same")
        return len(server.requests)

    assert run(judge, scores, test) == 2


def test_a_late_answer_counts_as_a_failure_and_is_stored_all_the_same(judges):
    judge, cache = judges["answer_first"], Cache()

    def answer(request):
        found = scores(request)
        found.seconds = 0.5
        return found

    async def test(client, server):
        future = client.ask(pair("a"), b"a")
        while client.breaker.state == "closed":
            await asyncio.sleep(0.005)
        assert not future.done() and client.ask(pair("b"), b"b") is None
        await future
        while b"a" not in cache.stored:
            await asyncio.sleep(0.001)
        assert client.breaker.state == "open"  # the late answer does not close it
        return client.outcomes

    breaker = {"failures": 1, "open_seconds": 600}
    outcomes = run(judge, answer, test, cache=cache, deadline_ms=50.0, keep_seconds=60, breaker=breaker)
    assert outcomes == ["open", "late"] and cache.stored[b"a"].tier == "L3"


def test_an_answer_that_never_comes_ends_after_keep_seconds(judges):
    async def test(client, server):
        began = time.monotonic()
        assert await client.ask(pair("a"), b"a") is None
        assert time.monotonic() - began < 30  # the server is silent for 60 s
        return client.outcomes

    assert run(judges["answer_first"], lambda request: Answer(silent=True), test, deadline_ms=50.0, keep_seconds=0.2) == ["failed"]


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: error(500, "broken"),
        lambda request: error(429, "slow down"),
        lambda request: reply("L3", model="another"),
        lambda request: Answer(body=b"no json"),
        lambda request: Answer(half=True, body=b"{}" * 100),
        lambda request: error(401, "no key"),
    ],
    ids=["500", "429", "another model", "no json", "cut off", "401"],
)
def test_failures_open_the_breaker_and_no_request_is_sent_then(judges, answer):
    async def test(client, server):
        for _ in range(2):
            assert await client.ask(pair("a"), b"a") is None
        sent = len(server.requests)
        assert client.ask(pair("a"), b"a") is None
        assert len(server.requests) == sent
        return client.outcomes

    outcomes = run(judges["answer_first"], answer, test, breaker={"failures": 2, "open_seconds": 600})
    assert outcomes == ["failed", "failed", "open"]


def test_a_judge_that_is_back_is_asked_again(judges):
    judge, works = judges["answer_first"], []

    async def test(client, server):
        assert await client.ask(pair("a"), None) is None
        works.append(True)
        while client.breaker.state == "open":
            await asyncio.sleep(0.005)
        first = client.ask(pair("b"), None)
        assert client.ask(pair("c"), None) is None  # one tries
        assert (await first).tier == "L3"
        return await client.ask(pair("c"), None)

    answer = lambda request: scores(request) if works else error(500, "broken")  # noqa: E731
    assert run(judge, answer, test, breaker={"failures": 1, "open_seconds": 0.2}).tier == "L3"


def test_a_refused_prompt_and_an_unreadable_answer_go_to_the_student_and_leave_the_breaker_closed(judges):
    answers = [error(400, "content filter"), reply("no verdict at all", model=served_name(judges["reason_first"]))]

    async def test(client, server):
        assert await client.ask(pair("a"), b"a") is None
        assert await client.ask(pair("b"), b"b") is None
        assert await client.ask(pair("c", query="mug " * 2000), b"c") is None  # does not fit, and is not sent
        assert len(server.requests) == 2
        return client.breaker.state, client.outcomes

    cache = Cache()
    found = run(judges["reason_first"], lambda request: answers[request.number], test, cache=cache, breaker={"failures": 1})
    assert found == ("closed", ["refused"] * 3) and not cache.stored


def test_a_judge_that_is_down_at_the_start_is_said_and_left_alone(judges):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

    async def test(client, server):
        return client.why, client.ask(pair("a"), None)

    why, asked = run(judges["answer_first"], scores, test, url=url)
    assert "cannot be reached" in why and asked is None


def test_another_judge_is_refused(judges):
    judge = judges["answer_first"]

    async def test(client, server):
        raise AssertionError

    with pytest.raises(LoreError, match="is another model"):
        run(judge, scores, test, models=["Qwen/Qwen3-8B"])
    section = OnlineJudgeSection(path=str(judge.folder), endpoint={"url": "http://127.0.0.1:9/v1", "model": "other"})
    with pytest.raises(LoreError, match=served_name(judge)):
        JudgeClient(judge, section)


def test_closing_does_not_wait_for_answers(judges):
    async def test(client, server):
        asked = client.ask(pair("a"), None)
        while not server.requests:
            await asyncio.sleep(0.001)
        began = time.monotonic()
        await client.close()
        assert time.monotonic() - began < 30 and await asked is None

    run(judges["answer_first"], lambda request: Answer(silent=True), test)
