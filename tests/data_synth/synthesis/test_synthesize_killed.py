"""Synthesis killed again and again, against a server that misbehaves: each pair once, nothing asked twice, no limit passed."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from openai_server import Answer, Request, serve
from teacher_server import ShopServer, misbehaving, step_of

from lore.config.stages import load_recipe
from lore.data.parquet import PairWriter, read_pairs
from lore.data_synth.shop.world import World
from lore.data_synth.shop.write import write_extras
from lore.data_synth.synthesis.journal import read_journal, totals
from lore.data_synth.synthesis.open_teachers import teacher_name
from lore.data_synth.synthesis.teacher_prompts import prompt_hash
from lore.data_synth.synthesis.teachers import answer_key
from lore.data_synth.synthesis.trace import read_traces, trace_store

PAIRS, KILLS = 160, 20


class Watched:
    """The server's own book: every request's key, and all tokens that it has counted, whoever heard the answer."""

    def __init__(self, teacher: ShopServer, name: str):
        self.teacher, self.name, self.keys, self.stored = teacher, name, [], set()
        self.again: list[str] = []

    def answer(self, request: Request) -> Answer:
        key = answer_key(step_of(request), prompt_hash(request.body["messages"]), self.name, request.body.get("seed", 0))
        self.keys.append(key)
        if key in self.stored:
            self.again.append(key)
        return self.teacher.answer(request)


def recipe_file(folder: Path, url: str, max_tokens: int) -> Path:
    endpoint = {"url": url, "model": "program", "timeout_seconds": 1.0, "max_concurrency": 6, "max_attempts": 12}
    body = {
        "stage": "synthesize",
        "run": "killed",
        "data": {"path": str(folder / "train.parquet"), "rubric": "shop"},
        "teacher": {"kind": "endpoint", "endpoint": endpoint, "temperature": 0.5, "max_tokens": 256},
        "facts": {"path": str(folder / "facts.jsonl")},
        "attempts": {"hint": "never"},
        "budget": {"max_tokens": max_tokens},
        "chunk_pairs": 16,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    return path


def answered(run: Path) -> set[str]:
    journals = (run / "answers").glob("*.jsonl")
    return {entry["reply"]["key"] for path in journals for entry in read_journal(path) if "reply" in entry}


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_cost_nothing_twice(tmp_path):
    world = World(21, photos=0.0, subsets={"general": 0.6, "hard": 0.4})  # texts alone: the server hashes what it is sent
    with PairWriter(tmp_path / "train.parquet") as writer:
        for pair in world.pairs("train", PAIRS):
            writer.write(pair)
    write_extras(world, tmp_path, 0, 4)
    env = {**os.environ, "LORE_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    run, rng, limit, stops = tmp_path / "runs" / "killed", random.Random(0), 60_000, 0
    teacher = ShopServer(seconds=0.03)
    watched = Watched(teacher, teacher_name(load_recipe(recipe_file(tmp_path, "http://127.0.0.1:1/v1", limit)).teacher))
    with serve(misbehaving(watched.answer, every=9)) as server:
        path = recipe_file(tmp_path, server.url, limit)
        command = [sys.executable, "-m", "lore", "run", str(path)]
        kills = 0
        while kills < KILLS:
            budget = f"budget.max_tokens={limit}"
            process = subprocess.Popen([*command, budget], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            before = len(watched.keys)
            deadline = time.monotonic() + 30
            while len(watched.keys) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.25))
            if process.poll() is None:
                process.kill()
                kills += 1
            output = process.communicate()[0].decode()
            assert teacher.tokens <= limit, "the budget was passed"
            if process.returncode == 1:
                assert "budget.max_tokens" in output, output
                limit, stops = limit + 40_000, stops + 1
            assert process.returncode in (1, -9), output
            watched.stored |= answered(run)
        subprocess.run([*command, "budget.max_tokens=100000000"], env=env, check=True, stdout=subprocess.DEVNULL)
    store = trace_store(run)
    traces = [trace for number in store.numbers() for trace in read_traces(store, number)]
    given = [pair.pair_id for pair in read_pairs(tmp_path / "train.parquet")]
    assert [trace.pair_id for trace in traces] == given  # each exactly once, in order
    assert all(trace.accepted for trace in traces)
    assert [pair.pair_id for pair in read_pairs(run / "pairs")] == given
    assert watched.again == []
    assert stops > 0
    assert len(answered(run)) == totals(run / "answers").answers
    assert json.loads((run / "done").read_text(encoding="utf-8"))["accepted"] == PAIRS
    assert totals(run / "answers").unsettled > 0  # kills did hit requests under way
