"""Trained tokens per CPU second of the sft stage compared with LLaMA-Factory, ms-swift and another checkout of LORE, in turns.

    OMP_NUM_THREADS=1 python benchmarks/sft_frameworks.py --llama-factory PYTHON --ms-swift PYTHON
    OMP_NUM_THREADS=1 python benchmarks/sft_frameworks.py --before CHECKOUT         the stage as it is in another checkout
    OMP_NUM_THREADS=1 python benchmarks/sft_frameworks.py ... --detail tiers        a part of the rubric in every prompt
    OMP_NUM_THREADS=1 python benchmarks/sft_frameworks.py ... --same-order          the frameworks visit rows in the stage's order

PYTHON is the interpreter of a virtual environment with that framework. All train the same model with random weights, with the same
LoRA, on the same rows (LLaMA-Factory gets token ids, ms-swift prompts and answers), for one epoch, in float32. Batch, micro-batch,
optimizer and schedule are the same. The script stops if they do not train on the same number of tokens and labels, or, with
--same-order, if the losses of the first step differ.

Seconds are the CPU seconds of transformers' `Trainer.train` (benchmarks/trainer_clock.py), on which all of them build. ms-swift
tokenizes its rows in there, the others before. Tokens are counted without padding.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from models import make_model
from sft import MAX_TOKENS, RANK, RATE

ROOT = Path(__file__).resolve().parents[1]
LORE, BEFORE, FACTORY, SWIFT = "lore", "lore before", "LLaMA-Factory", "ms-swift"
CLOSE = 1e-3  # relative difference of the losses of a first step; logs round to four digits


def prepare(folder: Path, chosen: argparse.Namespace) -> None:
    """Writes model/, pairs.parquet for the stage, ids/ for LLaMA-Factory and texts.jsonl for ms-swift, the last two in the stage's
    order of rows."""
    import datasets

    from lore.codec.judgement import render_answer
    from lore.codec.prompt import PromptFormat, render
    from lore.data.parquet import PairWriter
    from lore.data_synth.shop.world import World
    from lore.engines.chat import prompt_text
    from lore.train.common.batch_order import training_order
    from lore.train.judge.rows import gold, sft_row

    world = World(seed=0)
    if chosen.model == "small":
        tokenizer = make_model(folder, world)
    else:
        from transformers import AutoTokenizer

        sys.path.insert(0, str(ROOT / "tests"))
        import tiny

        shutil.copytree(tiny.make(folder / "tiny").text, folder / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    fmt, ids, texts = PromptFormat(**prompt_section(chosen)), [], []
    with PairWriter(folder / "pairs.parquet") as writer:
        for pair in world.pairs("train", chosen.steps * chosen.batch):
            pair.image = None
            writer.write(pair)
            row = sft_row(pair, world.rubric, fmt, tokenizer)
            ids.append({"input_ids": row["input_ids"], "attention_mask": [1] * row["length"], "labels": row["labels"]})
            prompt, _ = prompt_text(tokenizer, render(pair, world.rubric, fmt, tokenizer=tokenizer))
            answer = render_answer(gold(pair), world.rubric, fmt, tokenizer=tokenizer)
            texts.append({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]})
    order = training_order([len(row["input_ids"]) for row in ids], chosen.batch, chosen.steps, seed=0)
    datasets.Dataset.from_list([ids[row] for row in order]).save_to_disk(folder / "ids")
    (folder / "texts.jsonl").write_text("".join(json.dumps(texts[row]) + "\n" for row in order))


def prompt_section(chosen: argparse.Namespace) -> dict:
    return {"order": "reason_first", "detail": chosen.detail, "photo": False, "max_prompt_tokens": MAX_TOKENS}


def stage_command(folder: Path, run: str, chosen: argparse.Namespace) -> list:
    recipe = {
        "stage": "sft",
        "run": run,
        "seed": 0,
        "model": {"name": str(folder / "model"), "lora": {"rank": RANK, "alpha": 2.0 * RANK}},
        "data": {"path": str(folder / "pairs.parquet"), "rubric": "shop"},
        "prompt": prompt_section(chosen),
        "train": {
            "steps": chosen.steps,
            "batch_size": chosen.batch,
            "micro_batch_size": chosen.micro,
            "lr": RATE,
            "warmup": 0.0,
            "max_tokens": MAX_TOKENS,
            "save_every": 0,
        },
    }
    (folder / f"{run}.yaml").write_text(yaml.safe_dump(recipe))
    return ["lore", "run", folder / f"{run}.yaml"]


def trainer_arguments(folder: Path, run: str, chosen: argparse.Namespace) -> dict:
    """Arguments of transformers' Trainer, which both frameworks take, with the values that the stage has by default."""
    return {
        "output_dir": str(folder / run),
        "max_steps": chosen.steps,
        "per_device_train_batch_size": chosen.micro,
        "gradient_accumulation_steps": chosen.batch // chosen.micro,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_steps": 10,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
    }


