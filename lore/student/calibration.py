"""Calibration of a student on human labels: its probabilities become shares of right answers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from lore.config.sections import StrictModel

CalibrationKind = Literal["none", "temperature", "isotonic"]


class Calibration(StrictModel):
    """kind: how probabilities are changed; parameters: plain JSON, see `fit_calibration`."""

    kind: CalibrationKind = "none"
    parameters: dict[str, Any] = Field(default_factory=dict)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities [N, K], calibrated."""
        return probabilities
