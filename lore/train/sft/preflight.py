"""Prints and checks what a fine-tuning run will train on, before step 0.

Stops a run if the loss covers no token or every token. The supervised share and the displayed row come from collated batches, so
they show exactly what the model is trained on.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lore.support.console import Console, Table, Text
from lore.support.errors import LoreError
from lore.support.processes import world_size
from lore.train.common.arrow_rows import IGNORE
from lore.train.common.lora import adapted_line
from lore.train.common.memory import estimate
from lore.train.common.shared_prefix import SharedPrefix
from lore.train.common.trainer import micro_batch
from lore.train.judge.collator import PhotoCollator
from lore.train.judge.session import parameter_counts
from lore.train.sft.config import SFTRecipe

SAMPLE_ROWS = 64


def preflight(recipe: SFTRecipe, rows: Any, model: Any, processor: Any, steps: int, sequences: int, memory: str) -> None:
    """Prints rows, tokens, supervised share, steps, memory and one decoded row with its loss mask.

    model: with its adapter. sequences: training sequences per epoch, after packing and repeating. memory: `memory_line`. Raises
    LoreError for an invalid loss mask.
    """
    sample = list(collated(rows, processor, recipe.prompt.max_photo_pixels))
    tokens = sum(len(ids) for ids, _ in sample)
    supervised = sum(label != IGNORE for _, labels in sample for label in labels)
    share = supervised / tokens
    lengths, cut = rows["length"][:], sum(rows["cut"][:])
    refused = sum(rows["photo_refused"][:]) if "photo_refused" in rows.column_names else 0
    reasoned = sum(rows["reasoned"][:])
    verdicts = "" if reasoned or recipe.prompt.order == "answer_only" else "; training on the verdict alone"
    micro, passes = micro_batch(recipe.train)
    trainable, total = parameter_counts(model)
    limit = recipe.prompt.max_prompt_tokens
    lines = {
        "rows": f"{len(rows):,}" + (f" in {sequences:,} sequences" if sequences != len(rows) else ""),
        "tokens": f"{sum(lengths):,} (longest row {max(lengths):,} of {recipe.train.max_tokens:,} allowed)",
        "supervised tokens": f"{share:.1%} (about {supervised / len(sample):.0f} per row)",
        "rationales": f"{reasoned:,} of {len(rows):,} rows{verdicts}",
        "photos skipped": f"{refused:,} that the model's processor rejects" if refused else "none",
        "truncated rows": f"{cut:,}{f' item texts cut to {limit:,} prompt tokens' if cut else ''}, 0 answers",
        "steps": f"{steps:,} of {recipe.train.batch_size} = {world_size()} processes x {passes} accumulation steps x {micro} rows",
        "epochs": f"{steps * recipe.train.batch_size / sequences:.2f}",
        "trained parameters": f"{trainable:,} of {total:,} ({trainable / total:.1%})",
        "adapter": adapted_line(None, model),
        "memory per process": memory,
        "tiers": ", ".join(f"{tier} {count:,}" for tier, count in tier_counts(rows).items()),
    }
    table = Table(show_header=False, title="before step 0", title_justify="left")
    for name, value in lines.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(masked_text(*sample[0], processor, color=console.color_system is not None), soft_wrap=True)
    if share <= 0 or share >= 1:
        raise LoreError(
            f"{share:.0%} of the tokens carry loss. The model would learn "
            f"{'nothing' if share <= 0 else 'to write prompts'}.\n"
            "In every row the loss has to cover the answer and not the prompt: check the chat template and prompt.order."
        )


def collated(
    rows: Any, processor: Any, max_photo_pixels: int | None = None, count: int = SAMPLE_ROWS
) -> Iterator[tuple[list[int], list[int]]]:
    """(token ids, labels) of the first `count` rows from the trainer's collator, without padding."""
    for row in rows.select(range(min(count, len(rows)))):
        if "labels" in row:
            yield row["input_ids"], row["labels"]
        else:
            batch = PhotoCollator(processor, max_photo_pixels=max_photo_pixels)([row])
            kept = batch["attention_mask"][0].bool()
            yield batch["input_ids"][0][kept].tolist(), batch["labels"][0][kept].tolist()


def masked_text(ids: list[int], labels: list[int], processor: Any, color: bool = True) -> Text:
    """One row as the model sees it: supervised parts green, the rest dim. Without color, supervised parts are in ⟦ ⟧."""
    tokenizer = getattr(processor, "tokenizer", processor)
    text = Text.assemble(("one row, supervised part " + ("in green:\n" if color else "in ⟦ ⟧:\n"), "bold"))
    start = 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and (labels[end] == IGNORE) == (labels[start] == IGNORE):
            continue
        part = tokenizer.decode(ids[start:end])
        if labels[start] == IGNORE:
            text.append(part, "dim")
        else:
            text.append(part if color else f"⟦{part}⟧", "green")
        start = end
    return text


def tier_counts(rows: Any) -> dict[str, int]:
    """Number of rows per tier."""
    tiers = rows["tier"][:]
    return {tier: tiers.count(tier) for tier in sorted(set(tiers))}


def memory_line(trainer: Any, sharing: SharedPrefix, lengths: list[int], order: np.ndarray) -> str:
    """The estimated memory of a process, with its parts, for the widest micro-batch of the run.

    lengths: tokens of each sequence; order: sequence numbers in the order of training.
    """
    micro = trainer.args.per_device_train_batch_size
    visited = np.asarray(lengths)[order].reshape(-1, micro)
    flat = sharing.asked or trainer.args.padding_free  # rows that share a prefix have no padding either
    widest = int((visited.sum(axis=1) if flat else visited.max(axis=1)).argmax())
    rows = [trainer.train_dataset[number] for number in range(widest * micro, (widest + 1) * micro)]
    batch = trainer.data_collator(rows)
    whole = estimate(trainer, batch)
    with sharing.expected() as shares:
        shared = estimate(trainer, batch) if shares else whole
    line = f"{shared}, beside the libraries" + (
        ", before it is sharded" if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled else ""
    )
    if shared.total < 0.95 * whole.total:
        line += f"; {whole.total / 1e9:.2f} GB if the model cannot share prefixes"
    return line
