"""Supervised fine-tuning of a judge on TRL's SFTTrainer and PEFT: rationale and verdict where a pair has both, else the verdict.

Left out of TRL's own script: truncation (a verdict at the end would be lost without a word; a row that is too long stops the run),
random order (rows come in a fixed order of similar lengths, so one process and two see the same batches).

    accelerate launch recipes/quickstart/sft.yaml
"""

from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import set_seed
from trl import SFTTrainer

from lore.engines.loading import default_device, load_model, load_processor
from lore.errors import LoreError
from lore.folder import RunFolder, is_main_process
from lore.judgement import PromptFormat, renderer_hash
from lore.pairs import fingerprint, read_pairs
from lore.rubric import load_rubric
from lore.sources import materialise
from lore.train.config import SFTRecipe
from lore.train.loop import Recorder, total_steps, train, training_arguments
from lore.train.order import balanced_repeats, training_order
from lore.train.preflight import preflight
from lore.train.rows import TEXT_SCHEMA, VISION_SCHEMA, sft_row, write_rows


def run(recipe: SFTRecipe, folder: RunFolder) -> None:
    """Trains and leaves the adapter (or the whole model) and the processor in <run>/model."""
    set_seed(recipe.seed)
    state = PartialState(cpu=not torch.cuda.is_available())
    rubric = load_rubric(recipe.data.rubric)
    fmt = PromptFormat(**recipe.prompt.model_dump())
    processor = load_processor(recipe.model)
    vision = hasattr(processor, "tokenizer") and recipe.prompt.photo
    if hasattr(processor, "tokenizer") and not vision:
        processor = processor.tokenizer
    with state.main_process_first():
        rows = load_rows(recipe, folder, rubric, fmt, processor)
    device = default_device()
    model = load_model(recipe.model, device=device, for_training=True)
    steps = total_steps(recipe.train, len(rows))
    if is_main_process():
        preflight(recipe, rows, model, processor, steps)
    repeats = balanced_repeats(rows["tier"][:]) if recipe.class_weights == "balanced" else None
    order = training_order(rows["length"][:], recipe.train.batch_size, steps, recipe.seed, repeats)
    args = training_arguments(recipe.train, folder, steps, recipe.seed, bf16=model.dtype == torch.bfloat16, vision=vision, cpu=device == "cpu")
    columns = ["prompt", "completion", "images"] if vision else ["input_ids", "labels"]
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows.select_columns(columns).select(order), processing_class=processor,
                         peft_config=peft_config(recipe))
    train(trainer, Recorder(folder, "sft"), folder)
    trainer.save_model(str(folder / "model"))
    state.wait_for_everyone()
    if is_main_process():
        load_processor(recipe.model).save_pretrained(folder / "model")
        last = folder.metrics()[-1]
        folder.finish({"rows": len(rows), "steps": steps, "loss": last["loss"], "model": str(folder / "model")})


def load_rows(recipe: SFTRecipe, folder: RunFolder, rubric: Any, fmt: PromptFormat, processor: Any) -> datasets.Dataset:
    """The training rows, rendered once by the main process and mapped into memory by all."""
    path = folder / "data" / "rows.arrow"
    vision = hasattr(processor, "tokenizer")
    if is_main_process():
        pairs = materialise(recipe.data, folder)
        folder.note(data_fingerprint=fingerprint(pairs), rubric_hash=rubric.hash, renderer_hash=renderer_hash(rubric, fmt))
        if not path.is_file():
            write_rows(_labelled(recipe, pairs, rubric, fmt, processor), VISION_SCHEMA if vision else TEXT_SCHEMA, path)
    rows = datasets.Dataset.from_file(str(path))
    return rows.cast_column("images", datasets.Sequence(datasets.Image())) if vision else rows


def _labelled(recipe, pairs, rubric, fmt, processor):
    from lore.progress import track

    wanted = set(recipe.data.slices or [])
    selected = (pair for pair in read_pairs(pairs, split=recipe.data.split, limit=None)
                if pair.label is not None and (not wanted or wanted & set(pair.slices)))
    for number, pair in enumerate(track(selected, "rendering pairs")):
        if recipe.data.limit is not None and number >= recipe.data.limit:
            return
        row = sft_row(pair, rubric, fmt, processor)
        if row["length"] > recipe.train.max_tokens:
            raise LoreError(f"pair {pair.pair_id}: prompt and answer take {row['length']} tokens, train.max_tokens is {recipe.train.max_tokens}.\n"
                            "A truncated row would lose its verdict: raise train.max_tokens or lower prompt.max_prompt_tokens.")
        yield row


def peft_config(recipe: SFTRecipe) -> Any:
    """The LoRA (or DoRA) of the recipe for PEFT; none trains every weight."""
    from peft import LoraConfig

    lora = recipe.model.lora
    if lora is None:
        return None
    return LoraConfig(r=lora.rank, lora_alpha=lora.scale_alpha, lora_dropout=lora.dropout, target_modules=lora.targets, use_dora=lora.dora,
                      modules_to_save=lora.modules_to_save or None, task_type="CAUSAL_LM")
