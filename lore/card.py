"""The card beside a judge's weights: how it was trained to be asked. A run that would ask it differently stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lore.errors import LoreError
from lore.folder import write_atomic

if TYPE_CHECKING:
    from lore.train.config import SFTRecipe

CARD = "lore.json"


def judge_card(recipe: SFTRecipe, renderer: str, rubric: str) -> dict[str, Any]:
    """Renderer hash, rubric (hash and name), base model and prompt section of a judge in training."""
    return {
        "renderer_hash": renderer,
        "rubric_hash": rubric,
        "rubric": recipe.data.rubric,
        "base": recipe.model.name,
        "prompt": recipe.prompt.model_dump(),
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Stores the card beside the weights."""
    write_atomic(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def read_card(folder: str | Path | None) -> dict[str, Any] | None:
    """The card of a judge's folder; None for a model that is no judge, such as a base model or a hub id."""
    path = Path(folder or "") / CARD
    if not folder or not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def check_card(folder: str | Path | None, renderer: str, what: str) -> None:
    """Raises LoreError when the judge in `folder` was trained with another renderer_hash than `renderer`."""
    card = read_card(folder)
    if card is not None and card["renderer_hash"] != renderer:
        raise LoreError(
            f"{what}: {folder} was trained with renderer {card['renderer_hash']} and would now be asked with "
            f"{renderer}.\nIts answers would be worth little. It was trained with rubric {card['rubric']} and prompt "
            f"{card['prompt']}: use these, or train a judge for the new ones."
        )
