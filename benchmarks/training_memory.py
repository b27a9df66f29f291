"""Peak memory of supervised fine-tuning, and what the line `memory per process` says before step 0.

    OMP_NUM_THREADS=1 python benchmarks/training_memory.py                      all sizes and ways
    OMP_NUM_THREADS=1 python benchmarks/training_memory.py --only 135M/lora     one of them

Each case is a run of the stage `sft` in a process of its own, on a CPU in float32: two steps of the shop's pairs with a model of random
weights. Measured is the peak of the resident memory above what the process holds when its libraries are imported and the rows are
rendered, just before it loads the model.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from models import make_tokenizer

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


def make_model(folder: Path, size: str, tokenizer, ids: dict) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

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


def measured(recipe: Path) -> tuple[float, float, str]:
    """(peak in GB, what the preflight says in GB, its line) of a run in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--run", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=recipe.parent, env=os.environ | {"COLUMNS": "400"})
    if done.returncode:
        sys.exit(f"{recipe} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    line = re.search(r"memory per process\W+(.*?)\W*$", done.stdout, re.MULTILINE).group(1)
    return json.loads(done.stdout.splitlines()[-1])["peak"] / 1e9, float(re.search(r"[\d.]+", line).group()), line


def run(recipe: Path) -> None:
    """Runs a recipe, and prints the bytes of its peak above those before the model is loaded."""
    from lore.run.runner import run_recipe
    from lore.train.sft import sft

    load, before = sft.trained_model, []

    def loading(*arguments):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        before.append(pages * resource.getpagesize())
        return load(*arguments)

    sft.trained_model = loading
    run_recipe(recipe)
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before[0]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="size or size/way, such as 135M/lora")
    parser.add_argument("--run", type=Path, help="of a recipe, in this process")
    chosen = parser.parse_args()
    if chosen.run:
        return run(chosen.run)
    from lore.data.parquet import PairWriter
    from lore.data_synth.shop.world import World

    with tempfile.TemporaryDirectory() as name:
        folder, world = Path(name), World(seed=0)
        with PairWriter(folder / "pairs.parquet") as writer:
            for pair in world.pairs("train", 8 * MICRO):
                pair.image = None
                writer.write(pair)
        tokenizer, ids = make_tokenizer(folder, world)
        print("| model | training | measured | said | ratio |\n|---|---|---|---|---|")
        for size in SIZES:
            for way in WAYS:
                if chosen.only and chosen.only not in (size, f"{size}/{way}"):
                    continue
                if not (folder / size).exists():
                    make_model(folder, size, tokenizer, ids)
                peak, said, line = measured(write_recipe(folder, size, way))
                print(f"| {size} | {way} | {peak:.2f} | {line} | {said / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
