"""Supervised fine-tuning of a judge with TRL's SFTTrainer and PEFT, on rationale and verdict, or on the verdict alone if a pair
has no rationale.

Differences from TRL's SFT script: no truncation, because it would silently remove a verdict at the end (a row that is too long
stops the run); and a fixed row order, so that any number of processes sees the same global batches.

    accelerate launch recipes/quickstart/sft.yaml
"""

from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from trl import SFTTrainer, pack_dataset

from lore.codec.prompt import PromptFormat
from lore.data.pair_source import PairSource
from lore.data.rejected_rows import RejectedWriter
from lore.data_synth.synthesis.tasks import read_tasks
from lore.run.devices import main_process_checks
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say, world_size
from lore.support.progress import track
from lore.train.common.arrow_rows import rendered_rows, write_rows
from lore.train.common.batch_order import balanced_repeats, training_order
from lore.train.common.checkpoint import save_weights
from lore.train.common.neighbors import check_lengths
from lore.train.common.prefix_groups import group_by_prefix
from lore.train.common.shared_prefix import SharedPrefix
from lore.train.common.trainer import Recorder, set_steps, sft_arguments, total_steps, train
from lore.train.judge.collator import PhotoCollator, any_photo
from lore.train.judge.dry_pass import check_training
from lore.train.judge.rows import TEXT_SCHEMA, VISION_SCHEMA, rejection_of, sft_row, takes_photos, task_row
from lore.train.judge.session import Start, begin, complete_model, judge_lora, rejected_rows, trained_model
from lore.train.sft.config import SFTRecipe
from lore.train.sft.packing_check import check_flattening
from lore.train.sft.preflight import memory_line, preflight


def run(recipe: SFTRecipe, folder: RunFolder) -> None:
    """Trains, then saves the adapter (or the full model), the processor and the judge's card in <run>/model."""
    start = begin(recipe)
    processor, fmt = start.processor, start.fmt
    vision = takes_photos(processor, fmt)
    args = sft_arguments(recipe.train, folder, 1, recipe.seed, bf16=start.bf16, vision=vision, cpu=start.device == "cpu")
    with args.main_process_first(local=False, desc="training rows"):
        rows = load_rows(recipe, folder, start)
        drawn = rows_of_a_book(folder, args.per_device_train_batch_size)
    repeats = balanced_repeats(rows["tier"][:]) if recipe.class_weights == "balanced" else None
    data = rows
    if recipe.train.packing:
        with args.main_process_first(local=False, desc="packing"):
            data, repeats = packed(rows, repeats, recipe.train.max_tokens), None
    steps = total_steps(recipe.train, len(data) if repeats is None else sum(repeats))
    set_steps(args, recipe.train, steps)
    model = trained_model(recipe, start)
    lora = judge_lora(recipe, model)
    alone = args.per_device_train_batch_size == 1 and not args.padding_free

    def neighbors() -> None:
        check_lengths(model.config, rows["length"][:], alone=alone)

    check_training(recipe, folder, start, model, args, steps=steps, neighbors=neighbors, rows=rows)
    if args.padding_free:
        main_process_checks(lambda: check_flattening(model, rows))  # under FSDP only the main process has the weights
    books = None if recipe.train.packing else [book or "" for book in data["book"][:]]
    micro = args.per_device_train_batch_size
    order = training_order(data["length"][:], recipe.train.batch_size, steps, recipe.seed, repeats, groups=books, run=drawn)
    order = group_by_prefix(order, data, recipe.train, micro, model, lora)
    columns = ["prompt", "completion", "images"] if vision else ["input_ids", "labels"]
    columns += ["seq_lengths"] if recipe.train.packing else []
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=data.select_columns(columns).select(order),
        processing_class=processor if vision else getattr(processor, "tokenizer", processor),
        data_collator=photo_collator(processor, rows, fmt) if vision else None,
        peft_config=lora,
    )
    sharing = SharedPrefix(
        trainer, not args.padding_free and recipe.train.shared_prefix, getattr(processor, "tokenizer", processor)
    )
    if is_main_process():
        memory = memory_line(trainer, sharing, data["length"][:], order)
        sequences = len(data) if repeats is None else sum(repeats)
        preflight(recipe, rows, trainer.model, processor, steps, sequences=sequences, memory=memory)
    recorder = Recorder(folder, "sft", keep=recipe.train.keep_checkpoints, on_saved=start.write_card)
    seconds = train(trainer, recorder, folder, recipe)
    save_weights(trainer, folder / "model")
    if is_main_process():
        complete_model(folder, start)
        summary = {"rows": len(rows), "rejected": rejected_rows(folder), "steps": steps, "loss": folder.last_record("loss")["loss"]}
        folder.finish({**summary, "train_seconds": round(seconds, 2), "model": str(folder / "model")})


