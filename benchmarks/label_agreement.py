"""One judge, the same pairs, every engine: the largest difference of a tier probability, and how many verdicts differ.

    python benchmarks/label_agreement.py                       a small text judge, trained on the spot; 1,000 pairs of the shop
    python benchmarks/label_agreement.py JUDGE --pairs PAIRS   a trained judge (run, model or exported folder), with photos if it
                                                               takes them

- transformers: the reference
- logprobs, pooling: vLLM in process, both ways of vllm.scoring
- endpoint: `lore serve judge`, which starts vLLM's OpenAI server, asked over HTTP

Every pair is scored right after the prompt, and pairs with a rationale again after it if the judge reasons first. Each engine
runs in a process of its own, one after another. Prints a table in Markdown.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

WAYS = ("transformers", "logprobs", "pooling", "endpoint")
TOLERANCE = 1e-3
START_SECONDS, CHUNK = 900, 250
REPO = Path(__file__).resolve().parents[1]


def train(folder: Path) -> Path:
    """A text judge that writes valid judgements, trained in half a minute."""
    sys.path.insert(0, str(REPO / "tests"))
    import tiny

    os.environ["LORE_RUNS"] = str(folder / "runs")
    return tiny.make(folder / "tiny", hidden=64).judge("text")


def write_pairs(folder: Path, count: int, seed: int) -> Path:
    """Pairs of the embedded shop with their rationales, half of them with a photo."""
    from lore.data.parquet import PairWriter
    from lore.data_synth.shop.world import World

    with PairWriter(folder / "pairs" / "pairs.parquet") as writer:
        for pair in World(seed=seed).pairs("test", count):
            writer.write(pair)
    return folder / "pairs"


def ask(way: str, judge_path: str, base: str | None, pairs_path: str, count: int, out: str, url: str | None) -> None:
    """Scores the pairs with one engine and writes the probabilities: `plain` [pairs, tiers] and `reasoned` [pairs with a rationale,
    tiers]."""
    from dataclasses import replace

    from lore.codec.verdict_tokens import with_verdict_prefix
    from lore.data.parquet import read_pairs
    from lore.engines.config import EndpointSection, VllmSection
    from lore.engines.open_engine import open_engine
    from lore.judge.ask import render_chunk
    from lore.judge.served import served_name
    from lore.judge.trained import trained_judge

    judge = trained_judge(judge_path, base=base)
    model = judge.model.model_copy(update={"dtype": "float32"})
    if way == "endpoint":
        section = EndpointSection(url=url, model=served_name(judge), tokenizer=judge_path)
        engine = open_engine(section, judge.rubric)
    elif way == "transformers":
        engine = open_engine(model, judge.rubric, batch_tokens=4096)
    else:
        vllm = VllmSection(eager=True, kv_cache_gib=0.5, scoring=way)
        engine = open_engine(model, judge.rubric, vllm=vllm, only_scores=True)
    fmt = judge.fmt if engine.takes_images else replace(judge.fmt, photo=False)
    rows: dict[str, list] = {"plain": [], "reasoned": []}
    photos, began, pairs = 0, time.perf_counter(), list(read_pairs(pairs_path, limit=count))
    rationales = {pair.pair_id: pair.rationale for pair in pairs}
    for start in range(0, len(pairs), CHUNK):
        _, prompts, asked = render_chunk(pairs[start : start + CHUNK], engine, judge.rubric, fmt)
        photos += sum(verdict.photo == "seen" for verdict in asked)
        said = [rationales[verdict.pair_id] if fmt.order == "reason_first" else None for verdict in asked]
        both = [(prompt, text) for prompt, text in zip(prompts, said, strict=True) if text]
        rows["plain"].append(engine.score(prompts))
        rows["reasoned"].append(engine.score([with_verdict_prefix(prompt, fmt, engine.verdict, text) for prompt, text in both]))
    done = {"seconds": time.perf_counter() - began, "photos": photos, **vars(engine.usage)}
    np.savez(out, **{name: np.concatenate(found) for name, found in rows.items()}, done=json.dumps(done))


def serve(judge: str, base: str | None, port: int, log: Path) -> subprocess.Popen:
    """Starts the server and waits until it answers."""
    command = [sys.executable, "-m", "lore", "serve", "judge", judge, "--port", str(port), "vllm.eager=true"]
    command += ["vllm.kv_cache_gib=0.5", *(["--base", base] if base else [])]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return process
        except OSError:
            time.sleep(1)
    process.terminate()
    sys.exit(f"The server did not start:\n{log.read_text()[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", nargs="?", help="folder of a trained judge; default: a small text judge, trained on the spot")
    parser.add_argument("--base", help="base of an adapter, if it has moved since the training")
    parser.add_argument("--pairs", help="Parquet file or folder; default: pairs of the embedded shop")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--seed", type=int, default=0, help="of the pairs of the shop")
    parser.add_argument("--ask", nargs=2, metavar=("WAY", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        ask(args.ask[0], args.judge, args.base, args.pairs, args.count, args.ask[1], args.url)
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        judge = args.judge or str(train(folder))
        pairs = args.pairs or str(write_pairs(folder, args.count, args.seed))
        found = {}
        for way in args.ways:
            command = [sys.executable, __file__, judge, "--pairs", pairs, "--count", str(args.count)]
            command += ["--base", args.base] if args.base else []
            server = None
            if way == "endpoint":
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
                server = serve(judge, args.base, port, folder / "server.log")
                command += ["--url", f"http://127.0.0.1:{port}/v1"]
            try:
                subprocess.run([*command, "--ask", way, str(folder / f"{way}.npz")], check=True)
            finally:
                if server is not None:
                    server.terminate()
                    server.wait(60)
            with np.load(folder / f"{way}.npz") as file:
                found[way] = {key: file[key] for key in ("plain", "reasoned")} | {"done": json.loads(str(file["done"]))}
    for line in lines(found):
        print(line)


def lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """A table in Markdown."""
    reference, *others = found
    out = [
        f"| compared with {reference} | scored | pairs | photos | largest difference | other verdicts | cached |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in others:
        done = found[way]["done"]
        for key, words in (("plain", "after the prompt"), ("reasoned", "after a reason")):
            mine, theirs = found[way][key], found[reference][key]
            if not len(mine):
                continue
            difference, differing = np.abs(mine - theirs).max(), int((mine.argmax(1) != theirs.argmax(1)).sum())
            cached = f"{done['cached_tokens']:,} of {done['prompt_tokens']:,}"
            within = "" if difference <= TOLERANCE else f" (more than {TOLERANCE:g})"
            out.append(
                f"| {way} | {words} | {len(mine):,} | {done['photos']:,} | {difference:.1e}{within} | {differing} | {cached} |"
            )
    return out


if __name__ == "__main__":
    main()
