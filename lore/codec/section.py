"""The `prompt` section of recipes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lore.config.sections import StrictModel


class PromptSection(StrictModel):
    order: Literal["reason_first", "answer_first", "answer_only"]
    """Where the verdict stands: after the reason, before it, or alone."""
    detail: Literal["full", "retrieved", "tiers", "name"]
    """How much of the rubric the prompt holds: every rule, the rules nearest to query and item text, the tiers, or its
    name."""
    retrieved_rules: int = Field(12, ge=1)
    """For detail: retrieved, about so many rules; a dimension's rules come together."""
    photo: bool = True
    """Show the item's photo where there is one."""
    max_photo_pixels: int | None = Field(None, ge=784)
    """Larger photos are made smaller, in training and in every engine; none shows them as they are, and the model's
    processor decides how many tokens they take."""
    max_prompt_tokens: int = Field(2048, ge=16)
    """Longer prompts lose the description's end, then attributes, then the title's tail."""
    language: Literal["en", "zh"] = "en"
    """Language of the instructions."""
