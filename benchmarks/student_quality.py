"""A student on human labels beside sentence-transformers' CrossEncoder with the same encoder, labels and training time.

    python benchmarks/student_quality.py recipes/crowdflower/distill.yaml student.encoder=FOLDER
    python benchmarks/student_quality.py recipes/crowdflower/distill.yaml student.encoder=FOLDER --seeds 0 1 2

For each seed the recipe trains its student in <run>-seed<N>. Then sentence_transformers' CrossEncoderTrainer trains a cross-encoder
on the tier of each training pair with CrossEntropyLoss, in random order, with its linear schedule, for as many steps of as many
pairs and with the same peak learning rate and texts as the student. --fields, --max-tokens, --epochs and --lr give it others.
The same functions measure both on the same test pairs. Start it with OMP_NUM_THREADS=1 to train with one thread; CPU seconds are
those of the training alone. What is finished is not trained again, so seeds may run at the same time.

Prints a table in Markdown: the mean over the seeds, each seed, and the difference of the means, paired by query. 95 % intervals
over queries.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import CrossEntropyLoss

from lore.codec.pair_text import PairTextFormat, pair_texts
from lore.config.stages import load_recipe
from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.distill import distill
from lore.distill.config import DistillRecipe
from lore.distill.labels import Human, human_pairs
from lore.distill.table import METRICS, Verdicts, metric_draws, metric_titles, pairs_of_test
from lore.eval.measures.bootstrap import interval
from lore.eval.report.write import write_predictions
from lore.judge.verdict import Verdict, from_row
from lore.run.run_folder import RunFolder
from lore.run.runner import run_command
from lore.student.head import tier_probabilities

PLAIN = "sentence-transformers"
SPENT = "cpu_seconds.json"


def student(path: str, overrides: list[str], seed: int) -> tuple[DistillRecipe, RunFolder]:
    """The recipe's finished run with this seed."""
    recipe = load_recipe(path, overrides)
    own = [one for one in overrides if not one.startswith("run=")] + [f"seed={seed}", f"run={recipe.run}-seed{seed}"]
    recipe = load_recipe(path, own)
    folder, train_student = RunFolder.of(recipe), distill.train_student

    def timed(variant: Any, setup: Any) -> float:
        began = time.process_time()
        seconds = train_student(variant, setup)
        if seconds:
            spend(folder, variant.title, time.process_time() - began)
        return seconds

    distill.train_student = timed
    try:
        if status := run_command([path, *own]):
            sys.exit(status)
    finally:
        distill.train_student = train_student
    return recipe, folder


def spend(folder: RunFolder, name: str, seconds: float) -> None:
    """Keeps the CPU seconds of a training beside the run."""
    path = folder.path.with_name(f"{folder.path.name}.{SPENT}")
    spent = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(spent | {name: round(seconds, 1)}) + "\n")


def plain(recipe: DistillRecipe, folder: RunFolder, human: Human, args: argparse.Namespace) -> Verdicts:
    """Verdicts of the plain cross-encoder on the test pairs."""
    path = folder.path.with_name(f"{folder.path.name}.{PLAIN}.parquet")
    if not path.is_file():
        tiers, text = human.source.rubric.tier_ids, recipe.text.format()
        fmt = PairTextFormat(tuple(args.fields or text.fields), text.max_field_characters, args.max_tokens or text.max_tokens)
        position = human.train.position
        pairs = [pair for pair in read_pairs(human.source.path, split="train") if pair.pair_id in position]
        train = recipe.train
        steps = train.steps or int(train.epochs * len(pairs) / train.batch_size)
        lengths = {"max_steps": steps} if args.epochs is None else {"num_train_epochs": args.epochs}
        model = fit(recipe, pairs, fmt, tiers, args.lr or train.lr, lengths, folder)
        model.save_pretrained(str(folder.path.with_name(f"{folder.path.name}.{PLAIN}")))
        test = pairs_of_test(human)
        logits = model.predict([pair_texts(pair, fmt) for pair in test], show_progress_bar=False)
        found = zip(test, tier_probabilities(logits, "softmax"), strict=True)
        verdicts = {
            pair.pair_id: Verdict(pair.pair_id, tiers[int(row.argmax())], row.tolist(), source="student") for pair, row in found
        }
        write_predictions(path, {PLAIN: verdicts}, human.test, human.source.rubric)
    return stored(path, PLAIN, human)


