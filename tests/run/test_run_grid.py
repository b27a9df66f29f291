"""Running grids: order, resuming, failures that stay by themselves, one table, launches."""

import subprocess
import sys

import pytest
from conftest import ROOT, run_python

from lore.config.stages import load_grid
from lore.run.grid import run_grid, run_one, seed_means, write_table
from lore.run.launch import launch
from lore.run.run_folder import RunFolder
from lore.run.runner import check_recipes, run_command, run_recipe
from lore.run.summary import print_summary
from lore.support.errors import LoreError

GRID = """
grid: study
base: base.yaml
runs:
  last: {note: "${runs.first}/x"}
  first: {needs: [world.yaml]}
  alone: {train.steps: 3}
"""


@pytest.fixture
def study(demo, write_recipe, runs):
    write_recipe("world.yaml", "stage: demo\nrun: world")
    write_recipe("base.yaml", "stage: demo\nrun: base")
    return lambda body=GRID: write_recipe("grid.yaml", body)


def finished(runs):
    times = {str(done.parent.relative_to(runs)): done.stat().st_mtime_ns for done in runs.rglob("done")}
    return sorted(times, key=times.get)


def test_every_run_writes_its_folder_after_what_it_needs_and_only_once(study, runs):
    path = study()
    done = run_python("-m", "lore", "run", path)
    assert done.returncode == 0, done.stderr
    assert finished(runs) == ["world", "study/first", "study/last", "study/alone"]
    table = (runs / "study" / "table.md").read_text()
    assert "## demo" in table and "| last | 0.5000 |" in table and table.count("0.5000") == 3
    assert "0.5000" in done.stdout
    before = {name: (runs / name / "done").stat().st_mtime_ns for name in finished(runs)}
    (runs / "study" / "alone" / "done").unlink()
    assert run_python(path).returncode == 0  # the header runs a grid as well
    after = {name: (runs / name / "done").stat().st_mtime_ns for name in finished(runs)}
    assert [name for name in after if after[name] != before[name]] == ["study/alone"]


def test_one_bad_run_does_not_end_the_others(study, runs):
    bad = GRID + "  worse: {base: alone, fail: true}\n  after: {needs: [worse]}\n"
    done = run_python("-m", "lore", "run", study(bad.replace("first: {", "first: {fail: true, ")))
    assert done.returncode == 1
    assert finished(runs) == ["world", "study/alone"]
    for line in ("4 of the 5 runs", "last: not started: it needs first", "after: not started: it needs worse"):
        assert line in done.stderr
    assert done.stderr.count("the demo was told to fail") == 2
    assert "Traceback" not in done.stderr
    table = (runs / "study" / "table.md").read_text()
    assert "not started: it needs worse" in table and "| alone |" in table
    assert not (runs / "study" / "last").exists()


def test_a_needed_recipe_that_fails_is_tried_once(study, write_recipe, runs):
    path = study("grid: study\nbase: base.yaml\nruns: {a: {needs: [world.yaml]}, b: {needs: [world.yaml]}, c: {}}")
    write_recipe("world.yaml", "stage: demo\nrun: world\nfail: true")
    done = run_python("-m", "lore", "run", path)
    assert done.returncode == 1 and done.stderr.count("told to fail") == 1
    assert "b: not started: it needs" in done.stderr
    assert finished(runs) == ["study/c"]


def test_a_folder_with_other_values_stops_the_grid_before_anything_runs(study, runs):
    run_recipe(f"{study()}:alone")
    with pytest.raises(LoreError, match=r"alone: .*belongs to a recipe[\s\S]*train.steps: was 3, now 4"):
        run_grid(study(GRID.replace("3", "4")))
    assert finished(runs) == ["study/alone"]


def test_a_folder_that_gets_other_values_while_the_grid_runs_is_not_taken_for_the_run(study, runs):
    grid = load_grid(study())
    other = grid.runs["alone"].model_copy(update={"seed": 7})
    RunFolder.of(other).open(other).finish({})
    RunFolder.of(other).close()
    with pytest.raises(LoreError, match="seed: was 7, now 0"):
        run_one(grid.address("alone"), grid.runs["alone"], [], lambda path, overrides: pytest.fail("started"), set())


def test_one_run_folder_for_a_whole_grid_is_refused_before_anything_runs(study, runs, capsys):
    assert run_command([str(study()), "run=foo"]) == 1
    assert "one folder for all runs" in capsys.readouterr().err
    assert not runs.exists()
    assert run_command([f"{study()}:last", "run=foo"]) == 0
    assert finished(runs) == ["world", "study/first", "foo"]


