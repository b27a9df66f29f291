"""Two stages that use only the training platform, without pairs and rubric: a causal language model with LoRA on TRL's SFTTrainer,
and a sequence classifier on transformers' Trainer, both on lines of plain text.

    python tests/train/common/text_stages.py FOLDER

makes a base model for each stage, trains run `whole`, and kills run `killed` with SIGKILL in the middle and resumes it. Each
training runs in a separate process, which checks at its end that no module of the relevance domain was imported.
"""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl import SFTTrainer

from lore.engines.config import ModelSection
from lore.engines.loading import load_model, load_processor
from lore.run.run_folder import RunFolder
from lore.support.processes import is_main_process
from lore.train.common.arrow_rows import rendered_rows, write_rows
from lore.train.common.batch_order import training_order
from lore.train.common.checkpoint import COMPLETE, save_weights
from lore.train.common.config import TrackedRecipe, TrainSection
from lore.train.common.lora import peft_config
from lore.train.common.trainer import Recorder, set_steps, sft_arguments, total_steps, train, training_arguments

DOMAIN = tuple(f"lore.{room}" for room in ("rubric", "data", "codec", "judge", "rewards"))
COLORS, THINGS = ("red", "green", "blue"), ("lamp", "chair", "shelf", "rug", "clock")
TRAIN = {"epochs": 2, "batch_size": 8, "micro_batch_size": 4, "lr": 1e-2, "log_every": 1, "save_every": 2}
BASE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LORA = {"rank": 2, "dropout": 0.1}  # dropout makes the result depend on the random state; BERT has dropout by default
STAGES = ("language_model", "classifier")
DIES_AT = 5  # of 8 steps, between two checkpoints


class TextRecipe(TrackedRecipe):
    stage: Literal["language_model", "classifier"]
    model: ModelSection
    train: TrainSection


class Trial(TrainerCallback):
    """Records the first step of a training, and kills the process with SIGKILL at a given step."""

    def __init__(self, notes: Path, dies: bool):
        self.notes, self.dies = notes, dies

    def on_train_begin(self, args, state, control, **kwargs):
        with open(self.notes, "a", encoding="utf-8") as file:
            file.write(f"{state.global_step}\n")

    def on_step_begin(self, args, state, control, **kwargs):
        if self.dies and state.global_step == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def texts() -> list[tuple[str, int]]:
    """Lines of different lengths, and the color in each line."""
    draw = random.Random(0)
    return [(" ".join([COLORS[n % 3], *draw.choices(THINGS, k=draw.randint(1, 6))]), n % 3) for n in range(32)]


def make_base(stage: str, folder: Path) -> None:
    """Writes a tokenizer without a chat template, and a model without the head that the stage trains."""
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *COLORS, *THINGS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    if stage == "language_model":
        LlamaForCausalLM(LlamaConfig(**BASE, **ids)).save_pretrained(folder)
    else:
        BertModel(BertConfig(**BASE, **ids)).save_pretrained(folder)


def rows_of(stage: str, tokenizer: Any, folder: RunFolder) -> Any:
    path, many = folder / "data" / "rows.arrow", stage == "language_model"
    if is_main_process() and not path.is_file():
        ids = [(tokenizer(text + " <eos>")["input_ids"], label) for text, label in texts()]
        kind = pa.list_(pa.int32()) if many else pa.int32()
        schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", kind), ("length", pa.int32())])
        write_rows(({"input_ids": row, "labels": row if many else label, "length": len(row)} for row, label in ids), schema, path)
    return rendered_rows(path)


def run(recipe: TextRecipe, folder: RunFolder, callbacks: list[TrainerCallback]) -> None:
    """The stage, in the order of steps given in lore.train.common.trainer."""
    set_seed(recipe.seed)
    tokenizer, writes = load_processor(recipe.model), recipe.stage == "language_model"
    if writes:
        args = sft_arguments(recipe.train, folder, 1, recipe.seed, bf16=False, vision=False, cpu=True)
    else:
        args = training_arguments(TrainingArguments, recipe.train, folder, 1, recipe.seed, bf16=False, cpu=True)
    with args.main_process_first(local=False, desc="rows"):
        rows = rows_of(recipe.stage, tokenizer, folder)
    steps = total_steps(recipe.train, len(rows))
    set_steps(args, recipe.train, steps)
    order = training_order(rows["length"][:], recipe.train.batch_size, steps, recipe.seed)
    more = {"args": args, "train_dataset": rows.select_columns(["input_ids", "labels"]).select(order), "callbacks": callbacks}
    if writes:
        model = load_model(recipe.model, device="cpu", for_training=True)
        lora = peft_config(recipe.model.lora, model)
        trainer = SFTTrainer(model=model, processing_class=tokenizer, peft_config=lora, **more)
    else:
        head = AutoModelForSequenceClassification
        model = load_model(recipe.model, device="cpu", for_training=True, auto_class=head, num_labels=len(COLORS))
        trainer = Trainer(model=model, processing_class=tokenizer, data_collator=DataCollatorWithPadding(tokenizer), **more)

    def note(checkpoint: Path) -> None:
        assert not (checkpoint / COMPLETE).exists()
        (checkpoint / "note.txt").write_text("beside the weights")

    recorder = Recorder(folder, recipe.stage, keep=recipe.train.keep_checkpoints, on_saved=note)
    train(trainer, recorder, folder, recipe)
    save_weights(trainer, folder / "model")
    folder.finish({"steps": trainer.state.global_step, "loss": folder.metrics()[-1]["loss"]})


def train_run(stage: str, root: Path, name: str, *, dies: bool) -> None:
    section = {"name": str(root / "base")} | ({"lora": LORA} if stage == "language_model" else {})
    recipe = TextRecipe.model_validate({"stage": stage, "run": name, "model": section, "train": TRAIN})
    folder = RunFolder.of(recipe)
    run(recipe, folder.open(recipe), [Trial(root / f"{name}_began.txt", dies)])
    known = sorted(module for module in sys.modules if module.startswith(DOMAIN))
    if known:
        raise AssertionError(f"training knows of the domain: {known}")


def in_a_process(ends: int, function: Any, *arguments: Any, **options: Any) -> None:
    """Runs the function in a forked process, which already has all imports. Raises if its exit status is not the expected one."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, kwargs=options)
    process.start()
    process.join()
    if process.exitcode != ends:
        raise SystemExit(f"{function.__name__}{arguments} ended with {process.exitcode}, expected {ends}")


if __name__ == "__main__":
    for stage in STAGES:
        root = Path(sys.argv[1]) / stage
        os.environ["LORE_RUNS"] = str(root / "runs")
        in_a_process(0, make_base, stage, root / "base")
        in_a_process(0, train_run, stage, root, "whole", dies=False)
        in_a_process(-signal.SIGKILL, train_run, stage, root, "killed", dies=True)
        (root / "metrics_when_killed.jsonl").write_bytes((root / "runs" / "killed" / "metrics.jsonl").read_bytes())
        in_a_process(0, train_run, stage, root, "killed", dies=False)
