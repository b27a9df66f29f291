"""SIGKILL at random instants: a label folder that was killed again and again holds what an undisturbed run writes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import make

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.judge.card import write_card
from lore.label.schema import FAILURES, VERDICTS
from lore.rubric.rubric import load_rubric

ROOT = Path(__file__).parents[2]
PROMPT = {"order": "answer_only", "detail": "name", "photo": False}
STUB = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from stub_scorer import StubScorer, label_once, label_recipe
class Slow(StubScorer):
    def score(self, pairs):
        time.sleep(0.02)
        return super().score(pairs)
label_once(label_recipe(Path(sys.argv[2]), Path(sys.argv[3]), shard_pairs=16), Path(sys.argv[4]), Slow())
"""


def write_pairs(path: Path, pairs: int) -> Path:
    """About 20 items a query, in an order in which queries alternate, a tenth of the rows twice."""
    queries, colours = -(-pairs // 20), ("red", "blue", "green")
    texts = [(f"{n % queries} boots", f"{colours[n % 3]} boot {n}") for n in range(pairs)]
    rows = [Pair(pair_id=f"p{n}", query=query, title=title) for n, (query, title) in enumerate(texts)]
    rng = random.Random(pairs)
    rows += rng.sample(rows, pairs // 10)
    rng.shuffle(rows)
    with PairWriter(path) as writer:
        for row in rows:
            writer.write(row)
    return path


def start(command: list, out: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    log = open(out.with_suffix(".log"), "ab")  # noqa: SIM115  (closed with the process's own copy)
    with log:
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment, start_new_session=True)


def committed(out: Path) -> int:
    return len(list((out / VERDICTS).glob("*.parquet")))


def killed(command: list, out: Path, at: int, delay: float) -> bool:
    """Starts the command and kills it `delay` seconds after `at` shards are committed. False if it ended before."""
    process = start(command, out)
    while process.poll() is None and committed(out) < at:
        time.sleep(0.005)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0, out.with_suffix(".log").read_text()[-2000:]
    return False


def labels(out: Path) -> tuple[dict[str, pa.Table], pa.Table]:
    """The label files by name, and all their rows, sorted by pair_id."""
    files = {path.name: pq.read_table(path) for path in sorted((out / VERDICTS).glob("*.parquet"))}
    return files, pa.concat_tables(files.values()).sort_by("pair_id")


def check(command: list, whole: Path, broken: Path, pairs: int, kills: int, seed: int, shards: int, startup: float) -> None:
    """Kills the run in `broken` `kills` times, ends it, and compares it with `whole`. A third of the kills comes before the start's
    first commit; the others spread over the shards. command: without its output folder."""
    rng = random.Random(seed)
    targets = sorted(rng.sample(range(1, shards), kills))
    done, instants = 0, []
    for number, target in enumerate(targets):
        early = number % 3 == 0
        before = committed(broken)
        began = time.monotonic()
        done += killed([*command, broken], broken, 0 if early else target, startup * rng.random() if early else 0.5 * rng.random())
        instants.append((round(time.monotonic() - began, 1), before, committed(broken)))
    assert done == kills, instants
    process = start([*command, broken], broken)
    assert process.wait() == 0, broken.with_suffix(".log").read_text()[-2000:]

    files, rows = labels(broken)
    expected_files, expected = labels(whole)
    ids = rows.column("pair_id").to_pylist()
    assert len(ids) == len(set(ids)) == pairs
    assert set(rows.column("attempts").to_pylist()) == {1}
    assert not list((broken / FAILURES).glob("*.parquet")) and not list(broken.rglob("*.part"))
    for name in ("pair_id", "tier", "content", "query"):
        assert rows.column(name).to_pylist() == expected.column(name).to_pylist(), name
    tiers = [name for name in rows.column_names if name.startswith("p_")]
    moved = max(np.abs(rows.column(name).to_numpy() - expected.column(name).to_numpy()).max() for name in tiers)
    same = [name for name in files if name in expected_files]
    assert moved < 1e-3 and all(files[name].equals(expected_files[name]) for name in same)
    print(f"{kills} kills (seconds, shards before, after): {instants}")
    print(f"{len(same)} of {len(files)} shards are those of the undisturbed run; probabilities move by at most {moved:.1e}")


@pytest.mark.slow
def test_a_killed_run_of_a_stub_ends_with_the_labels_of_an_undisturbed_one(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.parquet", 1500)
    command = [sys.executable, "-c", STUB, Path(__file__).parent, tmp_path, pairs]
    began = time.monotonic()
    process = start([*command, tmp_path / "whole"], tmp_path / "whole")
    while process.poll() is None and not committed(tmp_path / "whole"):
        time.sleep(0.005)
    startup = time.monotonic() - began
    assert process.wait() == 0
    shards = committed(tmp_path / "whole")
    assert shards == -(-1500 // 16)
    check(command, tmp_path / "whole", tmp_path / "broken", 1500, 5, seed=0, shards=shards, startup=startup)


@pytest.mark.long
def test_a_killed_run_of_the_command_ends_with_the_labels_of_an_undisturbed_one(tmp_path):
    """30 kills of `lore label` with a real model in transformers, 20,000 pairs. Run with -s to see the instants."""
    tiny = make(tmp_path / "tiny")
    rubric = load_rubric("shop")
    renderer = renderer_hash(rubric, PromptFormat(**PROMPT))
    write_card(tiny.text, {"renderer_hash": renderer, "rubric": "shop", "prompt": PROMPT, "base": "random"})
    pairs = write_pairs(tmp_path / "pairs.parquet", 20_000)
    command = [sys.executable, "-m", "lore", "label", pairs, "--judge", tiny.text, "--mode", "verdict", "--store", "none"]
    command += ["--engine", "transformers", "--shard-pairs", "256", "-o"]
    began = time.monotonic()
    assert start([*command, tmp_path / "whole"], tmp_path / "whole").wait() == 0, (tmp_path / "whole.log").read_text()[-2000:]
    print(f"undisturbed: {time.monotonic() - began:.0f} s")
    shards = committed(tmp_path / "whole")
    check(command, tmp_path / "whole", tmp_path / "broken", 20_000, 30, seed=0, shards=shards, startup=10.0)
