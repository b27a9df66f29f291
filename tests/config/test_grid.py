"""Grids: a base and what each run changes; all problems of all runs at once; order, seeds and references."""

import pytest
from conftest import FOOTER, HEADER, run_python

from lore.config.grid import read_grid, split_address
from lore.config.stages import load_grid, load_recipe
from lore.config.yaml_text import RecipeError

BASE = "stage: demo\nrun: base\nneeds: [world.yaml]\ntags: [a, b]\ntrain: {lr: 2e-4, steps: 5}"
GRID = """
grid: study
base: base.yaml
runs:
  last: {needs: [long], note: "${runs.short}/model and ${LORE_DATA}"}
  short: {train.steps: 1}
  long: {base: short, train.steps: 9, tags: [c]}
  other: {base: null, stage: demo, train: {lr: 1}}
"""


@pytest.fixture
def study(demo, write_recipe, monkeypatch):
    monkeypatch.delenv("LORE_DATA", raising=False)
    write_recipe("world.yaml", "stage: demo\nrun: world")
    write_recipe("base.yaml", BASE)
    return lambda body=GRID: write_recipe("grid.yaml", body)


def problems(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_grid(path, overrides)
    return {problem.key: problem for problem in caught.value.problems}


def test_a_run_is_its_base_with_its_own_keys(study, runs):
    grid = load_grid(study())
    assert list(grid.runs) == ["short", "long", "last", "other"]  # as listed, what is needed first
    assert {name: recipe.run for name, recipe in grid.runs.items()} == {name: f"study/{name}" for name in grid.runs}
    short, long, last, other = grid.runs.values()
    assert (short.train.steps, short.train.lr, short.tags, short.needs) == (1, 2e-4, ["a", "b"], ["world.yaml"])
    assert (long.train.steps, long.tags, long.needs) == (9, ["c"], ["world.yaml"])
    assert last.note == f"{runs}/study/short/model and data"
    assert last.needs == ["grid.yaml:short", "grid.yaml:long"]  # those it lists and those whose folders it names
    assert (other.train.lr, other.train.steps, other.tags, other.needs) == (1.0, 10, [], [])


def test_a_run_by_its_address_is_the_same_recipe(study):
    path = study()
    for name, recipe in load_grid(path).runs.items():
        assert load_recipe(f"{path}:{name}") == recipe
    assert load_recipe(f"{path}:long", ["train.steps=3"]).train.steps == 3
    with pytest.raises(RecipeError, match=r"no run lng[\s\S]*last, short, long, other[\s\S]*nearest:  long"):
        load_recipe(f"{path}:lng")
    with pytest.raises(RecipeError, match="a grid of several recipes"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="a recipe, which has no runs"):
        load_recipe(f"{path.parent / 'base.yaml'}:long")
    assert split_address("a/b.yaml:x-seed0") == (path.parent.__class__("a/b.yaml"), "x-seed0")
    assert split_address("a:b.yaml")[1] is None


def test_seeds_repeat_every_run_with_siblings_of_the_same_seed(study, runs):
    path = study(GRID.replace("runs:", "seeds: [3, 1]\nruns:"))
    grid = load_grid(path)
    names = ["short", "long", "last", "other"]
    assert list(grid.runs) == [f"{name}-seed{seed}" for seed in (3, 1) for name in names]
    assert [recipe.seed for recipe in grid.runs.values()] == [3] * 4 + [1] * 4
    assert grid.runs["last-seed1"].needs == ["grid.yaml:short-seed1", "grid.yaml:long-seed1"]
    assert grid.runs["last-seed1"].note.startswith(f"{runs}/study/short-seed1/")
    assert list(load_grid(path, ["seeds=[7]"]).runs) == [f"{name}-seed7" for name in names]
    assert load_recipe(f"{path}:short-seed7", ["seeds=[7]"]).run == "study/short-seed7"


def test_a_base_can_be_keys_and_a_file_of_another_folder(demo, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/world.yaml").write_text("stage: demo\nrun: world")
    (tmp_path / "a/base.yaml").write_text(BASE)
    (tmp_path / "b/grid.yaml").write_text(
        "grid: g\nbase: {stage: demo, train.steps: 4}\nruns: {one: {}, two: {base: ../a/base.yaml}, three: {train.lr: 1}}"
    )
    one, two, three = load_grid(tmp_path / "b/grid.yaml").runs.values()
    assert (one.train.steps, three.train.steps, three.train.lr) == (4, 4, 1.0)
    assert two.needs == ["../a/world.yaml"]


def test_the_problems_of_all_runs_come_at_once_with_the_run_and_the_line(study):
    found = problems(
        study(
            """
grid: study
base: base.yaml
sedes: [0]
runs:
  short: {train.stps: 1}
  long: {train.lr: 2.0, train.steps: 200}
  lost: {base: shrt}
  torn: {base: none.yaml}
  named: {run: x, data.path: "${runs.shrt}/pairs", data.rubric: shop}
  needy: {needs: [shrt, nowhere.yaml]}
  double: {train: {lr: 1}, train.lr: 2}
  deep: {run.x: 1, stage.x: 2}
  "a b": {}
""".lstrip()
        )
    )
    expected = {
        "sedes": "seeds",
        "short: train.stps": "train.steps",
        "long: train.lr, train.steps": "",
        "runs.lost.base": "short",
        "runs.torn.base": "",
        "runs.named.run": "",
        "named: data.path": "runs.short",
        "runs.needy.needs": "short",
        "runs.double.train.lr": "",
        "runs.deep.stage.x": "",
        "runs.a b": "",
    }
    assert {key: problem.nearest for key, problem in found.items() if key in expected} == expected
    assert found["short: train.stps"].file.endswith("grid.yaml:6")
    assert found["long: train.lr, train.steps"].file.endswith("grid.yaml:7")
    assert found["runs.lost.base"].file.endswith("grid.yaml:8")


def test_a_problem_of_the_base_is_told_once(study, write_recipe):
    path = study()
    write_recipe("base.yaml", BASE + "\ntrain.x: 3\nfail: maybe")
    found = problems(path)
    assert set(found) == {"short and 2 more: train.x", "short and 2 more: fail"}
    assert found["short and 2 more: fail"].file.endswith("base.yaml:8")


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ("{a: {needs: [b]}, b: {needs: [a]}}", "a -> b -> a"),
        ('{a: {note: "${runs.a}/x"}}', "a -> a"),
        ("{a: {base: b}, b: {base: a}}", "a -> b -> a"),
        ("{a: {base: grid.yaml}}", "which is a grid"),
        ("{}", "at least 1"),
        ("[a]", "an object"),
        ("{a: 3}", "an object"),
    ],
)
def test_runs_that_cannot_be_put_in_order_are_named(study, listed, says):
    with pytest.raises(RecipeError, match=says):
        load_grid(study(f"grid: g\nbase: base.yaml\nruns: {listed}"))