def test_a_dry_run_lists_the_runs_and_runs_nothing(study, runs, capsys):
    path = study()
    assert run_command([str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 runs, in this order" in said and said.index("first") < said.index("last") < said.index("alone")
    assert said.count(" new ") == 3 and "world.yaml" in said
    assert f"lore run {path}:first --dry-run" in said
    assert not runs.exists()
    run_recipe(f"{path}:alone")
    run_command([str(path), "--dry-run"])
    assert " done " in capsys.readouterr().out
    assert run_command([f"{path}:alone", "--dry-run"]) == 0
    assert "every value (defaults included)" in capsys.readouterr().out


def test_one_run_by_its_address_brings_the_runs_it_needs(study, runs):
    assert run_python("-m", "lore", "run", f"{study()}:last").returncode == 0
    assert finished(runs) == ["world", "study/first", "study/last"]


def test_other_recipes_can_need_one_run_or_the_whole_grid(study, write_recipe, runs):
    path = study()
    one = write_recipe("one.yaml", "stage: demo\nrun: one\nneeds: [grid.yaml:first]")
    assert run_command([str(one)]) == 0
    assert finished(runs) == ["world", "study/first", "one"]
    assert run_command([str(write_recipe("all.yaml", f"stage: demo\nrun: all\nneeds: [{path}]"))]) == 0
    assert finished(runs)[3:] == ["study/last", "study/alone", "all"]
    assert check_recipes([path.parent]) == 0
    write_recipe("lost.yaml", "stage: demo\nrun: lost\nneeds: [grid.yaml:frist]")
    assert check_recipes([path.parent]) == 1


def test_overrides_reach_every_run_and_the_runs_it_needs(study, runs):
    path = study()
    assert run_command([str(path), "grid=trial", "seeds=[4]", "train.lr=0.5", "runs.last.train.steps=2"]) == 0
    assert sorted(finished(runs)) == ["trial/alone-seed4", "trial/first-seed4", "trial/last-seed4", "world"]
    kept = {name: (runs / "trial" / f"{name}-seed4" / "recipe.yaml").read_text() for name in ("first", "last", "alone")}
    assert all("lr: 0.5" in text and "seed: 4" in text for text in kept.values())
    assert "steps: 2" in kept["last"] and "steps: 3" in kept["alone"]
    (runs / "trial" / "first-seed4" / "done").unlink()
    (runs / "trial" / "last-seed4" / "done").unlink()
    given = ["grid=trial", "seeds=[4]", "runs.first.train.lr=0.5", "runs.last.train.steps=2", "train.lr=0.5"]
    assert run_command([f"{path}:last-seed4", *given]) == 0
    assert not (runs / "study").exists()


SEEDS = "grid: study\nbase: base.yaml\nseeds: [0, 1]\nruns: {a: {needs: [world.yaml]}, b: {needs: [a]}}"


def start_python(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def hold(recipe, then):
    """Another process that opens the run folder of a recipe, and after four seconds does `then`."""
    code = (
        "import time; from lore.config.stages import load_recipe; from lore.run.run_folder import RunFolder;"
        f"recipe = load_recipe({str(recipe)!r}); folder = RunFolder.of(recipe).open(recipe);"
        f"print('open', flush=True); time.sleep(4); {then}"
    )
    other = start_python("-c", code)
    assert other.stdout.readline() == "open\n"
    return other


@pytest.mark.parametrize(("then", "starts"), [("folder.finish({'loss': 2.0})", 0), ("raise SystemExit(1)", 1)])
def test_a_needed_run_that_another_process_runs_is_waited_for(study, write_recipe, runs, then, starts):
    path = study("grid: study\nbase: base.yaml\nruns: {a: {needs: [world.yaml]}}")
    one = write_recipe("one.yaml", "stage: demo\nrun: one\nneeds: [world.yaml]")
    other = hold(path.parent / "world.yaml", then)
    commands = [start_python("-m", "lore", "run", path), start_python("-m", "lore", "run", one)]
    said = [command.communicate(timeout=60)[0] for command in commands]
    other.communicate(timeout=60)
    assert [command.returncode for command in commands] == [0, 0], said
    assert all(f"world is in use by process {other.pid}: waiting for it" in text for text in said), said
    assert finished(runs)[0] == "world" and sorted(finished(runs)[1:]) == ["one", "study/a"]
    assert "".join(said).count(f"demo: {path.parent}/world.yaml ->") == starts  # only if the other process did not finish it


def test_a_run_of_the_grid_that_another_process_runs_is_waited_for(study, runs):
    path = study("grid: study\nbase: base.yaml\nruns: {a: {}, b: {needs: [a]}}")
    other = hold(f"{path}:a", "folder.finish({'loss': 2.0})")
    done = run_python("-m", "lore", "run", path)
    other.communicate(timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a is in use by process" in done.stdout
    assert "| a | 2.0000 |" in (runs / "study" / "table.md").read_text()


def test_two_shells_run_different_seeds_and_the_table_has_both(study, runs):
    path = study(SEEDS)
    commands = [start_python("-m", "lore", "run", path, f"seeds=[{seed}]") for seed in (0, 1)]
    said = [command.communicate(timeout=120)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said
    table = (runs / "study" / "table.md").read_text()
    for row in ("a-seed0", "b-seed0", "a-seed1", "b-seed1", "a, mean of 2 seeds", "b, mean of 2 seeds"):
        assert f"| {row} | 0.5000 |" in table


def test_the_table_has_the_finished_runs_of_other_seeds_with_the_same_values(study, runs):
    path = study(SEEDS)
    assert run_command([str(path), "seeds=[0]", "train.lr=0.5"]) == 0
    assert run_command([str(path), "seeds=[7]"]) == 0
    (runs / "study" / "b-seed7" / "done").unlink()
    assert run_command([str(path), "seeds=[1]"]) == 0
    table = (runs / "study" / "table.md").read_text()
    for row in ("a-seed7", "a-seed1", "b-seed1", "a, mean of 2 seeds"):
        assert f"| {row} |  | 0.5000 |" in table
    for name in ("a-seed0", "b-seed0"):
        assert "belongs to another recipe" in next(line for line in table.splitlines() if f"| {name} " in line)
    assert "b-seed7" not in table and "b, mean" not in table


def test_names_and_values_in_the_table_stay_in_their_cells(study, runs):
    grid = load_grid(study("grid: study\nbase: base.yaml\nruns: {a: {}}"))
    folder = RunFolder.of(grid.runs["a"]).open(grid.runs["a"])
    folder.finish({"a|b": {"loss|x": "one\\|two <b>\nthree"}})
    folder.close()
    write_table(grid, {})
    head, _, row = (runs / "study" / "table.md").read_text().splitlines()[-3:]
    assert head == r"| run |  | loss\|x |"
    assert row == r"| a | a\|b | one\\\|two &lt;b> three |"


def test_seeds_end_in_their_mean():
    rows = [
        ("a-seed0", "judge", {"Acc": [0.5, 0.4, 0.6], "rows": 2, "note": "x"}),
        ("a-seed1", "judge", {"Acc": [0.7, 0.6, 0.8], "rows": 4}),
        ("b-seed0", "", {"loss": 1.0}),
        ("b-seed1", "", {"state": "failed"}),
        ("c", "", {"loss": 1.0}),
    ]
    assert seed_means(rows) == [("a, mean of 2 seeds", "judge", {"Acc": [pytest.approx(0.6), None, None], "rows": 3, "note": None})]


def test_a_summary_shows_its_sections_as_rows_and_intervals_in_brackets(runs, capsys):
    folder = RunFolder(runs / "scored")
    folder.path.mkdir(parents=True)
    rows = {"judge": {"Acc@4": [0.8712, 0.85, 0.894], "QWK": [None, None, None]}, "other": {"Acc@4": [-0.001, None, None]}}
    folder.finish(rows | {"report": "r.html", "loss": 0.25, "seconds": 3})
    print_summary(folder)
    said = capsys.readouterr().out
    for part in ("0.87 [0.85, 0.89]", "│ 0.00 ", "0.2500", "r.html", "│ 3"):
        assert part in said, said
    assert "None" not in said


def test_a_check_lists_grids_and_finds_folders_that_two_files_write(study, write_recipe, capsys):
    path = study()
    assert check_recipes([path]) == 0
    assert "grid of 3 runs" in capsys.readouterr().out
    write_recipe("twin.yaml", "stage: demo\nrun: study/alone")
    assert check_recipes([path.parent]) == 1
    assert "both write the run folder study/alone" in capsys.readouterr().err


def test_several_processes_do_not_run_a_grid_at_once(study, monkeypatch, runs):
    path = study()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LoreError, match="lore launch"):
        run_grid(path)
    assert not runs.exists()


def test_a_launch_starts_the_processes_of_each_run(study, runs):
    path = study("grid: study\nbase: base.yaml\nruns: {a: {}, b: {needs: [a]}}")
    done = run_python("-m", "lore", "launch", path, "--num-processes", "1", "train.steps=2", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished(runs) == ["study/a", "study/b"]
    for name in "ab":
        assert RunFolder(runs / "study" / name).summary["launcher_seen"] is True
    assert launch([str(path), "--dry-run"], dry_run=True) == 0
