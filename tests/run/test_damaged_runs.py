"""Damaged files of a run: each says which file, what is lost and what to do. Never a traceback, never a silent "already done"."""

import json
import shutil
import time

import pytest

from lore.config.stages import load_recipe
from lore.config.yaml_text import read_recipe_text, read_record
from lore.eval.compare.finished import read_run
from lore.run.dependencies import launch_id, wait_for_needed
from lore.run.grid import print_runs, write_table
from lore.run.run_folder import RunFolder
from lore.run.runner import run_command, run_recipe
from lore.support.errors import LoreError
from lore.support.untrusted_json import parse_object

HARMS = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "binary": lambda whole: b"\xff\x00",
    "list": lambda whole: b"[1]",
    "deep": lambda whole: b'{"a":' * 50_000,
    "huge": lambda whole: b'{"loss": ' + b"9" * 5_000 + b"}",
    "large": lambda whole: b'{"loss": [' + b"9" * 400 + b", null, null]}",
    "half a character": lambda whole: b'{"loss": "\\ud83d"}',
    "aliases": lambda whole: whole + b"a: &a [x, x]\nb: [" + b"*a, " * 400_000 + b"]\n",
}


@pytest.fixture
def finished(demo, write_recipe, runs):
    path = write_recipe("a.yaml", "stage: demo\nrun: a")
    return path, run_recipe(path)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["done", "manifest.json", "recipe.yaml"])
def test_a_damaged_file_of_a_finished_run_is_named(finished, write_recipe, capsys, name, harm):
    path, folder = finished
    (folder / name).write_bytes(HARMS[harm]((folder / name).read_bytes()))
    needing = write_recipe("b.yaml", "stage: demo\nrun: b\nneeds: [a.yaml]")
    if name == "manifest.json" and harm in ("large", "half a character", "huge"):
        (folder / name).write_bytes(b'{"fingerprints": ' + HARMS[harm](b"") + b"}")
    for command in ([str(path)], [str(path), "--dry-run"], [str(needing)]):
        capsys.readouterr()
        status = run_command(command)
        said = capsys.readouterr()
        assert "already done" not in said.out
        if name == "recipe.yaml" and harm == "cut":  # half of a YAML file can be a whole one
            assert "belongs to a" in said.err + said.out or "recipe.yaml is damaged" in said.err
        else:
            assert status == 1
            assert f"{folder / name} is damaged (" in said.err and ("Delete it" in said.err or "Restore it" in said.err)


@pytest.mark.parametrize("left", ["done", "metrics.jsonl"])
def test_a_run_without_its_recipe_is_refused(finished, write_recipe, capsys, left):
    """Reported: without recipe.yaml, any recipe of that name was "already done"."""
    path, folder = finished
    folder.recipe_path.unlink()
    for name in {"done", "metrics.jsonl"} - {left}:
        (folder / name).unlink()
    other = write_recipe("a.yaml", "stage: demo\nrun: a\nseed: 7")
    for command in ([str(path)], [str(other)], [str(other), "--dry-run"]):
        assert run_command(command) == 1
        said = capsys.readouterr()
        assert "recipe.yaml is missing and the run has results, so it is unknown which recipe" in said.err
        assert "already done" not in said.out


def test_a_recipe_that_lost_a_value_at_its_end_is_no_recipe_with_the_default(demo, write_recipe, runs, capsys):
    folder = run_recipe(write_recipe("a.yaml", "stage: demo\nrun: a\nfail: false\ntags: [x]\nnote: mine"))
    text = folder.recipe_path.read_text()
    folder.recipe_path.write_text(text.replace("tags:\n- x\n", ""))
    assert folder.recipe_path.read_text() != text
    assert run_command([str(write_recipe("a.yaml", "stage: demo\nrun: a"))]) == 1
    said = capsys.readouterr()
    assert "it was cut or edited since" in said.err and "already done" not in said.out


def test_a_start_that_was_killed_before_its_recipe_goes_on(demo, write_recipe, runs):
    recipe = load_recipe(write_recipe("a.yaml", "stage: demo\nrun: a"))
    folder = RunFolder.of(recipe).open(recipe)
    folder.recipe_path.unlink()
    assert RunFolder.of(recipe).open(recipe).exists


