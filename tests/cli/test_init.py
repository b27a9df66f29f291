"""`lore init` starts a project whose recipes are valid as they are written, in the repository and from an installed wheel."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, run_python
from typer.testing import CliRunner

from lore.cli import init
from lore.cli.main import app
from lore.rubric.rubric import load_rubric
from lore.run.runner import check_recipes, run_command
from lore.support.errors import LoreError

IMPORT = "data import table data/example.csv --map query=search_term,title=product_title,label=relevance --rubric my_rubric.yaml"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A new project as the working directory."""
    monkeypatch.delenv("LORE_DATA", raising=False)
    monkeypatch.delenv("LORE_RUNS", raising=False)
    init.start(tmp_path / "my_project", [])
    monkeypatch.chdir(tmp_path / "my_project")
    return Path(".")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_how_to_recipe_is_there_and_valid(project):
    quickstart = ("recipes/quickstart", "recipes/quickstart/recommend", "recipes/quickstart/local_life")
    folders = ("recipes", "recipes/recommend", *quickstart)
    theirs = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).glob("*.yaml")}
    theirs |= {f"launch/accelerate/{path.name}" for path in (ROOT / "launch" / "accelerate").glob("*.yaml")}
    assert files(project) == theirs | {"README.md", "my_rubric.yaml", "data/example.csv"}
    assert check_recipes([project / "recipes"]) == 0
    assert check_recipes(sorted(project.glob("recipes/*.yaml"))) == 0


def test_recipes_use_the_rubric_of_the_project(project):
    own = [path for path in project.glob("recipes/*.yaml") if "my_rubric.yaml" in path.read_text()]
    assert len(own) == 13  # all but evaluate.yaml, whose benchmark is RAIR
    assert not any("rubric: rair" in path.read_text() or "--rubric rair" in path.read_text() for path in own)
    rubric = load_rubric("my_rubric.yaml")
    assert len(rubric.tiers) == 4 and rubric.tier_of("Partial") == "L3"
    assert Path("my_rubric.yaml").read_text().count("#") > 5


def test_a_dry_run_names_the_data_as_the_only_thing_missing_until_the_example_is_imported(project, capfd):
    assert run_command(["recipes/sft.yaml", "--dry-run"]) == 0
    assert [line for line in capfd.readouterr().out.splitlines() if "does not exist" in line] == [
        "# data.path: data/split.parquet does not exist. `lore data import` writes pairs."
    ]
    for command in (f"{IMPORT} -o data/pairs.parquet", "data split --by query data/pairs.parquet -o data/split.parquet"):
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0 and "empty" not in done.output, done.output
        assert command.split(" -o ")[0] in Path("README.md").read_text()
    assert run_command(["recipes/sft.yaml", "--dry-run"]) == 0
    assert "does not exist" not in capfd.readouterr().out


def test_a_recipe_of_the_project_runs_as_a_program(project):
    done = run_python("recipes/quickstart/world.yaml", "--dry-run", cwd=project.resolve(), PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and "# run folder: runs/quickstart/world (new)" in done.stdout, done.stderr


def test_a_project_knows_label_and_names_only_launch_files_that_it_has(project):
    assert "lore label log.parquet --catalogue items.parquet --judge runs/sft -o labels" in Path("README.md").read_text()
    assert "on a Ray cluster\n" in (project / "recipes" / "label.yaml").read_text()
    named = {place for path in project.rglob("*.yaml") for place in re.findall(r"launch/\w+", path.read_text())}
    assert all((project / place).is_dir() for place in named), named


def test_the_readme_has_ten_lines(project):
    assert len([line for line in Path("README.md").read_text().splitlines() if line]) <= 10


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["sft", "grpo"], {"sft", "grpo"}),
        (["sft,grpo.yaml"], {"sft", "grpo"}),
        (["recipes/quickstart/pool.yaml"], {f"quickstart/{name}" for name in ("world", "pretrain", "synthesize", "sft", "pool")}),
        (
            ["crowdflower"],
            {"crowdflower/eval", "crowdflower/sft", "crowdflower/pretrain", "crowdflower/words", "experiments/crowdflower"},
        ),
    ],
)
def test_asked_recipes_come_with_those_that_they_need(asked, expected, tmp_path, monkeypatch):
    assert set(init.chosen(asked)) >= expected
    assert "experiments/shop" not in init.chosen(asked) and "dpo" not in init.chosen(asked)
    monkeypatch.chdir(tmp_path)
    init.start(Path("."), asked)
    assert check_recipes([Path("recipes")]) == 0


