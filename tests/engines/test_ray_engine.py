import importlib.util
import os
import socket
from functools import partial

import pytest
from pydantic import ValidationError
from ray_faults import FaultyEngine, killed_while_loading, load_nothing, own_lines, ray_here

from lore.engines import ray_engine
from lore.engines.config import RaySection
from lore.engines.engine import EngineDied, Sampling
from lore.engines.ray_cluster import connected, resources
from lore.engines.ray_engine import RayEngine
from lore.support.errors import LoreError

TWO = RaySection(address="local", min_workers=2, max_workers=2)


__all__ = ["ray_here"]


def asked(*texts: str) -> list[list[dict]]:
    return [[{"role": "user", "content": text}] for text in texts]


def raised(error: Exception):
    raise error


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", "head:six", "http://head:6379"])
def test_an_address_is_a_head_and_not_a_client(address):
    with pytest.raises(ValidationError, match="ray job submit"):
        RaySection(address=address)
    assert RaySection(address="head:6379").address == "head:6379"


def test_bounds_of_workers_and_gpus_go_together():
    assert [one.keys for one in RaySection(min_workers=3, max_workers=2).conflicts()] == [("min_workers", "max_workers")]
    assert [one.keys for one in RaySection(gpus_per_worker=1.5).conflicts()] == [("gpus_per_worker",)]
    assert not list(RaySection(gpus_per_worker=0.5, max_workers=2).conflicts())


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoreError, match=r"pip install 'lore-relevance\[ray\]'"):
        RaySection.check_packages()


def test_a_head_that_is_not_there_is_an_error_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(LoreError, match=f"Nothing answers at ray.address {address}"), connected(RaySection(address=address)):
            pass


@pytest.mark.slow
def test_workers_that_die_cost_no_answer_but_that_of_the_prompt_that_ends_them_all(ray_here, tmp_path, capfd, monkeypatch):
    import ray  # after ray_here has made it quiet

    engine = RayEngine(TWO, None, partial(FaultyEngine, tmp_path))
    try:
        pids = {answer[0].text.split()[1] for answer in engine.generate(asked("a", "b"), Sampling())}
        assert len(pids) == 2 and str(os.getpid()) not in pids
        texts = ["a", "kill once", "b", "breaks", "c", "reject", "d"]
        answers = engine.generate(asked(*texts), Sampling(n=2))
        assert [len(one) for one in answers] == [2] * 7
        assert [one[0].text.rpartition(" ")[0] for one in answers] == ["A", "KILL ONCE", "B", "BREAKS", "C", "", "D"]
        assert answers[5][0].finish_reason == "refused" and "no pixels" in answers[5][0].detail
        answers = engine.generate(asked("a", "kill", "b"), Sampling())
        assert [one[0].text.rpartition(" ")[0] for one in answers] == ["A", "", "B"]
        assert "ended on this prompt" in answers[1][0].detail
        assert engine.usage.prompt_tokens >= 10
        errors = iter([ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")])
        real = ray.get
        monkeypatch.setattr(ray, "get", lambda promise: raised(error) if (error := next(errors, None)) else real(promise))
        assert [answer[0].text.rpartition(" ")[0] for answer in engine.generate(asked("a", "b"), Sampling())] == ["A", "B"]
    finally:
        engine.close()
    lines = own_lines(capfd.readouterr())
    assert lines and all(line.startswith("warning: a worker ended, ") for line in lines)


@pytest.mark.slow
def test_an_engine_that_always_dies_ends_the_run(ray_here, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "DEATHS", 2)
    one = RaySection(address="local", max_workers=1, max_attempts=1)
    engine = RayEngine(one, None, partial(FaultyEngine, tmp_path, broken=True))
    try:
        with pytest.raises(EngineDied, match="illegal memory access"):
            for _ in range(3):
                engine.generate(asked("a"), Sampling())
    finally:
        engine.close()


@pytest.mark.slow
def test_what_no_worker_can_load_or_place_is_an_error(ray_here, monkeypatch):
    with pytest.raises(LoreError, match=r"No worker on Ray can load the model: no such file Correct model.name.\n"):
        RayEngine(TWO, None, load_nothing)
    monkeypatch.setattr(ray_engine, "DEATHS", 1)
    with pytest.raises(LoreError, match="can load the model: 1 times in a row, while it loaded the model, .* out of memory"):
        RayEngine(RaySection(address="local", max_workers=1), None, killed_while_loading)
    with pytest.raises(LoreError, match="needs 99 CPUs"):
        resources(RaySection(address="local", cpus_per_worker=99))