def factory_command(folder: Path, run: str, chosen: argparse.Namespace) -> list:
    config = {
        "model_name_or_path": str(folder / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "template": "empty",
        "dataset": "rows",  # required, and ignored beside tokenized_path
        "tokenized_path": str(folder / "ids"),
        "cutoff_len": MAX_TOKENS,
        "disable_gradient_checkpointing": True,
        "disable_shuffling": chosen.same_order,
        **trainer_arguments(folder, run, chosen),
    }
    (folder / f"{run}.yaml").write_text(yaml.safe_dump(config))
    return ["llamafactory.cli", "train", folder / f"{run}.yaml"]


def swift_command(folder: Path, run: str, chosen: argparse.Namespace) -> list:
    options = {
        "model": folder / "model",
        "model_type": "llama",
        "template": "dummy",  # the prompt as it is, the answer and the end-of-sequence token
        "tuner_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "torch_dtype": "float32",
        "dataset": folder / "texts.jsonl",
        "split_dataset_ratio": 0,
        "max_length": MAX_TOKENS,
        "gradient_checkpointing": False,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": not chosen.same_order,
        **trainer_arguments(folder, run, chosen),
    }
    return ["swift.cli.sft", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def measure(folder: Path, run: str, python: str, command: list, environment: dict[str, str]) -> dict:
    """What benchmarks/trainer_clock.py writes about one run."""
    report = folder / f"{run}.json"
    words = [python, ROOT / "benchmarks" / "trainer_clock.py", report, *command]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode or not report.exists():
        sys.exit(f"{' '.join(map(str, words))} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return json.loads(report.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-factory", metavar="PYTHON", help="interpreter of an environment with llamafactory")
    parser.add_argument("--ms-swift", metavar="PYTHON", help="interpreter of an environment with ms-swift")
    parser.add_argument("--before", metavar="CHECKOUT", help="another checkout of LORE")
    parser.add_argument("--model", choices=("small", "tiny"), default="small", help="of the quickstart's size, or of the tests'")
    parser.add_argument("--detail", choices=("name", "tiers", "full"), default="name", help="of the rubric in the prompts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64, help="rows per optimizer step")
    parser.add_argument("--micro", type=int, default=16, help="rows per forward pass")
    parser.add_argument("--same-order", action="store_true", help="no shuffling: all visit rows in the stage's order")
    chosen = parser.parse_args()
    ways = {
        LORE: (sys.executable, stage_command, ROOT),
        BEFORE: (sys.executable, stage_command, chosen.before and Path(chosen.before).resolve()),
        FACTORY: (chosen.llama_factory, factory_command, None),
        SWIFT: (chosen.ms_swift, swift_command, None),
    }
    asked = {LORE: True, BEFORE: chosen.before, FACTORY: chosen.llama_factory, SWIFT: chosen.ms_swift}
    ways = {name: way for name, way in ways.items() if asked[name]}
    found: dict[str, list[dict]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, chosen)
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        outside |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "LORE_RUNS": str(folder / "runs")}
        outside |= {"HF_HOME": str(folder / "hub"), "MODELSCOPE_CACHE": str(folder / "modelscope")}
        for number in range(chosen.rounds):
            for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
                python, command, checkout = ways[name]
                run = f"{name.replace(' ', '-').lower()}-{number}"
                environment = outside | ({"PYTHONPATH": str(checkout)} if checkout else {})
                found[name].append(measure(folder, run, python, command(folder, run, chosen), environment))
                print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    expected = found[LORE][0]
    for name, runs in found.items():
        for run in runs:
            for key in ("tokens", "labels", "steps", "trained_parameters"):
                if run[key] != expected[key]:
                    sys.exit(f"{name} has {run[key]:,} {key.replace('_', ' ')}, and {LORE} has {expected[key]:,}; no comparison")
            if chosen.same_order and abs(run["losses"][0] / expected["losses"][0] - 1) > CLOSE:
                sys.exit(f"{name}: the loss of the first step is {run['losses'][0]}, not {expected['losses'][0]}; no comparison")
    size = f"{chosen.steps} steps of {chosen.batch} rows in micro-batches of {chosen.micro}, model {chosen.model}"
    print(f"{expected['tokens']:,} tokens, {expected['labels']:,} labels; {size}")
    for name, runs in found.items():
        rates = [run["tokens"] / run["cpu_seconds"] for run in runs]
        ratios = [run["cpu_seconds"] / ours["cpu_seconds"] for run, ours in zip(runs, found[LORE], strict=True)]
        print(
            f"{name}: {statistics.median(rates):,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f}); lore is "
            f"{statistics.median(ratios):.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"{max(run['padded_tokens'] for run in runs) / expected['tokens']:.2f} x the tokens with padding; "
            f"losses {runs[0]['losses'][0]:.4f} to {runs[0]['losses'][-1]:.4f}"
        )
        print("   ", ", ".join(f"{package} {number}" for package, number in runs[0]["versions"].items()))


if __name__ == "__main__":
    main()
