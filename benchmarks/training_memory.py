"""Peak memory of supervised fine-tuning, and what the line `memory per process` says before step 0.

    OMP_NUM_THREADS=1 python benchmarks/training_memory.py                      all sizes and ways
    OMP_NUM_THREADS=1 python benchmarks/training_memory.py --only 135M/lora     one of them

Each case is a run of the stage `sft` in a process of its own, on a CPU in float32: two steps of the shop's pairs with a model of
random weights. Measured is the peak of the resident memory above what the process holds before it makes the trainer: libraries and
rows. The weights are mapped from their file at that point, and not yet in memory.

The heap keeps freed memory and grows by more than the live tensors. Each case therefore runs twice: as users run it (`process`),
and with every tensor mapped by the system, so that only live tensors count (`tensors`).
"""

import argparse
import ctypes
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import torch
import yaml
from models import make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from lore.data.parquet import PairWriter
from lore.data_synth.shop.world import World
from lore.run.runner import run_recipe
from lore.support.allocator import M_MMAP_MAX, OWN
from lore.train.sft import sft

SIZES = {  # width, layers, heads, key heads, intermediate, vocabulary
    "5M": (256, 4, 4, 4, 683, 8_192),
    "30M": (384, 8, 6, 2, 1024, 32_768),
    "135M": (576, 30, 9, 3, 1536, 49_152),
}
WAYS = {
    "full": {},
    "full, accumulated": {"train": {"batch_size": 32}},
    "full, checkpointing": {"train": {"gradient_checkpointing": True}},
    "full, whole rows": {"train": {"shared_prefix": False}},
    "lora": {"model": {"lora": {"rank": 16}}},
    "lora, checkpointing": {"model": {"lora": {"rank": 16}}, "train": {"gradient_checkpointing": True}},
}
MICRO = 16
M_MMAP_THRESHOLD = -3  # of mallopt in glibc's malloc.h


def prepare(folder: Path, *sizes: str) -> None:
    """Writes pairs.parquet and the models, with a tokenizer trained on shop text."""
    world = World(seed=0)
    with PairWriter(folder / "pairs.parquet") as writer:
        for pair in world.pairs("train", 8 * MICRO):
            pair.image = None
            writer.write(pair)
    tokenizer, ids = make_tokenizer(folder, world)
    for size in sizes:
        width, layers, heads, key_heads, intermediate, vocabulary = SIZES[size]
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            intermediate_size=intermediate,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            **ids,
        )
        LlamaForCausalLM(config).save_pretrained(folder / size)
        tokenizer.save_pretrained(folder / size)


def write_recipe(folder: Path, size: str, way: str, steps: int = 2) -> Path:
    changed = WAYS[way]
    run = re.sub(r"\W+", "_", f"{size} {way}")
    recipe = {
        "stage": "sft",
        "run": run,
        "model": {"name": str(folder / size)} | changed.get("model", {}),
        "data": {"path": str(folder / "pairs.parquet"), "rubric": "shop"},
        "prompt": {"order": "answer_only", "detail": "name", "photo": False},
        "train": {"steps": steps, "batch_size": MICRO, "micro_batch_size": MICRO, "save_every": 0} | changed.get("train", {}),
    }
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def measured(recipe: Path, *, mapped: bool) -> tuple[float, float, str]:
    """(peak in GB, what the preflight says in GB, its line) of a run in a process of its own. mapped: by `run`."""
    shutil.rmtree(recipe.parent / "runs", ignore_errors=True)
    peak = apart(run, recipe, mapped)
    line = re.search(r"memory per process\W+(.*?)\W*$", recipe.with_suffix(".log").read_text(), re.MULTILINE).group(1)
    return peak / 1e9, float(re.search(r"[\d.]+", line).group()), line


def run(recipe: Path, mapped: bool) -> int:
    """Runs a recipe; returns the bytes of the peak above those before the trainer is made. mapped: the system maps each tensor."""
    trainer, before = sft.SFTTrainer, []

    def making(**options):
        before.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        return trainer(**options)

    sft.SFTTrainer = making
    if mapped:
        os.environ[OWN[1]] = str(10**6)  # a setting of the user's own, which the stage leaves as it is
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 10**6)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    os.environ["COLUMNS"] = "400"
    os.chdir(recipe.parent)
    with open(recipe.with_suffix(".log"), "w") as log, redirect_stdout(log):
        run_recipe(recipe)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before[0]


def apart(function, *arguments):
    """What a function returns in a process of its own, which has the libraries already."""
    context = multiprocessing.get_context("fork")
    out, into = context.Pipe(duplex=False)
    process = context.Process(target=lambda: into.send(function(*arguments)))
    process.start()
    into.close()
    try:
        return out.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__} {arguments} failed") from None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="size or size/way, such as 135M/lora")
    chosen = parser.parse_args()
    cases = [(size, way) for size in SIZES for way in WAYS if chosen.only in (None, size, f"{size}/{way}")]
    with tempfile.TemporaryDirectory() as name:
        apart(prepare, Path(name), *dict.fromkeys(size for size, _ in cases))
        print(
            "| model | training | tensors | process | said | said / tensors | said / process |\n|---|---|---|---|---|---|---|",
            flush=True,
        )
        for size, way in cases:
            recipe = write_recipe(Path(name), size, way)
            (tensors, said, line), (process, _, _) = measured(recipe, mapped=True), measured(recipe, mapped=False)
            numbers = f"{said / tensors:.2f} | {said / process:.2f}"
            print(f"| {size} | {way} | {tensors:.2f} | {process:.2f} | {line} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
