"""What every stage that trains a judge does first and last: the checked start, rows that the main process has rendered, and the
folder it leaves.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, set_seed

from lore.card import check_card, check_template, judge_card, write_card
from lore.engines.loading import default_device, load_model, load_processor, resolve_dtype
from lore.errors import LoreError
from lore.fingerprints import template_fingerprint
from lore.folder import RunFolder
from lore.judgement import PromptFormat, renderer_hash
from lore.rubric import Rubric, load_rubric
from lore.train.lora import freeze_photo_parts, freeze_weights

REFERENCE = "ref"  # TRL's name for the frozen copy of the adapter


@dataclass(frozen=True)
class Start:
    """What is known of a judge before its rows and its weights are read. hashes: facts for the run's manifest."""

    rubric: Rubric
    fmt: PromptFormat
    processor: Any
    card: dict[str, Any]
    hashes: dict[str, str]
    device: str
    bf16: bool


def begin(recipe: Any) -> Start:
    """Seeds everything and checks that the judge would be asked as it was trained. recipe: .seed .model .data .prompt"""
    set_seed(recipe.seed)
    rubric = load_rubric(recipe.data.rubric)
    fmt = PromptFormat(**recipe.prompt.model_dump())
    renderer = renderer_hash(rubric, fmt)
    check_card(recipe.model, renderer, "model")
    processor = load_processor(recipe.model)
    check_template(recipe.model, processor, "model")
    template = template_fingerprint(processor)
    card = judge_card(recipe, renderer, rubric.hash, template)
    device = default_device()
    bf16 = resolve_dtype(recipe.model.dtype, device) == torch.bfloat16
    hashes = {"rubric_hash": rubric.hash, "renderer_hash": renderer, "template": template}
    return Start(rubric, fmt, processor, card, hashes, device, bf16)


def trained_model(recipe: Any, start: Start) -> Any:
    """The judge's weights, as training wants them. After the trainer's arguments: DeepSpeed's stage 3 has to know that weights
    are shared out while they are loaded."""
    model = load_model(recipe.model, device=start.device, for_training=True)
    if not recipe.prompt.photo:
        freeze_photo_parts(model)
    freeze_weights(model, recipe.train.freeze)
    return model


def rendered_rows(path: Path) -> datasets.Dataset:
    """Rows that the main process has rendered, mapped into memory. Raises LoreError where it has left none."""
    if not path.is_file():
        raise LoreError(
            f"rank 0 has left no {path}: its message says why, or this machine does not see its folder.", same_on_every_rank=True
        )
    return datasets.Dataset.from_file(str(path))


def complete_model(recipe: Any, folder: RunFolder, card: dict[str, Any]) -> None:
    """Main process: puts processor and card beside the weights in <run>/model."""
    shutil.rmtree(folder / "model" / REFERENCE, ignore_errors=True)
    load_processor(recipe.model).save_pretrained(folder / "model")
    write_card(folder / "model", card)


class ReferenceStaysOut(TrainerCallback):
    """Takes the reference's copy of the adapter out of every checkpoint: where it finds one, transformers resumes from it and
    passes over the trained adapter. The start itself is the reference again when the run goes on."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            shutil.rmtree(Path(args.output_dir) / f"checkpoint-{state.global_step}" / REFERENCE, ignore_errors=True)


def rejected_rows(folder: RunFolder) -> int:
    """How many rows <run>/rejected.jsonl holds."""
    left_out = folder / "rejected.jsonl"
    return len(left_out.read_bytes().splitlines()) if left_out.is_file() else 0
