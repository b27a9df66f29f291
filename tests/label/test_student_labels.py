"""`lore label` with a student as the judge, and as the one who answers first in a cascade."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from students_for_tests import word_tokenizer, write_student
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data.parquet import read_pairs
from lore.student.model import load_student, save_student
from lore.student.scorer import open_student
from lore.support.errors import LoreError

JUDGE = ("judge.prompt.order=answer_only", "judge.prompt.detail=name", "judge.rubric=shop", "judge.engine=transformers")


def lore(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, LoreError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted((folder / "verdicts").iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("LORE_CACHE", str(tmp_path / "cache"))


def test_a_student_labels_every_pair_as_it_scores_them(tiny, tmp_path):
    student = write_student(tmp_path / "distill" / "model").parent
    command = ("label", tiny.pairs / "test.parquet", "--judge", student, "-o", tmp_path / "labels", "shard_pairs=20")
    assert "64 pairs in 4 shards" in lore(*command, "--dry-run")
    assert "labelled 64 of 64 pairs" in lore(*command)
    scorer = open_student(student)
    expected = {verdict.pair_id: verdict for verdict in scorer.score(list(read_pairs(tiny.pairs, split="test")))}
    rows = rows_of(tmp_path / "labels")
    assert {row["pair_id"] for row in rows} == set(expected)
    for row in rows:
        verdict = expected[row["pair_id"]]
        assert (row["tier"], row["source"], row["judge_id"]) == (verdict.tier, "student", scorer.judge_id)
        assert row["photo"] == verdict.photo and row["failure"] is None
        assert [row[f"p_{tier}"] for tier in scorer.tier_ids] == pytest.approx(verdict.probabilities, abs=1e-5)
    assert "already done" in lore(*command)


def test_what_only_a_judge_can_do_is_refused(tiny, tmp_path):
    student = write_student(tmp_path / "student")
    command = ("label", tiny.pairs / "test.parquet", "--judge", student, "-o", tmp_path / "labels")
    refused = {
        ("--mode", "rationale"): "gives none",
        ("--mode", "cascade", "--student", str(student)): "--student",
        ("--engine", "vllm"): "engine: vllm",
        ("--endpoint", "http://127.0.0.1:9/v1"): "is a student",
        ("judge.guided=true",): "judge.guided",
        ("judge.scores=false",): "scores: false",
        ("judge.base=x",): "judge.base",
        ("--mode", "verdict", "judge.precision=int8"): "int8",
        ("judge.rubric=rair",): "trained for rubric",
    }
    for options, words in refused.items():
        with pytest.raises(LoreError, match=words):
            lore(*command, *options)
    with pytest.raises(LoreError, match="is for a student"):
        judge = (f"judge.model.name={tiny.text}", *JUDGE, "judge.precision=int8")
        lore("label", tiny.pairs / "test.parquet", "-o", tmp_path / "x", *judge)


@pytest.mark.slow
def test_a_student_answers_first_in_a_cascade(tiny, tmp_path):
    judge = (f"judge.model.name={tiny.text}", *JUDGE, "store=none")
    lore("label", tiny.pairs / "train.parquet", "-o", tmp_path / "alone", *judge)
    alone = {row["pair_id"]: row["tier"] for row in rows_of(tmp_path / "alone")}
    most = Counter(alone.values()).most_common(1)[0][0]
    student = write_student(tmp_path / "student")
    model = load_student(student)
    with torch.no_grad():  # leans to the judge's most frequent tier, more or less surely
        model.encoder.classifier.weight.mul_(0.2)
        model.encoder.classifier.bias[model.config.tiers.index(most)] = 3.0
    save_student(model, student, word_tokenizer())

    labels = tmp_path / "labels"
    command = ("label", tiny.pairs / "train.parquet", "-o", labels, *judge, "--mode", "cascade", "--student", student)
    lore(*command, "--agreement", "0.51", "cascade.pairs=100")
    fit = json.loads((labels / "cascade.json").read_text())
    scorer = open_student(student)
    assert fit["student"] == scorer.judge_id and fit["threshold"] is not None
    rows = rows_of(labels)
    by = {source: [row for row in rows if row["source"] == source] for source in ("student", "judge")}
    assert len(rows) == len(alone) and by["student"]
    assert {row["judge_id"] for row in by["student"]} == {scorer.judge_id}
    assert all(row["tier"] == alone[row["pair_id"]] for row in by["judge"])

    other = write_student(tmp_path / "other", card={"rubric_hash": "0" * 16, "renderer_hash": "1" * 16})
    with pytest.raises(LoreError, match="trained with renderer"):
        lore(*command[:3], tmp_path / "again", *command[4:-1], other, "cascade.pairs=100")
