"""Recipes: strict reading, all problems at once with file, key, found, expected and nearest, overrides, no torch."""

import ast
import math
import re

import pytest
import yaml
from conftest import FOOTER, HEADER, ROOT, run_python
from hypothesis import given
from hypothesis import strategies as st

from lore.config.grid import split_address
from lore.config.recipe import resolve_need
from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError, RecipeText, parse_yaml, read_recipe_text, read_yaml, to_yaml
from lore.run.dependencies import recipes_of
from lore.support.errors import LoreError

SHIPPED = [one for file in sorted((ROOT / "recipes").rglob("*.yaml")) for one in recipes_of(file)]
BODY = "stage: demo\nrun: a\n"


def problems(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, list(overrides))
    return {problem.key: problem for problem in caught.value.problems}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_recipe_is_a_recipe_python_and_yaml(path):
    recipe = load_recipe(path)
    for need in recipe.needs:
        assert split_address(resolve_need(path, need))[0].is_file()
    file, run = split_address(path)
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert isinstance(tree.body[0], ast.AnnAssign)
    if run is None:
        assert yaml.safe_load(source)["stage"] == recipe.stage
    else:
        assert recipe.run == f"{yaml.safe_load(source)['grid']}/{run}"
    assert yaml.safe_load(to_yaml(recipe.resolved())) == recipe.resolved()


def test_shipped_recipes_write_different_run_folders():
    runs = [load_recipe(path).run for path in SHIPPED]
    assert len(runs) == len(set(runs))


def test_one_file_is_python_and_yaml_and_plain_yaml_reads_the_same(demo, write_recipe):
    typed = write_recipe("typed.yaml", BODY + "train: {lr: 2e-4}")
    plain = write_recipe("plain.yaml", BODY + "train: {lr: 2e-4}", plain=True)
    compile(typed.read_text(), str(typed), "exec")
    assert load_recipe(typed) == load_recipe(plain)
    assert load_recipe(typed).train.lr == 2e-4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEADER.replace('r"""', '"""') + BODY + FOOTER, "first line exactly"),
        (HEADER.replace("lore: 1", "lore: 2") + BODY + FOOTER, "first line exactly"),
        (HEADER.replace("main(__name__, __file__)", "main()") + BODY + FOOTER, "first line exactly"),
        (HEADER + BODY, "last line exactly"),
        (HEADER + BODY + '"""\n', "last line exactly"),
        (HEADER, "last line exactly"),
        (BODY + FOOTER, "without the first line"),
        (HEADER + BODY + 'note: """x"""\n' + FOOTER, "would end the Python string"),
        ("", "an empty file"),
        ("- a\n- b\n", "a mapping"),
        ("a: [1, 2\n", "valid YAML"),
        ("a: &x 1\nb: *x\n", "anchors and aliases"),
        ("? [a, b]\n: 1\n", "plain text"),
        ("a: !!python/object/apply:os.system [ls]\n", "the tag '!!python/object/apply:os.system' is not allowed"),
        ("a: !!python/name:int 3\n", "the tag '!!python/name:int' is not allowed"),
        ("a: !!binary aGk=\n", "the tag '!!binary' is not allowed"),
        ("a: 1\n<<: {b: 2}\n", "x.yaml:2\n  found:    the merge key <<"),
        ("a: " + "9" * 5000 + "\n", "x.yaml:1\n  found:    a number of 5,000 digits"),
        ("a: " + "[" * 5000, "levels"),
        ("a: " + "[" * 60 + "]" * 60, "levels"),
        ("a: \0\n", r"x.yaml:1\n  found:    the character U\+0000"),
        ("# " + "x" * 1_000_001, "bytes"),
    ],
)
def test_text_that_is_no_recipe_is_named(tmp_path, text, says):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=says):
        read_recipe_text(path)


