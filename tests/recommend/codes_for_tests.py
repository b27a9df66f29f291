"""A small catalogue with events. What an item is shows in its title alone, its color in its photo alone, and who takes it in the
events alone."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lore.data.pair import ITEM_SCHEMA, Pair
from lore.data.parquet import PairWriter

KINDS = ("mug cup ceramic", "lamp light bulb", "rug carpet wool", "chair seat wood")
COLORS = ((220, 30, 30), (30, 200, 40), (40, 50, 220))
TASTES = 4


def traits(items: int, seed: int = 0) -> dict[str, np.ndarray]:
    """kind, color, taste [items]."""
    rng = np.random.default_rng(seed)
    drawn = np.floor(rng.random((items, 3)) * (len(KINDS), len(COLORS), TASTES)).astype(int)  # more items begin with the same ones
    return dict(zip(("kind", "color", "taste"), drawn.T, strict=True))


def photo(color: tuple[int, int, int], rng: np.random.Generator) -> bytes:
    noisy = np.clip(np.asarray(color) + rng.normal(0, 25, size=(12, 12, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, format="PNG")
    return out.getvalue()


def write_catalogue(path: Path, items: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes items.parquet; returns the traits. The first item has a title with HTML and no photo that can be read."""
    rng, truth = np.random.default_rng(seed + 1), traits(items, seed)
    with PairWriter(path, schema=ITEM_SCHEMA, metadata={"lore.source": "test"}) as writer:
        for row in range(items):
            item = Pair(pair_id=f"i{row}", item_id=f"i{row}", query="", title=f"{KINDS[truth['kind'][row]]} n{rng.integers(9)}")
            item.image = {"bytes": photo(COLORS[truth["color"][row]], rng), "path": None}
            item.price = float(rng.lognormal(3, 0.5))
            if row == 0:
                item.title, item.image = f"<script>alert(1)</script> {item.title}", {"bytes": b"no photo", "path": None}
            writer.write(item)
    return truth


def write_events(
    path: Path, truth: dict[str, np.ndarray], sold: int, users: int = 300, seed: int = 0, last: int | None = None
) -> None:
    """Writes events.parquet: each user takes six items of one taste among the first `sold`. last: what all take at the end."""
    rng = np.random.default_rng(seed + 2)
    rows = []
    for user in range(users):
        liked = np.flatnonzero(truth["taste"][:sold] == user % TASTES)
        taken = [*rng.choice(liked, 6), *([] if last is None else [last, last])]
        rows += [{"user_id": f"u{user}", "item_id": f"i{row}", "time": float(at)} for at, row in enumerate(taken)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def recipe_text(folder: Path, run: str = "codes", events: bool = True, **more: str) -> str:
    """A recipe of stage semantic_ids on these files; more: further sections."""
    named = f", events: {folder / 'events.parquet'}" if events else ""
    lines = ["stage: semantic_ids", f"run: {run}", f"data: {{items: {folder / 'items.parquet'}{named}}}"]
    return "\n".join(["lore: 1", *lines, *(f"{key}: {value}" for key, value in more.items()), ""])
