"""The `watch` section of training recipes: periodic evaluation during training, and the rules that stop a collapsed run."""

from typing import Literal

from pydantic import Field

from lore.config.sections import SampledTemperature, StrictModel, Weight
from lore.support.bounds import MAX_COUNT
from lore.support.errors import LoreError

WATCH_FILES = frozenset({"best-[0-9]*", "answers.json", "report.html"})
"""What periodic evaluation writes in the run folder."""


class WatchSection(StrictModel):
    """Periodic evaluation: every few steps the judge in training answers a fixed set of labeled pairs, the probe."""

    every: int = Field(10, ge=0, le=MAX_COUNT)
    """Steps between two evaluations; 0 disables them. The first is before step 1, the last after the last step."""
    pairs: int = Field(64, ge=1, le=MAX_COUNT)
    """Number of labeled pairs in the probe."""
    path: str | None = None
    """File from which the probe's pairs are taken; null uses the recipe's data.path."""
    split: str | None = "dev"
    """Split from which the probe's pairs are taken; null uses all splits."""
    samples: int = Field(4, ge=1, le=1024)
    """Answers sampled per pair; this is the k of pass@k."""
    temperature: SampledTemperature = 1.0
    """Sampling temperature of these answers."""
    batch_tokens: int = Field(16384, ge=1, le=MAX_COUNT)
    """Tokens per generation batch, counting prompt, answer and padding of every sample. Larger values need more KV cache memory."""
    max_tokens: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Longest answer in tokens; null uses the limit of the stage."""
    best: Literal["macro_f1", "pass_at_1"] = "pass_at_1"
    """Metric on the probe that selects the best weights."""
    constant_share: float = Field(0.95, gt=0, le=1)
    """Collapse rule: stop if at least this share of the verdicts is one tier, unless the probe's labels are equally uniform. 1
    stops only if all verdicts are equal."""
    length_share: float = Field(0.25, ge=0, lt=1)
    """Collapse rule: stop if the mean answer length falls below this share of its initial value. 0 disables the rule."""
    entropy_floor: Weight = 0.001
    """Collapse rule: stop if the mean entropy of the sampled tokens falls below this value in nats. 0 disables the rule."""
    fall_points: float = Field(0.05, gt=0, le=1)
    """Collapse rule: stop if the training reward has risen while the probe's Macro-F1 (0 to 1) is at least this far below its best,
    for fall_times evaluations in a row."""
    fall_times: int = Field(3, ge=0, le=MAX_COUNT)
    """Number of consecutive evaluations for the rule of fall_points. 0 disables the rule."""
    preflight_prompts: int = Field(32, ge=0, le=MAX_COUNT)
    """Prompts to answer and reward before step 1 of grpo and ppo, as a check that there is something to learn; 0 disables it."""

    def input_files(self) -> dict[str, list[str]]:
        if self.path is None or not self.every:
            return {}
        from lore.data.parquet import pair_files  # imports pyarrow: only for a probe of its own

        try:
            return {"path": [str(file) for file in pair_files(self.path)]}
        except LoreError:
            return {"path": [self.path]}
