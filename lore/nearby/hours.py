"""Whether a place is open at a time of the town's wall clock, from OpenStreetMap's `opening_hours`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True)
class Opening:
    """state: unknown for a place without hours, or with unreadable ones. until: when the state ends; None: never, or unknown."""

    state: Literal["open", "closed", "unknown"]
    until: datetime | None = None
