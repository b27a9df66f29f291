"""Runs: folders that resume and never mix, needs, several processes, errors without tracebacks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import DEMO_PATH, ROOT, run_python

from lore.config.stages import load_recipe
from lore.run import dependencies, main
from lore.run.dependencies import plain_environment, plan
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.atomic_files import machine, write_atomic
from lore.support.errors import LoreError

BODY = "stage: demo\nrun: a\n"


@pytest.fixture
def recipe(demo, write_recipe):
    return load_recipe(write_recipe("a.yaml", BODY + "tags: [x]\nnote: first"))


def test_a_new_folder_holds_recipe_and_manifest(recipe, runs, write_recipe):
    folder = RunFolder.of(recipe).open(recipe)
    assert folder.path == runs / "a"
    assert load_recipe(folder.recipe_path) == recipe
    manifest = folder.manifest
    assert manifest["recipe_hash"] == recipe.fingerprint
    assert manifest["packages"]["pydantic"]
    assert "python" in manifest
    assert os.uname().nodename not in folder.manifest_path.read_text()
    assert not folder.is_done


def test_the_same_recipe_resumes_and_a_changed_one_names_the_key(recipe, write_recipe):
    folder = RunFolder.of(recipe).open(recipe)
    folder.record({"step": 1})
    assert RunFolder.of(recipe).open(recipe).metrics() == [{"step": 1}]
    changed = load_recipe(write_recipe("a.yaml", BODY + "tags: [y]\nseed: 1\nnote: second"))
    with pytest.raises(LoreError) as caught:
        RunFolder.of(changed).open(changed)
    text = str(caught.value)
    assert "seed: was 0, now 1" in text
    assert "tags: was ['x'], now ['y']" in text
    assert "note" not in text
    irrelevant = load_recipe(write_recipe("a.yaml", BODY + "tags: [x]\nnote: third"))
    assert RunFolder.of(irrelevant).open(irrelevant).metrics() == [{"step": 1}]


def test_a_folder_of_a_renamed_stage_gets_one_clear_sentence(recipe):
    folder = RunFolder.of(recipe).open(recipe)
    folder.record({"step": 1})
    folder.recipe_path.write_text(folder.recipe_path.read_text().replace("stage: demo", "stage: rair"))
    with pytest.raises(LoreError, match="made by an earlier version of LORE, in which stage evaluate was called rair"):
        RunFolder.of(recipe).open(recipe)


def test_a_run_without_a_result_takes_another_recipe(recipe, write_recipe):
    """Mending what an error message names must not be refused by the folder that the failed start left."""
    folder = RunFolder.of(recipe).open(recipe)
    (folder / "data").mkdir()
    (folder / "data" / "rows.arrow").write_text("of the old recipe")
    folder.note(data_fingerprint="old")
    changed = load_recipe(write_recipe("a.yaml", BODY + "tags: [y]"))
    again = RunFolder.of(changed).open(changed)
    assert load_recipe(again.recipe_path) == changed
    assert again.manifest["recipe_hash"] == changed.fingerprint and again.manifest["fingerprints"] == {}
    assert not (again / "data").exists()


def test_a_stage_names_the_files_that_it_prepares(recipe, write_recipe, monkeypatch):
    folder = RunFolder.of(recipe).open(recipe)
    (folder / "replay.jsonl").touch()
    (folder / "checkpoints").mkdir()
    changed = load_recipe(write_recipe("a.yaml", BODY + "tags: [y]"))
    with pytest.raises(LoreError, match="tags"):
        folder.check(changed)
    monkeypatch.setattr(type(recipe), "prepared_files", recipe.prepared_files | {"replay.jsonl"})
    RunFolder.of(changed).open(changed)
    assert not (folder / "replay.jsonl").exists() and folder.changes(changed) == []
    (folder / "checkpoints" / "checkpoint-1").mkdir()
    assert not folder.is_unused(changed)


def test_a_key_that_went_is_a_change_and_a_newer_one_only_off_its_default(recipe, write_recipe):
    folder = RunFolder.of(recipe).open(recipe)
    text = folder.recipe_path.read_text().replace("fail: false\n", "gone: 3\n")
    folder.recipe_path.write_text(text)
    assert folder.changes(recipe) == [("gone", 3, "absent")]
    other = load_recipe(write_recipe("a.yaml", BODY + "tags: [x]\nnote: first\nfail: true"))
    assert folder.changes(other) == [("gone", 3, "absent"), ("fail", "absent", True)]


def test_a_folder_with_other_files_is_left_alone(recipe, runs):
    (runs / "a" / "b").mkdir(parents=True)
    (runs / "a" / "b" / "recipe.yaml").write_text("run: a/b")  # a run below it is no stranger
    RunFolder.of(recipe)._refuse_strangers()
    (runs / "a" / "thesis.tex").write_text("mine")
    with pytest.raises(LoreError, match=r"thesis\.tex but no recipe\.yaml"):
        RunFolder.of(recipe).open(recipe)
    assert (runs / "a" / "thesis.tex").read_text() == "mine"


def test_metrics_survive_a_torn_line_and_are_cut_at_a_step(recipe):
    folder = RunFolder.of(recipe).open(recipe)
    folder.record({"text": "a\u2028b", "loss": float("nan")})
    for step in range(1, 5):
        folder.record({"step": step, "loss": 1 / step})
    before = folder.metrics_path.read_bytes()
    with open(folder.metrics_path, "ab") as file:
        file.write(b'{"step": 5, "lo')
    folder = RunFolder.of(recipe).open(recipe)
    assert folder.metrics_path.read_bytes() == before
    folder.truncate_metrics(2)
    assert [r.get("step") for r in folder.metrics()] == [None, 1, 2]
    assert folder.metrics()[0] == {"text": "a\u2028b", "loss": "nan"}
    for step in range(3, 5):
        folder.record({"step": step, "loss": 1 / step})
    assert folder.metrics_path.read_bytes() == before


def test_numpy_and_torch_numbers_are_recorded_as_numbers(recipe):
    import numpy as np
    import torch

    folder = RunFolder.of(recipe).open(recipe)
    folder.record({"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.0), "d": [np.bool_(True)], "e": None})
    assert folder.metrics() == [{"a": 0.5, "b": 3, "c": 2.0, "d": [True], "e": None}]


def test_other_inputs_stop_a_resumed_run(recipe):
    folder = RunFolder.of(recipe).open(recipe)
    folder.note(data_fingerprint="abc", rubric_hash="r1")
    folder.note(rubric_hash="r1", renderer_hash="p1")
    with pytest.raises(LoreError, match="data_fingerprint: was 'abc', now 'xyz'"):
        RunFolder.of(recipe).open(recipe).note(data_fingerprint="xyz")
    assert folder.manifest["fingerprints"] == {"data_fingerprint": "abc", "rubric_hash": "r1", "renderer_hash": "p1"}


def test_the_fingerprints_of_an_earlier_version_still_count(recipe):
    folder = RunFolder.of(recipe).open(recipe)
    manifest = folder.manifest
    del manifest["fingerprints"]
    folder.manifest_path.write_text(json.dumps({**manifest, "facts": {"rubric_hash": "r1"}}))
    with pytest.raises(LoreError, match="rubric_hash: was 'r1', now 'r2'"):
        folder.note(rubric_hash="r2")
    folder.note(data_fingerprint="abc")
    assert folder.manifest == {**manifest, "fingerprints": {"rubric_hash": "r1", "data_fingerprint": "abc"}}


def test_a_resumed_run_notes_a_changed_environment(recipe):
    folder = RunFolder.of(recipe).open(recipe)
    manifest = folder.manifest
    manifest["packages"]["pydantic"] = "0.1"
    folder.manifest_path.write_text(json.dumps(manifest))
    for _ in range(2):
        resumed = RunFolder.of(recipe).open(recipe).manifest["resumed"]
        assert len(resumed) == 1
        assert resumed[0]["packages"]["pydantic"] != "0.1"


def test_only_the_main_process_writes(recipe, runs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    folder = RunFolder.of(recipe).open(recipe)
    folder.record({"step": 1})
    folder.note(a=1)
    folder.finish({"x": 1})
    assert not runs.exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomic(path, "old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_two_processes_cannot_use_one_folder_and_a_killed_one_frees_it(recipe, write_recipe):
    path = write_recipe("a.yaml", BODY + "tags: [x]\nnote: first")
    code = (
        "import sys, time; from lore.config.stages import load_recipe; from lore.run.run_folder import RunFolder;"
        f"recipe = load_recipe({str(path)!r}); RunFolder.of(recipe).open(recipe);"
        "print('open', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(LoreError, match=f"in use by process {other.pid}"):
            RunFolder.of(recipe).open(recipe)
        assert RunFolder.of(recipe).user == str(other.pid)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert RunFolder.of(recipe).user is None
    folder = RunFolder.of(recipe).open(recipe)
    assert folder.user is None  # this process
    look = f"from lore.run.run_folder import RunFolder; print(RunFolder({str(folder.path)!r}).user)"
    assert run_python("-c", look).stdout.strip() == str(os.getpid())  # the lock is still held
    folder.close()


def test_a_run_killed_while_it_writes_a_folder_opens_again(recipe):
    folder = RunFolder.of(recipe).open(recipe)
    folder.record({"step": 1})
    folder.close()
    code = (
        "import os, pathlib, signal, sys; from lore.support.atomic_files import folder_written_whole\n"
        "with folder_written_whole(pathlib.Path(sys.argv[1])) as part:\n"
        "    part.mkdir(); (part / 'weights').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert run_python("-c", code, folder / "model").returncode == -signal.SIGKILL
    assert list(folder.path.glob(".model.*.part/weights"))
    again = RunFolder.of(recipe).open(recipe)
    assert again.metrics() == [{"step": 1}] and not list(folder.path.glob(".model*"))


def test_an_opened_run_clears_its_own_folders_and_no_others(recipe, tmp_path):
    """A restarted container counts as another machine, so only the lock shows that its writers are gone."""
    folder = RunFolder.of(recipe).open(recipe)
    folder.close()
    other = "00000000" if machine() != "00000000" else "11111111"
    part = f".rows.arrow.{other}.{os.getpid()}.0a1b2c3d.part"
    own, inner, shared = folder / "data", folder / "b", tmp_path / "shared"
    for place in (own, inner, inner / "data", shared):
        place.mkdir()
        (place / part).touch()
    (inner / "recipe.yaml").write_text("run: a/b")
    (folder / "linked").symlink_to(shared)
    (own / f".photos.{other}.1.0a1b2c3d.old").mkdir()
    RunFolder.of(recipe).open(recipe)
    assert [path.name for path in own.iterdir()] == ["photos"]
    assert all((place / part).exists() for place in (inner, inner / "data", shared))


def test_a_finished_run_is_not_repeated(demo, write_recipe, runs, capsys):
    path = write_recipe("a.yaml", BODY)
    run_recipe(path)
    assert RunFolder(runs / "a").metrics() == [{"step": 1, "loss": 0.5}]
    run_recipe(path)
    assert RunFolder(runs / "a").metrics() == [{"step": 1, "loss": 0.5}]
    out = capsys.readouterr().out
    assert "already done" in out
    assert out.count("0.5000") == 2
    with pytest.raises(LoreError, match=r"train\.lr: was 0\.0001, now 0\.5"):
        run_recipe(path, ["train.lr=0.5"])


def test_dry_run_prints_every_value_and_touches_nothing(demo, write_recipe, runs, capsys):
    write_recipe("base.yaml", "stage: demo\nrun: base")
    path = write_recipe("a.yaml", BODY + "needs: [base.yaml]")
    run_recipe(path, ["train.steps=7"], dry_run=True)
    out = capsys.readouterr().out
    assert "steps: 7" in out
    assert "lr: 0.0001" in out
    assert "final_step: 7" in out
    assert "(new)" in out
    assert "would run first" in out
    assert not runs.exists()


def test_dry_run_names_every_input_that_is_not_there(write_recipe, runs, tmp_path, capsys):
    body = f"""stage: grpo