def test_a_deleted_marker_or_manifest_follows_the_advice(finished, capsys):
    path, folder = finished
    (folder / "done").unlink()
    assert run_command([str(path)]) == 0 and folder.is_done
    folder.manifest_path.unlink()
    capsys.readouterr()
    assert run_command([str(path)]) == 0
    assert "manifest.json is missing: it is not known whether the inputs of this run have changed" in capsys.readouterr().out


@pytest.mark.parametrize("values", [{"fingerprints": 3}, {"facts": []}, {"resumed": []}, {"resumed": [1]}, {"resumed": {}}, None])
def test_a_manifest_with_values_of_another_type_is_damaged(finished, values):
    """None: an object of somebody else. Without fingerprints, changed inputs would not be noticed."""
    path, folder = finished
    folder.manifest_path.write_text(json.dumps({"a": 1} if values is None else folder.manifest | values))
    with pytest.raises(LoreError, match=r"manifest\.json is damaged .a value is missing or has another type"):
        run_recipe(path)


@pytest.mark.parametrize(
    "line",
    [b'{"step": 2, "lo', b"", b"\xff\x00", b"[1]", b'{"step": "2"}', b'{"a":' * 50_000, b'{"a": ' + b"9" * 5_000 + b"}"],
    ids=["cut", "empty", "binary", "list", "text", "deep", "huge"],
)
def test_a_damaged_line_of_the_metrics_is_named(demo, write_recipe, runs, line):
    recipe = load_recipe(write_recipe("a.yaml", "stage: demo\nrun: a"))
    folder = RunFolder.of(recipe).open(recipe)
    for step in (1, 2, 3):
        folder.record({"step": step})
    lines = folder.metrics_path.read_bytes().split(b"\n")
    folder.metrics_path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    folder = RunFolder.of(recipe).open(recipe)
    if line == b"":
        assert folder.metrics() == [{"step": 1}, {"step": 3}]
        return
    for read in (folder.metrics, lambda: folder.truncate_metrics(3), lambda: folder.last_record("loss")):
        with pytest.raises(LoreError, match=r"metrics\.jsonl, line 2 is damaged .*[\s\S]*Delete the line"):
            read()


def test_metrics_of_bytes_or_nothing_open_and_lack_their_records(demo, write_recipe, runs):
    recipe = load_recipe(write_recipe("a.yaml", "stage: demo\nrun: a"))
    folder = RunFolder.of(recipe).open(recipe)
    for content in (b"\xff\x00", b"\xff\x00\n\xff", b""):
        folder.metrics_path.write_bytes(content)
        folder = RunFolder.of(recipe).open(recipe)
    with pytest.raises(LoreError, match=r"metrics\.jsonl has no record with loss"):
        folder.last_record("loss")


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_note_of_a_failure_is_no_note(demo, write_recipe, runs, monkeypatch, harm):
    recipe = load_recipe(write_recipe("a.yaml", "stage: demo\nrun: a"))
    folder = RunFolder.of(recipe)
    folder.path.mkdir(parents=True)
    note = json.dumps({"launch": launch_id(), "time": 1e12, "recipe": "b.yaml"}).encode()
    (folder / "failed.json").write_bytes(HARMS[harm](note))
    looks = []

    def done(self):
        looks.append(1)
        return len(looks) > 2

    monkeypatch.setattr(RunFolder, "is_done", property(done))
    monkeypatch.setattr("lore.run.dependencies.POLL_SECONDS", 0)
    wait_for_needed(folder, [(folder.path, RunFolder(runs / "b"))])


def test_one_damaged_run_does_not_end_the_table_of_a_grid(demo, write_recipe, runs, capsys):
    from lore.config.stages import load_grid

    path = write_recipe("g.yaml", "grid: g\nbase: {stage: demo}\nruns: {a: {}, b: {}, c: {}}")
    assert run_command([str(path)]) == 0
    (runs / "g" / "a" / "done").write_bytes(b"{")
    (runs / "g" / "b" / "recipe.yaml").write_bytes(b"\xff\x00")
    grid = load_grid(path)
    write_table(grid, {})
    table = (runs / "g" / "table.md").read_text()
    assert "a/done is damaged" in table and "b/recipe.yaml is damaged" in table and "| c |  | 0.5000 |" in table
    capsys.readouterr()
    print_runs(grid)
    said = capsys.readouterr().out
    assert "a/done is damaged" in said and "b/recipe.yaml is damaged" in said and " done " in said
    assert run_command([str(path)]) == 1
    said = capsys.readouterr().err
    assert "a/done is damaged" in said and "b/recipe.yaml is damaged" in said


