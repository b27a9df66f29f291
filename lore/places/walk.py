"""How long a walk takes by the straight distance."""

import numpy as np

EARTH_METRES = 6_371_008.8
"""Mean radius, IUGG."""
METRES_PER_MINUTE = 80.0
"""4.8 km/h."""
DETOUR = 1.3
"""A walk over the straight distance."""


def haversine(lat: float, lon: float, lats: np.ndarray, lons: np.ndarray) -> np.ndarray:
    """Metres (n,) on the sphere between a point and points (n,), all in degrees."""
    south, north = np.radians(lat), np.radians(lats)
    half = np.sin((north - south) / 2) ** 2 + np.cos(south) * np.cos(north) * np.sin(np.radians(lons - lon) / 2) ** 2
    return 2 * EARTH_METRES * np.arcsin(np.sqrt(np.clip(half, 0, 1)))
