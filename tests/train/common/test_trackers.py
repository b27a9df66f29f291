"""Trackers get the lines of metrics.jsonl, each once, also over a kill and a resume; none of them can end a run.

Every test that names a package reads the values back from the package's own files, offline. TensorBoard is in the extra `dev`.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from lore.run.run_folder import RunFolder
from lore.run.runner import run_command, run_recipe
from lore.support.errors import LoreError
from lore.train.common import config, trackers
from lore.train.common.config import TRACKER_PACKAGES
from lore.train.common.trackers import published, scalars, tracked
from lore.train.sft.config import SFTRecipe

LINES = [
    {"step": 1, "loss": 2.5, "learning_rate": 1e-4},
    {"step": 2, "loss": 2.25, "learning_rate": 2e-4},
    {"step": 2, "probe": {"pass_at_1": 0.5, "tiers": {"L4": 0.75, "很好!": 0.25}}, "training": {}, "stopped": "collapsed"},
    {"step": 3, "loss": 2, "rewards/verdict/mean": -0.125},
]
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Trackers write below tmp_path and reach no server."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_", "TENSORBOARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr(trackers, "POLL_SECONDS", 0.05)


def expected(lines: list[dict]) -> Points:
    """Every number of the lines, by name, in order."""
    points: Points = {}
    for line in lines:
        for name, value in scalars(line).items():
            points.setdefault(name, []).append((line["step"], value))
    return points


def read_tensorboard(folder: RunFolder) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tracking" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(file: Path) -> Iterator:
    """The records of an offline run: chunks in blocks of 32 KiB, each with checksum, length and kind, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last chunk
            yield Record.FromString(part)
            part = b""


def read_wandb(folder: RunFolder) -> Points:
    points: Points = {}
    for file in sorted((folder / "tracking" / "wandb").glob("offline-run-*/*.wandb")):
        ends = time.monotonic() + 10  # W&B's own process writes its last records shortly after `finish`
        while not any(one.WhichOneof("record_type") == "exit" for one in wandb_records(file)) and time.monotonic() < ends:
            time.sleep(0.05)
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
                for name in row.keys() - {"step"} - {name for name in row if name.startswith("_")}:
                    points.setdefault(name, []).append((row["step"], row[name]))
    return points


def read_mlflow(folder: RunFolder) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(folder / 'tracking').resolve()}/mlflow.db")
    run = client.get_run(json.loads((folder / "tracking" / "mlflow.json").read_text())["id"])
    assert run.data.params["stage"] in ("sft", "grpo") and "train.lr" in run.data.params
    assert len(client.search_runs([run.info.experiment_id])) == 1
    return {
        name.replace("u0021", "!"): [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def read_trackio(folder: RunFolder) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    points: Points = {}
    project = "-".join(folder.path.parts[-2:-1]) if folder.path.parts[-2] != "runs" else "lore"
    assert len(SQLiteStorage.get_runs(project)) == 1
    for row in SQLiteStorage.get_logs(project, SQLiteStorage.get_runs(project)[0]):
        for name in row.keys() - {"step", "timestamp"}:
            points.setdefault(name, []).append((row["step"], row[name]))
    return points


READ = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}
each_tracker = pytest.mark.parametrize("name", READ)


def needs(name: str) -> None:
    pytest.importorskip(name)
    if name == "mlflow":
        pytest.importorskip("sqlalchemy")


def same(found: Points, lines: list[dict]) -> None:
    wanted = expected(lines)
    assert {name: [step for step, _ in points] for name, points in found.items()} == {
        name: [step for step, _ in points] for name, points in wanted.items()
    }
    for name, points in wanted.items():
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


def recipe(run: str, *track: str, **more) -> SFTRecipe:
    return SFTRecipe(
        run=run,
        track=list(track),
        model={"name": "some/model"} | more,
        data={"path": "pairs.parquet", "rubric": "shop"},
        prompt={"order": "reason_first", "detail": "name"},
        train={"steps": 3},
    )


def record(folder: RunFolder, lines: list[dict]) -> None:
    for line in lines:
        folder.record(line)


@each_tracker
def test_a_tracker_has_every_number_of_metrics_jsonl_once_over_a_resume(name, runs, offline):
    needs(name)
    folder, one = RunFolder(runs / "shop" / "noise"), recipe("shop/noise", name)
    folder.path.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), tracked(one, folder):
        record(folder, LINES[:3])
        raise KeyboardInterrupt
    same(READ[name](folder), LINES[:3])
    first = json.loads((folder / "tracking" / f"{name}.json").read_text())
    folder.truncate_metrics(1)  # the run resumes from step 1 and writes the later lines again
    with tracked(one, folder):
        record(folder, LINES[1:])
    assert folder.metrics() == LINES
    same(READ[name](folder), LINES)
    assert json.loads((folder / "tracking" / f"{name}.json").read_text()) == {"id": first["id"], "lines": len(LINES)}


