"""Synthesis on a Ray cluster: the same set as in one process. Journal, budget and resume stay in the process of the command."""

import json
import shutil

import pytest
from ray_faults import ray_here
from synthesis_for_tests import make_shop, traces_of, write_recipe
from tiny import make

from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError
from lore.data.parquet import read_pairs
from lore.data_synth.synthesis.journal import totals
from lore.run.runner import run_recipe

__all__ = ["ray_here"]
RAY = {"address": "local", "min_workers": 2, "max_workers": 2}


def test_a_cluster_is_for_models_of_this_process(tmp_path):
    with pytest.raises(RecipeError, match="a cluster and teacher.kind program"):
        load_recipe(write_recipe(tmp_path, "program", tmp_path, ray=RAY))


@pytest.mark.slow
def test_two_workers_write_the_same_set_as_one_process_and_resume_as_it_does(ray_here, tmp_path, runs):
    tiny, shop = make(tmp_path / "tiny"), make_shop(tmp_path / "shop", 12)
    config = json.loads((tiny.text / "config.json").read_text())
    (tiny.text / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    teacher = {"kind": "transformers", "model": {"name": str(tiny.text)}, "max_tokens": 16, "temperature": 0.0}
    more = {"teacher": teacher, "unexplained": "keep", "photos": "none", "unanswered": {"max_in_a_row": None, "max_share": None}}
    paths = {}
    for name, ray in (("plain", {}), ("ray", {"ray": RAY})):
        paths[name] = write_recipe(tmp_path, name, shop, **more, attempts={"hint": "never", "most": 1, "most_hard": 1}, **ray)
    plain, cluster = (run_recipe(path) for path in paths.values())
    assert [one.row() for one in traces_of(plain)] == [one.row() for one in traces_of(cluster)]
    assert list(read_pairs(plain / "pairs")) == list(read_pairs(cluster / "pairs"))
    spent = totals(cluster / "answers")
    assert spent == totals(plain / "answers") and spent.requests >= 2 and spent.tokens
    for folder, path in zip((plain, cluster), paths.values(), strict=True):
        (folder / "done").unlink()
        shutil.rmtree(folder / "traces")
        run_recipe(path)  # asks again what was cut, and nothing else
    assert [one.row() for one in traces_of(plain)] == [one.row() for one in traces_of(cluster)]
    assert totals(cluster / "answers") == totals(plain / "answers")
