"""The server: it starts, answers over a socket, drains, and loses no accepted request."""

import asyncio
import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from importlib.machinery import PathFinder

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from students_for_tests import some_pairs, write_student
from students_online import Gated

from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.online.cache import open_cache
from lore.online.cache_store import CachedJudge
from lore.online.config import OnlineRecipe
from lore.online.log_lines import LogWriter, logged
from lore.online.serve import OnlineServer, bound_socket, serve
from lore.online.service import Service, canary_gate, default_threads, open_service
from lore.online.start import serve_command
from lore.online.traces import open_traces
from lore.run.runner import run_command
from lore.student.canary import CANARIES
from lore.student.scorer import open_student
from lore.support.errors import LoreError

BODY = {"pairs": [{"query": pair.query, "title": pair.title} for pair in some_pairs()]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_student(tmp_path_factory.mktemp("student") / "model")


def recipe_of(folder, **serve) -> OnlineRecipe:
    section = {"port": 0, "deadline_ms": 20_000.0} | serve
    return OnlineRecipe.model_validate(
        {"lore": 1, "stage": "online", "run": "online", "student": {"path": str(folder)}, "serve": section}
    )


@contextmanager
def running(recipe: OnlineRecipe):
    """(server, address, student) of a service in a thread."""
    listener = bound_socket(recipe.serve.host, recipe.serve.port)
    student = Gated(open_student(recipe.student.path))
    server = OnlineServer(Service(recipe, student))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started)
        yield server, f"http://127.0.0.1:{listener.getsockname()[1]}", student
    finally:
        student.gate.set()
        server.leaving = True
        thread.join(30)
        assert not thread.is_alive()


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(address: str, path: str = "/judge", body=BODY) -> tuple[int, dict]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_service_answers_over_a_socket_as_the_student_does(folder):
    plain = [Pair(pair_id="", query=pair.query, title=pair.title) for pair in some_pairs()]
    expected = [verdict.tier for verdict in open_student(folder).score(plain)]
    with running(recipe_of(folder)) as (server, address, _):
        assert ask(address, "/ready", None)[0] == 200
        status, said = ask(address)
        assert status == 200 and len(said["verdicts"]) == len(expected)
        request = urllib.request.Request(address + "/judge", json.dumps(BODY).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            stages = [part.partition(";")[0] for part in response.headers["server-timing"].split(", ")]
        assert stages[:4] == ["read", "parse", "answer", "write"] and {"encode", "queue", "model", "student"} == {*stages[4:]}
        assert server.service.judge_ids == {"student": said["verdicts"][0]["judge_id"]}
    assert [row["tier"] for row in said["verdicts"]] == expected


def test_what_was_loaded_at_the_start_is_left_out_of_garbage_collection(folder):
    with running(recipe_of(folder)):
        assert gc.get_freeze_count() > 10_000
    assert not gc.get_freeze_count()


def test_a_shutdown_answers_accepted_requests_and_refuses_new_ones(folder):
    with running(recipe_of(folder)) as (server, address, student):
        student.gate.clear()
        found = []
        asking = threading.Thread(target=lambda: found.append(ask(address)))
        asking.start()
        until(lambda: server.service.router.requests_under_way)
        server.handle_exit(signal.SIGTERM, None)
        until(lambda: server.service.draining)
        assert ask(address, "/ready", None)[0] == 503
        status, said = ask(address)
        assert status == 503 and said["error"]["type"] == "draining"
        assert not server.should_exit  # the accepted request is still open
        student.gate.set()
        asking.join(30)
        assert found[0][0] == 200 and all(row["tier"] for row in found[0][1]["verdicts"])
        until(lambda: server.should_exit)


def test_a_shutdown_waits_no_longer_than_drain_seconds(folder):
    with running(recipe_of(folder, drain_seconds=0.1)) as (server, address, student):
        student.gate.clear()
        threading.Thread(target=lambda: ask(address), daemon=True).start()
        until(lambda: server.service.router.requests_under_way)
        server.handle_exit(signal.SIGTERM, None)
        until(lambda: server.should_exit)
        assert server.service.router.requests_under_way == 1


def test_a_client_that_hangs_up_takes_its_pairs_along(folder):
    with running(recipe_of(folder)) as (server, address, student):
        before = len(student.batches)
        student.gate.clear()
        threading.Thread(target=lambda: ask(address), daemon=True).start()
        until(lambda: len(student.batches) > before)
        data = json.dumps({"pairs": [{"query": "gone", "title": "gone", "pair_id": "gone"}]}).encode()
        head = f"POST /judge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            client.sendall(head.encode() + data)
            until(lambda: server.service.router.requests_under_way == 2)
        until(lambda: server.service.router.requests_under_way == 1)
        student.gate.set()
        until(lambda: server.service.router.requests_under_way == 0)
        assert not any("gone" in batch for batch in student.batches)


def test_a_client_that_sends_too_much_gets_its_answer(folder):
    """And no broken connection: it is still sending when the answer is known."""
    with running(recipe_of(folder, max_body_bytes=100_000)) as (_, address, _):
        for _ in range(3):
            status, said = ask(address, body={"pairs": [{"query": "mug", "title": "a" * 5_000_000}]})
            assert status == 413 and said["error"]["type"] == "too_large"


def test_a_stuck_student_is_answered_for_at_the_deadline(folder):
    with running(recipe_of(folder)) as (_, address, student):
        student.gate.clear()
        status, said = ask(address, body=BODY | {"deadline_ms": 50.0})
        assert status == 200 and {row["failure"] for row in said["verdicts"]} == {"no_answer_in_time"}
        body = json.dumps({"query": "mug", "documents": ["a", "b", ""]}).encode()
        headers = {"Content-Type": "application/json", "x-envoy-expected-rq-timeout-ms": "50"}
        with urllib.request.urlopen(urllib.request.Request(address + "/rerank", body, headers), timeout=30) as response:
            assert response.headers["x-lore-unanswered"] == "2"
            assert json.load(response)["meta"]["warnings"] == ["2 of 3 documents had no answer by the deadline; they are last"]
        student.gate.set()
        headers["x-envoy-expected-rq-timeout-ms"] = "20000"
        with urllib.request.urlopen(urllib.request.Request(address + "/rerank", body, headers), timeout=30) as response:
            assert "x-lore-unanswered" not in response.headers and "warnings" not in json.load(response)["meta"]


def test_every_line_of_the_log_is_json_and_holds_no_text_of_a_request(folder, capfd):
    with logged(), running(recipe_of(folder)) as (_, address, _student):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            client.sendall(b"secret garbage\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 400")
        assert ask(address)[0] == 200
        try:
            raise ValueError("a secret of the pair")
        except ValueError as error:
            logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: secret", exc_info=error)
        logging.getLogger("uvicorn.error").info("not worth a line")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line.get("logger"), line.get("status")) for line in lines] == [("uvicorn.error", None), (None, 200), ("asyncio", None)]
    assert "Invalid HTTP request" in lines[0]["message"] and lines[0]["level"] == "warning"
    assert lines[2]["exception"] == "ValueError"
    assert "secret" not in json.dumps(lines)


