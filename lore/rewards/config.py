"""What an answer is rewarded for: the section `rewards` of a recipe. Nothing here imports torch."""

from collections.abc import Iterator

from pydantic import Field

from lore.config.sections import Conflict, StrictModel


class RewardsSection(StrictModel):
    """Weights of the parts, 0 is off. A total is their weighted mean, so only their ratios count."""

    verdict: float = Field(1.0, ge=0)
    """Weight of the verdict: 1 at the label, 0 at the dearest mistake there is, -1 without a verdict."""
    format: float = Field(0.2, ge=0)
    """Weight of an answer that ends and is read as exactly one."""
    mismatch: float = Field(0.1, ge=0)
    """Weight of the named mismatch dimension."""
    rules: float = Field(0.1, ge=0)
    """Weight of the named rules: of the rubric, fitting the verdict, and the pair's where these are known."""
    grounding: float = Field(0.1, ge=0)
    """Weight of citations in the rationale that stand where they are said to."""
    demands: float = Field(0.0, ge=0)
    """Weight of demand-by-demand agreement with the pair's own demands, for pairs that have them."""
    length: float = Field(0.0, ge=0)
    """Weight of a short answer, with a soft edge."""
    calibration: float = Field(0.0, ge=0)
    """Weight of the tier probabilities' Brier score; has the trainer read the probabilities at the verdict."""
    border_cost: float = Field(1.0, ge=0)
    """What a verdict on the wrong side of relevant costs beyond its distance in tiers."""
    optimism_cost: float = Field(1.0, gt=0)
    """Factor on the cost of verdicts above the label; over 1 prices optimistic bias, below 1 pessimistic."""
    length_free_tokens: int = Field(256, ge=0)
    """Answers up to so many tokens lose nothing."""
    length_limit_tokens: int = Field(512, ge=1)
    """Answers of so many tokens or more get nothing for their length."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.verdict == 0:
            yield Conflict(
                ("verdict",),
                "0, so that a wrong verdict costs nothing",
                "a weight above 0; the other parts only make sense beside it",
            )
        if self.length_free_tokens >= self.length_limit_tokens:
            yield Conflict(
                ("length_free_tokens", "length_limit_tokens"),
                f"{self.length_free_tokens} and {self.length_limit_tokens}",
                "a length_free_tokens below length_limit_tokens, so that the edge is soft",
            )