@pytest.mark.parametrize("name", ["quickstart/eval", *(name for name in init.recipes() if name.startswith("experiments"))])
def test_a_recipe_alone_is_valid_in_its_project(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init.start(tmp_path, [name])
    assert check_recipes([Path("recipes")]) == 0


def test_the_command_takes_names_in_both_forms(tmp_path):
    done = CliRunner().invoke(app, ["init", str(tmp_path / "p"), "--only", "sft", "grpo"])
    assert done.exit_code == 0, done.output
    assert {name for name in files(tmp_path / "p") if name.startswith("recipes")} == {"recipes/sft.yaml", "recipes/grpo.yaml"}


def test_an_unknown_recipe_writes_nothing(tmp_path):
    with pytest.raises(LoreError, match="no recipe 'sfd'.*nearest.*sft|no recipe 'sfd'.*sft"):
        init.start(tmp_path / "p", ["sfd"])
    assert not (tmp_path / "p").exists()


def test_existing_files_are_kept_and_listed(tmp_path, capsys):
    outside = tmp_path / "outside.md"
    outside.write_text("theirs")
    folder = tmp_path / "p"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "sft.yaml").write_text("mine")
    (folder / "README.md").symlink_to(outside)
    (folder / "my_rubric.yaml").symlink_to(tmp_path / "nowhere")
    init.start(folder, ["sft", "dpo"])
    assert (folder / "recipes" / "sft.yaml").read_text() == "mine" and outside.read_text() == "theirs"
    assert (folder / "my_rubric.yaml").is_symlink() and not (tmp_path / "nowhere").exists()
    assert (folder / "recipes" / "dpo.yaml").is_file()
    assert "Kept 3 files that exist: recipes/sft.yaml, README.md, my_rubric.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["p", "p/recipes", "p/launch/accelerate"])
def test_a_file_in_the_place_of_a_folder_stops_before_anything_is_written(file, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(LoreError, match="is a file"):
        init.start(tmp_path / "p", [])
    assert files(tmp_path) == {file} and path.read_text() == "mine"


def test_the_list_has_one_line_for_each_recipe(capsys):
    init.print_recipes()
    shown = capsys.readouterr().out
    for path in (ROOT / "recipes").rglob("*.yaml"):
        assert f" {path.relative_to(ROOT / 'recipes').with_suffix('').as_posix()} " in shown
    assert "A judge on Qwen3-8B with LoRA, trained on your own rated pairs." in shown
    assert init.about("harden").endswith("the query repeated.")  # a sentence over two lines


def test_no_folder_is_an_error():
    done = CliRunner().invoke(app, ["init"])
    assert isinstance(done.exception, LoreError) and "lore init my_project" in str(done.exception)


@pytest.mark.slow
def test_an_installed_wheel_starts_a_project(tmp_path):
    source = tmp_path / "source"
    for name in ("lore", "eval", "data_synth", "recipes", "launch"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    made = run_python("-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path / "wheel")
    assert made.returncode == 0, made.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    site = tmp_path / "site"
    put = run_python("-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", site, wheel)
    assert put.returncode == 0, put.stderr
    shutil.rmtree(source)

    def lore(*words: object, cwd: Path = tmp_path) -> str:
        done = run_python("-m", "lore", *words, cwd=cwd, PYTHONPATH=str(site))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run_python("-c", "import lore; print(lore.__file__)", cwd=tmp_path, PYTHONPATH=str(site))
    assert where.stdout.startswith(str(site))
    lore("init", "p")
    init.start(tmp_path / "same", [])
    assert {name: (tmp_path / "p" / name).read_bytes() for name in files(tmp_path / "p")} == {
        name: (tmp_path / "same" / name).read_bytes() for name in files(tmp_path / "same")
    }
    assert "problem" not in lore("check", *sorted((tmp_path / "p" / "recipes").rglob("*.yaml")), cwd=tmp_path / "p")
    assert "data/split.parquet does not exist" in lore("run", "recipes/sft.yaml", "--dry-run", cwd=tmp_path / "p")
    assert "quickstart/eval" in lore("init", "--list")


def test_what_it_writes_names_nothing_that_only_the_repository_has():
    written = init.files(init.chosen([]))
    for name, text in written.items():
        assert not re.search(r"\bdocs/|\bmake \w+start|CONTRIBUTING|benchmarks/\w+\.py", text), name
        assert set(re.findall(r"\b(?:launch|recipes)/[\w/.-]+\.\w+", text)) <= set(written), name


@pytest.mark.parametrize("asked", [["sft"], ["dpo"], ["quickstart/pool"], ["crowdflower"], []])
def test_the_readme_names_only_recipes_that_were_written(asked, tmp_path):
    init.start(tmp_path, asked)
    readme = (tmp_path / "README.md").read_text()
    named = set(re.findall(r"recipes/[\w/]+\.yaml", readme))
    assert named <= files(tmp_path) and "lore data split" in readme
    assert ("recipes/sft.yaml" in named) == (asked in ([], ["sft"]))


@pytest.mark.parametrize("folder", ["", " ", "/dev/x", "/proc/x", "/dev/null"])
def test_a_place_that_holds_no_project_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", folder])
    assert isinstance(done.exception, LoreError) and not files(tmp_path)


def test_the_home_folder_is_understood_and_a_name_with_a_space_can_be_copied(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["init", "~/my search", "sft"])
    assert (tmp_path / "my search" / "README.md").is_file() and f"cd '{tmp_path}/my search'," in done.output.replace("\n", " ")
