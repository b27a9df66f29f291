import json

import pytest
from ray_faults import FaultyWorker, own_lines, ray_here
from stub_scorer import label_once, label_recipe
from test_label import labels_of, make_pairs, rows_of, write
from tiny import make

from lore.config.stages import load_recipe
from lore.engines.ray_cluster import KILLED, Attempts
from lore.label.label import run
from lore.run.run_folder import RunFolder

__all__ = ["ray_here"]
RAY = {"address": "local", "min_workers": 2, "max_workers": 2, "max_attempts": 2}


def label_with_ray(recipe, folder, *more):
    run_folder = RunFolder(folder, recipe)
    try:
        run_folder.open(recipe)
        run(recipe, run_folder, *more)
    finally:
        run_folder.close()


def test_attempts_remember_why_the_one_before_failed():
    attempts = Attempts()
    assert attempts.begin("a") == (1, "")
    attempts.failed("a", "out of memory")
    assert attempts.begin("a") == (2, "out of memory")
    assert attempts.begin("a") == (3, KILLED)
    assert attempts.begin("b") == (1, "")
    attempts.done("a")
    assert attempts.begin("a") == (1, "")


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_costs_itself_and_nothing_else(ray_here, tmp_path, capfd):
    pairs = make_pairs()
    for pair in pairs:
        number = int(pair.query.split()[1])
        pair.query += {2: " poison", 5: " killed", 7: " raises"}.get(number, "")
    path = write(tmp_path / "pairs.parquet", pairs)
    label_once(label_recipe(tmp_path, path, shard_pairs=5), tmp_path / "plain")
    capfd.readouterr()
    label_with_ray(label_recipe(tmp_path, path, shard_pairs=5, ray=RAY), tmp_path / "ray", FaultyWorker)
    labels, expected = labels_of(tmp_path / "ray"), labels_of(tmp_path / "plain")
    failed = rows_of(tmp_path / "ray", "failures")
    poisoned = {pair.pair_id for pair in pairs if "poison" in pair.query}
    assert {row["pair_id"] for row in failed} >= poisoned and len(failed) == 5
    assert {(row["failure"], row["detail"], row["attempts"]) for row in failed} == {("engine_died", KILLED, 1)}
    assert labels == {key: tier for key, tier in expected.items() if key not in {row["pair_id"] for row in failed}}
    lines = own_lines(capfd.readouterr())
    said = [line for line in lines if "shard" in line and line.startswith("warning")]
    assert sorted("the engine lost its device" in line for line in said) == [False, False, True], said
    assert not any("dataset" in line for line in lines)


@pytest.mark.slow
def test_two_workers_write_the_same_files_as_one_process(ray_here, tmp_path):
    tiny = make(tmp_path / "tiny")
    body = {
        "stage": "label",
        "run": "labels",
        "input": {"path": str(tiny.pairs / "test.parquet")},
        "judge": {"model": {"name": str(tiny.text)}, "prompt": {"order": "answer_only", "detail": "name"}, "rubric": "shop"},
        "store": "none",
        "shard_pairs": 8,
    }
    for name, more in (("plain", {}), ("ray", {"ray": RAY})):
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(body | more))
        label_with_ray(load_recipe(path), tmp_path / name)
    files = sorted((tmp_path / "plain" / "verdicts").iterdir())
    assert len(files) == 8
    for file in files:
        assert file.read_bytes() == (tmp_path / "ray" / "verdicts" / file.name).read_bytes()
