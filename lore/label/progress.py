"""The progress line of labelling: pairs per second, prefix-cache hits, failures, cost and time left."""

import time
from dataclasses import dataclass, field
from typing import Any

from lore.engines.engine import EngineUsage
from lore.label.config import CostSection
from lore.label.worker import ShardResult
from lore.support.console import Console, Progress, TextColumn
from lore.support.processes import say

SAY_SECONDS = 60.0  # between the lines in a log file, which shows no moving line


@dataclass
class LabelProgress:
    """Counts what has been labelled in this start. pairs: of the plan; workers: whose time costs cost.usd_per_hour."""

    pairs: int
    cost: CostSection = CostSection()
    workers: int = 1
    labelled: int = 0
    failures: int = 0
    usage: EngineUsage = field(default_factory=EngineUsage)
    began: float = field(default_factory=time.monotonic)
    _shown: Any = None
    _task: Any = None
    _said: float = 0.0
    _said_pairs: int = -1

    def __enter__(self) -> "LabelProgress":
        console = Console(stderr=True)
        self._said = self.began
        if console.is_terminal:
            self._shown = Progress(TextColumn("{task.description}"), console=console)
            self._shown.start()
            self._task = self._shown.add_task(str(self), total=self.pairs)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._shown is not None:
            self._shown.update(self._task, description=str(self))
            self._shown.stop()
        elif self.labelled and self._said_pairs != self.labelled:
            say(str(self))

    def add(self, result: ShardResult) -> None:
        """Counts a committed shard."""
        self.labelled += result.verdicts.num_rows + result.failures.num_rows
        self.failures += result.failures.num_rows
        for name in vars(self.usage):
            setattr(self.usage, name, getattr(self.usage, name) + getattr(result.usage, name))
        if self._shown is not None:
            self._shown.update(self._task, completed=self.labelled, description=str(self))
        elif time.monotonic() - self._said >= SAY_SECONDS:
            self._said, self._said_pairs = time.monotonic(), self.labelled
            say(str(self))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def usd(self) -> float | None:
        """Cost of this start so far; None without a price."""
        return cost_of(self.cost, self.seconds * self.workers, self.usage)

    def __str__(self) -> str:
        rate = self.labelled / self.seconds if self.seconds > 0 else 0.0
        parts = [f"labelled {self.labelled:,} of {self.pairs:,} pairs", f"{rate:,.{0 if rate >= 10 else 2}f} pairs/s"]
        if self.usage.prompt_tokens:
            parts.append(f"prefix-cache hits {100 * self.usage.cached_tokens / self.usage.prompt_tokens:.0f} %")
        parts.append(f"failures {self.failures:,}")
        if self.usd is not None:
            parts.append(f"cost ${self.usd:,.2f}")
        if self.labelled:
            parts.append(f"left {clock((self.pairs - self.labelled) / rate)}")
        return " · ".join(parts)


def cost_of(cost: CostSection, worker_seconds: float, usage: EngineUsage) -> float | None:
    """US dollars; None if the recipe has no price."""
    parts = (
        (cost.usd_per_hour, worker_seconds / 3600),
        (cost.usd_per_million_prompt_tokens, usage.prompt_tokens / 1e6),
        (cost.usd_per_million_completion_tokens, usage.generated_tokens / 1e6),
    )
    known = [price * amount for price, amount in parts if price is not None]
    return sum(known) if known else None


def clock(seconds: float) -> str:
    """2:05:09, or 5:09."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
