"""`lore runs` lists every run below a folder, whatever state its files are in."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_python
from typer.testing import CliRunner

from lore.cli import runs as listing
from lore.cli.main import app
from lore.config.recipe import values_fingerprint
from lore.config.yaml_text import to_yaml
from lore.run.run_folder import RunFolder

SFT = {"lore": 1, "stage": "sft", "train": {"steps": 20}, "rates": {"small": 1e-05, "none": None}}
LINE = {"step": 10, "loss": 0.5, "grad_norm": 1.0, "reward": 0.25}
BOMB = "stage: &a sft\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
HOLDS_THE_LOCK = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX)
os.pwrite(handle, str(os.getpid()).encode(), 0)
print("held", flush=True)
time.sleep(60)
"""


def make(root: Path, name: str, *, lines=(), done=None, stage="sft", **more) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    recipe = SFT | {"run": name, "stage": stage}
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    (folder / "manifest.json").write_text(json.dumps({"recipe_hash": values_fingerprint(recipe), "fingerprints": {}}))
    (folder / ".lock").write_text("1")
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done is not None:
        (folder / "done").write_text(json.dumps(done))
    for file, content in more.items():
        (folder / file).write_text(content)
    return folder


def listed(root: Path, *words: str) -> dict[str, dict]:
    done = CliRunner().invoke(app, ["runs", "--root", str(root), "--json", *words])
    assert done.exit_code == 0, done.output
    return {row["run"]: row for row in json.loads(done.stdout)}


def states(root: Path) -> dict[str, tuple[str, str]]:
    return {name: (row["state"], row["why"]) for name, row in listed(root).items()}


def test_each_state_is_told_apart(tmp_path):
    make(tmp_path, "done", lines=[LINE], done={"loss": 0.25, "rows": 9, "train_seconds": 3.0, "model": "m"})
    make(tmp_path, "stopped", lines=[LINE, {"step": 12, "probe": {"pass_at_1": 0.75}}])
    make(tmp_path, "empty")
    (make(tmp_path, "empty_folders") / "checkpoints").mkdir()
    chunks = make(tmp_path, "stopped_pool", stage="pool") / "chunks"
    chunks.mkdir()
    (chunks / "0.parquet").write_bytes(b"0")
    (make(tmp_path, "failed") / "failed.json").write_text(json.dumps({"recipe": "data.yaml", "launch": "", "time": 0}))
    running = make(tmp_path, "running", lines=[LINE])
    holder = subprocess.Popen([sys.executable, "-c", HOLDS_THE_LOCK, running / ".lock"], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        found = listed(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert {name: row["state"] for name, row in found.items()} == {
        "done": "done",
        "stopped": "stopped",
        "empty": "empty",
        "empty_folders": "empty",
        "stopped_pool": "stopped",
        "failed": "failed",
        "running": "running",
    }
    assert found["done"]["numbers"] == {"loss": 0.25, "reward": 0.25, "rows": 9}
    assert found["stopped"]["numbers"] == {"loss": 0.5, "reward": 0.25, "pass_at_1": 0.75}
    assert (found["stopped"]["step"], found["stopped"]["steps"]) == (12, 20)
    assert found["failed"]["why"] == "needs data.yaml, which failed"
    assert states(tmp_path)["running"] == ("stopped", "")


def test_nested_runs_are_rows_with_their_own_size_and_links_to_runs_are_followed(tmp_path):
    root, other = tmp_path / "runs", tmp_path / "other_disk"
    outer = make(root, "exp", done={})
    (outer / "model").mkdir()
    (outer / "model" / "model.safetensors").write_bytes(bytes(5000))
    make(root, "exp/data/inner", done={}, stage="world")
    make(root, "group/a", done={})
    make(other, "b", done={})
    (root / "linked").symlink_to(other)
    (root / "circle").symlink_to(root)
    (outer / "model" / "shared").symlink_to(other)  # photos or weights elsewhere belong to nobody here
    found = listed(root)
    assert set(found) == {"exp", "exp/data/inner", "group/a", "linked/b"}
    assert 5000 < found["exp"]["bytes"] < 7000 and found["exp/data/inner"]["bytes"] < 1500
    assert found["exp/data/inner"]["stage"] == "world"


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("recipe.yaml", b"stage: [", "recipe.yaml cannot be read"),
        ("recipe.yaml", b"\xff\x00", "recipe.yaml cannot be read"),
        ("recipe.yaml", b"", "recipe.yaml cannot be read"),
        ("recipe.yaml", b"lore: 1\nstage: sft\n", "recipe.yaml is not as the run wrote it"),
        ("recipe.yaml", BOMB.encode(), "recipe.yaml cannot be read"),
        ("recipe.yaml", None, "recipe.yaml is gone"),
        ("manifest.json", b'{"recipe_h', "manifest.json cannot be read"),
        ("done", b'{"loss": 0.', "done cannot be read"),
        ("done", b"", "done cannot be read"),
        ("done", b"[1]", "done cannot be read"),
        ("done", b'{"loss": NaN, "rows": 1e999}', "done cannot be read"),
        ("done", b"[" * 100_000, "done cannot be read"),
        ("metrics.jsonl", b'{"step": 1}\n{"st\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"step": 1, "loss": Infinity}\n', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b"7\n", "metrics.jsonl cannot be read"),
        ("metrics.jsonl", b'{"step": ' + b"9" * 400 + b"}\n", "metrics.jsonl cannot be read"),
        ("done", b'{"loss": "\\ud83d"}', "done cannot be read"),
    ],
)
def test_a_damaged_run_is_a_row_that_names_the_file(file, content, why, tmp_path):
    make(tmp_path, "fine", lines=[LINE], done={"loss": 1.0})
    folder = make(tmp_path, "broken", lines=[LINE], done={"loss": 1.0})
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    assert states(tmp_path) == {"fine": ("done", ""), "broken": ("damaged", why)}


