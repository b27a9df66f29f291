"""The `prompt` section of recipes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lore.config.sections import StrictModel
from lore.support.bounds import MAX_COUNT


class PromptSection(StrictModel):
    order: Literal["reason_first", "answer_first", "answer_only"]
    """Order of the answer: reason_first (reason, then verdict), answer_first (verdict, then reason), or answer_only (verdict
    without a reason)."""
    detail: Literal["full", "retrieved", "tiers", "name"]
    """How much of the rubric the prompt contains: full (every rule), retrieved (the rules that best match the texts of query and
    item), tiers (only the tiers), or name (only the rubric's name)."""
    retrieved_rules: int = Field(12, ge=1, le=100_000)
    """Approximate number of rules for detail: retrieved; the rules of a dimension are kept together."""
    photo: bool = True
    """Show the item's photo if it has one."""
    max_photo_pixels: int | None = Field(None, ge=784, le=MAX_COUNT)
    """Largest photo size in pixels (width times height). Larger photos are downscaled, in training and in every engine; null
    keeps the original size. The model's processor determines the number of tokens."""
    max_prompt_tokens: int = Field(2048, ge=16, le=MAX_COUNT)
    """Longest prompt in tokens. Longer prompts lose the end of the description, then attributes, then the end of the title."""
    language: Literal["en", "zh"] = "en"
    """Language of the judge's instructions."""
