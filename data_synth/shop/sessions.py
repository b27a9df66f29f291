"""Stage sessions: a log of the embedded shop's shoppers, each with a latent taste, and the catalogue that they chose from.

A shopper likes one color, and a session stays in one family of items (lamps, coats, ...). With probability `loyalty` the next
item is of the session's family and the shopper's color, else of the family alone. The color is visible only in the titles and
attributes (`visible: text`; all photos show the same gray), only in the photos (`photo`), or in one of the two, item by
item (`mixed`). Cold items are for sale only in the last hour: a history's last two events are in it, and half of them take
cold items. So ids can predict a warm item, and only what an item looks like can predict a cold one.

Left out of real shops: tastes that change or have several sides, prices, positions on a page, purchases together. Never to be
presented as real data.

    lore run recipes/quickstart/recommend/sessions.yaml
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from lore.data.events import Event, write_events
from lore.data.pair import ITEM_SCHEMA, Pair
from lore.data.parquet import PairWriter
from lore.data.tables.parquet_files import already_written
from lore.data_synth.shop.config import SessionsRecipe
from lore.data_synth.shop.photos import draw_photo
from lore.data_synth.shop.world import World
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.progress import track

LAUNCH = 1_760_000_000
"""When the cold items come in, in seconds since 1970. Everything from then on is held out."""
DAYS, DAY, HALF_HOUR = 90, 86_400, 1_800
COLD_PICKS = 0.5  # of the last two events
GRAY = (128, 128, 128)


@dataclass(frozen=True)
class Style:
    """The truth about an item: what a taste and a session ask for, and when it is for sale."""

    item_id: str
    family: str
    colour: str
    photo: bool
    """Whether the photo shows the color; else the text names it."""
    cold: bool
    weight: float
    """Relative popularity."""


def run(recipe: SessionsRecipe, folder: RunFolder) -> None:
    """Writes items.parquet, events.parquet and the truth: styles.jsonl and tastes.jsonl."""
    shop = ShoppersWorld(recipe)
    source = f"shop-{recipe.language}"
    if not already_written(folder / "items.parquet"):
        with PairWriter(folder / "items.parquet", metadata={"lore.source": source}, schema=ITEM_SCHEMA) as writer:
            for style in track(shop.styles, "items.parquet"):
                writer.write(shop.item(style))
    if not already_written(folder / "events.parquet"):
        write_events(folder / "events.parquet", track(shop.events(), "events.parquet"), source=source)
    styles = [{name: getattr(one, name) for name in ("item_id", "family", "colour", "photo", "cold")} for one in shop.styles]
    tastes = [{"user_id": f"u{number}", "colour": shop.taste(number)} for number in range(recipe.shoppers)]
    for name, rows in (("styles", styles), ("tastes", tastes)):
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    folder.finish({"items": recipe.items, "cold items": sum(one.cold for one in shop.styles), "shoppers": recipe.shoppers})


class ShoppersWorld:
    """Items and shoppers. Every item is a function of (seed, number), and so is every shopper."""

    def __init__(self, recipe: SessionsRecipe):
        self.recipe = recipe
        self.world = World(recipe.seed, recipe.language, photos=0.0)
        self.families, self.colours = list(self.world.shop.families), list(self.world.shop.colours)
        self.styles = [self._style(number) for number in range(recipe.items)]
        self._shelves: dict[tuple[str | bool, ...], list[Style]] = defaultdict(list)
        for style in self.styles:
            for shelf in ((style.family, style.colour), (style.family,), ()):
                self._shelves[(style.cold, *shelf)].append(style)

    def _rng(self, what: str, number: int) -> random.Random:
        return random.Random(f"{self.recipe.seed}/sessions/{what}/{number}")

    def _style(self, number: int) -> Style:
        """Each family has each color equally often, so that neither tells the other."""
        before, cell = divmod(number, len(self.families) * len(self.colours))
        family, colour = divmod(cell, len(self.colours))
        share, start = self.recipe.cold, self._rng("cold", cell).random()
        cold = int((before + 1) * share + start) > int(before * share + start)  # the share in every cell, as nearly as it can be
        weight = min(10.0, self._rng("weight", number).paretovariate(1.5))
        photo = {"text": False, "photo": True, "mixed": self._rng("photo", number).random() < 0.5}[self.recipe.visible]
        return Style(f"i{number}", self.families[family], self.colours[colour], photo, cold, weight)

    def item(self, style: Style) -> Pair:
        """The item as the shop shows it."""
        rng = self._rng("item", int(style.item_id[1:]))
        item = self.world.shop.catalogue_item(rng, style.family)
        item.values["colour"] = style.colour
        fields, _ = self.world.word_item(rng, item, hide_visible=style.photo)
        fields.pop("description", None)  # its distractors never name the item's own color, which would tell it
        if not style.photo:
            shape = self.world.shop.families[style.family].shape
            fields["image"] = {"bytes": draw_photo(shape, GRAY, None, 0, rng.getrandbits(32)), "path": None}
        return Pair(pair_id=style.item_id, query="", item_id=style.item_id, **{"category": style.family} | fields)

    def taste(self, shopper: int) -> str:
        """The color that a shopper likes."""
        return self._rng("taste", shopper).choice(self.colours)

    def events(self) -> Iterator[Event]:
        for shopper in range(self.recipe.shoppers):
            yield from self._log(shopper)

    def _log(self, shopper: int) -> Iterator[Event]:
        rng, taste, taken = self._rng("shopper", shopper), self.taste(shopper), set[str]()
        days = sorted(rng.sample(range(1, DAYS), rng.randint(1, self.recipe.sessions)), reverse=True)
        starts = [LAUNCH - day * DAY + rng.randrange(DAY // 2) for day in days]
        for number, start in enumerate([*starts, LAUNCH - HALF_HOUR]):
            family, time, last = rng.choice(self.families), float(start), number == len(starts)
            for _ in range(rng.randint(1, 2) if last else rng.randint(2, 4)):
                item = self._choice(rng, taste, family, taken, cold=False)
                yield f"u{shopper}", item, time, f"u{shopper}-{number}", "buy", "train"
                time += rng.randint(20, HALF_HOUR // 3)
            for part, begin in (("valid", LAUNCH), ("test", LAUNCH + HALF_HOUR)) if last else ():
                item = self._choice(rng, taste, family, taken, cold=rng.random() < COLD_PICKS)
                time = float(begin + rng.randrange(HALF_HOUR))
                yield f"u{shopper}", item, time, f"u{shopper}-{number}", "buy", part

    def _choice(self, rng: random.Random, taste: str, family: str, taken: set[str], cold: bool) -> str:
        """An item that the shopper has not taken yet, from the nearest shelf that has one."""
        shelves = [(family,), ()] if rng.random() >= self.recipe.loyalty else [(family, taste), (family,), ()]
        cold = cold and bool(self._shelves.get((True,)))
        for shelf in shelves:
            free = [style for style in self._shelves.get((cold, *shelf), ()) if style.item_id not in taken]
            if free:
                break
        free = free or self._shelves[(cold,)]  # she has everything
        chosen = rng.choices(free, [one.weight for one in free])[0].item_id
        taken.add(chosen)
        return chosen