def test_odd_files_are_no_end_of_the_list(tmp_path):
    make(tmp_path, "fine", done={})
    (make(tmp_path, "folder_as_done") / "done").mkdir()
    odd = make(tmp_path, "odd_values", lines=[{"step": "x", "loss": [1]}, {"loss": True, "probe": 3}], done={"a": {"Macro-F1": []}})
    (odd / "gone").symlink_to(tmp_path / "nowhere")
    make(tmp_path, "torn", lines=[LINE])
    with open(tmp_path / "torn" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 11, "lo')
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "photos").mkdir()
    os.mkfifo(tmp_path / "torn" / "pipe")
    found = states(tmp_path)
    assert found["fine"] == ("done", "") and found["odd_values"] == ("done", "") and found["torn"] == ("stopped", "")
    assert set(found) == {"fine", "folder_as_done", "odd_values", "torn"}


def test_the_table_is_sorted_by_time_and_safe_to_print(tmp_path):
    for number, name in enumerate(("old", "new\x1b[31m", "[bold]mid")):
        folder = make(tmp_path, name, lines=[LINE])
        for path in (*folder.iterdir(), folder):
            os.utime(path, (0, time.time() - [90_000, 5, 4000][number]))
    done = CliRunner().invoke(app, ["runs", "--root", str(tmp_path)])
    assert done.exit_code == 0 and "\x1b" not in done.output
    assert [done.output.index(word) for word in ("new", "[bold]mid", "old")] == sorted(
        done.output.index(word) for word in ("new", "[bold]mid", "old")
    )
    assert "stopped at step 10 of 20" in done.output and "loss 0.5, reward 0.25" in done.output
    assert " 1 d " in done.output and " 1 h " in done.output


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ([], {"exp/sft", "exp/grpo", "own"}),
        (["exp/*"], {"exp/sft", "exp/grpo"}),
        (["sft", "own"], {"exp/sft", "own"}),
        (["runs/exp/sft", "runs/own", "runs/leaderboard.md"], {"exp/sft", "own"}),
        (["runs/exp/*"], {"exp/sft", "exp/grpo"}),
        (["runs"], {"exp/sft", "exp/grpo", "own"}),
        (["own/"], {"own"}),
        (["x[y"], set()),
    ],
)
def test_patterns_choose_runs(patterns, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("exp/sft", "exp/grpo", "own"):
        make(Path("runs"), name)
    assert set(listed(Path("runs"), *patterns)) == names


def test_the_folder_comes_from_the_environment(runs, monkeypatch):
    runner = CliRunner()
    assert f"There are no runs under {runs}" in runner.invoke(app, ["runs"]).output.replace("\n", "")
    make(runs, "one", done={})
    assert "one" in runner.invoke(app, ["runs"]).output
    assert runner.invoke(app, ["runs", "--root", str(runs / "nowhere")]).exit_code == 1


def test_an_evaluation_shows_its_judges_without_the_baselines():
    interval = [0.5, 0.4, 0.6]
    summary = {
        name: {"Acc@2": interval, "Acc@4": [0.25, None, None], "Macro-F1": interval} for name in ("judge", "majority")
    } | {"report": "x"}
    assert listing.key_numbers({}, {}, summary) == {"judge Acc@4": 0.25, "judge Macro-F1": 0.5}


def test_hundreds_of_runs_are_listed_in_seconds_without_torch(tmp_path):
    for number in range(60):
        folder = make(tmp_path, f"group{number % 7}/run{number}", lines=[LINE] * 1200, done={"loss": 1.0})
        for step in (1, 2):
            (folder / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
            for file in range(6):
                (folder / "checkpoints" / f"checkpoint-{step}" / f"{file}.bin").write_bytes(b"0" * 100)
    began = time.perf_counter()
    found = list(listing.rows(tmp_path))
    assert len(found) == 60 and all(row.state == "done" and row.files == 17 for row in found)
    assert time.perf_counter() - began < 3
    code = "import sys; from pathlib import Path; from lore.cli.runs import rows; list(rows(Path(sys.argv[1]))); "
    code += "print('torch' in sys.modules)"
    assert run_python("-c", code, tmp_path / "group1", PYTHONPATH=str(ROOT)).stdout == "False\n"


def test_the_size_of_a_huge_run_is_a_lower_bound(tmp_path, monkeypatch):
    folder = make(tmp_path, "huge", done={})
    monkeypatch.setattr(listing, "MAX_FILES", 5)
    for part in ("a", "b"):
        (folder / part).mkdir()
        for number in range(9):
            (folder / part / f"{number}.bin").write_bytes(b"0" * 1000)
    make(tmp_path, "huge/inner", done={})
    (row,) = [row for row in listing.rows(tmp_path) if row.run == "huge"]
    assert row.partial and 9000 < row.bytes < 18_000 and "over" in listing.shown_size(row)
    assert {row.run for row in listing.rows(tmp_path)} == {"huge", "huge/inner"}


def test_a_real_run_is_not_damaged(demo, write_recipe, runs):
    from lore.run.runner import run_recipe

    run_recipe(write_recipe("a.yaml", "stage: demo\nrun: a\ntags: [x]\nnote: first"))
    assert RunFolder(runs / "a").is_done
    assert states(runs) == {"a": ("done", "")}
