"""The shop's photos show what the text may leave out."""

import io

import numpy as np
import pytest
from PIL import Image

from lore.data_synth.shop.lexicon import load_lexicon
from lore.data_synth.shop.photos import SHAPES, SIZE, draw_photo

COLOURS = load_lexicon("en").colours
RGBS = np.array([colour.rgb for colour in COLOURS], float)


def pixels(photo: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(photo))).astype(float)


def inside(image: np.ndarray) -> np.ndarray:
    """Pixels of the item: all that differ from the ground, which the corner shows."""
    return image[(image != image[0, 0]).any(-1)]


def nearest(rgb: np.ndarray) -> int:
    return int(np.linalg.norm(RGBS - rgb, axis=1).argmin())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_dominant_colour_can_be_told_from_all_others(shape):
    """Plain items by their mean; under stripes, dots or an accent the median pixel still is the dominant colour."""
    for number, colour in enumerate(COLOURS):
        accent = COLOURS[(number + 3) % len(COLOURS)].rgb
        for seed in range(4):
            assert nearest(inside(pixels(draw_photo(shape, colour.rgb, None, 0, seed))).mean(0)) == number
            for pattern in range(3):
                for second in (None, accent):
                    photo = pixels(draw_photo(shape, colour.rgb, second, pattern, seed))
                    assert nearest(np.median(inside(photo), axis=0)) == number, (colour.name, pattern, second)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_accent_covers_a_tenth_and_stays_under_the_rule_books_fifth(shape):
    for seed in range(20):
        item = inside(pixels(draw_photo(shape, (20, 25, 110), (245, 210, 20), 0, seed)))
        assert 0.08 < (item == (245, 210, 20)).all(-1).mean() < 0.15


@pytest.mark.parametrize("shape", SHAPES)
def test_patterns_differ_and_no_photo_is_blank_or_repeated(shape):
    photos = [pixels(draw_photo(shape, (60, 130, 235), None, pattern, seed)) for pattern in range(3) for seed in range(10)]
    assert all(photo.shape == (SIZE, SIZE, 3) and SIZE == 56 for photo in photos)
    assert all(photo.max() > 0 and photo.std() > 10 for photo in photos)  # all zeros would be taken for padding
    assert len({photo.tobytes() for photo in photos}) == len(photos)
    marked = [(inside(photo) == 255).all(-1).mean() for photo in photos]
    assert max(marked[:10]) == 0 and min(marked[10:20]) > 0.2 and 0.05 < min(marked[20:]) < max(marked[20:]) < 0.2


def test_shapes_differ():
    photos = [pixels(draw_photo(shape, (200, 0, 0), None, 0, 1)) for shape in SHAPES]
    for i, a in enumerate(photos):
        assert all((a != b).any(-1).mean() > 0.05 for b in photos[i + 1 :])


def test_the_same_seed_draws_the_same_pixels():
    assert (pixels(draw_photo("lamp", (1, 2, 3), None, 2, 7)) == pixels(draw_photo("lamp", (1, 2, 3), None, 2, 7))).all()