run: dry
model: {{name: {tmp_path}/base, adapter: {tmp_path}/sft}}
data: {{path: {tmp_path}/pairs, rubric: shop}}
prompt: {{order: reason_first, detail: name, max_prompt_tokens: 256}}
pool: {{path: {tmp_path}/pool.parquet}}
replay: {{rows: 4, path: "{tmp_path}/replay/*.parquet"}}
train: {{steps: 2, batch_size: 16, lr: 1e-4, max_tokens: 64}}
"""
    run_recipe(write_recipe("dry.yaml", body), dry_run=True)
    said = [line[2:] for line in capsys.readouterr().out.splitlines() if str(tmp_path) in line and line.startswith("# ")]
    missing = dict(line.split(": ", 1) for line in said if not line.startswith(("run folder", str(tmp_path))))
    assert sorted(missing) == ["data.path", "model.adapter", "model.name", "pool.path", "replay.path"]
    (tmp_path / "pool.parquet").touch()
    run_recipe(write_recipe("dry.yaml", body.replace(f"{tmp_path}/base", "Qwen/Qwen3-8B")), dry_run=True)
    assert not {"# pool.path", "# model.name"} & {line.split(":")[0] for line in capsys.readouterr().out.splitlines()}


def test_main_returns_at_once_in_a_spawned_worker(tmp_path):
    main("__mp_main__", str(tmp_path / "not even there.yaml"))


def test_needed_recipes_run_first_once_and_in_order(demo, write_recipe, runs):
    write_recipe("world.yaml", "stage: demo\nrun: world")
    write_recipe("base.yaml", "stage: demo\nrun: base\nneeds: [world.yaml]")
    write_recipe("sft.yaml", "stage: demo\nrun: sft\nneeds: [world.yaml, base.yaml]")
    path = write_recipe("eval.yaml", "stage: demo\nrun: eval\nneeds: [sft.yaml, base.yaml]")
    assert [p.name for p, _ in plan(path, load_recipe(path))] == ["world.yaml", "base.yaml", "sft.yaml"]
    run_recipe(path)
    finished = {name: (runs / name / "done").stat().st_mtime_ns for name in ("world", "base", "sft", "eval")}
    assert sorted(finished, key=finished.get) == ["world", "base", "sft", "eval"]
    assert [p.name for p, _ in plan(path, load_recipe(path))] == ["sft.yaml", "base.yaml"]


def test_each_needed_recipe_is_loaded_and_checked_once(demo, write_recipe, runs, monkeypatch):
    write_recipe("r0.yaml", "stage: demo\nrun: r0")
    for i in range(1, 7):
        needs = ", ".join(f"r{j}.yaml" for j in range(i))
        path = write_recipe(f"r{i}.yaml", f"stage: demo\nrun: r{i}\nneeds: [{needs}]")
    names = [f"r{i}.yaml" for i in range(6)]
    run_recipe(path.parent / "r0.yaml")
    loaded, checked = [], []

    def load(path, overrides=()):
        loaded.append(path.name)
        return load_recipe(path, overrides)

    monkeypatch.setattr(dependencies, "load_recipe", load)
    monkeypatch.setattr(dependencies, "check_inputs", lambda recipe, folder: checked.append(recipe.run))
    assert [p.name for p, _ in plan(path, load_recipe(path))] == names
    assert (sorted(loaded), checked) == (names, ["r0"])


def test_a_run_goes_on_when_its_recipes_have_been_moved(demo, write_recipe, runs, tmp_path):
    base = write_recipe("base.yaml", "stage: demo\nrun: base")
    first = run_recipe(write_recipe("a.yaml", BODY + f"needs: [{base}]"))
    moved = shutil.copy(base, tmp_path / "moved.yaml")
    assert run_recipe(write_recipe("a.yaml", BODY + f"needs: [{moved}]")).path == first.path


def test_a_circle_of_needs_is_an_error(demo, write_recipe):
    write_recipe("b.yaml", "stage: demo\nrun: b\nneeds: [c.yaml]")
    write_recipe("c.yaml", "stage: demo\nrun: c\nneeds: [b.yaml]")
    path = write_recipe("a.yaml", BODY + "needs: [b.yaml]")
    with pytest.raises(LoreError, match=r"b\.yaml -> c\.yaml -> b\.yaml"):
        plan(path, load_recipe(path))


def test_a_needed_run_with_other_values_stops_before_anything_runs(demo, write_recipe, runs):
    base = write_recipe("base.yaml", "stage: demo\nrun: base")
    run_recipe(base)
    write_recipe("base.yaml", "stage: demo\nrun: base\nseed: 5")
    with pytest.raises(LoreError, match="seed: was 0, now 5"):
        run_recipe(write_recipe("a.yaml", BODY + "needs: [base.yaml]"))
    assert not (runs / "a").exists()


def test_needed_recipes_see_no_launcher(monkeypatch):
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    kept = {"HOME": "/h", "LORE_DATA": "d"}
    monkeypatch.setattr(os, "environ", {**given, **kept, "OMP_NUM_THREADS": "1"})
    assert plain_environment() == kept
    monkeypatch.setattr(os, "environ", {**kept, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})
    assert plain_environment() == {**kept, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def start_ranks(path, **environment):
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
    ranks = []
    for rank in ("0", "1"):
        env = {**os.environ, **shared, **environment, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": DEMO_PATH}
        command = [sys.executable, "-m", "lore", "run", str(path)]
        pipe = subprocess.PIPE
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True))
    return [(p.communicate(timeout=60), p.returncode) for p in ranks]


def test_other_ranks_wait_for_what_is_needed_and_run_it_once(demo, write_recipe, runs):
    write_recipe("base.yaml", "stage: demo\nrun: base")
    path = write_recipe("a.yaml", BODY + "needs: [base.yaml]")
    (one, status), (other, other_status) = start_ranks(path)
    assert (status, other_status) == (0, 0), one[1] + other[1]
    assert RunFolder(runs / "base").summary == {"loss": 0.5, "rank": None, "launcher_seen": False}
    assert RunFolder(runs / "a").summary["rank"] == "0"
    assert RunFolder(runs / "a").metrics() == [{"step": 1, "loss": 0.5}]
    assert other[0] == ""


def test_other_ranks_fail_when_what_is_needed_fails(demo, write_recipe, runs):
    write_recipe("base.yaml", "stage: demo\nrun: base\nfail: true")
    path = write_recipe("a.yaml", BODY + "needs: [base.yaml]")
    for _ in range(2):  # the note of the first failure must not be taken for one of the second start
        started = time.monotonic()
        (one, status), (other, other_status) = start_ranks(path)
        assert (status, other_status) == (1, 1)
        assert time.monotonic() - started < 30
        assert "the demo was told to fail" in one[1]
        assert "cannot start" in one[1]
        assert "Traceback" not in one[1] + other[1]


def test_an_error_is_a_message_and_status_one_without_a_traceback(demo, write_recipe, runs):
    path = write_recipe("a.yaml", BODY + "fail: true")
    done = run_python(path)
    assert done.returncode == 1
    assert "error: the demo was told to fail" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run_python(path, LORE_DEBUG="1").stderr


def test_a_file_beside_the_recipe_cannot_stand_in_for_a_package(demo, write_recipe, runs, tmp_path):
    path = write_recipe("a.yaml", "stage: pretrain\nrun: a\ncorpus: [c.parquet]\ntrain: {steps: 1}")
    for name in ("yaml", "rich", "json", "pydantic"):
        (path.parent / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    done = run_python(path, "--dry-run", PYTHONPATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shadowed" not in done.stderr


def test_several_recipes_run_in_order_and_stop_at_the_first_error(demo, write_recipe, runs):
    good, bad = write_recipe("a.yaml", BODY), write_recipe("b.yaml", "stage: demo\nrun: b\nfail: true")
    last = write_recipe("c.yaml", "stage: demo\nrun: c")
    done = run_python("-m", "lore", "run", good, bad, last)
    assert done.returncode == 1
    assert [RunFolder(runs / name).is_done for name in "abc"] == [True, False, False]
    write_recipe("c.yaml", "stage: demo\nrun: c\nsed: 3")
    (runs / "a").rename(runs / "kept")
    done = run_python("-m", "lore", "run", good, last)
    assert done.returncode == 1
    assert "sed" in done.stderr
    assert not (runs / "a").exists()
