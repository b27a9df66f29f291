"""Prints and checks what a fine-tuning run will train on, before step 0.

Stops a run if the loss covers no token or every token. The supervised share and the displayed row come from collated batches, so
they show exactly what the model is trained on.
"""

from collections.abc import Iterator
from typing import Any

from lore.support.console import Console, Table, Text
from lore.support.errors import LoreError
from lore.support.processes import world_size
from lore.train.common.arrow_rows import IGNORE
from lore.train.common.lora import adapted_line
from lore.train.common.trainer import micro_batch
from lore.train.judge.collator import PhotoCollator
from lore.train.judge.session import judge_lora, parameter_counts
from lore.train.sft.config import SFTRecipe

SAMPLE_ROWS = 64
ADAM_BYTES = 8  # AdamW's two moments, in float32
ACTIVATION_VALUES = 16  # activations stored per token, layer and hidden unit
CHECKPOINTED = 1 / 20  # fraction of the activations that gradient checkpointing stores


def preflight(recipe: SFTRecipe, rows: Any, model: Any, processor: Any, steps: int, sequences: int) -> None:
    """Prints rows, tokens, supervised share, steps, memory and one decoded row with its loss mask.

    sequences: training sequences per epoch, after packing and repeating. Raises LoreError for an invalid loss mask.
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
    trainable, total = parameter_counts(model, recipe)
    limit = recipe.prompt.max_prompt_tokens
    longest = max(lengths) if not recipe.train.packing else recipe.train.max_tokens
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
        "adapter": adapted_line(judge_lora(recipe, model), model),
        "memory per process": f"about {estimate_mb(recipe, model, trainable, total, longest, micro):,.0f} MB",
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


def estimate_mb(recipe: SFTRecipe, model: Any, trainable: int, total: int, longest: int, micro: int) -> float:
    """Approximate memory (MB) of one process without sharding: weights, gradients and Adam moments if trained, activations."""
    config = model.config.get_text_config()
    width = next(model.parameters()).element_size()
    activations = ACTIVATION_VALUES * micro * longest * config.num_hidden_layers * config.hidden_size * width
    if recipe.train.gradient_checkpointing:
        activations *= CHECKPOINTED
    return (total * (0.5 if recipe.model.quantize else width) + trainable * (width + ADAM_BYTES) + activations) / 1e6
