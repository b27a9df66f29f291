"""Plain JSON values: flattens nested dicts to dotted keys and converts numpy and torch scalars to Python numbers."""

from __future__ import annotations

import math
from typing import Any


def flatten(value: Any, at: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys. Lists are not flattened."""
    if not isinstance(value, dict) or (at and not value):
        return {at: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{at}.{key}" if at else str(key)))
    return flat


def plain(value: Any) -> Any:
    """A value that any JSON reader accepts: numpy and torch scalars become numbers, nan and inf become text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if not isinstance(value, bool | int | float | str | type(None)) and hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