def test_a_terminal_that_takes_no_more_holds_nothing_up(monkeypatch):
    opened, lines = threading.Event(), []
    monkeypatch.setattr("lore.online.log_lines.MOST_WAITING", 3)
    monkeypatch.setattr("lore.online.log_lines.print_note", lambda line: opened.wait(30) and lines.append(line))
    writer = LogWriter()
    writer.start()
    writer.put("0")
    until(writer._lines.empty)
    for number in range(1, 7):
        writer.put(str(number))
    opened.set()
    until(lambda: len(lines) == 5)
    writer.close()
    assert lines[:2] == ["0", "1"] and json.loads(lines[2])["message"].startswith("3 lines") and lines[3:] == ["2", "3"]


def test_a_signal_before_the_student_is_warm_ends_the_service(folder, monkeypatch, capfd):
    monkeypatch.setattr("lore.online.batcher.CLOSE_SECONDS", 0.05)
    student = Gated(open_student(folder))
    student.gate.clear()
    server = OnlineServer(Service(recipe_of(folder), student))
    with bound_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: student.batches)  # it warms up
        server.handle_exit(signal.SIGTERM, None)
        thread.join(30)
        assert not thread.is_alive() and not server.started
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname(), 5)
    student.gate.set()
    assert "ends before it has answered" in capfd.readouterr().err