def fit(
    recipe: DistillRecipe,
    pairs: list[Pair],
    fmt: PairTextFormat,
    tiers: list[str],
    lr: float,
    length: dict[str, float],
    folder: RunFolder,
) -> CrossEncoder:
    """sentence-transformers' CrossEncoder with one output per tier, trained on the pairs' tiers."""
    torch.manual_seed(recipe.seed)
    names = {"num_labels": len(tiers), "max_length": fmt.max_tokens}
    model = CrossEncoder(recipe.student.encoder, device="cpu", **names)
    queries, items = zip(*(pair_texts(pair, fmt) for pair in pairs), strict=True)
    labels = [tiers.index(pair.label) for pair in pairs]
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=str(folder.path.with_name(f"{folder.path.name}.{PLAIN}")),
            per_device_train_batch_size=recipe.train.batch_size,
            learning_rate=lr,
            warmup_steps=recipe.train.warmup,
            weight_decay=recipe.train.weight_decay,
            seed=recipe.seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=50,
            **length,
        ),
        train_dataset=Dataset.from_dict({"query": list(queries), "item": list(items), "label": labels}),
        loss=CrossEntropyLoss(model),
    )
    began = time.process_time()
    trainer.train()
    spend(folder, PLAIN, time.process_time() - began)
    return model.eval()


def stored(path: Path, name: str, human: Human) -> Verdicts:
    """The verdicts of one row of a predictions file."""
    rows = pq.read_table(path, filters=[("judge", "==", name)]).to_pylist()
    return {row["pair_id"]: from_row(row, human.source.rubric.tier_ids) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fields", nargs="+", help="fields of the item that the plain cross-encoder reads")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--lr", type=float)
    args = parser.parse_intermixed_args()
    found: dict[str, dict[str, list[tuple[float, np.ndarray]]]] = {}
    spent: dict[str, list[float]] = {}
    for seed in args.seeds:
        recipe, folder = student(args.recipe, args.overrides, seed)
        human = human_pairs(recipe, folder)
        names = pq.read_table(folder / "predictions.parquet", columns=["judge"])["judge"].unique().to_pylist()
        answers = {name: stored(folder / "predictions.parquet", name, human) for name in names}
        answers[PLAIN] = plain(recipe, folder, human, args)
        for name, verdicts in answers.items():
            for metric in METRICS:
                # One seed of the bootstrap for all, so that every row has the same draws of queries.
                drawn = metric_draws(verdicts, human.test, human.source.rubric, recipe.model_copy(update={"seed": 0}), metric)
                found.setdefault(name, {}).setdefault(metric, []).append(drawn)
        for name, seconds in json.loads(folder.path.with_name(f"{folder.path.name}.{SPENT}").read_text()).items():
            spent.setdefault(name, []).append(seconds)
    print_tables(found, spent, human, args.seeds)


def print_tables(found: dict, spent: dict[str, list[float]], human: Human, seeds: list[int]) -> None:
    test = human.test
    titles = metric_titles(len(human.source.rubric.tier_ids))
    print(f"{len(test):,} test pairs, {test.n_queries} queries; seeds {', '.join(map(str, seeds))}\n")
    print(f"| | {' | '.join(titles.values())} | CPU seconds of the training |\n|---|{'---|' * (len(titles) + 1)}")

    def shown(metric: str, values: list[tuple[float, np.ndarray]], sign: str = "") -> str:
        draws = np.mean([one for _, one in values], axis=0)
        estimate = interval(metric, float(np.mean([value for value, _ in values])), draws, test.n_queries)
        return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"

    for name, metrics in found.items():
        cpu = f"{np.mean(spent[name]):.0f}" if name in spent else "–"
        print(f"| {name} | {' | '.join(shown(metric, values) for metric, values in metrics.items())} | {cpu} |")
        for at, seed in enumerate(seeds if len(seeds) > 1 else []):
            print(f"| {name}, seed {seed} | {' | '.join(f'{values[at][0]:.3f}' for values in metrics.values())} | |")
    cells = []
    for metric, values in found["student"].items():
        if metric == "ece":  # its draws are shifted, see `interval`, and a difference of two has no such shift
            cells.append("–")
            continue
        pairs = zip(values, found[PLAIN][metric], strict=True)
        cells.append(shown(metric, [(a - b, one - other) for (a, one), (b, other) in pairs], "+"))
    print(f"| student minus {PLAIN} | {' | '.join(cells)} | |")


if __name__ == "__main__":
    main()