def test_a_grid_is_read_as_strictly_as_a_recipe(study):
    for body, says in [
        ("grid: ../up\nruns: {a: {stage: demo}}", "a folder name"),
        ("grid: g\nseeds: [0, 0]\nruns: {a: {stage: demo}}", "each seed once"),
        ("grid: g\nseeds: []\nruns: {a: {stage: demo}}", "at least 1"),
        ("grid: g\nseeds: [0]\nruns: {a: {stage: demo, seed: 1}}", "it comes from seeds"),
        ("grid: g\nruns: {a: {stage: demo}, a: {stage: demo}}", "each key once"),
        ("grid: g\nruns: {a: &x {stage: demo}, b: *x}", "anchors and aliases"),
        ("grid: g\nruns: {a: {stage: dmo}}", "demo"),
    ]:
        with pytest.raises(RecipeError, match=says):
            load_grid(study(body))


def test_overrides_mean_the_grid_or_every_run_or_one(study):
    path = study()
    grid = load_grid(path, ["grid=trial", "train.lr=1e-3", "runs.long.train.steps=2"])
    assert [recipe.run for recipe in grid.runs.values()] == [f"trial/{name}" for name in grid.runs]
    assert {recipe.train.lr for recipe in grid.runs.values()} == {1e-3}
    assert [recipe.train.steps for recipe in grid.runs.values()] == [1, 2, 5, 10]
    found = problems(path, "runs.lng.train.steps=2", "seeds=x", "train.step=1")
    assert found["override runs.lng"].nearest == "long"
    assert "seeds" in found and "short and 3 more: train.step" in found
    assert found["short and 3 more: train.step"].file == "override train.step=1"


