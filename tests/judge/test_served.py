"""A judge behind a server: its name there, and clients that refuse another judge."""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from openai_server import reply, wait_for
from openai_server import serve as openai_server
from students_for_tests import some_pairs, write_student
from tiny import adapter_judge, make

from lore.codec.verdict_tokens import verdict_tokens
from lore.engines.config import EndpointSection, ModelSection
from lore.engines.engine import EndpointStopped, Sampling
from lore.engines.http import client
from lore.engines.loading import load_processor
from lore.engines.open_engine import open_engine
from lore.judge.scorer import JudgeScorer
from lore.judge.served import check_served, served_name
from lore.judge.trained import TrainedJudge, trained_judge
from lore.judge.verdict import Verdict
from lore.label.config import LabelJudgeSection
from lore.label.judge import asked_judge
from lore.online.config import OnlineRecipe
from lore.online.service import open_service
from lore.support.errors import LoreError

KEY = "key-of-the-served-judge"
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    return adapter_judge(tiny.text, tmp_path_factory.mktemp("runs") / "sft" / "model")


@pytest.fixture(scope="module")
def judge(folder) -> TrainedJudge:
    return trained_judge(folder.parent)


def test_the_name_says_weights_and_renderer_and_a_request_of_it_is_answered_under_it(judge):
    name = served_name(judge)
    assert name == f"judge-{judge.weights}-{judge.renderer}"
    with openai_server(lambda request: reply("L4", model=name)) as server:
        server.models = [f"{name}-base", name]
        check_served(server.url, judge)


@pytest.mark.parametrize(
    ("served", "words"),
    [
        ("judge-0000000000000000-{renderer}", "other weights"),
        ("judge-{weights}-0000000000000000", "another rubric or prompt format"),
        ("Qwen/Qwen3-8B", "another model"),
        ("judge-{weights}-{renderer}-base", "another rubric or prompt format"),
    ],
)
def test_another_judge_is_refused_with_what_differs(judge, served, words):
    with openai_server(lambda request: reply("L4")) as server:
        server.models = [served.format(weights=judge.weights, renderer=judge.renderer)]
        with pytest.raises(LoreError, match=words) as told:
            check_served(server.url, judge)
    assert served_name(judge) in str(told.value) and "nothing was asked" in str(told.value)
    assert not server.requests


def test_the_client_of_an_adapter_takes_the_tokenizer_of_its_base(judge):
    section = EndpointSection(url="http://127.0.0.1:9/v1", model=served_name(judge))
    asked = asked_judge(LabelJudgeSection(path=str(judge.folder), endpoint=section), "auto")
    engine = open_engine(asked.section, asked.rubric)
    assert not (judge.folder / "config.json").exists() and engine.section.url == section.url
    assert engine.verdict == verdict_tokens(load_processor(judge.model, chat=True), judge.rubric)