def test_not_utf8_missing_and_folder_are_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("stage: d\xe9mo".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_recipe_text(tmp_path / "latin.yaml")
    with pytest.raises(RecipeError, match=r"no such file[\s\S]*latin.yaml"):
        read_recipe_text(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="a folder"):
        read_recipe_text(tmp_path)


def test_windows_line_ends_and_a_byte_order_mark_are_read(demo, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + BODY + FOOTER).replace("\n", "\r\n").encode())
    assert load_recipe(path).run == "a"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("1_000", 1000),
        ("010", 10),
        (".inf", math.inf),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("null", None),
        ("''", ""),
        ("'1'", "1"),
        ("1e", "1e"),
        ("0x10", "0x10"),
        ("e5", "e5"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    read = parse_yaml(f"a: {text}", RecipeText(ROOT, {}))["a"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("override", ["a.²=1", "a.99999999999=1", "a." + "9" * 5000 + "=1", ".".join(["a"] * 2000) + "=1"])
def test_an_odd_place_in_an_override_is_a_problem(tmp_path, override):
    path = tmp_path / "x.yaml"
    path.write_text("a: [1, 2]\n")
    assert len(read_recipe_text(path, [override]).problems) == 1


def _bomb(levels: int, first: str) -> str:
    rows = [f"a0: &a0 {first}", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels))]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (_bomb(12, "[x, x]"), "aliases (*name) that expand to over 1,000,000 values"),
        (_bomb(4, '"' + "x" * 5000 + '"'), "aliases (*name) that expand to over 1,000,000 values"),
        ("a: &a [*a]\n", "nested deeper"),
        ("a: &a {<<: *a, b: *a}\n", "nested deeper"),
        ("a: *b\n", "undefined alias"),
        ("<<: 3\n", "a mapping after <<"),
    ],
)
def test_aliases_of_a_file_that_may_have_them_are_bounded(tmp_path, text, part):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(LoreError, match=re.escape(part)):
        read_yaml(path, aliases=True)


def test_aliases_and_merge_keys_are_read_where_they_are_allowed(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4, x: 5}]}\nd: {'<<': 6}\n")
    a = {"x": 1, "y": 2}
    assert read_yaml(path, aliases=True) == {"a": a, "b": {"x": 1, "y": 3}, "c": {**a, "z": 4}, "d": {"<<": 6}}


scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=20)


@given(st.dictionaries(st.text(min_size=1, max_size=8), scalars | st.lists(scalars, max_size=3), max_size=5))
def test_what_is_written_is_read_back(data):
    assert parse_yaml(to_yaml(data), RecipeText(ROOT, {})) == data


def test_all_problems_come_at_once_with_line_and_nearest_name(demo, write_recipe):
    found = problems(
        write_recipe(
            "bad.yaml",
            """
stage: demo
run: ../up
seed: "0"
model: {name: q, lora: {rnk: 8, targets: 3}, dtype: bf16, steps: 3}
train: {lr: 2e-4, lr: 3e-4, step: 0, rank: 4}
data: {path: "${LORE_DAT}/x", split_fractions: {train: .5}}
tags: [a, 3]
extra: {one: {stps: 1}, two: {lr: fast}}
""".lstrip(),
        )
    )
    assert set(found) == {
        "run",
        "seed",
        "model.lora.rnk",
        "model.lora.targets",
        "model.dtype",
        "model.steps",
        "train.lr",
        "train.step",
        "train.rank",
        "data.path",
        "data.rubric",
        "data.split_fractions",
        "tags.1",
        "extra.one.stps",
        "extra.two.lr",
    }
    assert found["model.lora.rnk"].nearest == "model.lora.rank"
    assert found["model.lora.rnk"].file.endswith("bad.yaml:5")
    assert found["model.steps"].nearest == "train.steps"
    assert found["train.rank"].nearest == "model.lora.rank"
    assert found["train.step"].nearest == "train.steps"
    assert found["extra.one.stps"].nearest == "extra.one.steps"
    assert found["model.dtype"].nearest == "bfloat16"
    assert "already given on line 6" in found["train.lr"].found
    assert "string" in found["model.lora.targets"].expected
    assert "array" in found["model.lora.targets"].expected
    assert "Name of a shipped rubric" in found["data.rubric"].expected
    assert found["data.path"].nearest == "LORE_DATA"
    assert '"3"' in found["tags.1"].expected
    lines = [int(p.file.rpartition(":")[2]) for p in found.values()]
    assert lines == sorted(lines)