def test_no_override_puts_several_runs_into_one_folder(study, runs):
    path = study()
    found = problems(path, "run=foo")["run"]
    assert "one folder for all runs" in found.found
    assert found.expected == f"grid=foo for other folders of the whole grid, or one run: {path}:last run=foo"
    assert problems(path, "runs.long.run=foo")["runs.long.run"].expected.endswith(f"{path}:long run=foo")
    assert set(problems(path, "runs.long={run: foo}")) == {"runs.long.run"}
    assert set(problems(path, "base={stage: demo, run: foo}")) == {"base.run"}
    with pytest.raises(RecipeError, match="override runs.long.run=foo"):
        load_recipe(f"{path}:short", ["runs.long.run=foo"])
    with pytest.raises(RecipeError, match="study/long, the folder of another run of this grid"):
        load_recipe(f"{path}:short", ["run=study/long"])
    alone = load_recipe(f"{path}:last", ["run=foo"])
    assert (alone.run, alone.note) == ("foo", f"{runs}/study/short/model and data")
    assert alone.needs == ["grid.yaml:short", "grid.yaml:long"]


def test_no_override_gives_two_seeds_of_a_grid_the_same_seed(study):
    path = study(GRID.replace("runs:", "seeds: [3, 1]\nruns:"))
    found = problems(path, "seed=5") | problems(path, "runs.long.seed=5")
    assert set(found) == {"seed", "runs.long.seed"}
    assert all("names its folder after it" in problem.found for problem in found.values())
    assert found["seed"].expected == "seeds=[5]"
    for override in ("seed=5", "runs.short.seed=5"):
        with pytest.raises(RecipeError, match=r"expected: seeds=\[5\] and the run NAME-seed5 after the colon"):
            load_recipe(f"{path}:short-seed3", [override])
    assert {recipe.seed for recipe in load_grid(study(), ["seed=5"]).runs.values()} == {5}  # a grid without seeds


def test_a_reference_in_an_override_adds_its_run_to_the_needs(study, runs):
    path = study()
    given = "note=${runs.long}/model"
    assert load_recipe(f"{path}:short", ["note=null"]).needs == ["world.yaml"]
    one = load_recipe(f"{path}:other", [given])
    assert (one.note, one.needs) == (f"{runs}/study/long/model", ["grid.yaml:long"])
    assert load_recipe(f"{path}:other", ["runs.other." + given]) == one == load_grid(path, ["runs.other." + given]).runs["other"]
    assert load_recipe(f"{path}:last", [given]).needs == ["grid.yaml:long"]  # the reference to short is gone
    assert load_recipe(f"{path}:other", ["needs=[short, world.yaml]"]).needs == ["world.yaml", "grid.yaml:short"]
    with pytest.raises(RecipeError, match=r"runs\.other\.needs[\s\S]*nearest:  short"):
        load_recipe(f"{path}:other", ["needs=[shrt]"])


def test_the_header_makes_a_grid_a_python_file(study):
    path = study()
    source = path.read_text()
    assert source.startswith(HEADER) and source.endswith(FOOTER)
    compile(source, str(path), "exec")
    assert list(read_grid(path).runs) == ["short", "long", "last", "other"]


def test_grids_load_without_heavy_packages():
    code = "import sys, lore.config.grid, lore.run.grid; print([m for m in ('torch', 'pyarrow', 'numpy') if m in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"
