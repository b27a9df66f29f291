"""The shop's shoppers: a taste that predicts what they take, visible only where the recipe says, and cold items held out."""

import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lore.data_synth.shop.config import SessionsRecipe
from lore.data_synth.shop.lexicon import load_lexicon
from lore.data_synth.shop.sessions import LAUNCH, ShoppersWorld
from lore.recommend.histories import COLD
from lore.recommend.tables import read_histories, read_items
from lore.run.runner import run_command

COLOURS = load_lexicon("en").colours
SMALL = {"items": 320, "shoppers": 200}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def hit_rate(scores: np.ndarray, target: int) -> bool:
    return bool((scores > scores[target]).sum() < 10)


def painted(item) -> np.ndarray:
    """The color of most pixels of an item."""
    photo = np.asarray(Image.open(io.BytesIO(item.image["bytes"]))).astype(float)
    return np.median(photo[(photo != photo[0, 0]).any(-1)], axis=0)


def test_taste_predicts_cold_items_which_counts_cannot(runs, write_recipe):
    body = f"stage: sessions\nrun: log\nitems: {SMALL['items']}\nshoppers: {SMALL['shoppers']}"
    assert run_command([str(write_recipe("log.yaml", body))]) == 0
    folder = runs / "log"
    items, events = folder / "items.parquet", folder / "events.parquet"
    found = read_histories(events, items)  # leave one out
    assert found.fingerprint == read_histories(events, items, split="given").fingerprint
    by_time = read_histories(events, items, split="time", valid_from=LAUNCH, test_from=LAUNCH + 1_800)
    assert found.fingerprint == by_time.fingerprint
    styles, tastes = rows(folder / "styles.jsonl"), {row["user_id"]: row["colour"] for row in rows(folder / "tastes.jsonl")}
    colour, family, cold = (np.array([style[name] for style in styles]) for name in ("colour", "family", "cold"))
    counts = found.training_counts()
    assert not counts[cold].any() and np.median(counts[~cold]) > COLD and 0.15 < cold.mean() < 0.25
    hits: dict[tuple[str, bool], list[bool]] = {}
    for at, (user, place) in enumerate(zip(found.test.user, found.test.place, strict=True)):
        past, target = found.before(found.test, at), found.items[place]
        by_taste = 1.0 * (colour == tastes[found.user_ids[user]]) + (family == family[past[-1]])
        hits.setdefault(("taste", cold[target]), []).append(hit_rate(by_taste, target))
        hits.setdefault(("counts", cold[target]), []).append(hit_rate(counts, target))
        assert target not in past
    rates = {key: float(np.mean(values)) for key, values in hits.items()}
    assert min(rates["taste", True], rates["taste", False]) > 0.7 and max(rates["counts", True], rates["counts", False]) < 0.15, (
        rates
    )
    shown = list(read_items(items))
    assert len(shown) == SMALL["items"] and all(item.image["bytes"] and item.category and not item.query for item in shown)
    assert 0.35 < len(hits["taste", True]) / len(found.test) < 0.65


@pytest.mark.parametrize("visible", ["text", "photo", "mixed"])
def test_the_color_shows_only_where_the_recipe_says(visible):
    shop = ShoppersWorld(SessionsRecipe(run="log", visible=visible, items=240))
    words = re.compile("|".join(rf"\b{word}\b" for one in COLOURS for word in (one.name, *one.words)))
    palette = np.array([one.rgb for one in COLOURS], float)
    for style in shop.styles[: 2 * len(COLOURS) * 8 : 2]:
        item = shop.item(style)
        said = words.findall(f"{item.title} {item.attributes} {item.description} {item.brand}")
        nearest = COLOURS[int(np.linalg.norm(palette - painted(item), axis=1).argmin())].name
        assert said == ([] if style.photo else [style.colour]), item
        assert nearest == (style.colour if style.photo else "grey")
    assert {style.photo for style in shop.styles} == {"text": {False}, "photo": {True}, "mixed": {False, True}}[visible]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_seed_gives_the_same_log_everywhere(language):
    def digest(seed: int) -> str:
        shop = ShoppersWorld(SessionsRecipe(run="log", seed=seed, language=language, items=200, shoppers=5))
        said = [repr(list(shop.events())), *(repr((item.title, item.attributes)) for item in map(shop.item, shop.styles[:9]))]
        return hashlib.blake2b("".join(said).encode(), digest_size=8).hexdigest()

    assert digest(0) == {"en": "c7602c20c7983bc6", "zh": "b1b646b5874b8cb2"}[language]
    assert digest(1) != digest(0)


def test_items_and_shoppers_of_a_larger_shop_begin_like_those_of_a_smaller_one():
    small, large = (ShoppersWorld(SessionsRecipe(run="log", items=200, shoppers=count)) for count in (3, 6))
    assert list(large.events())[: len(list(small.events()))] == list(small.events())