def test_names_of_hugging_face_lead_to_the_recipes_names():
    overrides = ["learning_rate=1e-4", "train.num_train_epochs=2", "model.lora.lora_alpha=3", "model.max_steps=9", "output_dir=x"]
    overrides += ["report_to=wandb", "train.report_to=none"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(ROOT / "recipes" / "sft.yaml", overrides)
    assert {problem.key: problem.nearest for problem in caught.value.problems} == {
        "learning_rate": "train.lr",
        "train.num_train_epochs": "train.epochs",
        "model.lora.lora_alpha": "model.lora.alpha",
        "model.max_steps": "train.steps",
        "output_dir": "run",
        "report_to": "track",
        "train.report_to": "track",
    }


@pytest.mark.parametrize("given", ["tensorboard", "none", "null", "true"])
def test_a_value_in_the_place_of_a_list_shows_how_a_list_is_written(given):
    with pytest.raises(RecipeError) as caught:
        load_recipe(ROOT / "recipes" / "sft.yaml", [f"track={given}"])
    assert "values in brackets, such as [one]" in caught.value.problems[0].expected


def test_impossible_combinations_are_reported_beside_wrong_types(demo, write_recipe):
    found = problems(
        write_recipe(
            "x.yaml",
            BODY
            + """
train: {lr: 2.0, steps: 200, batch: many}
extra: {one: {lr: 3.0, steps: 300}, two: {lr: 4.0, steps: wrong}}
model: {name: q, adapter: a, lora: {}}
""",
        )
    )
    assert set(found) == {
        "train.lr, train.steps",
        "train.batch",
        "extra.one.lr, extra.one.steps",
        "extra.two.steps",
        "model.adapter, model.lora",
    }


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("train: {steps: 10.0}", "train.steps"),
        ("train: {steps: '10'}", "train.steps"),
        ("train: {steps: true}", "train.steps"),
        ("train: {lr: true}", "train.lr"),
        ("train: [1]", "train"),
        ("train: fast", "train"),
        ("train: null", "train"),
        ("tags: a", "tags"),
        ("fail: 1", "fail"),
        ("fail: no", "fail"),
        ("seed: -1", "seed"),
        ("run: 2024", "run"),
        ("lore: 2", "lore"),
        ("train: {lr: -1}", "train.lr"),
        ("data: {path: '', rubric: shop}", "data.path"),
    ],
)
def test_nothing_is_guessed_from_a_wrong_type(demo, write_recipe, line, key):
    body = BODY.replace("run: a\n", "") + line if line.startswith("run") else BODY + line
    assert list(problems(write_recipe("x.yaml", body, plain=True))) == [key]


def test_every_problem_of_a_data_section_is_found_before_a_run(demo, write_recipe, tmp_path):
    def keys(data: str) -> dict:
        return problems(write_recipe("x.yaml", BODY + f"data: {{path: a, {data}}}"))

    found = keys("source: tabel, rubric: crowdflowr, encoding: utf-9, split_fractions: {train: 2}")
    assert set(found) == {"data.source", "data.rubric", "data.encoding", "data.split_fractions"}
    assert found["data.source"].nearest == "table" and "Nearest: 'crowdflower'" in found["data.rubric"].expected
    assert "Nearest: 'utf-8'" in found["data.encoding"].expected
    found = keys("source: esci, rubric: esci, options: {local: us, drop_duplicates: true}")
    assert {key: problem.nearest for key, problem in found.items()} == {"data.options.local": "locale"}
    assert set(keys("rubric: shop, options: {locale: us}")) == {"data.options.locale"}
    (tmp_path / "bad.yaml").write_text("name: x")
    assert "missing" in keys(f"rubric: {tmp_path / 'bad.yaml'}")["data.rubric"].expected


def test_unknown_stage_names_the_nearest(write_recipe):
    found = problems(write_recipe("x.yaml", "stage: stf\nrun: a"))
    assert found["stage"].nearest == "sft"
    assert "nothing" in problems(write_recipe("y.yaml", "run: a"))["stage"].found