def test_a_tracker_that_is_added_later_gets_all_lines(runs, offline):
    needs("tensorboard")
    folder = RunFolder(runs / "late")
    folder.path.mkdir(parents=True)
    with tracked(recipe("late"), folder):
        record(folder, LINES[:2])
    assert not (folder / "tracking").exists()
    with tracked(recipe("late", "tensorboard"), folder):
        record(folder, LINES[2:])
    same(read_tensorboard(folder), LINES)
    assert recipe("late").may_change("track") and "tracking" in recipe("late").prepared_files


def test_no_line_leaves_no_trace_and_other_processes_send_nothing(runs, offline, monkeypatch):
    folder = RunFolder(runs / "none")
    folder.path.mkdir(parents=True)
    with tracked(recipe("none", "tensorboard"), folder):
        pass
    monkeypatch.setenv("RANK", "1")
    folder.metrics_path.write_text(json.dumps(LINES[0]) + "\n")
    with tracked(recipe("none", "tensorboard"), folder):
        pass
    assert [path.name for path in folder.path.iterdir()] == ["metrics.jsonl"]


class Breaks:
    """A tracker whose server is gone from the second line on."""

    place, id, sent = "here", "7", []

    def __init__(self, run):
        assert run.id in (None, "7")

    def log(self, values, step):
        if step > 1:
            raise ConnectionError("no route to\nhost")
        self.sent.append(step)

    def close(self, failed):
        raise SystemExit(3)


def test_a_tracker_that_fails_is_a_warning_and_the_next_start_sends_what_it_missed(runs, offline, monkeypatch, capfd):
    folder = RunFolder(runs / "broken")
    folder.path.mkdir(parents=True)
    monkeypatch.setitem(trackers.OPEN, "tensorboard", Breaks)
    with tracked(recipe("broken", "tensorboard"), folder):
        record(folder, LINES)
    warning = "warning: tensorboard failed: no route to host. Training is not affected, and metrics.jsonl holds every value.\n"
    assert capfd.readouterr().err == warning
    assert folder.metrics() == LINES and Breaks.sent == [1]
    assert json.loads((folder / "tracking" / "tensorboard.json").read_text()) == {"id": "7", "lines": 1}


@pytest.mark.parametrize(
    "damage",
    [b"", b"[]", b'{"id": "d", "li', b"\xff", b'{"id": 5, "lines": 1}', b'{"id": "d", "lines": "1"}', b'{"id": "d", "lines": -1}', None],
)
def test_a_damaged_state_is_named_with_what_to_do_and_costs_only_the_tracker(damage, runs, offline, capfd):
    folder = RunFolder(runs / "damaged")
    state = folder / "tracking" / "tensorboard.json"
    (state if damage is None else state.parent).mkdir(parents=True)
    if damage is not None:
        state.write_bytes(damage)
    with tracked(recipe("damaged", "tensorboard"), folder):
        record(folder, LINES)
    warning = capfd.readouterr().err
    assert warning.startswith(f"warning: tensorboard failed: {state} is damaged (") and warning.count("\n") == 1
    assert "it is unknown which lines tensorboard has. Delete it" in warning and folder.metrics() == LINES
    assert not (state.parent / "tensorboard").exists() and (damage is None or state.read_bytes() == damage)


def test_training_does_not_wait_for_a_tracker_that_hangs(runs, offline, monkeypatch, capfd):
    class Hangs:
        def __init__(self, run):
            time.sleep(60)

    folder = RunFolder(runs / "hangs")
    folder.path.mkdir(parents=True)
    monkeypatch.setitem(trackers.OPEN, "wandb", Hangs)
    monkeypatch.setattr(trackers, "END_SECONDS", 0.1)
    monkeypatch.setattr(trackers, "PATIENCE_SECONDS", 0.1)
    began = time.monotonic()
    with tracked(recipe("hangs", "wandb"), folder):
        record(folder, LINES)
    assert time.monotonic() - began < 5
    assert "warning: wandb did not finish" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "variable"), [("wandb", "WANDB_DISABLED"), ("mlflow", "DISABLE_MLFLOW_INTEGRATION")])
