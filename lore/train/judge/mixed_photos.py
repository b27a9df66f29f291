"""Forward passes of batches where only some prompts have a photo."""

from typing import Any

import torch

from lore.support.errors import LoreError
from lore.support.processes import world_size
from lore.train.common.trl_internals import PHOTO_INPUTS, fused_logps
from lore.train.judge.collator import PhotoCollator


def deepspeed_stage(trainer: Any) -> int:
    """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return plugin.zero_stage if plugin is not None else 0


def check_mixed_photos(shown: int, total: int, of: str, launch: str) -> None:
    """Raises LoreError when processes with sharded weights would hang because only some of them run the vision tower.

    shown, total: how many of the `of` (such as prompts) have a photo. launch: configs to recommend.
    """
    if world_size() == 1 or shown in (0, total):
        return
    raise LoreError(
        f"{shown:,} of {total:,} {of} show a photo. With sharded weights every process must run the vision tower, so a batch "
        f"without photos would hang.\nLaunch with {launch}, or choose data.slices in which every pair has a photo, or set "
        "prompt.photo: false.",
        same_on_every_rank=True,
    )


def only_photos_shown(image_token_id: int, _: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook that removes empty photo inputs. TRL passes an empty stack for a micro-batch without photos from a batch
    that has some, and models fail on it. image_token_id is an argument because a wrapped model may have a different config."""
    ids = options.get("input_ids")
    if ids is not None and options.get("pixel_values") is not None and not (ids == image_token_id).any():
        options = {name: value for name, value in options.items() if name not in PHOTO_INPUTS}
    return arguments, options


def unseen_photo(model: Any, processor: Any, accelerator: Any) -> torch.Tensor:
    """A zero loss from a gray photo, so that the vision tower runs in every process. Under DeepSpeed, processes hang unless all of
    them reduce the same gradients. model: has TRL's fused output layer."""
    batch = PhotoCollator(processor, always_photo=True)([])
    batch = {key: value.to(accelerator.device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    with accelerator.autocast():
        return 0 * fused_logps(model, batch).sum()
