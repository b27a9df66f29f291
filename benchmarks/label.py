"""Pairs per second of four ways to label the same pairs with the same model, in turns, on one machine.

    python benchmarks/label.py                                  5,000 pairs, one turn: about half an hour on two cores
    python benchmarks/label.py --pairs 1000 --turns 3
    python benchmarks/label.py --ways c d --json label.json

The model is a small Llama with random weights and a tokenizer trained on shop text; the rubric has about 600 tokens, a query has 20
items, and the rows stand in the order of a log, where queries alternate.

- a: transformers' generate in a loop of padded batches, greedy, 64 new tokens: the verdict and its rationale
- b: vLLM, input order, prefix caching off, one decoded token
- c: vLLM as it comes, input order, one decoded token
- d: `lore label --mode verdict --engine vllm`, the command
- t: the same command with --engine transformers

a, b and c get rendered prompts; d and t also read and plan the input, render it, commit label files, and write summary and
report. Each way is a process of its own. Start: its imports and the loading of its engine, which is reported apart. CPU seconds are
those of the process and its children after the start: on a shared machine they say more than the clock, above all with --threads 1,
because threads that wait for one another are slowed down most. Floor: the distinct prompt tokens (each prefix that prompts share
once) over the prompt tokens per second of b, by either clock.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models import make_tokenizer

WAYS, VLLM_WAYS = ("a", "b", "c", "d", "t"), ("b", "c", "d")
NAMES = {
    "a": "transformers, generate",
    "b": "vLLM, no prefix cache",
    "c": "vLLM as it comes",
    "d": "lore label",
    "t": "lore label, transformers",
}
GOALS = {"a": 10.0, "b": 3.0, "c": 1.3}
FLOOR_GOAL = 1.5
CLOCKS = ("seconds", "cpu_seconds")
RUBRIC, PROMPT = "crowdflower", {"order": "answer_first", "detail": "tiers", "photo": False, "max_prompt_tokens": 1024}
ITEMS_PER_QUERY, NEW_TOKENS, BATCH, LONGEST = 20, 64, 32, 1280
SHAPE = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 512}
VLLM = {"max_model_len": LONGEST, "kv_cache_memory_bytes": 2**30, "dtype": "float32", "seed": 0}


# --- the inputs -------------------------------------------------------------------------------------------------------------------


def write_judge(folder: Path) -> None:
    """A judge in `folder`/judge, with its card, but untrained."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lore.codec.judgement import renderer_hash
    from lore.codec.prompt import PromptFormat
    from lore.data_synth.shop.world import World
    from lore.judge.card import write_card
    from lore.rubric.rubric import load_rubric

    tokenizer, ids = make_tokenizer(folder, World(seed=0, photos=0.0))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=LONGEST, **SHAPE, **ids))
    model.save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    renderer = renderer_hash(load_rubric(RUBRIC), PromptFormat(**PROMPT))
    write_card(folder / "judge", {"renderer_hash": renderer, "rubric": RUBRIC, "prompt": PROMPT, "base": "random"})


