"""Labels the same pairs without Ray, on Ray with two workers, and on a Ray cluster of two nodes of which one is killed meanwhile.

    python benchmarks/label_ray.py pairs.parquet runs/quickstart/grpo --mode rationale --limit 300

The nodes are two raylets on this machine, each with one CPU and its own workers. When `--kill-after` shards are committed, the
raylet of the second node and every process below it get SIGKILL at once, as when the machine loses its power. The table compares
the labels with those of the run without Ray.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq

REDONE = re.compile(r"warning: shard \S+ of [\d,]+ pairs was begun again")


@dataclass
class Outcome:
    name: str
    seconds: float
    rows: list[dict]
    output: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("judge")
    parser.add_argument("--mode", default="verdict")
    parser.add_argument("--limit", type=int, default=300, help="pairs of the file")
    parser.add_argument("--shard-pairs", type=int, default=20)
    parser.add_argument("--kill-after", type=int, default=4, help="committed shards before the node is killed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="label-ray-") as name:
        work = Path(name)
        pq.write_table(pq.read_table(options.pairs).slice(0, options.limit), work / "pairs.parquet")
        plain = labelled("without Ray", work, options)
        rows = [plain, labelled("Ray, two workers", work, options, "--ray", "local", "--workers", "2", kill=None)]
        rows.append(on_two_nodes(work, options))
    print(f"{'':34} {'rows':>6} {'doubled':>8} {'lost':>5} {'other tier':>11} {'largest dp':>11} {'redone':>7} {'seconds':>8}")
    for one in rows:
        print(compared(one, plain))


def on_two_nodes(work: Path, options: argparse.Namespace) -> Outcome:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    raylet = next(one.process.pid for one in node.all_processes["raylet"])
    try:
        return labelled("Ray, two nodes, one killed", work, options, "--ray", cluster.address, kill=raylet)
    finally:
        cluster.shutdown()


def labelled(name: str, work: Path, options: argparse.Namespace, *more: str, kill: int | None = None) -> Outcome:
    """Runs `lore label`. kill: process that gets SIGKILL with everything below it."""
    out = work / re.sub(r"\W+", "-", name)
    command = [sys.executable, "-m", "lore", "label", str(work / "pairs.parquet"), "--judge", options.judge, "-o", str(out)]
    command += ["--mode", options.mode, "--store", "none", "--shard-pairs", str(options.shard_pairs), *more]
    began = time.perf_counter()
    with open(work / "output.txt", "w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.1)
            if kill is not None and len(list((out / "verdicts").glob("*.parquet"))) >= options.kill_after:
                kill_tree(kill)
                kill = None
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        sys.exit(f"{name} ended with status {process.returncode}:\n{text}")
    if kill is not None:
        sys.exit(f"{name}: all was labelled before the node was killed. Lower --kill-after.")
    rows = [row for path in (out / "verdicts").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return Outcome(name, time.perf_counter() - began, rows, text)


def kill_tree(pid: int) -> None:
    root = psutil.Process(pid)
    tree = [root, *root.children(recursive=True)]
    for one in tree:
        os.kill(one.pid, signal.SIGSTOP)  # first, so that no process sees another one end
    for one in tree:
        os.kill(one.pid, signal.SIGKILL)
    print(f"killed a node: its raylet and {len(tree) - 1} processes below it", flush=True)


def compared(one: Outcome, plain: Outcome) -> str:
    expected, found = ({row["pair_id"]: row for row in side.rows} for side in (plain, one))
    both = expected.keys() & found.keys()
    tiers = [name for name in plain.rows[0] if name.startswith("p_")]
    other = sum(expected[key]["tier"] != found[key]["tier"] for key in both)
    apart = max(abs((expected[key][tier] or 0) - (found[key][tier] or 0)) for key in both for tier in tiers)
    lost, doubled = len(expected.keys() - found.keys()), len(one.rows) - len(found)
    redone = len(REDONE.findall(one.output))
    return f"{one.name:34} {len(one.rows):6} {doubled:8} {lost:5} {other:11} {apart:11.2g} {redone:7} {one.seconds:8.1f}"


if __name__ == "__main__":
    main()
