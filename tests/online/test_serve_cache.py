"""The whole service with its cache in a real Redis: labels that are loaded while it runs, and a Redis that dies and comes back."""

import threading
import urllib.request

from label_folders import TIERS, label_row, write_labels
from redis_server import RedisServer, needs_redis
from students_for_tests import some_pairs, write_student
from test_cache import JUDGE, PATIENT
from test_serve import ask, recipe_of, until
from test_service_metrics import read

from lore.data.pair import Pair
from lore.online.cache import MemoryCache, content_key, load_folders
from lore.online.config import CacheSection
from lore.online.metrics import Metrics
from lore.online.redis_cache import RedisCache
from lore.online.serve import OnlineServer, bound_socket
from lore.online.service import Service
from lore.student.scorer import open_student


@needs_redis
def test_every_request_is_answered_whatever_happens_to_redis(tmp_path, monkeypatch):
    monkeypatch.setattr("lore.online.redis_cache.RETRY_SECONDS", 0.05)
    pairs = [Pair(pair_id="", query=pair.query, title=pair.title) for pair in some_pairs()]
    contents = list(dict.fromkeys(map(content_key, pairs)))
    rows = [label_row("q", str(n), TIERS[n % 4], content=content, rationale="judged") for n, content in enumerate(contents)]
    labels = write_labels(tmp_path / "labels", rows, stamp=JUDGE.name)
    recipe, metrics = recipe_of(write_student(tmp_path / "student"), deadline_ms=PATIENT), Metrics()
    with RedisServer(tmp_path) as redis:
        section = CacheSection(store=redis.url, timeout_ms=2000.0)
        cache = MemoryCache(JUDGE, 0, None, RedisCache(section, JUDGE, metrics), metrics)
        service = Service(recipe, open_student(recipe.student.path), cache=cache, metrics=metrics)
        listener = bound_socket("127.0.0.1", 0)
        server = OnlineServer(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def sources() -> set[str]:
            status, said = ask(address)
            assert status == 200 and all(row["tier"] in TIERS for row in said["verdicts"])
            assert all((row["source"] == "cache") == (row["rationale"] == "judged") for row in said["verdicts"])
            return {row["source"] for row in said["verdicts"]}

        try:
            until(lambda: server.started)
            assert sources() == {"student"}
            load_folders(section, [labels])
            assert sources() == {"cache"}
            redis.kill()
            for _ in range(5):
                assert sources() == {"student"}
            redis.start()  # empty
            load_folders(section, [labels])
            until(lambda: sources() == {"cache"})
            with urllib.request.urlopen(f"{address}/metrics", timeout=30) as reply:
                found = read(reply.read())
            assert found["lore_cache_errors_total{reason=unreachable}"] >= 5 * len(pairs)
            assert found["lore_cache_lookups_total{layer=store,result=hit}"] >= 2 * len(pairs)
        finally:
            server.leaving = True
            thread.join(60)
        assert not thread.is_alive()
