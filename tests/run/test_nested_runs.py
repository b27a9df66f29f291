"""Runs inside the folder of another run: never deleted, and refused where the outer run writes the same name."""

import shutil

import pytest
from run_names import undeclared

from lore.config.stages import STAGES, load_recipe, recipe_class
from lore.run.nested import refuse_runs_in, remove_own
from lore.run.run_folder import RunFolder
from lore.run.runner import check_recipes, run_command, run_recipe
from lore.support.errors import LoreError
from lore.train.common.checkpoint import drop_old_checkpoints, last_checkpoint

TRAINED = {"model", "checkpoints", "tracking"}
WATCHED = TRAINED | {"best-0", "best-120", "answers.json", "report.html"}
WRITTEN = {
    "world": {"pairs", "facts.jsonl", "log.jsonl", "corpus.parquet"},
    "words": {"corpus.parquet"},
    "synthesize": {"answers", "traces", "pairs", "tasks"},
    "harden": {"pairs"},
    "pretrain": TRAINED,
    "sft": TRAINED,
    "pool": {"chunks", "pool.parquet", "pool.md"},
    "grpo": WATCHED | {"rejected_replay.jsonl"},
    "ppo": WATCHED,
    "dpo": WATCHED,
    "kto": WATCHED,
    "evaluate": {"verdicts", "metrics.json", "predictions.parquet", "report.html"},
}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_declares_what_it_writes(stage, demo):
    if stage not in WRITTEN:
        return
    writes = recipe_class(stage).writes
    for name in {"data", "rejected.jsonl", "done", "recipe.yaml", "manifest.json", "Data", "DONE"} | WRITTEN[stage]:
        assert writes(name), name
    assert not any(map(writes, ("check", "eval", "best", "best-lr", "models", "data2", "seed-1")))


@pytest.mark.parametrize("name", ["data", "Data", "done", "rejected.jsonl", "manifest.json"])
def test_a_needed_run_at_a_name_of_its_own_run_is_refused_at_the_dry_run(demo, write_recipe, runs, name, capsys):
    """Reported: `begin` of the run exp deleted the finished run exp/data that it needs."""
    write_recipe("data.yaml", f"stage: demo\nrun: exp/{name}")
    path = write_recipe("exp.yaml", "stage: demo\nrun: exp\nneeds: [data.yaml]")
    for arguments in ([str(path), "--dry-run"], [str(path)]):
        assert run_command(arguments) == 1
        assert f"exp/{name} lies at {name}, which the run" in capsys.readouterr().err
    assert not runs.exists()
    assert check_recipes([path.parent]) == 1
    assert f"exp/{name}" in capsys.readouterr().err


def test_a_finished_run_inside_is_kept_whoever_begins_later(demo, write_recipe, runs):
    inner = run_recipe(write_recipe("data.yaml", "stage: demo\nrun: exp/data"))
    before = {path.name: path.read_bytes() for path in inner.path.iterdir()}
    outer = write_recipe("exp.yaml", "stage: demo\nrun: exp")
    for dry_run in (True, False):
        with pytest.raises(LoreError, match="exp/data lies at data"):
            run_recipe(outer, dry_run=dry_run)
    recipe = load_recipe(outer)
    with pytest.raises(LoreError, match="exp/data lies at data"):
        RunFolder.of(recipe).open(recipe)
    with pytest.raises(LoreError, match="it is a run"):
        RunFolder.of(recipe).begin(recipe)
    assert {path.name: path.read_bytes() for path in inner.path.iterdir()} == before


@pytest.mark.parametrize("name", ["data", "data/deep", "done/x"])
def test_a_run_inside_the_folder_of_a_run_on_disk_is_refused(demo, write_recipe, runs, name):
    run_recipe(write_recipe("exp.yaml", "stage: demo\nrun: exp"))
    with pytest.raises(LoreError, match=f"exp/{name} lies at {name.split('/')[0]}"):
        run_recipe(write_recipe("inner.yaml", f"stage: demo\nrun: exp/{name}"), dry_run=True)
    assert run_recipe(write_recipe("inner.yaml", "stage: demo\nrun: exp/check/data")).is_done


def test_a_run_folder_reached_by_a_link_or_by_the_root_is_seen(demo, write_recipe, runs, monkeypatch):
    outer = run_recipe(write_recipe("exp.yaml", "stage: demo\nrun: exp"))
    (outer.path / "data").mkdir()
    (runs / "linked").symlink_to(outer.path / "data")
    inner = write_recipe("inner.yaml", "stage: demo\nrun: linked/x")
    with pytest.raises(LoreError, match="lies at data"):
        run_recipe(inner)
    monkeypatch.setenv("LORE_RUNS", str(outer.path / "data"))
    with pytest.raises(LoreError, match="lies at data"):
        run_recipe(write_recipe("inner.yaml", "stage: demo\nrun: x"))


def test_a_link_to_another_run_at_an_own_name_is_refused_and_never_followed(demo, write_recipe, runs, tmp_path):
    other = run_recipe(write_recipe("other.yaml", "stage: demo\nrun: other"))
    (runs / "exp").mkdir()
    (runs / "exp" / "data").symlink_to(other.path)
    with pytest.raises(LoreError, match="other lies at data"):
        run_recipe(write_recipe("exp.yaml", "stage: demo\nrun: exp"))
    remove_own(runs / "exp" / "data")
    assert other.is_done and not (runs / "exp" / "data").exists()


