"""Prints what a preference run will train on, before step 0."""

from collections import Counter
from typing import Any

import numpy as np

from lore.support.console import Console, Table, Text
from lore.support.processes import world_size
from lore.train.common.lora import adapted_line
from lore.train.common.trainer import micro_batch
from lore.train.judge.session import parameter_counts
from lore.train.preference.config import DPORecipe, PreferenceRecipe
from lore.train.preference.rows import FIELDS


def preflight(recipe: PreferenceRecipe, rows: Any, trainer: Any, processor: Any, steps: int) -> None:
    """Prints preferences, lengths, tiers, losses, reference, steps and one decoded row."""
    table = Table(show_header=False, title="before step 0", title_justify="left")
    for name, value in overview(recipe, rows, trainer, steps).items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(shown_row(rows[0], recipe.stage, processor), soft_wrap=True)


def overview(recipe: PreferenceRecipe, rows: Any, trainer: Any, steps: int) -> dict[str, str]:
    """Name and value of every line of the table."""
    ids, sources, lengths = rows["pair_id"][:], Counter(rows["source"][:]), rows["length"][:]
    per_pair = Counter(Counter(ids).values())
    micro, passes = micro_batch(recipe.train)
    trained, _ = parameter_counts(trainer.model)
    tiers = Counter(rows["tier"][:])
    found = {
        "preferences": f"{len(rows):,} of {len(set(ids)):,} pairs ("
        + ", ".join(f"{pairs:,} with {count}" for count, pairs in sorted(per_pair.items())[:4])
        + ")",
        "from": ", ".join(f"{source} {count:,}" for source, count in sources.most_common(5)),
        "tiers": ", ".join(f"{tier} {count:,} ({count / len(rows):.0%})" for tier, count in sorted(tiers.items(), key=str)),
    }
    if isinstance(recipe, DPORecipe):
        means = [float(np.mean(rows[f"{name}_tokens"][:])) for name in FIELDS["dpo"]]
        found["tokens per answer"] = f"{means[0]:.1f} chosen, {means[1]:.1f} rejected on average"
        found["loss"] = " + ".join(f"{weight:g} {name}" for name, weight in recipe.loss.items()) + f", beta {recipe.beta:g}"
    else:
        good, tokens = np.array(rows["label"][:]), np.array(rows["completion_tokens"][:])
        weights = trainer.args.desirable_weight, trainer.args.undesirable_weight
        found["answers"] = f"{good.sum():,} good, weight {weights[0]:.2f}; {(~good).sum():,} bad, weight {weights[1]:.2f}"
        found["tokens per answer"] = f"{tokens[good].mean():.1f} good, {tokens[~good].mean():.1f} bad on average"
        found["loss"] = f"{recipe.loss}, beta {recipe.beta:g}"
    longest = f"{max(lengths):,} tokens of {recipe.train.max_tokens:,} allowed"
    return found | {
        "longest row": longest,
        "reference": reference(recipe),
        "steps": f"{steps:,} of {recipe.train.batch_size} = {world_size()} processes x {passes} accumulation steps x {micro} rows",
        "epochs": f"{steps * recipe.train.batch_size / len(rows):.2f}",
        "trained parameters": f"{trained:,}",
        "adapter": adapted_line(None, trainer.model),
    }


def reference(recipe: PreferenceRecipe) -> str:
    """Description of the reference model."""
    if recipe.model.adapter is not None:
        return "a frozen copy of the adapter"
    return "the model without the new adapter" if recipe.model.lora is not None else "a second, frozen copy of the model"


def shown_row(row: dict[str, Any], stage: str, processor: Any) -> Text:
    """Prompt and answers as the model reads them."""
    tokenizer = getattr(processor, "tokenizer", processor)
    prompt = row["prompt"] if "prompt" in row else tokenizer.decode(row["prompt_ids"])
    text = Text.assemble(("one row:\n", "bold"), (prompt, "dim"))
    for name in FIELDS[stage]:
        answer = row[name] if name in row else tokenizer.decode(row[f"{name}_ids"])
        title = name if stage == "dpo" else "good" if row["label"] else "bad"
        text.append(f"\n{title}: ", "bold")
        text.append(answer, "red" if title in ("rejected", "bad") else "green")
    return text
