"""Writes the training data of stage synthesize: the accepted pairs by split, the task files, and the card."""

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from lore.config.yaml_text import to_yaml
from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import PairWriter
from lore.data.photo_places import embedded
from lore.data_synth.synthesis.budget import Budget
from lore.data_synth.synthesis.config import SynthesizeRecipe, TeacherSection
from lore.data_synth.synthesis.dataset_card import card_text
from lore.data_synth.synthesis.summary import Counts
from lore.data_synth.synthesis.tasks import task_file
from lore.data_synth.synthesis.teacher_prompts import Prompts
from lore.data_synth.synthesis.trace import Trace, read_traces, trace_store
from lore.judge.chunk_store import in_chunks
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError

DEFAULT_SPLIT = "train"


def write_set(
    recipe: SynthesizeRecipe, folder: RunFolder, source: PairSource, budget: Budget, stamp: str, *, complete: bool
) -> Counts:
    """Writes the accepted pairs by split, the steps that are separate tasks, and the card."""
    out, counts, rubric = folder / "pairs", Counts(recipe.seed), source.rubric
    store = trace_store(folder.path, stamp)
    prompts = Prompts(rubric, recipe.language, recipe.prompts, recipe.max_photo_pixels)
    writers: dict[str, PairWriter] = {}
    with ExitStack() as files:
        tasks = [files.enter_context(task_file(folder / "tasks", step, prompts)) for step in dict.fromkeys(recipe.tasks)]
        for number, pairs in enumerate(in_chunks(source.labeled(), recipe.chunk_pairs)):
            if not store.is_current(number):
                if complete:
                    raise LoreError(f"{folder.path} has no traces of its chunk {number}. Run the recipe again to resume it.")
                continue
            for pair, trace in zip(pairs, read_traces(store, number), strict=True):
                counts.add(trace)
                kept = explained(pair, trace, recipe)
                if kept is None:
                    continue
                split = file_name(pair.split)
                if split not in writers:
                    writer = PairWriter(out / f"{split}.parquet", metadata=recipe.data.metadata())
                    writers[split] = files.enter_context(writer)
                kept = replace(kept, image=embedded(kept.image))
                writers[split].write(kept)
                for task in tasks if trace.accepted else ():
                    task.write(kept, trace)
    out.mkdir(exist_ok=True)
    for old in out.glob("*.parquet"):
        if old.stem not in writers:  # left from an earlier start that kept other pairs
            old.unlink()
    spent = [f"{budget.spent.tokens:,} tokens, {budget.spent.usd:.4f} US dollars, failed attempts included"]
    limits = [f"limit {key}: {value:g}" for key, value in recipe.budget.model_dump().items() if value is not None]
    teachers = [f"{role}: {described(section)}" for role, section in recipe.teachers().items()]
    text = card_text(
        counts,
        title=recipe.run,
        rubric=rubric,
        teachers=teachers,
        recipe=to_yaml(shown(recipe)),
        seconds=budget.seconds,
        budget=spent + limits,
        complete=complete,
        splits=sorted(writers),
        language=recipe.language,
    )
    write_atomic(out / "README.md", text)
    return counts


def file_name(split: str | None) -> str:
    """A split as a valid name of a file that is not hidden."""
    return re.sub(r"[^\w.-]", "_", split or "")[:100].lstrip(".") or DEFAULT_SPLIT


def explained(pair: Pair, trace: Trace, recipe: SynthesizeRecipe) -> Pair | None:
    """The pair with its reasoning. Without an accepted trace: None, or the pair with only its human label."""
    if not trace.accepted:
        bare = replace(pair, rationale=None, mismatch=None, rules=[], demands=[])
        return bare if recipe.unexplained == "keep" else None
    label = pair.label if recipe.label == "human" else trace.tier
    no_rules = "rules" in recipe.rationale.leave_out
    return replace(
        pair,
        label=label,
        rationale=trace.rationale,
        mismatch=None if no_rules else trace.mismatch,
        rules=[] if no_rules else trace.rules,
        demands=trace.demands,
    )


def shown(recipe: SynthesizeRecipe) -> dict[str, Any]:
    """The recipe as the card shows it to others: without server addresses, and with only the last part of paths."""
    values = recipe.resolved()
    for role in recipe.teachers():
        if values[role]["endpoint"] is not None:
            values[role]["endpoint"] |= {"url": "(not shown)", "tokenizer": last_part(values[role]["endpoint"]["tokenizer"])}
        if values[role]["model"] is not None:
            values[role]["model"] = {key: last_part(value) for key, value in values[role]["model"].items()}
    for section, key in (("data", "path"), ("facts", "path")):
        if values[section] is not None:
            values[section][key] = Path(values[section][key]).name
    values["reuse"] = [Path(path).name for path in values["reuse"]]
    values["prompts"], values["rationale"]["tokenizer"] = last_part(recipe.prompts), last_part(recipe.rationale.tokenizer)
    return values


def last_part(value: Any) -> Any:
    """The last part of a local path; the name of a model on the hub unchanged."""
    local = isinstance(value, str) and (value.startswith(("/", "~", ".")) or Path(value).exists())
    return Path(value).name if local else value


def described(section: TeacherSection) -> str:
    """One line that describes a teacher, without its server's address."""
    if section.kind == "program":
        return f"program {section.program}" + (f", {section.errors:.0%} of its answers wrong on purpose" if section.errors else "")
    name = last_part(section.endpoint.model if section.kind == "endpoint" else section.model.name)
    return f"{name} ({section.kind}), temperature {section.temperature:g}"