def test_numbers_that_no_float_holds_and_half_characters_are_refused():
    wrong = (b'{"a": ' + b"9" * 400 + b"}", b'{"a": 1e999}', b'{"a": "\\udc80"}', b'{"\\ud83d": 1}', b"{" * 100_000, b"null", b"")
    for text in wrong:
        with pytest.raises(ValueError):
            parse_object(text)
    assert parse_object(b'{"a": 1e99, "b": [1, null]}') == {"a": 1e99, "b": [1, None]}


def left(folder):
    """Every file below a run folder."""
    return sorted(path for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock")


def try_every_harm(path, folder, tmp_path, capsys, *, in_turn=False):
    """Damages each file of the run in turn and runs the recipe again: it is told, or made anew, and never a traceback. in_turn: one
    kind of damage a file, where a start takes seconds."""
    kept, harms = tmp_path / "kept", ("cut", "empty", "binary")
    shutil.copytree(folder.path, kept)
    for number, file in enumerate(left(folder)):
        for harm in harms[number % 3 :][:1] if in_turn else harms:
            file.write_bytes(HARMS[harm](file.read_bytes()))
            capsys.readouterr()
            status = run_command([str(path)])  # raises whatever is no LoreError and no OSError
            folder.close()
            said = capsys.readouterr()
            assert status == 0 or file.name in said.err, (file, harm, said.err)
            shutil.rmtree(folder.path)
            shutil.copytree(kept, folder.path)


@pytest.mark.slow
@pytest.mark.parametrize("done", [True, False])
def test_every_file_of_a_synthesis_may_be_damaged(runs, tmp_path, capsys, done):
    (tmp_path / "world.yaml").write_text("stage: world\nrun: shop\npairs: {train: 12, dev: 2, test: 2}\ncorpus: 4")
    run_recipe(tmp_path / "world.yaml").close()
    path = tmp_path / "traces.yaml"
    path.write_text(
        f"stage: synthesize\nrun: traces\nchunk_pairs: 6\ndata: {{path: {runs}/shop/pairs, rubric: shop, split: train}}\n"
        "teacher: {kind: program, program: shop}\ntasks: [rules]"
    )
    folder = run_recipe(path)
    if not done:
        folder.reopen()
    folder.close()
    try_every_harm(path, folder, tmp_path, capsys)


@pytest.mark.slow
def test_every_file_of_an_unfinished_training_may_be_damaged(tiny, runs, tmp_path, capsys):
    path = tmp_path / "sft.yaml"
    path.write_text(tiny.recipe("sft", model="vision", steps=4, batch_size=4, data={"limit": 8}))
    folder = run_recipe(path)
    folder.reopen()
    shutil.rmtree(folder / "model")
    folder.close()
    try_every_harm(path, folder, tmp_path, capsys, in_turn=True)


@pytest.mark.slow
def test_every_file_of_an_unfinished_evaluation_may_be_damaged(tiny, runs, tmp_path, capsys):
    path = tmp_path / "eval.yaml"
    body = {
        "stage": "evaluate",
        "run": "eval",
        "data": {"path": str(tiny.pairs), "rubric": "shop"},
        "prompt": {"order": "answer_only", "detail": "name", "max_prompt_tokens": 512},
        "judges": {"judge": {"model": {"name": str(tiny.text)}}},
        "baselines": ["majority"],
        "metrics": {"bootstrap_samples": 10, "calibrate_on": None},
        "test_limit": 8,
        "chunk_pairs": 4,
    }
    path.write_text(json.dumps(body))
    folder = run_recipe(path)
    folder.reopen()
    folder.close()
    try_every_harm(path, folder, tmp_path, capsys)


@pytest.fixture
def shop(runs, tmp_path):
    """An unfinished run of stage world: all its files are there."""
    path = tmp_path / "world.yaml"
    path.write_text("stage: world\nrun: shop\npairs: {train: 8, test: 4}\ncorpus: 2")
    folder = run_recipe(path)
    folder.reopen()
    folder.close()
    return path, folder


@pytest.mark.parametrize("harm", ["cut", "empty", "binary"])
def test_a_damaged_file_of_an_unfinished_shop_is_named_and_made_anew(shop, capsys, harm):
    """Before, the run kept it and was done."""
    path, folder = shop
    for name in ("pairs/train.parquet", "facts.jsonl", "log.jsonl", "corpus.parquet"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(HARMS[harm](whole))
        assert run_command([str(path)]) == 1
        folder.close()
        said = capsys.readouterr().err
        assert f"{folder / name} is " in said and "Delete it and run the same command again" in said
        (folder / name).unlink()
        assert run_command([str(path)]) == 0 and (folder / name).read_bytes() == whole
        folder.reopen()
        folder.close()


def test_a_damaged_file_of_an_unfinished_hardening_is_named(shop, tmp_path, capsys):
    _, folder = shop
    path = tmp_path / "harden.yaml"
    path.write_text(f"stage: harden\nrun: hard\ndata: {{path: {folder / 'pairs'}, rubric: shop}}")
    hard = run_recipe(path)
    hard.reopen()
    hard.close()
    (hard / "pairs" / "test.parquet").write_bytes(b"")
    assert run_command([str(path)]) == 1
    assert "test.parquet is not a readable Parquet file" in (said := capsys.readouterr().err) and "Delete it and run" in said


def test_a_shop_without_training_queries_has_an_empty_log(runs, tmp_path):
    path = tmp_path / "world.yaml"
    path.write_text("stage: world\nrun: shop\npairs: {test: 4}\ncorpus: 0")
    for _ in range(2):
        folder = run_recipe(path)
        assert (folder / "log.jsonl").read_bytes() == b""
        folder.reopen()
        folder.close()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FOREIGN = {
    "aliases that expand": (BOMB, "expand to over"),
    "a stage of aliases": (BOMB + "other: {stage: *i}", "expand to over"),
    "a list in itself": ("z: &z [*z]", "nested deeper"),
    "a mapping in itself": ("z: &z {z: *z}", "nested deeper"),
    "a number without end": (f"z: {'9' * 900_000}", "900,000 digits"),
    "a tag": ("z: !!python/object/apply:os.system [true]", "is not allowed"),
    "brackets": (f"z: {'[' * 100_000}", ""),
    "a key twice": ("stage: sft", "already given"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_record_of_somebody_elses_run_takes_no_time(demo, write_recipe, runs, lore, name):
    text, said = FOREIGN[name]
    path = write_recipe("own.yaml", "stage: demo\nrun: own")
    record = run_recipe(path).recipe_path
    whole = record.read_text()
    assert read_record(record) == read_recipe_text(record).data == RunFolder(runs / "own").recipe_values
    record.write_text(f"{whole}{text}\n")
    begun = time.process_time()
    with pytest.raises(LoreError, match=rf"recipe\.yaml is damaged \(.*{said}"):
        run_recipe(path)
    with pytest.raises(LoreError, match=r"recipe\.yaml is damaged"):
        read_run(runs / "own")
    assert "recipe.yaml cannot be read" in lore("runs", "--root", runs, "--json").stdout
    assert time.process_time() - begun < 2


def test_a_text_of_many_colons_is_no_number(demo, write_recipe, runs):
    path = write_recipe("own.yaml", "stage: demo\nrun: own")
    record = run_recipe(path).recipe_path
    record.write_text(f"{record.read_text()}z: {':'.join(['30'] * 100_000)}\n")  # minutes, as a number to base 60
    begun = time.process_time()
    assert read_record(record)["z"].startswith("30:30")
    assert time.process_time() - begun < 1


@pytest.mark.slow
def test_every_file_of_an_unfinished_pool_may_be_damaged(tiny, runs, tmp_path, capsys):
    path = tmp_path / "pool.yaml"
    body = {
        "stage": "pool",
        "run": "pool",
        "model": {"name": str(tiny.text)},
        "data": {"path": str(tiny.pairs), "rubric": "shop", "split": "train", "limit": 6},
        "prompt": {"order": "answer_only", "detail": "name", "max_prompt_tokens": 512},
        "samples": 2,
        "max_tokens": 4,
        "chunk_pairs": 3,
    }
    path.write_text(json.dumps(body))
    folder = run_recipe(path)
    folder.reopen()
    folder.close()
    try_every_harm(path, folder, tmp_path, capsys)
