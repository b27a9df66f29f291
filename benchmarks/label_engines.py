"""Pairs per second of the ways in which vLLM can read the tiers, in turns, on one machine.

    python benchmarks/label_engines.py                                    1,000 pairs, a small Llama with random weights
    python benchmarks/label_engines.py --model MODEL --pairs 200          a text model with a chat template, as it is
    python benchmarks/label_engines.py --ways pooling --block-sizes 32 64 128

- logprobs: one token is sampled, and the log-probabilities of the tier tokens are read (vllm.scoring logprobs)
- pooling: the last hidden state is returned, and the tiers' output rows give the logits (vllm.scoring pooling)
- classifier: vLLM's own conversion into a classifier (classifier_from_token), which LORE does not use

The prompts are those of benchmarks/label.py: a rubric of about 600 tokens, 20 items a query, sorted by query. All start as LORE
starts vLLM. Every way and block size (0: LORE's own) is a process that keeps its engine, and they are measured in turns, every
second turn in reverse order, each time with an empty prefix cache. Seconds are those of `score`, rendering included. CPU seconds are those
of the process and its children: on a shared machine they say more than the clock. Difference: of a tier probability, from the first
way. Numbers are medians over the turns.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from label import PROMPT, RUBRIC, write_inputs, write_judge

WAYS = ("logprobs", "pooling", "classifier")
LONGEST = 1280


def run(model: str, folder: str, way: str, block_size: int, pipe: Any) -> None:
    """Starts vLLM, then answers every message: a number of pairs is scored."""
    engine, score = start(model, way, block_size)
    prompts = rendered(Path(folder), engine)
    score(prompts[:1])
    pipe.send(len(prompts))
    while (count := received(pipe)) is not None:
        engine.llm.reset_prefix_cache()
        before, began, cpu = vars(engine.usage).copy(), time.perf_counter(), cpu_seconds()
        scores = score(prompts[:count])
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        used = {key: value - before[key] for key, value in vars(engine.usage).items()}
        pipe.send({"seconds": seconds, "cpu_seconds": cpu, "scores": scores, **used})
    engine.llm.llm_engine.engine_core.shutdown()  # multiprocessing waits for vLLM's processes at the end


def received(pipe: Any) -> int | None:
    """The next message; None at the end."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def start(model: str, way: str, block_size: int) -> tuple[Any, Any]:
    """The engine, and the function that scores."""
    import lore.engines.vllm as vllm_engine
    from lore.codec.verdict_tokens import verdict_tokens
    from lore.engines.chat import at_verdict
    from lore.engines.config import ModelSection, VllmSection
    from lore.engines.loading import load_processor
    from lore.rubric.rubric import load_rubric

    rubric, section = load_rubric(RUBRIC), ModelSection(name=model, dtype="float32")
    settings = VllmSection(eager=True, kv_cache_gib=1.0, max_model_tokens=LONGEST)
    plain = vllm_engine.engine_options

    def with_block_size(*args: Any, **options: Any) -> dict[str, Any]:
        return plain(*args, **options) | ({"block_size": block_size} if block_size else {})

    vllm_engine.engine_options = with_block_size
    if way != "classifier":
        engine = vllm_engine.VllmEngine.load(section, rubric, settings.model_copy(update={"scoring": way}), only_scores=True)
        return engine, engine.score
    LLM, _ = vllm_engine._import_vllm()
    from vllm import PoolingParams

    processor = load_processor(section, chat=True)
    ids = list(verdict_tokens(processor, rubric).tier_ids)
    over = {"classifier_from_token": processor.convert_ids_to_tokens(ids), "method": "no_post_processing"}
    options = with_block_size(section, settings, None, takes_images=False)
    llm = LLM(**options, runner="pooling", convert="classify", hf_overrides=over)
    engine = vllm_engine.VllmEngine(llm, processor, rubric, set())

    def score(prompts: list) -> np.ndarray:
        inputs = [engine._input(at_verdict(messages, engine.verdict.prefix_text)) for messages in prompts]
        results = llm.encode(inputs, PoolingParams(use_activation=False), pooling_task="classify", use_tqdm=False)
        for result in results:
            engine.usage.add(len(result.prompt_token_ids), result.num_cached_tokens, 0)
        logs = np.stack([result.outputs.data.double().numpy() for result in results])
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    return engine, score


def rendered(folder: Path, engine: Any) -> list:
    from lore.codec.prompt import PromptFormat, render
    from lore.data.parquet import read_pairs

    fmt = PromptFormat(**PROMPT)
    pairs = sorted(read_pairs(folder / "pairs"), key=lambda pair: pair.query)
    return [render(pair, engine.rubric, fmt, tokenizer=engine.tokenizer) for pair in pairs]


def cpu_seconds() -> float:
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id of a text model; default: a small Llama with random weights")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--block-sizes", nargs="+", type=int, default=[0], help="tokens a block of the prefix cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        if args.model is None:
            write_judge(Path(folder))
        else:
            (Path(folder) / "judge").symlink_to(Path(args.model).absolute(), target_is_directory=True)
        counts = write_inputs(Path(folder), args.pairs, args.seed)
        print(json.dumps(counts), file=sys.stderr)
        found = measure(args, folder)
    for line in lines(found, counts):
        print(line)
    if args.json:
        args.json.write_text(json.dumps({name: [{**turn, "scores": None} for turn in turns] for name, turns in found.items()}))


def measure(args: argparse.Namespace, folder: str) -> dict[str, list[dict[str, Any]]]:
    """Name of the way -> its turns."""
    spawn, pipes, found = multiprocessing.get_context("spawn"), {}, {}
    try:
        for way in args.ways:
            for block_size in args.block_sizes:
                here, there = spawn.Pipe()
                process = spawn.Process(target=run, args=(f"{folder}/judge", folder, way, block_size, there))
                process.start()
                there.close()
                pipes[f"{way}, blocks of {block_size}" if block_size else way] = here, process
                here.recv()  # EOFError: the process has ended; its error stands above
        for turn in range(args.turns):
            for name, (pipe, _) in list(pipes.items())[:: 1 if turn % 2 == 0 else -1]:
                pipe.send(args.pairs)
                found.setdefault(name, []).append(pipe.recv())
                print(f"turn {turn + 1}, {name}: {found[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    finally:
        for pipe, process in pipes.values():
            pipe.close()
            process.join()
    return found


def lines(found: dict[str, list[dict[str, Any]]], counts: dict[str, Any]) -> list[str]:
    """A table in Markdown."""
    first = next(iter(found.values()))[0]["scores"]
    cacheable = 1 - counts["unique_tokens"] / counts["prompt_tokens"]
    out = ["| way | pairs/s (lowest, highest) | CPU ms a pair (lowest, highest) | prompt tokens cached | largest difference |"]
    out += ["|---|---|---|---|---|"]
    for name, turns in found.items():
        speed = spread([len(first) / turn["seconds"] for turn in turns])
        cpu = spread([turn["cpu_seconds"] * 1000 / len(first) for turn in turns])
        cached = turns[-1]["cached_tokens"] / turns[-1]["prompt_tokens"]
        difference = max(np.abs(turn["scores"] - first).max() for turn in turns)
        out.append(f"| {name} | {speed} | {cpu} | {cached:.1%} of {cacheable:.1%} that repeat | {difference:.1e} |")
    return out


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}, {max(values):.1f})"


if __name__ == "__main__":
    main()
