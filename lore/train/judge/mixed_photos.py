"""Forward passes of a batch in which some prompts have a photo and others none."""

from typing import Any

import torch

from lore.support.errors import LoreError
from lore.support.processes import world_size
from lore.train.common.trl_internals import PHOTO_INPUTS
from lore.train.judge.collator import PhotoCollator


def deepspeed_stage(trainer: Any) -> int:
    """DeepSpeed's ZeRO stage, 0 without DeepSpeed."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return plugin.zero_stage if plugin is not None else 0


def check_mixed_photos(shown: int, total: int, of: str, launch: str) -> None:
    """Raises LoreError where processes that share out weights would wait for a vision tower that only some of them run. of: what
    is counted; launch: configs that do it."""
    if world_size() == 1 or shown in (0, total):
        return
    raise LoreError(
        f"{shown:,} of {total:,} {of} show a photo, and as this is launched a process without one would wait for the others' "
        f"vision tower for ever.\nLaunch with {launch}, or take data.slices in which every pair has a photo, or set "
        "prompt.photo: false.",
        same_on_every_rank=True,
    )


def only_photos_shown(image_token_id: int, _: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A hook before a model's forward: a pass over prompts without photos, out of a batch that has some, gets an empty stack of
    them, on which models fail. The model may be wrapped, and its config another's then."""
    ids = options.get("input_ids")
    if ids is not None and options.get("pixel_values") is not None and not (ids == image_token_id).any():
        options = {name: value for name, value in options.items() if name not in PHOTO_INPUTS}
    return arguments, options


def unseen_photo(model: Any, processor: Any, accelerator: Any) -> torch.Tensor:
    """Zero, by way of a grey photo. A vision tower that runs in some processes only leaves DeepSpeed's processes with different
    gradients to add up, and they wait for one another for ever. model: with TRL's fused output layer."""
    batch = PhotoCollator(processor, always_photo=True)([])
    batch = {key: value.to(accelerator.device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    with accelerator.autocast():
        return 0 * model(**batch, fused_lm_head=True).log_probs.sum()