def test_the_variables_of_transformers_turn_a_tracker_off(name, variable, runs, offline, monkeypatch, capsys):
    monkeypatch.setenv(variable, "TRUE")
    monkeypatch.setattr(config, "version_of", lambda package: None)
    recipe("off", name).check_packages()
    with tracked(recipe("off", name), RunFolder(runs / "off")):
        pass
    assert f"{name}: off, because {variable} is set" in capsys.readouterr().out


@each_tracker
def test_a_missing_package_is_refused_before_anything_runs(name, runs, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(config, "version_of", lambda package: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    path = tmp_path / "sft.yaml"
    path.write_text(json.dumps(recipe("refused", name).model_dump()))
    after = tmp_path / "after.yaml"
    after.write_text(json.dumps(recipe("after").model_dump() | {"needs": ["sft.yaml"]}))
    for command in (["--dry-run", str(path)], [str(path)], ["--dry-run", str(after)], [str(after)]):
        assert run_command(command) == 1
        assert f"pip install {TRACKER_PACKAGES[name][-1]}" in capfd.readouterr().err
    assert not runs.exists() or not any(runs.iterdir())


def test_the_local_database_of_mlflow_needs_more_packages(monkeypatch):
    monkeypatch.setattr(config, "version_of", lambda package: "3.1" if package == "mlflow-skinny" else None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DISABLE_MLFLOW_INTEGRATION", raising=False)
    with pytest.raises(LoreError, match="pip install sqlalchemy alembic"):
        recipe("x", "mlflow").check_packages()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    recipe("x", "mlflow").check_packages()


@pytest.mark.parametrize("track", [["tensorbord"], ["wandb", "wandb"], "wandb"])
def test_other_values_of_track_are_refused(track):
    with pytest.raises(ValueError):
        SFTRecipe(**recipe("x").model_dump() | {"track": track})


def test_the_configuration_holds_no_secret():
    values = {
        "train": {"lr": 1e-3, "api_key": "a"},
        "list": [{"Authorization": "Bearer b"}],
        "server": "http://user:word@host:8000/v1?key=c",
        "name": "Qwen/Qwen3-8B",
        "note": "Bearer abcdef0123456789",
    }
    kept = {"note": "[key]", "train": {"lr": 1e-3}, "list": [{}], "server": "http://host:8000/v1", "name": "Qwen/Qwen3-8B"}
    assert published(values) == kept


# Dies between two checkpoints, when TensorBoard has got the line of step 7.
DIE = """
import os, signal, sys
from torch.utils.tensorboard import SummaryWriter
flush = SummaryWriter.flush
def counted(self):
    flush(self)
    counted.calls += 1
    if counted.calls == 7:
        os.kill(os.getpid(), signal.SIGKILL)
counted.calls = 0
SummaryWriter.flush = counted
from lore.train.common import trackers
trackers.POLL_SECONDS = 0.01
from lore.run.runner import run_command
sys.exit(run_command([sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_killed_sft_run_continues_its_tensorboard_run_without_doubled_steps(tiny, runs, offline, tmp_path):
    needs("tensorboard")
    path = tmp_path / "sft.yaml"
    body = json.loads(tiny.recipe("killed", model="text", steps=60, save_every=4)) | {"track": ["tensorboard"]}
    path.write_text(json.dumps(body))
    command = [sys.executable, "-c", DIE, str(path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    folder = run_recipe(path)
    assert folder.is_done and len(folder.metrics()) == 60
    same(read_tensorboard(folder), folder.metrics())


@pytest.mark.slow
@each_tracker
def test_sft_and_grpo_send_every_metric(name, tiny, runs, offline, tmp_path):
    """GRPO: reward parts, the watch's probes and its KL divergence."""
    needs(name)
    watch = {"every": 2, "pairs": 8, "samples": 2, "max_tokens": 16, "path": str(tiny.pairs), "split": "test"}
    watch["preflight_prompts"] = 0
    bodies = {
        "sft": tiny.recipe("one/sft", model="text", steps=4),
        "grpo": tiny.align("two/grpo", tiny.judge("text"), watch=watch),
    }
    for stage, text in bodies.items():
        path = tmp_path / f"{stage}.yaml"
        path.write_text(json.dumps(json.loads(text) | {"track": [name]}))
        folder = run_recipe(path)
        found = READ[name](folder)
        same(found, folder.metrics())
        assert "loss" in found and (stage == "sft" or {"probe/pass_at_1", "rewards/verdict/mean"} <= found.keys())
