"""A student is a judge of the evaluation stage like any other."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from students_for_tests import some_pairs, write_student

from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError
from lore.data.parquet import PairWriter
from lore.run.runner import run_recipe
from lore.student.scorer import open_student
from lore.support.errors import LoreError


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.parquet"
    with PairWriter(path) as writer:
        for copy in range(6):
            for number, pair in enumerate(some_pairs()):
                pair.pair_id, pair.query = f"{pair.pair_id}-{copy}", f"{pair.query} {copy}"
                pair.label, pair.split = f"L{1 + (number + copy) % 4}", "dev" if copy < 2 else "test"
                writer.write(pair)
    return path


def recipe_of(tmp_path, pairs, judges: dict, **more) -> Path:
    body = {
        "stage": "evaluate",
        "run": "judged",
        "data": {"path": str(pairs), "rubric": "shop"},
        "prompt": {"order": "answer_only", "detail": "name"},
        "metrics": {"bootstrap_samples": 20},
        "baselines": [],
        "chunk_pairs": 8,
        "judges": judges,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(body | more))
    return path


def test_a_student_is_a_row_of_the_table_and_is_asked_once(tmp_path, runs, pairs, monkeypatch):
    run = tmp_path / "distill"
    write_student(run / "model")
    judges = {"student": {"kind": "student", "path": str(run)}}
    path = recipe_of(tmp_path, pairs, judges, robustness={"perturbations": ["case"]}, sampling={"samples": 2})
    folder = run_recipe(path)
    metrics = json.loads((folder / "metrics.json").read_text())["judges"]["student"]
    assert metrics["kind"] == "student" and metrics["temperature"] is not None
    assert [flip["name"] for flip in metrics["robustness"]] == ["case"] and not metrics.get("samples")
    predictions = pq.read_table(folder / "predictions.parquet").to_pylist()
    scorer = open_student(run)
    assert {row["source"] for row in predictions} == {"student"} and {row["judge_id"] for row in predictions} == {scorer.judge_id}
    parts = sorted((folder / "verdicts" / "student" / "split-test").glob("*.parquet"))
    assert len(parts) == 3  # 20 pairs in chunks of 8

    (folder / "done").unlink()
    parts[-1].unlink()
    asked = []
    monkeypatch.setattr("lore.student.scorer.StudentScorer.score", spy(asked, type(scorer).score))
    again = run_recipe(path)
    assert sum(asked) == 4 and json.loads((again / "metrics.json").read_text())["judges"]["student"] == metrics


def spy(asked: list[int], score):
    def counted(self, pairs):
        asked.append(len(pairs))
        return score(self, pairs)

    return counted


def test_what_a_student_cannot_do_is_named_before_the_run(tmp_path, pairs):
    folder = write_student(tmp_path / "student")
    good = {"kind": "student", "path": str(folder)}
    for change, key in (
        ({"order": "answer_first"}, "order"),
        ({"scores": False}, "scores"),
        ({"path": None}, "path"),
        ({"kind": "lexical"}, "path"),
        ({"model": {"name": "x/y"}}, "model"),
        ({"vllm": {}}, "vllm"),
    ):
        with pytest.raises(RecipeError, match=f"judges.student.*{key}"):
            load_recipe(recipe_of(tmp_path, pairs, {"student": good | change}))
    with pytest.raises(RecipeError, match="capability.judges"):
        load_recipe(recipe_of(tmp_path, pairs, {"student": good}, capability={"judges": ["student"]}))
    with pytest.raises(RecipeError, match=r"(?s)precision.*kind: student"):
        load_recipe(recipe_of(tmp_path, pairs, {"student": {"kind": "predictions", "predictions": "x.csv", "precision": "int8"}}))
    load_recipe(recipe_of(tmp_path, pairs, {"student": good}, robustness={"judges": ["student"]}))


def test_a_student_of_another_rubric_or_no_student_stops_before_the_questions(tmp_path, runs, pairs, tiny):
    other = write_student(tmp_path / "other", card={"rubric_hash": "0" * 16})
    with pytest.raises(LoreError, match="trained with renderer|trained for rubric"):
        run_recipe(recipe_of(tmp_path, pairs, {"student": {"kind": "student", "path": str(other)}}))
    with pytest.raises(LoreError, match="not the folder of a student"):
        run_recipe(recipe_of(tmp_path, pairs, {"student": {"kind": "student", "path": str(tiny.text)}}))