def test_a_server_that_cannot_be_asked_is_told_apart(judge, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointStopped, match="cannot be reached"):
        check_served(url, judge)
    with openai_server(lambda request: reply("L4")) as server:
        server.models = []
        with pytest.raises(EndpointStopped, match="lists no models"):
            check_served(server.url, judge)
        with pytest.raises(EndpointStopped, match="has to end with the version"):
            check_served(server.url.removesuffix("/v1"), judge)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(client, "LISTING_SECONDS", 0.2)
        with pytest.raises(EndpointStopped, match="no reply within 0.2 s"):
            check_served(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", judge)


@needs_vllm
def test_the_command_line_holds_the_adapter_the_template_and_the_cache(folder, judge, lore, runs):
    done = lore("serve", "judge", folder.parent, "vllm.eager=true", "vllm.max_model_tokens=1024", "--port", 8123, "--dry-run")
    assert done.returncode == 0, done.stderr
    words, name = shlex.split(done.stdout), served_name(judge)
    options = dict(zip(words, words[1:], strict=False))
    assert options["--lora-modules"] == f"{name}={folder}" and options["--served-model-name"] == f"{name}-base"
    assert options["--model"] == judge.model.name and options["--max-model-len"] == "1024" and options["--port"] == "8123"
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-lora", "--enforce-eager"} <= set(words)
    assert f"model name for clients: {name}" in done.stderr


def test_settings_and_judges_that_cannot_be_served_are_refused(folder, lore, tmp_path):
    done = lore("serve", "judge", folder.parent, "vllm.max_modl_tokens=1024", "tensor_parallel=2", "--dry-run")
    assert done.returncode == 1 and "nearest:  vllm.max_model_tokens" in done.stderr and "tensor_parallel" in done.stderr
    done = lore("serve", "judge", tmp_path, "--dry-run")
    assert done.returncode == 1 and "has no lore.json" in done.stderr


async def asked_by_the_service(
    folder: Path, student: Path, url: str, expected: list[Verdict], process: subprocess.Popen
) -> None:
    """The service answers as the judge does, and without it as the student does."""
    endpoint = {"url": url, "key_variable": "JUDGE_KEY"}
    judge = {"path": str(folder), "endpoint": endpoint, "deadline_ms": 20_000.0, "breaker": {"failures": 2, "open_seconds": 600.0}}
    body = {"lore": 1, "stage": "online", "run": "online", "student": {"path": str(student)}, "judge": judge}
    service = open_service(OnlineRecipe.model_validate(body | {"serve": {"deadline_ms": 30_000.0}}))
    await service.start()
    try:
        answers = await service.router.answer(some_pairs())
        assert [answer.source for answer in answers] == ["judge"] * len(answers)
        assert [answer.verdict.failure for answer in answers] == [None] * len(answers)
        for answer, one in zip(answers, expected, strict=True):
            assert np.abs(np.subtract(answer.verdict.probabilities, one.probabilities)).max() < 1e-3
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        for state in ("open", "open"):  # of the breaker, after two failures, and when nobody is asked any more
            answers = await service.router.answer(some_pairs())
            assert all(answer.source == "student" and answer.late and answer.verdict.tier for answer in answers)
            assert service.judge.breaker.state == state
        counted = service.metrics.rendered()[0].decode()
        assert 'lore_judge_requests_total{outcome="answered"} 5.0' in counted
        assert 'lore_judge_requests_total{outcome="open"} 5.0' in counted
    finally:
        await service.drain()
        await service.close()


@pytest.mark.slow
@needs_vllm
def test_a_served_judge_is_the_one_that_its_client_asks(tmp_path, monkeypatch):
    """Starts vLLM's server on a tiny judge with an adapter: about 20 s on a core. Then the service asks it, and loses it."""
    folder = adapter_judge(make(tmp_path / "tiny64", hidden=64).text, tmp_path / "sft", "answer_first")
    judge = trained_judge(folder)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    command = [sys.executable, "-m", "lore", "serve", "judge", str(folder), "--port", str(port)]
    command += ["vllm.eager=true", "vllm.kv_cache_gib=0.1", "vllm.max_model_tokens=1024"]
    environment = {**os.environ, "LORE_RUNS": str(tmp_path / "runs"), "VLLM_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        wait_for(process, f"http://127.0.0.1:{port}/health", log)
        check_served(url, judge, "JUDGE_KEY")
        with pytest.raises(EndpointStopped, match="denies access"):
            check_served(url, judge)
        section = EndpointSection(url=url, model=served_name(judge), key_variable="JUDGE_KEY", tokenizer=judge.model.name)
        asked = [[{"role": "user", "content": f"red mug {number}"}] for number in range(4)]
        served = open_engine(section, judge.rubric).score(asked)
        engine = open_engine(judge.model, judge.rubric, device="cpu")
        own = engine.score(asked)
        assert abs(served - own).max() < 1e-3
        assert abs(own - open_engine(ModelSection(name=judge.model.name), judge.rubric, device="cpu").score(asked)).max() > 1e-2
        scorer = JudgeScorer(engine, judge.rubric, judge.fmt, Sampling(max_tokens=16), "own")
        asyncio.run(asked_by_the_service(folder, write_student(tmp_path / "student"), url, scorer.score(some_pairs()), process))
    finally:
        process.terminate()
        process.wait(60)
