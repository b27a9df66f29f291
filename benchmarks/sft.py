"""Trained tokens per second of the sft stage compared with TRL's `trl sft`, in pairs of runs, one after the other.

    python benchmarks/sft.py                      3 pairs of runs, 60 steps of 64 rows in micro-batches of 16
    python benchmarks/sft.py --pairs 1 --steps 4  a quick look
    python benchmarks/sft.py --model 8b --pairs 1 --steps 6 --batch 32 --micro 4    on a GPU with 80 GB

Both train the same model with the same LoRA for one epoch on the same rendered rows without photos: the stage from pairs, TRL from
a jsonl of prompts and completions. The model has random weights and is a small Llama of the quickstart's size, or has the shape of
Qwen3-8B with the whole rubric in every prompt. Optimizer, precision, batch size, micro-batch size and steps are the same. Tokens
are counted without padding. Seconds are `train_runtime` of each trainer; the table also shows the time of the whole process, in
which the stage also renders the rows.

The stage sorts the rows of a step by length, so its micro-batches need little padding; TRL uses a random order. This is the only
advantage of the stage: with --micro equal to --batch both need the same padding.

For 8b the script also prints the model FLOPs utilization relative to --peak and the GPU memory in use according to nvidia-smi. It
counts 4 FLOPs per weight and token: LoRA needs no gradients of the frozen weights, and recomputed activations are not counted.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from models import SIZES, gpu_memory, make_model, multiplied_weights, prompt_section

RATE, RANK, MAX_TOKENS = 1e-3, 16, 4096


def prepare(folder: Path, rows: int, size: str) -> int:
    """Writes model/, pairs.parquet and trl/train.jsonl. Returns the number of tokens in all rows."""
    from lore.codec.judgement import render_answer
    from lore.codec.prompt import PromptFormat, render
    from lore.data.parquet import PairWriter
    from lore.data_synth.shop.world import World
    from lore.engines.chat import prompt_text, turn_end
    from lore.train.judge.rows import gold, sft_row

    world = World(seed=0)
    tokenizer = make_model(folder, world, size)
    fmt = PromptFormat(**prompt_section(size))
    (folder / "trl").mkdir()
    tokens = 0
    with PairWriter(folder / "pairs.parquet") as writer, open(folder / "trl" / "train.jsonl", "w") as lines:
        for pair in world.pairs("train", rows):
            pair.image = None
            writer.write(pair)
            prompt, _ = prompt_text(tokenizer, render(pair, world.rubric, fmt, tokenizer=tokenizer))
            answer = render_answer(gold(pair), world.rubric, fmt, tokenizer=tokenizer) + turn_end(tokenizer)
            lines.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")
            tokens += sft_row(pair, world.rubric, fmt, tokenizer)["length"]
    return tokens


def write_recipe(folder: Path, run: str, size: str, steps: int, batch: int, micro: int) -> Path:
    path = folder / f"{run}.yaml"
    recipe = {
        "stage": "sft",
        "run": run,
        "model": {"name": str(folder / "model"), "lora": {"rank": RANK, "alpha": 2.0 * RANK}},
        "data": {"path": str(folder / "pairs.parquet"), "rubric": "shop"},
        "prompt": prompt_section(size),
        "train": {
            "steps": steps,
            "batch_size": batch,
            "micro_batch_size": micro,
            "lr": RATE,
            "warmup": 0.0,
            "max_tokens": MAX_TOKENS,
            "save_every": 0,
            "gradient_checkpointing": size != "small",
        },
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_config(folder: Path, run: str, size: str, steps: int, batch: int, micro: int) -> Path:
    """Writes the same settings as a config for TRL's command line."""
    import torch

    gpu = torch.cuda.is_available()
    path = folder / f"{run}.yaml"
    config = {
        "model_name_or_path": str(folder / "model"),
        "dtype": "bfloat16" if gpu else "float32",
        "dataset_name": str(folder / "trl"),
        "output_dir": str(folder / run),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "max_length": MAX_TOKENS,
        "use_peft": True,
        "lora_r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "lora_target_modules": "all-linear",
        "gradient_checkpointing": size != "small",
        "bf16": gpu,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "logging_steps": 10,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
    }
    path.write_text(yaml.safe_dump(config))
    return path