@pytest.mark.parametrize("run", ["../x", "/x", "a//b", "a/../b", ".hidden", "a/", "a b", "a\\b", ""])
def test_run_cannot_leave_the_run_root(demo, write_recipe, run):
    assert "run" in problems(write_recipe("x.yaml", f"stage: demo\nrun: '{run}'"))


def test_overrides_set_numbers_lists_null_sections_and_list_entries(demo, write_recipe):
    path = write_recipe("x.yaml", BODY + "tags: [a, b]\ntrain: {batch: 4}\nnote: x")
    recipe = load_recipe(
        path,
        [
            "train.lr=2e-4",
            "tags=[c, d, e]",
            "tags.1=z",
            "train.batch=null",
            "model.name=q",
            "model.lora={rank: 4}",
            "note='='",
            "extra.new.steps=3",
        ],
    )
    assert recipe.train.lr == 2e-4
    assert recipe.tags == ["c", "z", "e"]
    assert recipe.train.batch is None
    assert recipe.model.lora.rank == 4
    assert recipe.note == "="
    assert recipe.extra["new"].steps == 3


def test_bad_overrides_are_reported_together_with_the_rest(demo, write_recipe):
    path = write_recipe("x.yaml", BODY + "tags: a")
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            path,
            ["train.lrr=1", "train.steps=", "seed=1", "seed=2", "=3", "run.x=1", "note={a: 1, a: 2}", "train.lr=[1"],
        )
    text = str(caught.value)
    for part in (
        "override train.lrr=1: train.lrr",
        "nearest:  train.lr",
        "nothing after =",
        "given twice",
        "key=value",
        "a section before .x",
        "tags",
        "each key once",
        "override train.lr=[1",
    ):
        assert part in text


def test_folders_of_data_and_runs_are_expanded(demo, write_recipe, monkeypatch):
    path = write_recipe("x.yaml", BODY + "data: {path: '${LORE_DATA}/a.csv', rubric: shop}\nnote: ${LORE_RUNS}/b")
    monkeypatch.delenv("LORE_DATA", raising=False)
    monkeypatch.setenv("LORE_RUNS", "/r/")
    assert load_recipe(path).data.path == "data/a.csv"
    assert load_recipe(path).note == "/r/b"
    monkeypatch.setenv("LORE_DATA", "/public")
    assert load_recipe(path).data.path == "/public/a.csv"


def test_a_resolved_recipe_reads_back_as_itself(demo, write_recipe, tmp_path):
    recipe = load_recipe(write_recipe("x.yaml", BODY + "model: {name: q, lora: {rank: 4}}\ntrain: {lr: 3e-05}"))
    again = tmp_path / "resolved.yaml"
    again.write_text(to_yaml(recipe.resolved()), encoding="utf-8")
    assert load_recipe(again) == recipe
    assert load_recipe(again).fingerprint == recipe.fingerprint
    assert load_recipe(again, ["seed=1"]).fingerprint != recipe.fingerprint


def test_a_loaded_recipe_does_not_change(demo, write_recipe):
    recipe = load_recipe(write_recipe("x.yaml", BODY))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_needs_are_found_beside_the_recipe_then_under_the_working_directory(demo, write_recipe, tmp_path, monkeypatch):
    path = write_recipe("x.yaml", BODY)
    beside = write_recipe("base.yaml", BODY)
    assert resolve_need(path, "base.yaml") == beside
    monkeypatch.chdir(tmp_path)
    assert resolve_need(path, "recipes/base.yaml").samefile(beside)
    with pytest.raises(Exception, match="needs none.yaml"):
        resolve_need(path, "none.yaml")


def test_recipes_load_without_heavy_packages():
    code = (
        "import sys, lore.config.recipe, lore.run, lore.run.run_folder, lore.cli.main, lore.run.launch, "
        "lore.train.common.config, lore.eval.config;"
        "heavy = ['torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'PIL', 'sklearn'];"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_half_a_character_in_a_recipe_is_replaced(demo, write_recipe):
    path = write_recipe("x.yaml", BODY + 'note: "warm \\ud83d"')
    assert load_recipe(path).note == "warm \ufffd"
    assert load_recipe(path, ['note="\\ud83d\\ude00"']).note == "\U0001f600"
