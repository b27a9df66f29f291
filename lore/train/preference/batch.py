"""Collates preferences for TRL's trainers, and computes KTO's weights for good and bad answers."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from trl.trainer.dpo_trainer import DataCollatorForPreference, DataCollatorForVisionPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, DataCollatorForVisionUnpairedPreference

from lore.support.errors import LoreError
from lore.train.judge.collator import AnswerProcessor, PhotoCollator
from lore.train.preference.config import KTORecipe, PreferenceRecipe


def collator(recipe: PreferenceRecipe, processor: Any, photos: bool) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """TRL's collator for the stage. Photos are opened in the same way as by the engines."""
    dpo, divergence = recipe.stage == "dpo", recipe.stage == "kto" and recipe.loss == "kto"
    tokenizer = getattr(processor, "tokenizer", processor)
    if not photos:
        inner = (DataCollatorForPreference if dpo else DataCollatorForUnpairedPreference)(pad_token_id=tokenizer.pad_token_id)
    elif dpo:
        inner = DataCollatorForVisionPreference(AnswerProcessor(processor))
    else:
        inner = DataCollatorForVisionUnpairedPreference(AnswerProcessor(processor), calculate_kl=divergence)
    open_photo = PhotoCollator(processor, max_photo_pixels=recipe.prompt.max_photo_pixels).open_photo if photos else None

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        if divergence:
            rows = apart(rows)
        if photos:
            rows = [row | {"images": [open_photo(image) for image in row["images"]]} for row in rows]
        elif divergence:
            rows = [row | {"KL_completion_ids": rows[i - 1]["completion_ids"]} for i, row in enumerate(rows)]
        return inner(rows)

    return collate


def apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reorders the rows of a forward pass so that, if possible, adjacent rows (cyclically) belong to different pairs.

    KTO estimates the KL divergence on each prompt with the answer of the preceding row, which has to be an answer to another
    prompt.
    """
    times = Counter(row["pair_id"] for row in rows)
    grouped = sorted(rows, key=lambda row: (-times[row["pair_id"]], row["pair_id"]))
    places = [*range(0, len(rows), 2), *range(1, len(rows), 2)]
    return [row for _, row in sorted(zip(places, grouped, strict=True), key=lambda item: item[0])]


def kto_weights(recipe: KTORecipe, good: list[bool]) -> tuple[float, float]:
    """(weight of good answers, weight of bad answers).

    Weights that the recipe leaves out are chosen so that both kinds have the same total weight; if it sets neither, the smaller
    weight is 1. Raises LoreError if there are no good or no bad answers.
    """
    goods, bads = sum(good), len(good) - sum(good)
    if not goods or not bads:
        raise LoreError(
            f"There are {goods:,} good and {bads:,} bad answers, but KTO needs both.\n"
            "Widen preferences.pool.pass_rate, or add a table that has both."
        )
    desirable, undesirable = recipe.desirable_weight, recipe.undesirable_weight
    if desirable is None and undesirable is None:
        return max(1.0, bads / goods), max(1.0, goods / bads)
    if desirable is None:
        return undesirable * bads / goods, undesirable
    return desirable, desirable * goods / bads if undesirable is None else undesirable
