"""Completion tokens per second of the synthesize stage compared with `vllm bench serve`, on one vLLM server, alternating.

    python benchmarks/synthesize.py                            3 rounds of 384 requests of 128 tokens, 32 concurrent
    python benchmarks/synthesize.py --curator PYTHON           also bespokelabs-curator; PYTHON is the interpreter that has it
    python benchmarks/synthesize.py --rounds 1 --requests 64   a quick look

`lore teacher serve` serves a small Llama (random weights, the quickstart's size) on loopback. Its completions are not JSON, so
every pair stops after the knowledge step: one request per pair, and each pair has a different query. The other clients send
exactly the messages that the stage renders. All clients request completions of exactly --tokens tokens at the same temperature.
All prompts are sent once before the first round, so that the server's prefix cache is the same for all clients.

- bench: `vllm bench serve`, with the seconds that it reports. It streams every completion, which costs client and server
  time; the other clients do not stream.
- bare: a minimal Python client without streaming (benchmarks/synthesize_clients.py).
- lore: `lore run` of a recipe, with the seconds that it reports: opening teachers, rendering prompts, writing journal and
  traces. The process time also includes the dataset card and the training set.
- curator: seconds of the call that requests the completions.

Client and server share the CPU cores. CPU seconds per 1,000 requests exclude the start of a client, which is measured with a
few requests before the rounds.
"""

import argparse
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from models import make_model

from lore.support.errors import LoreError

MODEL, FEW, START_SECONDS = "teacher", 8, 300
CLIENTS = Path(__file__).with_name("synthesize_clients.py")
# Same as `vllm bench serve`, which looks up metadata of the distribution `vllm`: the CPU build has another distribution name.
BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def prepare(folder: Path, requests: int) -> None:
    """Writes model/, pairs/ with one pair per request, all with different queries, and prompts.jsonl with the stage's prompts."""
    from lore.data.parquet import PairWriter
    from lore.data_synth.shop.world import ITEMS_PER_QUERY, World
    from lore.data_synth.synthesis import knowledge
    from lore.data_synth.synthesis.teacher_prompts import Prompts

    world = World(seed=0, photos=0.0)
    make_model(folder, world)
    prompts, queries, number = Prompts(world.rubric), set(), 0
    with PairWriter(folder / "pairs" / "train.parquet") as writer, open(folder / "prompts.jsonl", "w") as lines:
        while len(queries) < requests:
            (pair,) = world.pairs("train", 1, number * ITEMS_PER_QUERY)
            number += 1
            if pair.query not in queries:
                queries.add(pair.query)
                pair.image = None
                writer.write(pair)
                lines.write(json.dumps({"prompt": knowledge.prompt(prompts, pair, [])}) + "\n")


