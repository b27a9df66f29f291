"""The `rewards` section of recipes: weights of the reward components. Imports no torch."""

from collections.abc import Iterator

from pydantic import Field

from lore.config.sections import Conflict, StrictModel, Weight
from lore.support.bounds import MAX_COUNT, MAX_WEIGHT


class RewardsSection(StrictModel):
    """Weights of the reward components; 0 disables a component. The reward is the weighted mean, so only ratios matter."""

    verdict: Weight = 1.0
    """Weight of the verdict: 1 for the label, 0 for the most expensive mistake, -1 without a verdict."""
    format: Weight = 0.2
    """Weight of the format: 1 for text that is exactly one answer and is not truncated, else 0."""
    mismatch: Weight = 0.1
    """Weight of naming the correct mismatch dimension."""
    rules: Weight = 0.1
    """Weight of the named rules: they have to exist, fit the verdict and match the pair's rules if these are known."""
    grounding: Weight = 0.1
    """Weight of the share of the rationale's citations that occur in the cited field."""
    demands: Weight = 0.0
    """Weight of the agreement with the pair's own demands; applies only to pairs that have demands."""
    length: Weight = 0.0
    """Weight of short answers; see length_free_tokens and length_limit_tokens."""
    calibration: Weight = 0.0
    """Weight of the Brier score of the tier probabilities. Above 0, the trainer computes tier probabilities for every answer."""
    border_cost: Weight = 1.0
    """Additional cost, in tiers, of a verdict on the wrong side of the relevant/irrelevant border."""
    optimism_cost: float = Field(1.0, gt=0, le=MAX_WEIGHT)
    """Factor on the cost of verdicts above the label. Above 1 penalizes optimistic mistakes more, below 1 pessimistic ones."""
    length_free_tokens: int = Field(256, ge=0, le=MAX_COUNT)
    """Answers up to this many tokens get the full length reward."""
    length_limit_tokens: int = Field(512, ge=1, le=MAX_COUNT)
    """Answers of this many tokens or more get length reward 0; in between it decreases linearly."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.verdict == 0:
            yield Conflict(
                ("verdict",),
                "0, so a wrong verdict costs nothing",
                "a weight above 0; the other components only make sense together with the verdict",
            )
        if self.length_free_tokens >= self.length_limit_tokens:
            yield Conflict(
                ("length_free_tokens", "length_limit_tokens"),
                f"{self.length_free_tokens} and {self.length_limit_tokens}",
                "a length_free_tokens below length_limit_tokens, so that the reward decreases gradually",
            )
