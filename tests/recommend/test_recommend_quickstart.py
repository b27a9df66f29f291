"""The recipes of the quickstart, on a small shop: what only the photos show places items that nobody has taken yet."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from lore.config.stages import load_recipe
from lore.run.runner import check_recipes, run_command

QUICKSTART = ROOT / "recipes" / "quickstart" / "recommend"


def test_every_run_of_the_grid_reads_its_own_shop():
    """Seeds and kinds of shops never mix, and a control differs from the model in what it is named after."""
    grid = ROOT / "recipes" / "experiments" / "recommend.yaml"
    assert check_recipes([grid]) == 0
    recipes = {
        name: load_recipe(f"{grid}:{name}-seed1")
        for name in ("pretrain", "pretrain_shuffled", "pretrain_codes", "codes_text", "eval")
    }
    assert all(Path(recipe.data.items).parent.name == "sessions-seed1" for recipe in recipes.values())
    assert (
        recipes["pretrain_shuffled"].codes.paths == recipes["pretrain"].codes.paths and recipes["pretrain"].codes.shuffled is None
    )
    assert not recipes["pretrain_codes"].network.ids and recipes["codes_text"].use == ["text", "structure"]
    assert {Path(row.name).name for row in recipes["eval"].models.values()} >= {"q-seed1", "ids-seed1", "shuffled-seed1"}


@pytest.mark.slow
def test_codes_of_photos_place_items_that_nobody_has_taken_and_shuffled_codes_do_not(tmp_path, monkeypatch):
    monkeypatch.setenv("LORE_RUNS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    steps = ["needs=[]", "train.steps=150", "train.batch_size=96", "network.dropout=0.1"]

    def run(name: str, *overrides: str) -> Path:
        assert run_command([str(QUICKSTART / f"{name}.yaml"), *overrides]) == 0
        return tmp_path / "quickstart" / "recommend" / name

    run("sessions", "items=400", "shoppers=1200")
    run("semantic_ids", "needs=[]", "train.epochs=60")
    models = {}
    for name, override in (("ids", "codes.paths=[]"), ("codes", "codes.shuffled=null"), ("shuffled", "codes.shuffled=1")):
        run("pretrain", f"run={name}", override, *steps)
        models[name] = {"name": str(tmp_path / name)} | ({"control_of": "codes"} if name == "shuffled" else {})
    table = (
        run("eval", "needs=[]", f"models={json.dumps(models)}", "reference=ids", "prefixes=null", "bootstrap_samples=200")
        / "table.json"
    )
    rows = json.loads(table.read_text())["rows"]
    hits = {name: row["metrics"]["removed"]["cold"]["HR@10"]["value"] for name, row in rows.items()}
    assert hits["co-occurrence"] == 0
    assert hits["codes"] > 0.12  # 0.025 by chance
    assert rows["codes"]["over reference"]["removed"]["cold"]["HR@10"]["low"] > 0.05
    assert rows["shuffled"]["the controlled row over it"]["removed"]["cold"]["HR@10"]["low"] > 0.05
    assert hits["shuffled"] < 0.08
