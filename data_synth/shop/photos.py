"""Product photos drawn with Pillow: the item's shape in its dominant color, with a pattern and an accent stripe.

Photos show color, pattern and family; all other values of an item are only in its text. Photos are never all zeros, because
Idefics3 treats an all-zero image as padding.
"""

import io
import random
from typing import Any

from PIL import Image, ImageDraw

SIZE = 56  # pixels per side
ACCENT_TOP = 30  # first row of the accent stripe
ACCENT_SHARE = 0.11  # of the item's area; by the rules, a color below a fifth is an accent


def colour_shares(accent: str | None) -> dict[str, Any]:
    """The shares of a photo's dominant color and its accent, as fields of an item's value."""
    return {
        "share": 1 - ACCENT_SHARE if accent else 1.0,
        "accent": accent,
        "accent_share": ACCENT_SHARE if accent else 0.0,
    }


def draw_photo(shape: str, rgb: tuple[int, int, int], accent: tuple[int, int, int] | None, pattern: str | int, seed: int) -> bytes:
    """PNG bytes of one product photo, SIZE x SIZE RGB.

    shape: a key of SHAPES; pattern: index into the lexicon's patterns (0 plain, 1 striped, 2 dotted); accent: color of a stripe
    over about ACCENT_SHARE of the item; seed shifts and dims the photo, so no two items have equal pixels.
    """
    rng = random.Random(seed)
    ground = rng.randint(215, 250)
    image = Image.new("RGB", (SIZE, SIZE), (ground, ground, ground))
    mask = Image.new("L", (SIZE, SIZE), 0)
    SHAPES[shape](ImageDraw.Draw(mask), rng.randint(-2, 2), rng.randint(-2, 2))
    light = rng.uniform(0.9, 1.05)
    paint = Image.new("RGB", (SIZE, SIZE), tuple(min(255, int(channel * light)) for channel in rgb))
    draw = ImageDraw.Draw(paint)
    mark = (255, 255, 255) if sum(rgb) < 480 else (40, 40, 40)
    if pattern == 1:
        for y in range(rng.randint(0, 4), SIZE, 7):
            draw.rectangle((0, y, SIZE, y + 1), fill=mark)
    elif pattern == 2:
        for y in range(3, SIZE, 9):
            for x in range(3, SIZE, 9):
                draw.ellipse((x, y, x + 3, y + 3), fill=mark)
    if accent:
        draw.rectangle((0, ACCENT_TOP, SIZE, _accent_bottom(mask)), fill=accent)
    image.paste(paint, mask=mask)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _accent_bottom(mask: Image.Image) -> int:
    """Last row of the accent stripe. Shapes differ in width, so rows are added until the stripe has its share."""
    areas = [mask.crop((0, y, SIZE, y + 1)).histogram()[255] for y in range(SIZE)]
    wanted, covered = ACCENT_SHARE * sum(areas), 0
    for y in range(ACCENT_TOP, SIZE):
        covered += areas[y]
        if covered + areas[y] / 2 >= wanted:
            return y
    return SIZE - 1


def _lamp(d, x, y):
    d.polygon([(18 + x, 6 + y), (38 + x, 6 + y), (50 + x, 30 + y), (6 + x, 30 + y)], fill=255)
    d.rectangle((25 + x, 30 + y, 31 + x, 46 + y), fill=255)
    d.rectangle((14 + x, 46 + y, 42 + x, 51 + y), fill=255)


def _cup(d, x, y):
    d.rectangle((8 + x, 12 + y, 40 + x, 48 + y), fill=255)
    d.ellipse((34 + x, 18 + y, 52 + x, 40 + y), outline=255, width=5)


def _coat(d, x, y):
    d.rectangle((16 + x, 8 + y, 40 + x, 50 + y), fill=255)
    d.polygon([(16 + x, 8 + y), (3 + x, 34 + y), (10 + x, 38 + y), (18 + x, 22 + y)], fill=255)
    d.polygon([(40 + x, 8 + y), (53 + x, 34 + y), (46 + x, 38 + y), (38 + x, 22 + y)], fill=255)


def _bag(d, x, y):
    d.rounded_rectangle((8 + x, 18 + y, 48 + x, 50 + y), 5, fill=255)
    d.arc((16 + x, 4 + y, 40 + x, 32 + y), 180, 360, fill=255, width=4)


def _chair(d, x, y):
    d.rectangle((10 + x, 4 + y, 18 + x, 51 + y), fill=255)
    d.rectangle((10 + x, 26 + y, 46 + x, 38 + y), fill=255)
    d.rectangle((38 + x, 38 + y, 46 + x, 51 + y), fill=255)


def _shoe(d, x, y):
    d.polygon(
        [(6 + x, 16 + y), (22 + x, 16 + y), (34 + x, 32 + y), (51 + x, 36 + y), (51 + x, 46 + y), (6 + x, 46 + y)],
        fill=255,
    )


def _sheet(d, x, y):
    d.rounded_rectangle((4 + x, 14 + y, 51 + x, 44 + y), 7, fill=255)


def _pot(d, x, y):
    d.rectangle((10 + x, 20 + y, 46 + x, 48 + y), fill=255)
    d.rectangle((3 + x, 25 + y, 53 + x, 30 + y), fill=255)
    d.rectangle((24 + x, 11 + y, 32 + x, 20 + y), fill=255)


SHAPES = {
    "lamp": _lamp,
    "cup": _cup,
    "coat": _coat,
    "bag": _bag,
    "chair": _chair,
    "shoe": _shoe,
    "sheet": _sheet,
    "pot": _pot,
}
