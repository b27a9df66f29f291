"""What a training run is about to do, printed and checked before step 0.

Stops a run whose loss would cover nothing or everything, and one whose renderer differs from the one its checkpoint was trained with.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lore.errors import LoreError
from lore.train.config import SFTRecipe
from lore.train.loop import micro_batch, world_size
from lore.train.rows import IGNORE

CARD = "lore.json"  # beside a judge's weights: how it has to be asked
SAMPLE_ROWS = 200


def preflight(recipe: SFTRecipe, rows: Any, model: Any, processor: Any, steps: int) -> None:
    """Prints rows, tokens, supervised share, steps, memory and one decoded row with its loss mask; raises LoreError on a bad mask."""
    share, supervised = supervised_share(rows, processor)
    micro, passes = micro_batch(recipe.train)
    trainable, total = parameter_counts(model, recipe)
    longest = max(rows["length"][:])
    table = Table(show_header=False, title="before step 0", title_justify="left")
    for name, value in {
        "rows": f"{len(rows):,}", "tokens": f"{sum(rows['length'][:]):,} (longest row {longest:,} of {recipe.train.max_tokens:,} allowed)",
        "supervised tokens": f"{share:.1%} (about {supervised:.0f} a row)", "truncated rows": "0 (a row that is too long stops the run)",
        "steps": f"{steps:,} of {recipe.train.batch_size} rows = {world_size()} processes x {passes} passes x {micro} rows",
        "passes over the rows": f"{steps * recipe.train.batch_size / len(rows):.2f}",
        "trained parameters": f"{trainable:,} of {total:,} ({trainable / total:.1%})",
        "memory a process, about": f"{estimate_gb(recipe, model, trainable, total, longest, micro):.2f} GB",
        "tiers": ", ".join(f"{tier} {count:,}" for tier, count in tier_counts(rows).items()),
    }.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(masked_sample(rows, processor))
    if share <= 0 or share >= 1:
        raise LoreError(f"{share:.0%} of the tokens carry loss. The model would learn {'nothing' if share <= 0 else 'to write prompts'}.\n"
                        "Every row needs a prompt without loss and an answer with it: check the chat template and prompt.order.")


def supervised_share(rows: Any, processor: Any) -> tuple[float, float]:
    """(share of tokens with loss, supervised tokens a row), over the first rows."""
    total = supervised = 0
    sample = rows.select(range(min(SAMPLE_ROWS, len(rows))))
    if "labels" in sample.column_names:
        for labels in sample["labels"]:
            total += len(labels)
            supervised += sum(label != IGNORE for label in labels)
    else:
        for length, prompt_length in zip(sample["length"], sample["prompt_length"], strict=True):
            total += length
            supervised += length - prompt_length
    return supervised / max(total, 1), supervised / len(sample)


def masked_sample(rows: Any, processor: Any) -> Text:
    """The first row as the model sees it: prompt dim, supervised answer green."""
    row = rows[0]
    tokenizer = getattr(processor, "tokenizer", processor)
    if "labels" in row:
        start = next(i for i, label in enumerate(row["labels"]) if label != IGNORE) if any(v != IGNORE for v in row["labels"]) else len(row["labels"])
        prompt, answer = tokenizer.decode(row["input_ids"][:start]), tokenizer.decode(row["input_ids"][start:])
    else:
        prompt, answer = row["prompt"], row["completion"]
    return Text.assemble(("one row, supervised part in green:\n", "bold"), (prompt, "dim"), (answer, "green"))


def tier_counts(rows: Any) -> dict[str, int]:
    tiers = rows["tier"][:]
    return {tier: tiers.count(tier) for tier in sorted(set(tiers))}


def parameter_counts(model: Any, recipe: SFTRecipe) -> tuple[int, int]:
    """(trained, all) parameters; a LoRA's are counted from the shapes of the layers it goes to."""
    total = sum(p.numel() for p in model.parameters())
    lora = recipe.model.lora
    if lora is None:
        return sum(p.numel() for p in model.parameters() if p.requires_grad), total
    head = model.get_output_embeddings()
    linear = [(name, m) for name, m in model.named_modules()
              if hasattr(m, "in_features") and m is not head and (lora.targets == "all-linear" or name.rpartition(".")[2] in _names(lora.targets))]
    return sum(lora.rank * (m.in_features + m.out_features) for _, m in linear), total


def estimate_gb(recipe: SFTRecipe, model: Any, trainable: int, total: int, longest: int, micro: int) -> float:
    """Rough memory of one process without sharding: weights, gradients and AdamW's two moments of what is trained, activations.

    Activations: about 16 values per token, layer and hidden unit, a twentieth of it with gradient checkpointing.
    """
    config = model.config.get_text_config()
    width = next(model.parameters()).element_size()
    activations = 16 * micro * longest * config.num_hidden_layers * config.hidden_size * width
    if recipe.train.gradient_checkpointing:
        activations /= 20
    return (total * (0.5 if recipe.model.quantize else width) + trainable * (width + 8) + activations) / 1e9


def _names(targets: str | list[str]) -> set[str]:
    return {targets} if isinstance(targets, str) else set(targets)


def write_card(folder: Path, recipe: SFTRecipe, renderer: str, rubric: str) -> None:
    """Stores how the judge was trained to be asked beside its weights."""
    card = {"renderer_hash": renderer, "rubric_hash": rubric, "rubric": recipe.data.rubric, "base": recipe.model.name,
            "prompt": recipe.prompt.model_dump()}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def check_card(folder: str | None, renderer: str, what: str) -> None:
    """Raises LoreError when the judge in `folder` was trained with another renderer than `renderer` (a renderer_hash)."""
    path = Path(folder or "") / CARD
    if folder is None or not path.is_file():
        return
    card = json.loads(path.read_text(encoding="utf-8"))
    if card["renderer_hash"] != renderer:
        raise LoreError(f"{what}: {folder} was trained with renderer {card['renderer_hash']} and would now be asked with {renderer}.\n"
                        f"Its answers would be worth little. It was trained with rubric {card['rubric']} and prompt {card['prompt']}: use these, "
                        "or train a judge for the new ones.")