def timed(command: list, environment: dict[str, str]) -> tuple[str, dict[str, float]]:
    """Runs a process that must succeed. Returns its output, its seconds, and the peak GiB in use on the GPU (0 without a GPU)."""
    start = time.perf_counter()
    with gpu_memory() as used:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr, {"wall_seconds": time.perf_counter() - start, "gpu_gib": max(used, default=0.0)}


def run_stage(folder: Path, number: int, options: tuple, environment: dict[str, str]) -> dict[str, float]:
    name = f"stage{number}"
    _, costs = timed([sys.executable, "-m", "lore", "run", write_recipe(folder, name, *options)], environment)
    summary = json.loads((folder / "runs" / name / "done").read_text())
    return {"train_seconds": summary["train_seconds"], "loss": summary["loss"], **costs}


def run_trl(folder: Path, number: int, options: tuple, environment: dict[str, str]) -> dict[str, float]:
    config = write_config(folder, f"trl{number}", *options)
    program = Path(sys.executable).with_name("trl")
    output, costs = timed([program, "sft", "--config", config], environment)
    seconds = float(re.findall(r"'train_runtime': '?([\d.]+)", output)[-1])
    loss = float(re.findall(r"'loss': '?([\d.]+)", output)[-1])
    return {"train_seconds": seconds, "loss": loss, **costs}


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each trainer, alternating")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64, help="rows per optimizer step")
    parser.add_argument("--micro", type=int, default=16, help="rows per forward pass")
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--peak", type=float, default=989, help="peak dense bfloat16 TFLOP/s of the GPU")
    parsed = parser.parse_args()
    options = (parsed.model, parsed.steps, parsed.batch, parsed.micro)
    found: dict[str, list[dict[str, float]]] = {"lore": [], "trl": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokens = prepare(folder, parsed.steps * parsed.batch, parsed.model)
        weights = multiplied_weights(folder)
        environment = {
            **os.environ,
            "LORE_RUNS": str(folder / "runs"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        for number in range(parsed.pairs):
            found["lore"].append(run_stage(folder, number, options, environment))
            found["trl"].append(run_trl(folder, number, options, environment))
    rates = {name: [tokens / run["train_seconds"] for run in runs] for name, runs in found.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["lore"], rates["trl"], strict=True)]
    table = Table(title=f"{tokens:,} tokens, {parsed.steps} steps of {parsed.batch} rows in micro-batches of {parsed.micro}")
    for column in ("pair", "lore tokens/s", "trl tokens/s", "ratio", "lore process s", "trl process s"):
        table.add_column(column, justify="right")
    for number, ratio in enumerate(ratios):
        ours, theirs = found["lore"][number], found["trl"][number]
        cells = [f"{rates['lore'][number]:,.0f}", f"{rates['trl'][number]:,.0f}", f"{ratio:.2f}"]
        table.add_row(str(number + 1), *cells, f"{ours['wall_seconds']:.1f}", f"{theirs['wall_seconds']:.1f}")
    Console().print(table)
    spread = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
    summary = {"benchmark": "sft", "tokens": tokens, "steps": parsed.steps, "batch": parsed.batch}
    summary |= {"model": parsed.model, "micro": parsed.micro, "ratio": spread, "runs": found}
    if parsed.model != "small":
        for name, runs in found.items():
            used = statistics.median(rates[name]) * 4 * weights / parsed.peak / 1e12
            print(f"{name}: MFU {used:.3f} of {weights / 1e9:.2f} G weights, {max(run['gpu_gib'] for run in runs):.1f} GiB in use")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
