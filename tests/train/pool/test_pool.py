"""A judge's own answers to labeled pairs: the rows of the pool, what is left out, a run that is killed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from run_names import undeclared

from lore.codec.judgement import FormatFailure, parse
from lore.codec.prompt import PromptFormat
from lore.data.parquet import PairWriter, read_pairs
from lore.engines.engine import Completion, EngineUsage
from lore.rubric.rubric import load_rubric
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.pool.curriculum import pool_tiers
from lore.train.pool.report import report_markdown

RUBRIC = load_rubric("shop")
# Kills its own process when the second chunk has been answered and is about to be stored.
DIE_BEFORE_SAVING = """
import os, pathlib, signal, sys
replace = os.replace
def die(source, target):
    if str(target).endswith("part-000001.parquet"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = die
from lore.run.runner import run_command
sys.exit(run_command([sys.argv[1]]))
"""


@pytest.fixture(scope="module")
def judge(tiny, tmp_path_factory):
    """A tiny judge that has learned the form of an answer."""
    folder = tmp_path_factory.mktemp("judge")
    options = {"model": "text", "steps": 60, "lr": 1e-2, "prompt": {"order": "answer_only"}, "save_every": 0}
    (folder / "judge.yaml").write_text(tiny.recipe("judge", **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORE_RUNS", str(folder / "runs"))
        run = run_recipe(folder / "judge.yaml")
    run.close()
    return run


@pytest.fixture
def pool(tiny, judge, runs, tmp_path, monkeypatch):
    """Writes a pool recipe over the judge."""

    def write(run: str, **changes):
        body = {
            "stage": "pool",
            "run": run,
            "model": {"name": str(judge / "model")},
            "data": {"path": str(tiny.pairs), "rubric": "shop", "split": "train", "limit": 24},
            "prompt": {"order": "answer_only", "detail": "name", "max_prompt_tokens": 512},
            "samples": 4,
            "max_tokens": 24,
            "chunk_pairs": 10,
        } | changes
        path = tmp_path / f"{run}.yaml"
        path.write_text(json.dumps(body, indent=1))
        return path

    return write


def test_rows_say_what_the_judge_answered_and_how_often_it_was_right(pool, tiny):
    folder = run_recipe(pool("pool"))
    assert undeclared(folder.path) == []
    table = pq.read_table(folder / "pool.parquet")
    pairs = list(read_pairs(tiny.pairs, split="train", limit=24))
    assert pool_tiers(table) == RUBRIC.tier_ids
    rows = table.to_pylist()
    assert [row["pair_id"] for row in rows] == [pair.pair_id for pair in pairs]
    fmt = PromptFormat("answer_only", "name")
    readable = 0
    for row, pair in zip(rows, pairs, strict=True):
        assert (row["query"], row["label"], row["label_weight"]) == (pair.query, pair.label, pair.label_weight)
        assert row["slices"] == pair.slices
        assert sum(row["probabilities"]) == pytest.approx(1) and row["confidence"] == max(row["probabilities"])
        assert row["tier"] == RUBRIC.tier_ids[row["probabilities"].index(row["confidence"])]
        assert row["agrees"] == (row["tier"] == pair.label)
        assert len(row["samples"]) == 4
        tiers = [sample["tier"] for sample in row["samples"]]
        for sample in row["samples"]:
            read = parse(sample["text"], RUBRIC, fmt)
            assert sample["tier"] == (None if isinstance(read, FormatFailure) else read.tier)
            assert sample["tokens"] <= 24 and (not sample["truncated"] or sample["tokens"] == 24)
        assert row["pass_rate"] == tiers.count(pair.label) / 4
        known = [tier for tier in tiers if tier]
        assert row["sample_agreement"] == max(map(known.count, known), default=0) / 4
        readable += len(known)
    assert readable > 48
    assert len({sample["text"] for row in rows for sample in row["samples"]}) > 2
    assert not (folder / "rejected.jsonl").exists()
    assert "image" not in table.column_names
    shown = (folder / "pool.md").read_text()
    assert "Pass rate by labeled tier" in shown and "All samples incorrect" in shown
    assert folder.summary["pairs"] == 24


def test_killed_it_goes_on_and_ends_with_the_same_rows(pool, runs):
    whole = run_recipe(pool("whole"))
    path = pool("killed")
    done = subprocess.run([sys.executable, "-c", DIE_BEFORE_SAVING, str(path)], cwd=ROOT, capture_output=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    folder = RunFolder(runs / "killed")
    assert [file.name for file in (folder / "chunks").glob("part*")] == ["part-000000.parquet"]
    stamp = (folder / "chunks" / "part-000000.parquet").stat().st_mtime_ns
    run_recipe(path)
    assert (folder / "chunks" / "part-000000.parquet").stat().st_mtime_ns == stamp
    assert pq.read_table(folder / "pool.parquet").equals(pq.read_table(whole / "pool.parquet"))


def test_chunks_are_drawn_apart_and_another_seed_draws_others(pool, tiny, tmp_path):
    pairs = list(read_pairs(tiny.pairs, split="train", limit=4))
    with PairWriter(tmp_path / "twice.parquet") as writer:
        for copy in range(4):
            for pair in pairs:
                pair.pair_id = f"{copy}-{pair.query}"[:40] + pair.title[:20]
                writer.write(pair)
    data = {"path": str(tmp_path / "twice.parquet"), "rubric": "shop"}
    options = {"data": data, "chunk_pairs": 4, "samples": 8, "temperature": 1.5}
    texts = []
    for run, seed in (("one", 0), ("same", 0), ("other", 1)):
        rows = pq.read_table(run_recipe(pool(run, seed=seed, **options)) / "pool.parquet").to_pylist()
        texts.append([[sample["text"] for sample in row["samples"]] for row in rows])
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][:4] != texts[0][4:8]  # the same prompts in another chunk


def test_what_cannot_be_asked_is_kept_with_its_reason(pool, tiny, tmp_path):
    pairs = list(read_pairs(tiny.pairs, split="train", limit=4))
    pairs[1].query = "lamp " * 4000
    pairs[2].label = "L9"
    pairs[3].pair_id = pairs[0].pair_id
    with PairWriter(tmp_path / "bad.parquet") as writer:
        for pair in pairs:
            writer.write(pair)
    folder = run_recipe(pool("bad", data={"path": str(tmp_path / "bad.parquet"), "rubric": "shop"}, chunk_pairs=3))
    assert pq.read_table(folder / "pool.parquet")["pair_id"].to_pylist() == [pairs[0].pair_id]
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [(2, "prompt_too_long"), (3, "unknown_tier"), (4, "duplicate")]
    assert folder.summary["rejected"] == 3


def test_nothing_to_ask_is_an_error(pool, tiny):
    with pytest.raises(LoreError, match=r"(?s)would have no row.*data.split"):
        run_recipe(pool("none", data={"path": str(tiny.pairs), "rubric": "shop", "split": "dev"}))


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_judge_that_writes_no_answer_has_neither_verdict_nor_confidence(tiny, pool, runs, kind):
    """Reasons first, from random weights; the photo goes in and stays out of the table."""
    prompt = {"order": "reason_first", "detail": "name", "max_prompt_tokens": 512}
    model = {"name": str(getattr(tiny, kind))}
    folder = run_recipe(pool("raw", model=model, prompt=prompt, samples=2))
    rows = pq.read_table(folder / "pool.parquet").to_pylist()
    unread = [row for row in rows if row["tier"] is None]
    assert len(rows) == 24 and len(unread) > 12
    for row in unread:
        assert row["probabilities"] is None and row["confidence"] is None and not row["agrees"]
    assert "no readable answer" in (folder / "pool.md").read_text()


def test_hostile_texts_stay_on_one_line_of_the_report(pool):
    folder = run_recipe(pool("shown"))
    path = folder / "pool.parquet"
    table = pq.read_table(path)
    hostile = ["a | b\n# head <script>x</script>" for _ in range(len(table))]
    table = table.set_column(table.column_names.index("query"), "query", [hostile])
    pq.write_table(table, path)
    text = report_markdown(path, table.drop_columns("samples"), RUBRIC.tier_ids)
    assert "<script>" not in text and "\n# head" not in text


def test_a_large_pools_examples_may_all_stand_at_its_beginning(pool, tmp_path):
    folder = run_recipe(pool("large"))
    table = pq.read_table(folder / "pool.parquet")
    path = tmp_path / "large.parquet"
    large = pa.concat_tables([table] * 60)
    pq.write_table(large, path)
    report = report_markdown(path, large.drop_columns("samples"), RUBRIC.tier_ids)
    assert "1,440 pairs" in report and table["pair_id"][0].as_py() in report


def test_a_pool_recipe_trains_no_adapter(pool):
    from lore.config.stages import load_recipe

    with pytest.raises(LoreError, match="model.adapter"):
        load_recipe(pool("lora", model={"name": "x", "lora": {"rank": 4}}))


def test_it_is_the_main_process_that_asks(pool, monkeypatch):
    from lore.config.stages import load_recipe
    from lore.train.pool.pool import run

    monkeypatch.setitem(os.environ, "RANK", "1")
    run(load_recipe(pool("second")), None)


class Refusing:
    """An engine whose server refuses the prompts of some titles."""

    tokenizer, takes_images = None, False

    def __init__(self, refuses):
        self.refuses, self.usage = refuses, EngineUsage()

    def generate(self, prompts, sampling):
        refused = Completion("", 0, "refused", detail="400 Bad Request: paused")
        given = Completion("<verdict>L4</verdict>", 5, "stop")
        return [[refused if self.refuses(number) else given] * sampling.n for number in range(len(prompts))]

    def score(self, prompts):
        return np.full((len(prompts), 4), 0.25)


@pytest.mark.parametrize(("every", "stops"), [(1, True), (4, False)])
def test_refused_pairs_are_no_rows_and_too_many_stop_the_pool(pool, runs, monkeypatch, every, stops):
    monkeypatch.setattr("lore.train.pool.pool.open_engine", lambda *_, **__: Refusing(lambda number: number % every == 0))
    monkeypatch.setattr("lore.train.pool.pool.check_template", lambda *_: None)
    if stops:
        with pytest.raises(LoreError, match=r"10 of 10 requests of a chunk got no answer(.|\n)*refused: 400 Bad Request: paused"):
            run_recipe(pool("refused"))
        assert not list((runs / "refused").rglob("part-*"))
        return
    folder = run_recipe(pool("some"))
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert {(line["reason"], line["found"]) for line in lines} == {("refused", "400 Bad Request: paused")}
    assert folder.summary["pairs"] + len(lines) == 24 and len(lines) == 7


def test_a_pair_on_which_the_engine_raises_is_rejected_and_the_others_are_rows(pool, tiny, monkeypatch):
    known = list(read_pairs(tiny.pairs, split="train", limit=24))
    title = next(pair.title for pair in known if sum(other.title == pair.title for other in known) == 1)

    class Raising(Refusing):
        def generate(self, prompts, sampling):
            if any(title in json.dumps(messages, ensure_ascii=False) for messages in prompts):
                raise IndexError("index out of range in self")
            return super().generate(prompts, sampling)

    monkeypatch.setattr("lore.train.pool.pool.open_engine", lambda *_, **__: Raising(lambda number: False))
    monkeypatch.setattr("lore.train.pool.pool.check_template", lambda *_: None)
    folder = run_recipe(pool("raises"))
    (line,) = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert line["reason"] == "refused" and "index out of range" in line["found"]
    assert folder.summary["pairs"] == 23


def test_refused_pairs_of_a_stored_chunk_are_asked_again_and_the_others_stay(pool, tiny, monkeypatch):
    asked, refuses = [], [lambda number: number < 4, lambda number: False]

    class Counting(Refusing):
        def generate(self, prompts, sampling):
            asked.append(len(prompts))
            return super().generate(prompts, sampling)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lore.train.pool.pool.open_engine", lambda *_, **__: Counting(refuses.pop(0)))
    monkeypatch.setattr("lore.train.pool.pool.check_template", lambda *_: None)
    with monkeypatch.context() as first:
        first.setattr("lore.train.pool.pool.merge", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(pool("outage"))
    assert asked == [10, 10, 4]
    folder = run_recipe(pool("outage"))
    assert asked[3:] == [4, 4, 4] and not (folder / "rejected.jsonl").exists()
    rows = pq.read_table(folder / "pool.parquet").to_pylist()
    assert [row["pair_id"] for row in rows] == [pair.pair_id for pair in read_pairs(tiny.pairs, split="train", limit=24)]
    assert {row["tier"] for row in rows} == {"L1"} and all(len(row["samples"]) == 4 for row in rows)
