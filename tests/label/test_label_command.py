"""`lore label` with a real trained judge: dry run, labels, resume, statistics, export."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lore.cli.main import app
from lore.judge.trained import trained_judge


@pytest.fixture(scope="module")
def judge(tiny) -> Path:
    """A tiny judge that answers with the verdict alone, with its card."""
    done = tiny.pairs.parent / "verdict-judge"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORE_RUNS", str(tiny.pairs.parent / "label-runs"))
        tiny.train_once("verdict-judge", done, model="text", steps=2, prompt={"order": "answer_only"}, data={"limit": 32})
    return done


def lore(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted((folder / "verdicts").iterdir()) for row in pq.read_table(path).to_pylist()]


def test_dry_run_then_labels_then_nothing_left(judge, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LORE_CACHE", str(tmp_path / "cache"))
    labels = tmp_path / "labels"
    command = ("label", tiny.pairs / "test.parquet", "--judge", judge, "-o", labels, "--engine", "transformers", "shard_pairs=20")
    planned = lore(*command, "--dry-run")
    assert "64 pairs in 4 shards" in planned
    assert "before every question" in planned
    assert not any((labels / "verdicts").iterdir())

    done = lore(*command)
    assert "labelled 64 of 64 pairs" in done
    rows = rows_of(labels)
    assert len(rows) == 64 and len({row["pair_id"] for row in rows}) == 64
    known = trained_judge(judge)
    identity = f"{known.weights}:{known.rubric.hash}:{known.renderer}"
    for row in rows:
        shares = [row[f"p_{tier}"] for tier in known.rubric.tier_ids]
        assert row["judge_id"] == identity and row["failure"] is None and row["query"]
        assert sum(shares) == pytest.approx(1) and known.rubric.tier_ids[shares.index(max(shares))] == row["tier"]
    assert (labels / "report.html").is_file() and json.loads((labels / "summary.json").read_text())["pairs"] == 64

    assert "already done" in lore(*command)
    another = lore(*command[:5], tmp_path / "again", *command[6:])
    assert "64 from the verdict store" in another and len(rows_of(tmp_path / "again")) == 64
    assert "doubled pair ids: 0" in lore("labels", "stats", labels)
    lore("label", "export", labels, "--format", "qrels", "-o", tmp_path / "labels.qrels")
    assert len((tmp_path / "labels.qrels").read_text().splitlines()) == 64


def test_a_judge_that_reasons_first_needs_mode_rationale(tiny, runs, tmp_path):
    result = CliRunner().invoke(
        app,
        ["label", str(tiny.pairs / "test.parquet"), "--judge", str(tiny.judge("text")), "-o", str(tmp_path), "--mode", "verdict"],
    )
    assert result.exit_code == 1 and "trained to reason first" in str(result.exception) and "rationale" in str(result.exception)


def test_several_inputs_are_refused(tmp_path):
    result = CliRunner().invoke(app, ["label", "a.parquet", "b.parquet", "--judge", "j", "-o", str(tmp_path / "labels")])
    assert result.exit_code == 1 and "2 inputs were given" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--judge", "j"], "No input was named"),
        (["p.jsonl"], "No judge was named. Give --judge"),
        (["p.jsonl", "--judge", "gone"], "gone is not a folder. Name the run folder of a trained judge"),
        (["p.jsonl", "--judge", "j", "judge.gided=true"], "1 problem in the options of lore label; nothing was run\n"),
        (["judge.gided=true", "p.jsonl", "--judge", "j"], "override judge.gided=true: judge.gided"),
        (["p.jsonl", "--judge", "j", "--student", "s"], "--mode cascade --student"),
        (["p.jsonl", "--judge", "j", "--workers", "2"], "Add --ray local for this machine"),
    ],
)
def test_what_is_missing_or_misspelled_is_named_in_the_words_of_the_command(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"query": "mug", "title": "red mug"}\n')
    result = CliRunner().invoke(app, ["label", *arguments, "-o", "labels"])
    assert result.exit_code == 1 and said in str(result.exception) and "command.yaml" not in str(result.exception)


def test_a_file_and_a_run_of_another_stage_are_no_label_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"query": "mug", "title": "red mug"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("lore: 1\nstage: grpo\nrun: run\n")
    (tmp_path / "run" / "manifest.json").write_text('{"fingerprints": {}}')
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    for out, said in (("p.jsonl", "is a file"), ("run", "run is a run of stage grpo, and this recipe is of stage label.\n")):
        result = CliRunner().invoke(app, ["label", "p.jsonl", "--judge", "model", "-o", out])
        assert said in str(result.exception) and "use another folder (-o)" in str(result.exception).replace("Use", "use")
