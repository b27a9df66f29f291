"""Seconds per step of the grpo stage's trainer compared with plain TRL GRPO, in pairs of runs, with all additions turned off.

    python benchmarks/grpo.py                      3 pairs of runs, 6 steps of 64 completions each
    python benchmarks/grpo.py --pairs 1 --steps 2  a quick look
    python benchmarks/grpo.py --model 8b --pairs 1 --steps 3 --batch 32 --micro 4    on a GPU with 80 GB

Both trainers run in one process and use the same model with random weights, seed, prompts and rewards, so they sample the same
completions. The model is a small Llama of the quickstart's size with full fine-tuning, or LoRA on a model in the shape of Qwen3-8B
with the whole rubric in every prompt. The script verifies equal losses, rewards and lengths (in bfloat16 to 1e-2, because the
trainers sum in different orders). The time is `train_runtime` of the trainer. TRL gets the same rewards as one reward function.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
from pathlib import Path

from models import SIZES, make_model, prompt_section

GROUP, POOL = 8, 128
SAME = ("loss", "reward", "completions/mean_length", "entropy")


def prepare(folder: Path, size: str, steps: int, batch: int, micro: int) -> Path:
    """Writes model/, pairs.parquet, pool.parquet and the recipe."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lore.data.parquet import PairWriter
    from lore.data_synth.shop.world import World
    from lore.train.pool.pool import POOL_SCHEMA

    world, rows = World(seed=0), []
    make_model(folder, world, size)
    large = size != "small"
    with PairWriter(folder / "pairs.parquet") as writer:
        for pair in world.pairs("train", POOL):
            pair.image = None
            writer.write(pair)
            samples = [{"text": "", "tokens": 1, "tier": None, "truncated": False}]
            rows.append({"pair_id": pair.pair_id, "query": pair.query, "label": pair.label, "label_weight": 1.0, "slices": []})
            rows[-1] |= {"samples": samples, "pass_rate": 0.5, "confidence": 0.5, "agrees": True, "tier": pair.label}
    pq.write_table(pa.Table.from_pylist(rows, schema=POOL_SCHEMA), folder / "pool.parquet")
    recipe = {
        "stage": "grpo",
        "run": "grpo",
        "model": {"name": str(folder / "model"), **({"lora": {"rank": 16}} if large else {})},
        "data": {"path": str(folder / "pairs.parquet"), "rubric": "shop"},
        "prompt": prompt_section(size),
        "pool": {"path": str(folder / "pool.parquet")},
        "rollout": {"group": GROUP, "max_tokens": 128 if large else 48},
        "grpo": {"advantage_clamp": None, "mask_truncated": False},
        "train": {
            "steps": steps,
            "batch_size": batch,
            "micro_batch_size": micro,
            "lr": 1e-5,
            "log_every": 1,
            "save_every": 0,
            "max_tokens": 4096,
            "gradient_checkpointing": large,
        },
        "watch": {"every": 0, "preflight_prompts": 0},
    }
    path = folder / "grpo.yaml"
    path.write_text(json.dumps(recipe))
    return path


def set_up(path: Path, name: str):
    from lore.config.stages import load_recipe
    from lore.run.run_folder import RunFolder
    from lore.train.rl import setup

    recipe = load_recipe(path, [f"run={name}"])
    folder = RunFolder.of(recipe)
    folder.open(recipe)
    return setup.set_up(recipe, folder, recipe.grpo, loss_type=recipe.grpo.loss, scale_rewards=recipe.grpo.scale)


def ours(path: Path, number: int):
    """The trainer of the stage."""
    from lore.train.rl.grpo import GRPO
    from lore.train.rl.setup import shared_prefix, trainer_arguments

    setup = set_up(path, f"lore{number}")
    trainer = GRPO(**trainer_arguments(setup))
    trainer.sharing = shared_prefix(setup, trainer)
    return trainer


def plain(path: Path, number: int):
    """TRL's GRPOTrainer with the same setup."""
    from trl import GRPOTrainer

    from lore.train.judge.session import judge_lora
    from lore.train.rl.setup import prompt_rows

    setup = set_up(path, f"trl{number}")

    class Plain(GRPOTrainer):
        """Adds the prompt messages to each row, as a dataset of messages would."""

        def _generate_and_score_completions(self, inputs):
            shown = [{"prompt": setup.prompts.messages(one["row"]), "row": one["row"]} for one in inputs]
            return super()._generate_and_score_completions(shown)

    def reward(completions, completion_ids, row, **_) -> list[float]:
        texts = [one[0]["content"] for one in completions]
        answers = [
            setup.rewards.read(text, len(ids), truncated=ids[-1] not in trainer.eos_token_ids)
            for text, ids in zip(texts, completion_ids, strict=True)
        ]
        parts = setup.rewards.parts(answers, [setup.prompts.pairs[number] for number in row])
        return setup.rewards.totals(parts).tolist()

    trainer = Plain(
        model=setup.model,
        reward_funcs=reward,
        args=setup.args,
        train_dataset=prompt_rows(setup.order),
        processing_class=setup.start.processor,
        peft_config=judge_lora(setup.recipe, setup.model),
    )
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each trainer, alternating")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64, help="completions per step")
    parser.add_argument("--micro", type=int, default=32, help="completions per forward pass")
    parser.add_argument("--model", choices=SIZES, default="small")
    options = parser.parse_args()
    ratios, seconds, memory = [], {"lore": [], "trl": []}, {"lore": [], "trl": []}

    import torch

    gpu = torch.cuda.is_available()
    exact = 1e-2 if gpu else 1e-5
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["LORE_RUNS"] = str(Path(temporary) / "runs")
        path = prepare(Path(temporary), options.model, options.steps, options.batch, options.micro)
        for number in range(options.pairs):
            made = {"lore": ours, "trl": plain}
            logs = {}
            for name in ("lore", "trl") if number % 2 == 0 else ("trl", "lore"):
                if gpu:
                    torch.cuda.reset_peak_memory_stats()
                trainer = made[name](path, number)
                found = trainer.train().metrics["train_runtime"]
                seconds[name].append(found / options.steps)
                print(f"pair {number + 1}, {name}: {seconds[name][-1]:.2f} s per step", flush=True)
                logs[name] = [line for line in trainer.state.log_history if "loss" in line]
                del trainer
                gc.collect()
                if gpu:
                    memory[name].append(torch.cuda.max_memory_allocated() / 2**30)
                    torch.cuda.empty_cache()
            for mine, theirs in zip(logs["lore"], logs["trl"], strict=True):
                for key in SAME:
                    if abs(mine[key] - theirs[key]) > exact:
                        raise SystemExit(f"step {mine['step']}: {key} {mine[key]} in lore, {theirs[key]} in trl: they differ")
            ratios.append(seconds["lore"][-1] / seconds["trl"][-1])
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values):.2f} s per step ({min(values):.2f} to {max(values):.2f})")
    for name, values in memory.items():
        if values:
            print(f"{name}: at most {max(values):.1f} GiB allocated on the GPU")
    print(f"ratio: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), with the same completions in both")


if __name__ == "__main__":
    main()