def test_one_request_is_tried_and_printed_with_its_answer(folder, tmp_path, capfd):
    with PairWriter(tmp_path / "pairs.parquet") as writer:
        for pair in some_pairs():
            writer.write(pair)
    assert serve(recipe_of(folder), try_pairs=str(tmp_path / "pairs.parquet")) == 0
    shown = capfd.readouterr().out
    assert "POST http://127.0.0.1:" in shown and "200 in" in shown and "Lumo red mug" in shown and "student" in shown


@pytest.mark.slow
def test_a_try_that_is_not_answered_is_an_error(folder, tmp_path, monkeypatch):
    pair = some_pairs()[0]
    pair.description = "red mug " * 1000
    with PairWriter(tmp_path / "pairs.parquet") as writer:
        writer.write(pair)
    monkeypatch.setenv("SERVICE_KEYS", "a-key-of-the-service")
    with pytest.raises(LoreError, match="answered 413"):  # and not 401
        serve(recipe_of(folder, max_body_bytes=1024, keys_variable="SERVICE_KEYS"), try_pairs=str(tmp_path / "pairs.parquet"))


def test_a_port_that_is_taken_is_an_error(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(LoreError, match="cannot be listened on"):
            serve(recipe_of(folder, port=taken.getsockname()[1]))


def test_a_port_that_is_taken_while_the_service_warms_up_is_an_error(folder):
    with bound_socket("127.0.0.1", 0) as listener, bound_socket("127.0.0.1", listener.getsockname()[1]) as other:
        other.listen()
        server = OnlineServer(Service(recipe_of(folder), open_student(folder)))
        with pytest.raises(LoreError, match="cannot be listened on"):
            server.run(sockets=[listener])


def test_keys_that_are_missing_are_said_before_anything_is_loaded(folder, monkeypatch):
    monkeypatch.delenv("SERVICE_KEYS", raising=False)
    monkeypatch.setattr("lore.online.serve.load_cache", lambda recipe: pytest.fail("labels were loaded"))
    with pytest.raises(LoreError, match="SERVICE_KEYS"):
        serve(recipe_of(folder, keys_variable="SERVICE_KEYS"))


def test_a_student_that_was_never_exported_has_no_canaries(folder):
    scorer = open_student(folder)
    assert canary_gate(scorer, None) is None


def test_threads_are_divided_by_the_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [default_threads(workers) for workers in (1, 2, 3, 16)] == [8, 4, 2, 1]


def test_lore_run_names_the_command_of_a_service(write_recipe, folder, capfd):
    path = write_recipe("online.yaml", f"stage: online\nrun: online\nstudent: {{path: {folder}}}")
    assert run_command([str(path)]) == 1
    assert f"Use `lore serve online {path}`" in capfd.readouterr().err.replace("\n  ", " ")


def test_a_dry_run_prints_every_value_and_what_is_missing(write_recipe, tmp_path, capfd):
    lines = f"stage: online\nrun: online\nstudent: {{path: {tmp_path}/no}}\nroute: {{frequencies: {tmp_path}/no.arrow}}"
    path = write_recipe("online.yaml", lines)
    assert serve_command(str(path), ["serve.port=8123"], dry_run=True) == 0
    shown = capfd.readouterr().out
    assert "max_queued_pairs: 4096" in shown and "http://127.0.0.1:8123" in shown
    assert "# student.path: " in shown and "# route.frequencies: " in shown
    with pytest.raises(LoreError, match="something is missing"):
        serve_command(str(path), [])


def test_a_dry_run_names_the_variables_that_are_not_set(write_recipe, folder, monkeypatch, capfd):
    monkeypatch.setenv("SET_KEYS", "a-key-of-the-service")
    for name in ("NO_KEYS", "NO_PASSWORD", "NO_JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)
    judge = f"judge: {{path: {folder}, endpoint: {{url: http://127.0.0.1:9/v1, key_variable: NO_JUDGE_KEY}}}}"
    cache = "cache: {store: redis://127.0.0.1:9/0, password_variable: NO_PASSWORD}"
    lines = f"stage: online\nrun: online\nstudent: {{path: {folder}}}\n{judge}\n{cache}\nserve: {{keys_variable: NO_KEYS}}"
    path = write_recipe("online.yaml", lines)
    assert serve_command(str(path), [], dry_run=True) == 0
    shown = capfd.readouterr().out
    for key, name in (
        ("serve.keys_variable", "NO_KEYS"),
        ("cache.password_variable", "NO_PASSWORD"),
        ("judge.endpoint.key_variable", "NO_JUDGE_KEY"),
    ):
        assert f"# {key}: the environment variable {name} is not set" in shown
    serve_command(str(path), ["serve.keys_variable=SET_KEYS"], dry_run=True)
    shown = capfd.readouterr().out
    assert "# serve.keys_variable" not in shown and "a-key-of-the-service" not in shown


def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(write_recipe, folder):
    key = "sk-0123456789-not-a-name"
    lines = f"stage: online\nrun: online\nstudent: {{path: {folder}}}\nserve: {{keys_variable: {key}}}"
    path = write_recipe("online.yaml", lines + f"\ncache: {{store: redis://127.0.0.1:9, judge: j, password_variable: {key}}}")
    with pytest.raises(LoreError) as error:
        serve_command(str(path), [], dry_run=True)
    said = str(error.value)
    assert "serve.keys_variable" in said and "cache.password_variable" in said and "not the key" in said and key not in said


def test_a_recipe_whose_needs_have_not_run_is_refused(write_recipe, demo, folder):
    write_recipe("first.yaml", "stage: demo\nrun: first")
    path = write_recipe("online.yaml", f"stage: online\nrun: online\nneeds: [first.yaml]\nstudent: {{path: {folder}}}")
    with pytest.raises(LoreError, match="first.yaml has to run first"):
        serve_command(str(path), [])


# In processes of their own, with an exported student


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    from lore.distill.export import export_student

    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    with PairWriter(path) as writer:
        for pair in some_pairs() * 2:
            writer.write(pair)
    out = tmp_path_factory.mktemp("out") / "student"
    export_student(folder, out, pairs=path, precisions=("fp32",))
    return out


@contextmanager
def started(write_recipe, student, **serve):
    """(process, address) of `lore serve online`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    section = json.dumps({"port": port, "deadline_ms": 20_000.0} | serve)
    path = write_recipe("online.yaml", f"stage: online\nrun: online\nstudent: {{path: {student}}}\nserve: {section}")
    command = [sys.executable, "-m", "lore", "serve", "online", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ready(address: str) -> bool:
    try:
        return ask(address, "/ready", None)[0] == 200
    except OSError:
        return False


def children(process: subprocess.Popen) -> list[int]:
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        found = [int(child) for child in file.read().split()]
    return [child for child in found if b"spawn_main" in open(f"/proc/{child}/cmdline", "rb").read()]


@pytest.mark.parametrize(
    ("absent", "extra", "section"),
    [
        ("fastapi", "online", {}),
        ("prometheus_client", "online", {}),
        ("redis", "online", {"cache": {"store": "redis://127.0.0.1:9/0", "judge": "runs/grpo"}}),
        ("opentelemetry", "traces", {"serve": {"traces": "http://127.0.0.1:4318"}}),
        ("onnxruntime", "student", {}),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(folder, monkeypatch, tmp_path, absent, extra, section):
    hidden = [name for name in sys.modules if name.partition(".")[0] == absent or name.endswith(("redis_cache", "onnx_session"))]
    for name in hidden:
        monkeypatch.delitem(sys.modules, name)
    find = PathFinder.find_spec

    def find_others(name, *more):
        return None if name.partition(".")[0] == absent else find(name, *more)

    monkeypatch.setattr(PathFinder, "find_spec", find_others)
    monkeypatch.setattr("lore.online.cache.cached_judge", lambda path, base: CachedJudge(path, "w:r:r", "", []))
    student = shutil.copytree(folder, tmp_path / "student")
    (student / "model.onnx").touch()
    recipe = OnlineRecipe.model_validate(recipe_of(student).model_dump() | section)
    with pytest.raises(LoreError) as error:
        recipe.check_packages()
        if recipe.cache.store != "none":
            open_cache(recipe.cache, None)
        if recipe.serve.traces is not None:
            open_traces(recipe.serve.traces)
        open_student(student)
    said = str(error.value)
    assert f"pip install 'lore-relevance[{extra}]'" in said and "not installed" in said and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_loses_no_accepted_request_and_exits_with_0(write_recipe, exported, workers):
    with started(write_recipe, exported, workers=workers) as (process, address):
        until(lambda: ready(address), 120)
        if workers > 1:  # a worker that dies is replaced
            until(lambda: len(children(process)) == workers, 60)
            first = set(children(process))
            os.kill(min(first), signal.SIGKILL)
            until(lambda: len(set(children(process)) - first) == 1, 60)
        outcomes: list[object] = []

        def load() -> None:
            while True:
                try:
                    outcomes.append(ask(address)[0])
                except OSError as error:
                    outcomes.append(error)
                    return

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        until(lambda: outcomes.count(200) > 40, 60)
        # The workers too, as Ctrl-C and systemd do: what their supervisor sends them then is their second signal.
        for pid in [*(children(process) if workers > 1 else ()), process.pid]:
            os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 0
        for client in clients:
            client.join(60)
    errors = [one for one in outcomes if not isinstance(one, int)]
    assert set(outcomes) - set(errors) <= {200, 503}
    # Every client ends with a connection that nobody accepted; none lost the answer to one that was.
    reasons = [error.reason if isinstance(error, urllib.error.URLError) else error for error in errors]
    assert all(isinstance(reason, ConnectionRefusedError | ConnectionResetError) for reason in reasons), reasons


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "after"), [(1, "answers at"), (2, None)])
def test_ctrl_c_during_the_start_ends_with_0_and_without_a_traceback(write_recipe, exported, workers, after):
    with started(write_recipe, exported, workers=workers) as (process, _):
        said = ""
        if after:
            while after not in said:
                said += process.stdout.readline()
        else:
            until(lambda: len(children(process)) == workers, 60)  # that import
        for pid in [process.pid, *children(process)]:
            os.kill(pid, signal.SIGINT)
        said += process.communicate(timeout=60)[0]
        assert process.returncode == 0 and "Traceback" not in said, said


@pytest.mark.slow
def test_a_student_that_differs_from_its_export_does_not_start(write_recipe, exported, tmp_path):
    broken = tmp_path / "student"
    shutil.copytree(exported, broken)
    table = pq.read_table(broken / CANARIES)
    moved = [[row[1], row[0], *row[2:]] for row in table.column("fp32").to_pylist()]
    table = table.set_column(table.column_names.index("fp32"), "fp32", pa.array(moved, pa.list_(pa.float64())))
    pq.write_table(table, broken / CANARIES)
    with pytest.raises(LoreError, match="at the export it was"):
        open_service(recipe_of(broken))
    assert open_service(recipe_of(exported)).canaries.largest < 1e-4
    with started(write_recipe, broken, workers=2) as (process, _):
        assert process.wait(120) == 1
        said = " ".join(process.stdout.read().split())
    assert "The service does not start: its student fails its canaries" in said and "This CPU has" in said


@pytest.mark.slow
def test_the_service_of_another_rubric_is_refused(folder, tiny, tmp_path):
    from tiny import adapter_judge

    judge = adapter_judge(tiny.text, tmp_path / "judge", "answer_first")
    other = write_student(tmp_path / "student", card={"rubric_hash": "0" * 16})
    card = json.loads((other / "lore.json").read_text())
    from lore.codec.pair_text import PairTextFormat, pair_text_hash

    card["renderer_hash"] = pair_text_hash("0" * 16, PairTextFormat(max_tokens=48))
    (other / "lore.json").write_text(json.dumps(card))
    recipe = recipe_of(other)
    judged = OnlineRecipe.model_validate(
        recipe.model_dump() | {"judge": {"path": str(judge), "endpoint": {"url": "http://127.0.0.1:9/v1"}}}
    )
    with pytest.raises(LoreError, match="mean different things"):
        open_service(judged)


@pytest.mark.slow
def test_a_judge_that_is_down_does_not_keep_the_service_from_starting(folder, tiny, tmp_path, capfd):
    from tiny import adapter_judge

    judge = adapter_judge(tiny.text, tmp_path / "judge", "answer_first")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    recipe = OnlineRecipe.model_validate(recipe_of(folder).model_dump() | {"judge": {"path": str(judge), "endpoint": {"url": url}}})
    service = open_service(recipe)

    async def inside():
        await service.start()
        try:
            return await service.router.answer(some_pairs())
        finally:
            await service.drain()
            await service.close()

    answers = asyncio.run(inside())
    assert all(answer.source == "student" and answer.late and answer.verdict.tier for answer in answers)
    assert "starts without its judge" in capfd.readouterr().err
