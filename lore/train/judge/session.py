"""The first and last steps of every stage that trains a judge: checks, rubric, processor and model; then the finished folder."""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback, set_seed

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat
from lore.engines.loading import default_device, load_model, load_processor, photo_parts, resolve_dtype
from lore.judge.card import check_card, check_template, judge_card, write_card
from lore.rubric.rubric import Rubric, load_rubric
from lore.run.launch_settings import mixed_precision
from lore.run.run_folder import RunFolder
from lore.support.fingerprint import template_fingerprint
from lore.train.common.frozen_weights import freeze_photo_parts, freeze_weights
from lore.train.common.lora import adapted_modules, adapter_size, peft_config
from lore.train.common.trl_internals import REFERENCE


@dataclass(frozen=True)
class Start:
    """Rubric, prompt format, processor and card of a judge, before rows and weights load.

    as_loaded: a copy of the processor that no trainer changes, to save at the end, when the base may be gone.
    hashes: fingerprints for the run's manifest.
    """

    rubric: Rubric
    fmt: PromptFormat
    processor: Any
    as_loaded: Any
    card: dict[str, Any]
    hashes: dict[str, str]
    device: str
    bf16: bool

    def write_card(self, checkpoint: Path) -> None:
        """Puts the judge's card into a checkpoint: `on_saved` of the Recorder."""
        write_card(checkpoint, self.card)


def begin(recipe: Any) -> Start:
    """Sets the seed and checks that the judge's prompts match its training and that the launcher keeps to model.dtype. recipe: has
    .seed, .model, .data and .prompt."""
    set_seed(recipe.seed)
    rubric = load_rubric(recipe.data.rubric)
    fmt = PromptFormat(**recipe.prompt.model_dump())
    renderer = renderer_hash(rubric, fmt)
    check_card(recipe.model, renderer, "model")
    processor = load_processor(recipe.model, chat=True)
    check_template(recipe.model, processor, "model")
    template = template_fingerprint(processor)
    card = judge_card(recipe, renderer, rubric.hash, processor)
    device = default_device()
    own = "bf16" if resolve_dtype(recipe.model.dtype, device) == torch.bfloat16 else "no"
    bf16 = mixed_precision(recipe.model.dtype, own) == "bf16"
    hashes = {"rubric_hash": rubric.hash, "renderer_hash": renderer, "template": template}
    return Start(rubric, fmt, processor, copy.deepcopy(processor), card, hashes, device, bf16)


def trained_model(recipe: Any, start: Start) -> Any:
    """The judge's model, ready for training. Create the training arguments first: ZeRO stage 3 shards weights while they load."""
    model = load_model(recipe.model, device=start.device, for_training=True)
    if not recipe.prompt.photo:
        freeze_photo_parts(model)
    freeze_weights(model, recipe.train.freeze)
    return model


def judge_lora(recipe: Any, model: Any) -> LoraConfig | None:
    """The recipe's LoRA config for a judge. Without photos in the prompt, it excludes the layers that only read photos."""
    unseen = [] if recipe.prompt.photo else [name for name, _ in photo_parts(model)]
    return peft_config(recipe.model.lora, model, left_out=unseen)


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trained, total) parameters, whole where DeepSpeed ZeRO-3 shards them."""
    sizes = [(p.requires_grad, getattr(p, "ds_numel", p.numel())) for p in model.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)


def new_lora_parameters(model: Any, recipe: Any) -> int:
    """Number of parameters that the recipe's new LoRA will train, from the shapes of the layers of a model without it."""
    lora, config = recipe.model.lora, judge_lora(recipe, model)
    adapters = sum(adapter_size(module, lora.rank, lora.dora) for _, module in adapted_modules(config, model))
    saved = [m for name, m in model.named_modules() if name.endswith(tuple(lora.modules_to_save))]
    once = {id(p): p for module in saved for p in module.parameters()}  # tied embeddings are trained as one weight
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in once.values())
    return adapters + whole


def complete_model(folder: RunFolder, start: Start) -> None:
    """Main process: saves processor and card next to the weights in <run>/model."""
    shutil.rmtree(folder / "model" / REFERENCE, ignore_errors=True)
    start.as_loaded.save_pretrained(folder / "model")
    write_card(folder / "model", start.card)


class ReferenceStaysOut(TrainerCallback):
    """Deletes the reference model's adapter from every checkpoint. Otherwise transformers would resume from it instead of the
    trained adapter. A resumed run rebuilds the reference from the initial adapter."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            shutil.rmtree(Path(args.output_dir) / f"checkpoint-{state.global_step}" / REFERENCE, ignore_errors=True)


def rejected_rows(folder: RunFolder) -> int:
    """Number of rows in <run>/rejected.jsonl."""
    left_out = folder / "rejected.jsonl"
    return len(left_out.read_bytes().splitlines()) if left_out.is_file() else 0
