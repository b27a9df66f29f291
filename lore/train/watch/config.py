"""The `watch` section of training recipes: what is probed while a judge trains, and what counts as collapse."""

from typing import Literal

from pydantic import Field

from lore.config.sections import StrictModel


class WatchSection(StrictModel):
    """Every few steps the judge in training answers a fixed set of labelled pairs, the probe."""

    every: int = Field(10, ge=0)
    """Steps between two watches; 0 switches them off. The first is before step 1, the last after the last step."""
    pairs: int = Field(64, ge=1)
    """Labelled pairs in the probe."""
    path: str | None = None
    """File of pairs the probe is taken from; none: the recipe's data.path."""
    split: str | None = "dev"
    """Split of that file the probe is taken from."""
    samples: int = Field(4, ge=1)
    """Answers sampled for each pair; pass@k is of so many."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of these answers."""
    batch_tokens: int = Field(16384, ge=1)
    """Tokens of the answers written at once, each with its prompt and padding; each costs the memory of its keys and values."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer in tokens; none: the limit of the stage."""
    best: Literal["macro_f1", "pass_at_1"] = "pass_at_1"
    """What picks the weights that are kept."""
    constant_share: float = Field(0.95, gt=0, le=1)
    """Collapse: this share of the verdicts is one and the same tier, unless the probe's labels are as uniform. 1 stops only
    where every verdict is the same."""
    length_share: float = Field(0.25, ge=0, lt=1)
    """Collapse: answers are shorter than this share of their length at the start. 0 switches it off."""
    entropy_floor: float = Field(0.001, ge=0)
    """Collapse: mean entropy of the sampled tokens, in nats, below this. 0 switches it off."""
    fall_points: float = Field(0.05, gt=0, le=1)
    """Collapse: the training reward has risen while the probe's Macro-F1 lies this far below its best ..."""
    fall_times: int = Field(3, ge=0)
    """... at so many watches in a row. 0 switches it off."""
    preflight_prompts: int = Field(32, ge=0)
    """Prompts that are answered and rewarded before step 1 of a stage with rollouts; 0 switches it off."""