def test_a_needed_run_and_a_run_below_it_at_a_free_name_both_run(demo, write_recipe, runs):
    write_recipe("outer.yaml", "stage: demo\nrun: exp")
    path = write_recipe("inner.yaml", "stage: demo\nrun: exp/check\nneeds: [outer.yaml]")
    assert run_recipe(path).is_done and RunFolder(runs / "exp").is_done


def test_names_that_differ_in_case_and_two_recipes_of_one_name_are_refused(demo, write_recipe, runs):
    write_recipe("one.yaml", "stage: demo\nrun: Exp")
    with pytest.raises(LoreError, match="upper and lower case"):
        run_recipe(write_recipe("two.yaml", "stage: demo\nrun: exp\nneeds: [one.yaml]"), dry_run=True)
    write_recipe("one.yaml", "stage: demo\nrun: exp\ntags: [x]")
    with pytest.raises(LoreError, match="other values write the run folder"):
        run_recipe(write_recipe("two.yaml", "stage: demo\nrun: exp\nneeds: [one.yaml]"), dry_run=True)


@pytest.mark.parametrize("name", ["a\n", "exp.", "exp/", "exp//a", "../exp", "/exp", ".exp", "exp/.a", "exp/..", "a" * 201, "a./b"])
def test_names_that_a_file_system_reads_in_another_way_are_refused(demo, write_recipe, name):
    escaped = name.replace("\n", "\\n")
    with pytest.raises(LoreError, match="folder name of letters"):
        load_recipe(write_recipe("a.yaml", f'stage: demo\nrun: "{escaped}"'))


def test_a_grid_refuses_shared_names_before_anything_runs(demo, write_recipe, runs, capsys):
    write_recipe("outer.yaml", "stage: demo\nrun: study")
    grid = "grid: study\nruns: {data: {stage: demo, needs: [outer.yaml]}}"
    path = write_recipe("grid.yaml", grid)
    for arguments in ([str(path), "--dry-run"], [str(path)], [f"{path}:data"]):
        assert run_command(arguments) == 1
        assert "study/data lies at data" in capsys.readouterr().err
    assert not runs.exists()
    (runs / "study" / "table.md").mkdir(parents=True)
    assert run_command([str(write_recipe("grid.yaml", "grid: study\nruns: {a: {stage: demo}}"))]) == 1
    assert "table.md is a folder" in capsys.readouterr().err


def test_another_run_inside_is_no_result_of_this_one(demo, write_recipe, runs):
    run_recipe(write_recipe("inner.yaml", "stage: demo\nrun: exp/sub/check"))
    first = load_recipe(write_recipe("exp.yaml", "stage: demo\nrun: exp"))
    RunFolder.of(first).open(first).close()
    changed = load_recipe(write_recipe("exp.yaml", "stage: demo\nrun: exp\ntags: [x]"))
    assert RunFolder.of(changed).open(changed).changes(changed) == []
    assert RunFolder(runs / "exp/sub/check").is_done


def test_only_the_trainers_own_checkpoints_are_deleted(demo, write_recipe, runs):
    recipe = load_recipe(write_recipe("exp.yaml", "stage: demo\nrun: exp"))
    folder = RunFolder.of(recipe).open(recipe)
    checkpoints = folder / "checkpoints"
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-old", "checkpoint-backup-4"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "complete").touch()
    (checkpoints / "checkpoint-6" / "complete").unlink()
    drop_old_checkpoints(checkpoints, 1)
    assert last_checkpoint(folder) == checkpoints / "checkpoint-4"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-4", "checkpoint-backup-4", "checkpoint-old"]
    shutil.copytree(folder.path, checkpoints / "checkpoint-4" / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (checkpoints / "checkpoint-4" / "complete").unlink()
    with pytest.raises(LoreError, match="holds the run"):
        last_checkpoint(folder)
    with pytest.raises(LoreError, match="holds the run"):
        refuse_runs_in(checkpoints)


def test_every_name_that_a_stage_leaves_is_declared(runs, tmp_path):
    """The stages that need no model. Other tests call `undeclared` on the runs that they train anyway."""
    world = "stage: world\nrun: shop\npairs: {train: 40, dev: 8, test: 8}\ncorpus: 20"
    bodies = {
        "world": world,
        "words": f"stage: words\nrun: words\ndata: {{path: {runs}/shop/pairs, rubric: shop, split: train}}\ntexts: 20",
        "harden": f"stage: harden\nrun: harden\ndata: {{path: {runs}/shop/pairs, rubric: shop}}",
        "synthesize": f"stage: synthesize\nrun: traces\ndata: {{path: {runs}/shop/pairs, rubric: shop, split: dev}}\n"
        "teacher: {kind: program, program: shop}\ntasks: [rules]",
    }
    for stage, body in bodies.items():
        path = tmp_path / f"{stage}.yaml"
        path.write_text(body)
        assert undeclared(run_recipe(path).path) == [], stage


def test_the_declaration_check_finds_a_name(demo, write_recipe, runs):
    folder = run_recipe(write_recipe("a.yaml", "stage: demo\nrun: a"))
    (folder / "surprise").mkdir()
    assert undeclared(folder.path) == ["surprise"]


@pytest.mark.parametrize(
    "left", [("done", "inputs.json"), (".lock", "metrics.jsonl"), ("manifest.json", ".lock"), ("recipe.yaml",)], ids=str
)
def test_a_run_that_has_lost_files_is_not_deleted(tmp_path, left):
    inner = tmp_path / "exp" / "data" / "old"
    inner.mkdir(parents=True)
    for name in (*left, "weights"):
        (inner / name).write_text("x")
    with pytest.raises(LoreError, match=f"holds the run {inner}"):
        remove_own(tmp_path / "exp" / "data")
    assert (inner / "weights").is_file()