def rows_of_a_book(folder: RunFolder, micro: int) -> int:
    """How many rows of one rule book are drawn together: a micro-batch of the run's first start. A run that resumes with another
    one, or on another number of processes, has to visit its rows in the same order."""
    if "rows_of_a_book" not in folder.fingerprints:
        folder.note(rows_of_a_book=micro)  # by the main process, which is the first
    return folder.fingerprints["rows_of_a_book"]


def photo_collator(processor: Any, rows: datasets.Dataset, fmt: PromptFormat) -> PhotoCollator:
    """The collator for rows with photos. With several processes, every batch gets a photo if any training row has one."""
    return PhotoCollator(processor, always_photo=world_size() > 1 and any_photo(rows), max_photo_pixels=fmt.max_photo_pixels)


def load_rows(recipe: SFTRecipe, folder: RunFolder, start: Start) -> datasets.Dataset:
    """The training rows, rendered once by the main process and memory-mapped by all processes."""
    path, fmt, processor = folder / "data" / "rows.arrow", start.fmt, start.processor
    nothing = (
        f"no training rows for {path}: the data section selects no labeled pair.\n"
        "Check data.path, data.split, data.slices and data.limit with `lore data stats`."
    )
    if is_main_process():
        source = PairSource(recipe.data, folder)
        folder.note(data_fingerprint=source.fingerprint, **start.hashes)
        if not path.is_file():
            schema = VISION_SCHEMA if takes_photos(processor, fmt) else TEXT_SCHEMA
            with RejectedWriter(folder / "rows.arrow", folder / "rejected.jsonl") as rejected:
                judging = _pair_rows(recipe, source, fmt, processor, rejected)
                rows = rejected.before(chain(judging, _task_rows(recipe, source, fmt, processor)))
                write_rows(rows, schema, path, nothing=nothing)
            if rejected.count:
                say(f"{rejected.count:,} pairs were rejected; {rejected.path} lists them with their reasons")
    return rendered_rows(path)


def _pair_rows(recipe, source, fmt, processor, rejected):
    first, kept = None, 0
    for number, pair in enumerate(track(source.labeled(any_book=True), "rendering pairs"), 1):
        try:
            row = sft_row(pair, source.books.of(pair), fmt, processor)
        except LoreError as error:
            rejection = rejection_of(pair, error, str(source.path), number)
            first = first or rejection
            rejected.write(rejection)
            continue
        kept += 1
        yield _bounded(row, recipe)
    if first is not None and not kept:
        raise LoreError(f"None of the {rejected.count:,} pairs can be a training row. First rejected pair: {first}")


def _task_rows(recipe, source, fmt, processor):
    """Training rows of the auxiliary tasks."""
    for task in track(read_tasks([Path(file) for file in recipe.auxiliary], source.image_roots), "rendering tasks"):
        yield _bounded(task_row(task, fmt, processor), recipe)


def _bounded(row, recipe):
    if row["length"] > recipe.train.max_tokens:
        raise LoreError(
            f"pair {row['pair_id']}: prompt and answer have {row['length']} tokens, train.max_tokens is "
            f"{recipe.train.max_tokens}.\nTruncation would remove the verdict: raise train.max_tokens or lower "
            "prompt.max_prompt_tokens."
        )
    return row


def packed(rows: datasets.Dataset, repeats: list[int] | None, max_tokens: int) -> datasets.Dataset:
    """Rows packed into sequences of at most max_tokens with TRL's best-fit packing, with a column `length`."""
    chosen = rows if repeats is None else rows.select(np.repeat(np.arange(len(rows)), repeats))
    sequences = pack_dataset(chosen.select_columns(["input_ids", "labels"]), max_tokens, "bfd")
    return sequences.add_column("length", [sum(lengths) for lengths in sequences["seq_lengths"]])
