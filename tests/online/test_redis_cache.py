"""The cache in a real Redis: what is stored, ages, a Redis that dies, hangs, refuses and comes back."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time

import pytest
import redis
from label_folders import TIERS, label_row, write_labels
from redis_server import RedisServer, needs_redis
from test_cache import JUDGE, PATIENT, Noted, key, stored, verdict
from typer.testing import CliRunner

from lore.cli.main import app
from lore.online.cache import MemoryCache, load_labels, say_what_is_there
from lore.online.cache_store import CachedJudge
from lore.online.config import CacheSection
from lore.online.redis_cache import RedisCache
from lore.support.errors import LoreError

pytestmark = needs_redis


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def empty(server):
    with redis.Redis(port=server.port) as client:
        client.flushall()
    return server


def opened(server: RedisServer, noted=None, judge=JUDGE, **section) -> RedisCache:
    return RedisCache(CacheSection(**({"store": server.url, "timeout_ms": PATIENT} | section)), judge, noted)


async def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def test_verdicts_come_back_for_their_judge_only(empty):
    async def asked():
        noted = Noted()
        cache, other = opened(empty, noted), opened(empty, judge=CachedJudge("p", "weights:rubric:renderer2", "", TIERS))
        await cache.put(
            [key(n) for n in range(6)], [verdict(n, rationale="wärum", rules=["r"]) for n in range(5)] + [verdict(judge_id="x")]
        )
        await cache.close()
        cache = opened(empty, noted)
        found = await cache.get([key(n) for n in (4, 9, 0, 5)])
        assert [one and one.verdict for one in found] == [
            stored(4, rationale="wärum", rules=["r"]),
            None,
            stored(0, rationale="wärum", rules=["r"]),
            None,
        ]
        assert abs(found[0].stored_seconds - time.time()) < 120
        assert await other.get([key(0)]) == [None] and await cache.get([]) == []
        with redis.Redis(port=empty.port) as client:
            name = client.keys(b"lore:1:*" + key(1))[0]
            client.set(name, client.get(client.keys(b"lore:1:*" + key(2))[0]))  # the answer to another question
            client.set(name.replace(key(1), key(3)), b"\xff" * 70)
            client.delete(name.replace(key(1), key(4)))
            client.lpush(name.replace(key(1), key(4)), "a list")
        assert await cache.get([key(1), key(3), key(4), key(2)]) == [None, None, None, found and (await cache.get([key(2)]))[0]]
        assert noted.failed == {"unreadable": 2}
        await cache.close()
        await other.close()

    asyncio.run(asked())


def test_many_verdicts_are_sent_in_parts(empty, monkeypatch):
    monkeypatch.setattr("lore.online.redis_cache.SENT_AT_ONCE", 2)

    async def asked():
        cache, sent = opened(empty), []
        pipeline = cache._client.pipeline
        monkeypatch.setattr(cache._client, "pipeline", lambda **how: sent.append(pipeline(**how)) or sent[-1])
        await cache.put([key(n) for n in range(5)], [verdict(n) for n in range(5)])
        await cache._behind.close()
        found = await cache.get([key(n) for n in range(5)])
        assert len(sent) == 3 and [one.verdict for one in found] == [stored(n) for n in range(5)]
        await cache.close()

    asyncio.run(asked())


def test_verdicts_expire(empty, tmp_path):
    folder = write_labels(tmp_path / "labels", [label_row("q", "a", "L1", content=key(1))], stamp=JUDGE.name)
    (file,) = (folder / "verdicts").iterdir()
    os.utime(file, (time.time() - 5000, time.time() - 5000))
    assert load_labels(opened(empty, max_age_seconds=4000), [folder]) == 0  # already too old

    async def asked():
        cache = opened(empty, max_age_seconds=9000)
        await cache.put([key(2)], [verdict(2)])
        await cache.close()
        with redis.Redis(port=empty.port) as client:
            (name,) = client.keys(b"lore:1:*" + key(2))
            assert 8000 < client.ttl(name) <= 9000
        strict = opened(empty, max_age_seconds=1e-6)  # a service with another limit
        assert await strict.get([key(2)]) == [None]
        await strict.close()

    asyncio.run(asked())


def test_labels_are_loaded_once_and_refused_for_another_judge(empty, tmp_path, capsys):
    rows = [label_row("q", str(n), TIERS[n % 4], content=key(n), rationale="because") for n in range(30)]
    rows += [label_row("q", "f", None, content=key(30), failure="no_verdict", text="?")]
    folder = write_labels(tmp_path / "labels", rows, files=2, stamp=JUDGE.name)
    result = CliRunner().invoke(app, ["cache", "load", str(folder), "--store", empty.url])
    assert result.exit_code == 0 and "30 new verdicts" in result.output
    cache = opened(empty)
    say_what_is_there(cache, "redis")
    assert "has no verdict" not in capsys.readouterr().out and load_labels(cache, [folder]) == 0
    say_what_is_there(opened(empty, judge=CachedJudge("p", "w:r:r", "", TIERS)), "redis")
    assert "It has verdicts of weights:rubric:renderer" in capsys.readouterr().out
    foreign = write_labels(tmp_path / "foreign", rows, stamp="weights:rubric:renderer2 verdict")
    with pytest.raises(LoreError, match="never answered"):
        load_labels(cache, [foreign])

    async def asked():
        found = await cache.get([key(n) for n in range(31)])
        await cache.close()
        return [one and (one.verdict.tier, one.verdict.rationale) for one in found]

    assert asyncio.run(asked()) == [(TIERS[n % 4], "because") for n in range(30)] + [None]


def test_a_redis_that_dies_answers_nothing_and_is_used_again_when_it_is_back(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("lore.online.redis_cache.RETRY_SECONDS", 0.05)
    with RedisServer(tmp_path) as server:

        async def asked():
            noted = Noted()
            cache = opened(server, noted, timeout_ms=2000.0)
            front = MemoryCache(JUDGE, 100, None, cache, noted)
            await cache.put([key(1)], [verdict(1)])

            async def is_there():
                return (await cache.get([key(1)]))[0] is not None

            await until(is_there)
            await front.get([key(1)])
            server.kill()
            for _ in range(50):
                assert await cache.get([key(1), key(2)]) == [None, None]
            assert (await front.get([key(1)]))[0].verdict == stored(1)  # from memory
            await front.put([key(2)], [verdict(2)])
            assert noted.failed["unreachable"] >= 100

            async def is_dropped():
                return noted.failed.get("dropped") == 1

            await until(is_dropped)
            server.start()  # empty

            async def is_back():
                await cache.put([key(1)], [verdict(1)])
                await asyncio.sleep(0.3)
                return await is_there()

            await until(is_back)
            server.signal(signal.SIGSTOP)  # accepts connections and answers nothing
            cache._reads.timeout_seconds = 0.05
            began = time.monotonic()
            assert await asyncio.gather(*(cache.get([key(1)]) for _ in range(30))) == [[None]] * 30
            assert time.monotonic() - began < 10 and noted.failed["timeout"] > 0
            server.signal(signal.SIGCONT)
            cache._reads.timeout_seconds = 2.0
            await until(is_there)
            assert (await cache.get([key(1)]))[0].verdict == stored(1)
            await front.close()

        asyncio.run(asked())
    assert "pairs are answered without it" in capfd.readouterr().err


def test_a_password_in_place_of_its_variable_is_refused_and_not_shown(tmp_path):
    result = CliRunner().invoke(app, ["cache", "load", str(tmp_path), "--store", "redis://a", "--password-variable", "open sesame"])
    assert isinstance(result.exception, LoreError) and "--password-variable: expected the name" in str(result.exception)
    assert "sesame" not in str(result.exception)


def test_the_service_starts_without_redis_and_a_wrong_password_is_named(tmp_path, monkeypatch, capfd):
    with RedisServer(tmp_path, "--requirepass", "open sesame") as server:
        monkeypatch.setenv("CACHE_PASSWORD", "open sesame")
        cache = opened(server, password_variable="CACHE_PASSWORD")
        assert cache.known_judges() == []

        async def asked(cache, noted):
            await cache.put([key(1)], [verdict(1)])
            await cache.close()
            cache = opened(server, noted, password_variable="CACHE_PASSWORD")
            found = await cache.get([key(1)])
            await cache.close()
            return found[0]

        assert asyncio.run(asked(cache, Noted())).verdict == stored(1)
        monkeypatch.setenv("CACHE_PASSWORD", "wrong-secret")
        with pytest.raises(LoreError, match="refuses the password") as error:
            say_what_is_there(opened(server, password_variable="CACHE_PASSWORD"), "redis")
        noted = Noted()
        assert asyncio.run(asked(opened(server, noted, password_variable="CACHE_PASSWORD"), noted)) is None
        assert noted.failed == {"dropped": 1, "unreachable": 1}
        with pytest.raises(LoreError, match="asks for a password, and cache.password_variable names none"):
            say_what_is_there(opened(server), "redis")
    say_what_is_there(opened(server), "redis")
    said = capfd.readouterr().err + str(error.value)
    assert "starts without its cache" in said and "wrong-secret" not in said
    monkeypatch.delenv("CACHE_PASSWORD")
    with pytest.raises(LoreError, match="CACHE_PASSWORD is not set"):
        opened(server, password_variable="CACHE_PASSWORD")
    with pytest.raises(LoreError, match="holds a password") as error:
        RedisCache(CacheSection(store="redis://:hunter2@127.0.0.1:1/0"), JUDGE)
    assert "hunter2" not in str(error.value)


def test_another_server_at_the_address_answers_nothing(tmp_path):
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                one, _ = listening.accept()
                one.recv(1000)
                one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3)
                one.close()
            except OSError:
                return

    threading.Thread(target=answer, daemon=True).start()

    async def asked():
        noted = Noted()
        cache = RedisCache(
            CacheSection(store=f"redis://127.0.0.1:{listening.getsockname()[1]}/0", timeout_ms=PATIENT), JUDGE, noted
        )
        assert await cache.get([key(1)]) == [None]
        await cache.put([key(1)], [verdict(1)])
        await cache.close()
        assert noted.failed == {"unreachable": 1, "dropped": 1}

    asyncio.run(asked())
    listening.close()


def test_a_full_redis_drops_what_it_does_not_take_and_goes_on_answering(tmp_path):
    with RedisServer(tmp_path) as server:

        async def asked():
            noted = Noted()
            cache = opened(server, noted)
            await cache.put([key(1)], [verdict(1)])
            await cache._behind.close()
            subprocess.run(
                ["redis-cli", "-p", str(server.port), "config", "set", "maxmemory", "1"], check=True, stdout=subprocess.DEVNULL
            )
            await cache.put([key(2)], [verdict(2)])
            await cache._behind.close()
            assert [one and one.verdict for one in await cache.get([key(1), key(2)])] == [stored(1), None]
            assert noted.failed == {"dropped": 1}
            await cache.close()

        asyncio.run(asked())