def write_recipe(folder: Path, run: str, url: str, options: argparse.Namespace, requests: int) -> Path:
    path = folder / f"{run}.yaml"
    recipe = {
        "stage": "synthesize",
        "run": run,
        "data": {"path": str(folder / "pairs"), "rubric": "shop", "limit": requests},
        "teacher": {
            "kind": "endpoint",
            "endpoint": {
                "url": url,
                "model": MODEL,
                "max_concurrency": options.concurrency,
                "max_down_seconds": 20.0,
                "extra": {"ignore_eos": True},
            },
            "model": {"name": str(folder / "model")},
            "vllm": {"eager": True, "kv_cache_gib": 1.0, "max_model_tokens": 2048},
            "temperature": options.temperature,
            "max_tokens": options.tokens,
        },
        "attempts": {"samples": 1, "most": 1, "most_hard": 1, "hint": "never"},
        "photos": "none",
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


@contextmanager
def served(folder: Path, options: argparse.Namespace, environment: dict[str, str]) -> Iterator[str]:
    """The URL of a running server. Raises LoreError with the end of the server log if it does not start."""
    if find_spec("vllm") is None:
        raise LoreError("vLLM is not installed, but this benchmark needs it as server and baseline: make install (lore doctor).")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        root = f"http://127.0.0.1:{probe.getsockname()[1]}"
    recipe = write_recipe(folder, "server", f"{root}/v1", options, 1)
    with open(folder / "server.log", "wb") as log:
        command = [sys.executable, "-m", "lore", "teacher", "serve", str(recipe)]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + START_SECONDS
        while not _healthy(root):
            if server.poll() is not None or time.monotonic() > until:
                raise LoreError(f"vLLM's server has not started in {START_SECONDS} s.")
            time.sleep(0.5)
        yield f"{root}/v1"
    except LoreError as error:
        end = (folder / "server.log").read_text(errors="replace")[-3000:]
        raise LoreError(f"{error}\nThe server's log (exit status {server.poll()}) ends:\n{end}") from error
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _healthy(root: str) -> bool:
    try:
        return urllib.request.urlopen(f"{root}/health", timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def timed(command: list, environment: dict[str, str]) -> dict[str, float]:
    """Runs a process that must succeed. Returns its wall-clock and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise LoreError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return {"wall_seconds": wall, "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def by_bench(folder: Path, name: str, url: str, options: argparse.Namespace, requests: int, environment: dict) -> dict:
    # Without a tokenizer, bench sends messages unchanged, so the completion length is set in the request body.
    body = {"max_completion_tokens": options.tokens, "temperature": options.temperature, "ignore_eos": True}
    flags = {
        "backend": "openai-chat",
        "base-url": url.removesuffix("/v1"),
        "endpoint": "/v1/chat/completions",
        "model": MODEL,
        "dataset-name": "custom",
        "dataset-path": folder / "prompts.jsonl",
        "num-prompts": requests,
        "max-concurrency": options.concurrency,
        "extra-body": json.dumps(body),
        "result-dir": folder,
        "result-filename": f"{name}.json",
    }
    command = [sys.executable, "-c", BENCH_SERVE]
    command += [word for key, value in flags.items() for word in (f"--{key}", value)]
    switches = ["--skip-tokenizer-init", "--disable-shuffle", "--save-result", "--disable-tqdm"]
    process = timed(command + switches, environment)
    found = json.loads((folder / f"{name}.json").read_text())
    return process | {"seconds": found["duration"], "tokens": found["total_output_tokens"]}


def by_stage(folder: Path, name: str, url: str, options: argparse.Namespace, requests: int, environment: dict) -> dict:
    from lore.data_synth.synthesis.teacher_prompts import prompt_hash

    recipe = write_recipe(folder, name, url, options, requests)
    process = timed([sys.executable, "-m", "lore", "run", recipe], environment)
    answers = folder / "runs" / name / "answers"
    replies = [json.loads(line).get("reply") for path in answers.glob("*.jsonl") for line in path.read_text().splitlines()]
    replies = [reply for reply in replies if reply is not None]
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()[:requests]]
    if sorted(reply["prompt_hash"] for reply in replies) != sorted(map(prompt_hash, prompts)):
        raise LoreError(f"The stage sent {len(replies)} prompts, which differ from the {requests} prompts of the other clients.")
    seconds = json.loads((answers / "seconds.json").read_text())["seconds"]
    return process | {"seconds": seconds, "tokens": sum(reply["completion_tokens"] for reply in replies)}


def by_script(client: str, python: str) -> Callable[..., dict]:
    def run(folder: Path, name: str, url: str, options: argparse.Namespace, requests: int, environment: dict) -> dict:
        lines = (folder / "prompts.jsonl").read_text().splitlines(keepends=True)[:requests]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        job = {"url": url, "model": MODEL, "concurrency": options.concurrency, "tokens": options.tokens}
        job |= {"temperature": options.temperature, "prompts": str(folder / f"{name}.jsonl"), "out": str(folder / f"{name}.out")}
        (folder / f"{name}.json").write_text(json.dumps(job))
        process = timed([python, CLIENTS, client, folder / f"{name}.json"], environment)
        return process | json.loads((folder / f"{name}.out").read_text())

    return run


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """The rounds of each client, with CPU seconds without its start."""
    environment = {**os.environ, "LORE_RUNS": str(folder / "runs"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "TELEMETRY_ENABLED": "0", "CURATOR_CACHE_DIR": str(folder / "curator")}
    clients = {"bench": by_bench, "bare": by_script("bare", sys.executable), "lore": by_stage}
    if options.curator:
        clients["curator"] = by_script("curator", options.curator)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    prepare(folder, options.requests)
    with served(folder, options, environment) as url:
        clients["bare"](folder, "warm", url, options, options.requests, environment)
        few = {name: run(folder, f"{name}-few", url, options, FEW, environment) for name, run in clients.items()}
        names = list(clients)
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                row = clients[name](folder, f"{name}-{number}", url, options, options.requests, environment)
                if row["tokens"] != options.requests * options.tokens:
                    raise LoreError(f"{name} got {row['tokens']} tokens instead of {options.requests} x {options.tokens}.")
                extra = row["cpu_seconds"] - few[name]["cpu_seconds"]
                row["tokens_per_second"] = row["tokens"] / row["seconds"]
                row["cpu_per_1000"] = 1000 * extra / (options.requests - FEW)
                found[name].append(row)
                print(f"round {number + 1}: {name} {row['tokens_per_second']:,.0f} tokens/s", file=sys.stderr, flush=True)
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def report(found: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    shape = f"{options.requests} requests of {options.tokens} tokens, {options.concurrency} concurrent"
    table = Table(title=f"{shape}, {options.rounds} rounds: median (min - max)")
    for column in ("client", "tokens/s", "ratio to bench", "CPU s / 1,000 requests", "process s"):
        table.add_column(column, justify="right")
    summary = {"benchmark": "synthesize", "requests": options.requests, "tokens": options.tokens}
    summary |= {"concurrency": options.concurrency, "temperature": options.temperature, "clients": {}, "runs": found}
    for name, rows in found.items():
        ratios = [row["tokens_per_second"] / bench["tokens_per_second"] for row, bench in zip(rows, found["bench"], strict=True)]
        keys = ("tokens_per_second", "cpu_per_1000", "wall_seconds")
        line = {key: spread([row[key] for row in rows]) for key in keys} | {"ratio": spread(ratios)}
        summary["clients"][name] = line
        cells = [("tokens_per_second", ",.0f"), ("ratio", ".2f"), ("cpu_per_1000", ".2f"), ("wall_seconds", ".1f")]
        table.add_row(
            name, *(f"{line[key]['median']:{form}} ({line[key]['min']:{form}} - {line[key]['max']:{form}})" for key, form in cells)
        )
    Console(width=120).print(table)
    print(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each client, alternating")
    parser.add_argument("--requests", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=128, help="tokens per completion")
    parser.add_argument("--concurrency", type=int, default=32, help="concurrent requests")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--curator", metavar="PYTHON", help="interpreter of an environment with bespokelabs-curator")
    options = parser.parse_args()
    if options.requests <= FEW:
        parser.error(f"--requests must be greater than {FEW}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # also stops the server
    try:
        with TemporaryDirectory() as folder:
            report(measure(Path(folder), options), options)
    except LoreError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