def write_inputs(folder: Path, pairs: int, seed: int) -> dict[str, Any]:
    """Writes pairs/ and prompts.jsonl, in the same order. Returns counts of the prompts."""
    from transformers import AutoTokenizer

    from lore.codec.chat_template import text_ids
    from lore.codec.prompt import PromptFormat, render
    from lore.codec.verdict_tokens import verdict_tokens
    from lore.data.parquet import PairWriter
    from lore.data_synth.shop.world import World
    from lore.engines.chat import at_verdict, prompt_text
    from lore.rubric.rubric import load_rubric

    rng, world = random.Random(seed), World(seed=seed, photos=0.0)
    queries: list[str] = []
    made = []
    for pair in world.pairs("train", 4 * pairs):
        made.append(pair)
        if pair.query not in queries[-1:]:
            queries.append(pair.query)
    queries = list(dict.fromkeys(queries))[: -(-pairs // ITEMS_PER_QUERY)]
    titles = [pair.title for pair in made]
    rows = []
    for number in range(pairs):
        pair = made[number]
        pair.query, pair.pair_id, pair.item_id = queries[number % len(queries)], f"p{number}", f"i{number}"
        pair.description = ", ".join(rng.sample(titles, 5))
        rows.append(pair)
    rng.shuffle(rows)
    with PairWriter(folder / "pairs" / "pairs.parquet") as writer:
        for pair in rows:
            writer.write(pair)
    rubric, fmt, tokenizer = load_rubric(RUBRIC), PromptFormat(**PROMPT), AutoTokenizer.from_pretrained(folder / "judge")
    begin, ids = verdict_tokens(tokenizer, rubric).prefix_text, []
    with open(folder / "prompts.jsonl", "w") as lines:
        for pair in rows:
            messages = render(pair, rubric, fmt, tokenizer=tokenizer)
            plain, begun = prompt_text(tokenizer, messages)[0], prompt_text(tokenizer, at_verdict(messages, begin))[0]
            ids.append(text_ids(tokenizer, begun))
            lines.write(json.dumps({"prompt": plain, "verdict": begun}) + "\n")
    ids.sort()
    shared = [common(one, other) for one, other in zip(ids, ids[1:], strict=False)]
    total = sum(map(len, ids))
    return {"queries": len(queries), "prompt_tokens": total, "unique_tokens": total - sum(shared), "shared_by_all": min(shared)}


def common(one: list[int], other: list[int]) -> int:
    """Length of the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# --- the ways: each runs in a process of its own and writes what it measured --------------------------------------------------


class Meter:
    """Seconds and CPU seconds of this process and its children: of its start, and of the rest."""

    def __init__(self) -> None:
        import psutil

        self.process = psutil.Process()
        self.found: dict[str, Any] = {"start_seconds": 0.0, "start_cpu_seconds": 0.0}
        self._began = self._mark = self.process.create_time(), 0.0

    def _now(self) -> tuple[float, float]:
        children = self.process.children(recursive=True)
        times = [one.cpu_times() for one in (self.process, *children)]
        return time.time(), sum(one.user + one.system for one in times) + times[0].children_user + times[0].children_system

    def starting(self) -> None:
        """A start begins here. The process itself begins with one."""
        self._mark = self._now()

    def started(self) -> None:
        for key, was, now in zip(("start_seconds", "start_cpu_seconds"), self._mark, self._now(), strict=True):
            self.found[key] += now - was

    def ended(self) -> None:
        for key, was, now in zip(("seconds", "cpu_seconds"), self._began, self._now(), strict=True):
            self.found[key] = now - was - self.found[f"start_{key}"]


def by_generate(folder: Path, meter: Meter) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "judge", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder / "judge", dtype=torch.float32)
    prompts = [json.loads(line)["prompt"] for line in open(folder / "prompts.jsonl")]
    meter.started()
    answers = []
    for start in range(0, len(prompts), BATCH):
        inputs = tokenizer(prompts[start : start + BATCH], return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    meter.ended()
    meter.found["answers"] = len(answers)


def by_vllm(folder: Path, meter: Meter, **options: Any) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(str(folder / "judge"), **VLLM, **options)
    prompts = [json.loads(line)["verdict"] for line in open(folder / "prompts.jsonl")]
    meter.started()
    results = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)
    meter.ended()
    meter.found |= {"answers": len(results), "prompt_tokens": sum(len(one.prompt_token_ids) for one in results)}
    meter.found["cached_tokens"] = sum(one.num_cached_tokens or 0 for one in results)


def by_lore(folder: Path, meter: Meter, engine: str, out: Path) -> None:
    """The command, in this process, so that the start of its engine can be told apart."""
    import pyarrow.parquet as pq

    import lore.label.judge as judge
    from lore.cli.main import main as command

    package = "vllm" if engine == "vllm" else "transformers"
    for module in (package, f"lore.engines.{engine}", "lore.engines.loading", "lore.label.label"):
        import_module(module)  # belongs to the start, as in a, b and c
    meter.started()
    opened, found = judge.open_engine, meter.found

    def open_engine(*arguments: Any, **options: Any) -> Any:
        meter.starting()
        one = opened(*arguments, **options)
        meter.started()
        score, found["engine_seconds"] = one.score, 0.0

        def timed(prompts: list) -> Any:
            began = time.perf_counter()
            answers = score(prompts)
            found["engine_seconds"] += time.perf_counter() - began
            found["prompt_tokens"], found["cached_tokens"] = one.usage.prompt_tokens, one.usage.cached_tokens
            return answers

        one.score = timed
        return one

    judge.open_engine = open_engine
    sys.argv = ["lore", "label", str(folder / "pairs"), "--judge", str(folder / "judge"), "-o", str(out), "--mode", "verdict"]
    sys.argv += ["--engine", engine, "--store", "none"]
    if engine == "vllm":
        sys.argv += [f"judge.vllm.max_model_tokens={LONGEST}", f"judge.vllm.kv_cache_gib={VLLM['kv_cache_memory_bytes'] / 2**30}"]
    try:
        command()
    except SystemExit as end:
        if end.code:
            raise
    meter.ended()
    found["answers"] = sum(pq.read_metadata(file).num_rows for file in (out / "verdicts").glob("*.parquet"))


def run_way(way: str, folder: Path, result: Path) -> None:
    meter = Meter()
    if way == "a":
        by_generate(folder, meter)
    elif way == "b":
        by_vllm(folder, meter, enable_prefix_caching=False)
    elif way == "c":
        by_vllm(folder, meter)
    else:
        by_lore(folder, meter, "vllm" if way == "d" else "transformers", result.with_suffix(""))
    result.write_text(json.dumps(meter.found))


# --- turns and report ---------------------------------------------------------------------------------------------------------


def measure(folder: Path, ways: list[str], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The turns of each way, in an order that moves on by one each turn."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if options.threads:
        environment |= {"OMP_NUM_THREADS": str(options.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for turn in range(options.turns):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            result = folder / f"{way}-{turn}.json"
            command = [sys.executable, __file__, "--way", way, str(folder), str(result)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(f"{NAMES[way]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
            row = json.loads(result.read_text())
            if row["answers"] != options.pairs:
                sys.exit(f"{NAMES[way]} gave {row['answers']} answers to {options.pairs} pairs.")
            found[way].append(row)
            shown = f"{options.pairs / row['seconds']:.1f} pairs/s, start {row['start_seconds']:.0f} s"
            print(f"turn {turn + 1}: {NAMES[way]} {shown}", file=sys.stderr, flush=True)
    return found


def summed(found: dict[str, list[dict[str, Any]]], counts: dict[str, Any], pairs: int) -> dict[str, Any]:
    """Medians over the turns, ratios to d, and the floor."""
    ways = {}
    for way, rows in found.items():
        line = {key: statistics.median(row[key] for row in rows) for key in rows[0] if isinstance(rows[0][key], int | float)}
        line["pairs_per_second"] = pairs / line["seconds"]
        line["pairs_per_second_with_start"] = pairs / (line["seconds"] + line["start_seconds"])
        line["pairs_per_cpu_second"] = pairs / line["cpu_seconds"]
        if line.get("prompt_tokens"):
            line["hit_rate"] = line["cached_tokens"] / line["prompt_tokens"]
        ways[way] = line
    out: dict[str, Any] = {"ways": ways, "ratios": {}}
    if "d" in ways:
        for way in ways:
            keys = ("pairs_per_second", "pairs_per_second_with_start", "pairs_per_cpu_second")
            out["ratios"][way] = {key: ways["d"][key] / ways[way][key] for key in keys}
    if "b" in ways and "d" in ways:
        out["floor"] = {}
        for clock in CLOCKS:
            floor = counts["unique_tokens"] / (ways["b"]["prompt_tokens"] / ways["b"][clock])
            out["floor"][clock] = {"floor": floor, "d_over_floor": ways["d"][clock] / floor}
        out["floor"]["processed_over_unique"] = (ways["d"]["prompt_tokens"] - ways["d"]["cached_tokens"]) / counts["unique_tokens"]
    return out


def report(found: dict[str, Any], counts: dict[str, Any], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{options.pairs:,} pairs of {counts['queries']:,} queries, {counts['prompt_tokens'] / options.pairs:.0f} prompt tokens, "
    )
    title += f"{counts['shared_by_all']} of them in all, {options.turns} turns"
    table = Table("way", title=title)
    for column in ("pairs/s", "with start", "pairs/CPU s", "start s", "hit rate", "d is", "with start", "by CPU", "goal"):
        table.add_column(column, justify="right")
    for way, line in found["ways"].items():
        ratios = found["ratios"].get(way)
        table.add_row(
            f"{way}  {NAMES[way]}",
            f"{line['pairs_per_second']:.1f}",
            f"{line['pairs_per_second_with_start']:.1f}",
            f"{line['pairs_per_cpu_second']:.1f}",
            f"{line['start_seconds']:.0f}",
            f"{line['hit_rate']:.3f}" if "hit_rate" in line else "",
            *(f"{ratio:.2f} x" for ratio in (ratios or {}).values()),
            *([""] * (0 if ratios else 3)),
            f"{GOALS[way]:g} x" if way in GOALS else "",
        )
    console = Console(width=150)
    console.print(table)
    if "floor" in found:
        floor = found["floor"]
        both = ", ".join(
            f"{floor[c]['floor']:.1f} {c.replace('_', ' ')} (d / floor {floor[c]['d_over_floor']:.2f})" for c in CLOCKS
        )
        console.print(f"floor: {counts['unique_tokens']:,} distinct tokens at the rate of b: {both}; goal {FLOOR_GOAL}")
        console.print(f"d processed {floor['processed_over_unique']:.2f} times as many tokens as there are distinct ones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--turns", type=int, default=1, help="runs of each way")
    parser.add_argument("--seed", type=int, default=0, help="of pairs and their order")
    parser.add_argument("--threads", type=int, help="threads of each model; default: what the libraries choose")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="only these ways")
    parser.add_argument("--json", type=Path, default=Path("label.json"), help="file for the numbers")
    parser.add_argument("--way", nargs=3, metavar=("WAY", "FOLDER", "RESULT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        way, folder, result = options.way
        run_way(way, Path(folder), Path(result))
        return
    ways = list(options.ways)
    if find_spec("vllm") is None:
        print("b, c and d are left out: vLLM is not installed (lore doctor)", file=sys.stderr)
        ways = [way for way in ways if way not in VLLM_WAYS]
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_judge(folder)
        counts = write_inputs(folder, options.pairs, options.seed)
        rows = measure(folder, ways, options)
    found = summed(rows, counts, options.pairs)
    report(found, counts, options)
    whole = {
        "benchmark": "label",
        "pairs": options.pairs,
        "turns": options.turns,
        "threads": options.threads,
        "seed": options.seed,
        "prompts": counts,
    }
    options.json.write_text(json.dumps(whole | found | {"runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
