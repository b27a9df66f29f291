"""Texts that sellers write to get a better verdict than they deserve. The label stays: they say nothing about the item."""

import io
import random
from dataclasses import replace
from string import Formatter

from lore.data.images import ImageError, load_image
from lore.data.pair import Pair
from lore.data_synth.perturb.material import Material

TITLE_PADDING_WORDS = 25
DESCRIPTION_PADDING_WORDS = 150
MIN_LETTER_PIXELS = 8  # below this size Pillow's font is illegible
MAX_BAND = 0.36  # of the photo's height, so that most of the item stays visible
SMALL_PHOTO_PIXELS = 256**2  # larger photos are saved as JPEG


def order_in_title(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    return in_title(pair, filled(rng.choice(material.attacks.orders), pair, material, rng), rng)


def order_in_description(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    return in_description(pair, filled(rng.choice(material.attacks.orders), pair, material, rng), rng)


def order_in_photo(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """None if the photo is missing, unreadable or too small to write on."""
    if not pair.image:
        return None
    written = write_on_photo(pair.image, filled(rng.choice(material.attacks.photo), pair, material, rng), top=rng.random() < 0.5)
    return None if written is None else replace(pair, image={"bytes": written, "path": None})


def chat_markers(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    return in_title(pair, filled(rng.choice(material.attacks.chat_markers), pair, material, rng), rng)


def verdict_tags(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    return in_title(pair, filled(rng.choice(material.attacks.verdict_tags), pair, material, rng), rng)


def padding_in_title(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    return replace(pair, title=f"{pair.title} {padding(material, rng, TITLE_PADDING_WORDS)}")


def padding_in_description(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    text = padding(material, rng, DESCRIPTION_PADDING_WORDS)
    return replace(pair, description=f"{pair.description} {text}" if pair.description else text)


def homoglyphs(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """An instruction with its letters replaced by look-alikes; the tier's id stays unchanged."""
    table = str.maketrans(material.attacks.homoglyphs)
    parts = []
    for text, place, _, _ in Formatter().parse(rng.choice(material.attacks.orders)):
        parts.append(text.translate(table) + (f"{{{place}}}" if place else ""))
    return in_title(pair, filled("".join(parts), pair, material, rng), rng)


def keyword_stuffing(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    return in_title(pair, filled(rng.choice(material.attacks.stuffing), pair, material, rng), rng)


def rule_quote(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """None if the rubric has no rule for its best tier."""
    if not material.best_rules:
        return None
    return in_title(pair, filled(rng.choice(material.attacks.rule_quotes), pair, material, rng), rng)


def filled(wording: str, pair: Pair, material: Material, rng: random.Random) -> str:
    """Fills in a wording's placeholders. If the rubric has no rule to quote, its best tier is used instead."""
    best = material.rubric.tiers[-1]
    rule = rng.choice(material.best_rules) if material.best_rules else best.id
    return wording.format(best=best.id, name=best.name, rule=rule, query=pair.query)


def in_title(pair: Pair, text: str, rng: random.Random) -> Pair:
    """Adds a text before or after the title."""
    return replace(pair, title=f"{text} {pair.title}" if rng.random() < 0.5 else f"{pair.title} {text}")


def in_description(pair: Pair, text: str, rng: random.Random) -> Pair:
    """Adds a text before or after the description, or as the description if there is none."""
    if not pair.description:
        return replace(pair, description=text)
    return replace(pair, description=f"{text} {pair.description}" if rng.random() < 0.5 else f"{pair.description} {text}")


def padding(material: Material, rng: random.Random, words: int) -> str:
    """Harmless sentences with about `words` words (in Chinese, pairs of characters)."""
    sentences, length, out = [], 0, []
    while length < words:
        if not sentences:
            sentences = list(material.attacks.padding)
            rng.shuffle(sentences)
        out.append(sentences.pop())
        length += len(out[-1].split()) if out[-1].isascii() else len(out[-1]) // 2
    return ", ".join(out)


def write_on_photo(image: dict, text: str, *, top: bool) -> bytes | None:
    """Writes one or two lines of text on a white band at the top or bottom of the photo. PNG bytes; JPEG for large photos.

    The letters are as large as the band allows. None if the photo is unreadable or too small for legible letters.
    """
    from PIL import ImageDraw, ImageFont  # a dry run of stage harden loads this module

    try:
        photo = load_image(image)
    except ImageError:
        return None
    draw = ImageDraw.Draw(photo)
    for pixels in range(max(MIN_LETTER_PIXELS, photo.height // 6), MIN_LETTER_PIXELS - 1, -1):
        font = ImageFont.load_default(pixels)
        lines = _lines(text, photo.width - 2, font)
        height = len(lines) * (pixels + 1) + 1
        if height <= MAX_BAND * photo.height and all(font.getlength(line) <= photo.width - 2 for line in lines):
            break
    else:
        return None
    start = 0 if top else photo.height - height
    draw.rectangle((0, start, photo.width - 1, start + height - 1), fill="white")
    for number, line in enumerate(lines):
        draw.text((1, start + 1 + number * (pixels + 1)), line, fill="black", font=font, anchor="lt")
    buffer = io.BytesIO()
    if photo.width * photo.height <= SMALL_PHOTO_PIXELS:
        photo.save(buffer, "PNG", compress_level=1)
    else:
        photo.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _lines(text: str, width: int, font) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
