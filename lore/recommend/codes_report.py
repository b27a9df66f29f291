"""What the codes are worth: use, collisions, prefixes shared by neighbors, linear probes, shelves. report.json and report.html.

The page is self-contained. Titles come from the user's data, so the template escapes everything and the page's content security
policy allows no script and no external resource.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import OneHotEncoder

from lore.data.images import ImageError, bounded, load_image
from lore.data.pair import Pair
from lore.recommend.codes import Codes
from lore.recommend.config import SemanticIdsRecipe
from lore.recommend.features import co_bought
from lore.recommend.histories import Histories
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.html import page_style, page_template
from lore.support.text import shortened

NEIGHBORS, MEASURED, SHELVES, SHOWN = 10, 5000, 10, 8
LEAST_OF_CLASS, MOST_CLASSES, FOLDS = 10, 50, 3
PHOTO_PIXELS = 96 * 96


def write_report(
    recipe: SemanticIdsRecipe,
    folder: RunFolder,
    codes: Codes,
    relocated: np.ndarray,
    spaces: dict[str, np.ndarray],
    histories: Histories | None,
    gates: np.ndarray | None,
) -> dict[str, Any]:
    """Writes the report and returns its headline. spaces: vectors [V, D] by name, in which neighbors and probes are measured, the
    fused vectors first. gates [V, layers]: None without any."""
    rng = np.random.default_rng(recipe.seed)
    titles, labels = _texts(recipe)
    measured = np.sort(rng.choice(len(titles), min(MEASURED, len(titles)), replace=False))
    control = codes.shuffled(recipe.seed)
    near = {f"nearest by {name}": neighbors_of(space, measured) for name, space in spaces.items()}
    if histories is not None:
        near["taken together in training"] = _together(histories, recipe.fusion.window, measured)
    lengths = range(1, codes.levels)
    shares = {
        name: {f"{length}": {"share": shared(codes, rows, length), "shuffled": shared(control, rows, length)} for length in lengths}
        for name, rows in near.items()
        if len(rows[0])
    }
    found = {
        "items": len(titles),
        "levels": usage(codes),
        "collisions": {"before": int(relocated.sum()), "after": len(codes.values) - len(np.unique(codes.values, axis=0))},
        "neighbors": shares,
        "probes": probes(labels, spaces, codes, control, measured, recipe.seed),
    }
    if gates is not None:
        depth = gates.sum(axis=1)
        spread = dict(zip(("5 %", "50 %", "95 %"), np.quantile(depth, [0.05, 0.5, 0.95]).round(3).tolist(), strict=True))
        found["gates"] = {"layers": gates.mean(axis=0).round(4).tolist(), "depth": spread}
    write_atomic(folder / "report.json", json.dumps(found, indent=2) + "\n")
    shelves = _shelves(codes, rng)
    wanted = {int(row) for shelf in shelves for row in shelf["rows"]}
    photos = (
        {row: _photo(item) for row, item in enumerate(recipe.data.catalogue()) if row in wanted} if "photo" in recipe.use else {}
    )
    for shelf in shelves:
        shelf["items"] = [{"title": shortened(titles[row], 80), "photo": photos.get(int(row))} for row in shelf["rows"]]
    page = page_template(Path(__file__).parent, "codes_report.html.jinja")
    write_atomic(
        folder / "report.html",
        page.render(
            title=recipe.run, style=Markup(page_style()), found=found, shelves=shelves, size=codes.size, lengths=list(lengths)
        ),
    )
    first = next(iter(shares.values()), {}).get("1", {})
    used = " ".join(f"{level['used']}/{codes.size}" for level in found["levels"])
    prefix = f"{first['share']:.3f} (shuffled {first['shuffled']:.3f})" if first else "not measured"
    return {
        "items": len(titles),
        "codes used": used,
        "relocated": found["collisions"]["before"],
        "neighbors that share a code": prefix,
    }


def usage(codes: Codes) -> list[dict[str, Any]]:
    """Codes in use on each level, and the perplexity of their use: size for even use."""
    rows = []
    for level in codes.values.T:
        share = np.bincount(level, minlength=codes.size) / len(level)
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        rows.append({"used": int((share > 0).sum()), "perplexity": round(float(np.exp(entropy)), 2)})
    return rows


def neighbors_of(space: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(items, one of their nearest neighbors by cosine), one row per pair. Items without a vector have none."""
    there = np.flatnonzero(space.any(axis=1))
    asked = np.intersect1d(measured, there)
    most = min(NEIGHBORS, len(there) - 1)
    if not len(asked) or most < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found = (
        NearestNeighbors(n_neighbors=most + 1, metric="cosine").fit(space[there]).kneighbors(space[asked], return_distance=False)
    )
    items, near = np.repeat(asked, most + 1), there[found].reshape(-1)
    return items[items != near], near[items != near]


def _together(histories: Histories, window: int, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = co_bought(histories, window)[measured].tocoo()
    return measured[counts.row], counts.col


def shared(codes: Codes, pairs: tuple[np.ndarray, np.ndarray], length: int) -> float:
    """Share of the pairs of items whose codes begin with the same prefix."""
    prefix = codes.prefixes(length)
    return round(float((prefix[pairs[0]] == prefix[pairs[1]]).mean()), 4)


def probes(
    labels: dict[str, list[str | None]],
    spaces: dict[str, np.ndarray],
    codes: Codes,
    control: Codes,
    measured: np.ndarray,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Accuracy of a linear classifier of each label from each space and from the codes, cross-validated: where meaning is lost."""
    found = {}
    for name, values in labels.items():
        known = np.asarray([row for row in measured if values[row]], dtype=np.int64)
        classes, of_item, counts = np.unique([values[row] for row in known], return_inverse=True, return_counts=True)
        kept = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
        kept = kept[counts[kept] >= LEAST_OF_CLASS]
        if len(kept) < 2:
            continue
        chosen = np.isin(of_item, kept)
        rows, target = known[chosen], of_item[chosen]
        sources = spaces | {"codes": one_hot(codes), "codes, shuffled": one_hot(control)}
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        scores = {
            source: cross_val_score(RidgeClassifier(), space[rows], target, cv=folds).mean() for source, space in sources.items()
        }
        scores["most frequent"] = np.bincount(target).max() / len(target)
        found[f"{name} ({len(rows):,} items, {len(kept)} values)"] = {key: round(float(value), 4) for key, value in scores.items()}
    return found


def one_hot(codes: Codes) -> csr_matrix:
    """Each prefix of an item's codes but the whole, as a column."""
    columns = [OneHotEncoder().fit_transform(codes.prefixes(length)[:, None]) for length in range(1, codes.levels)]
    return hstack(columns).tocsr()


def _texts(recipe: SemanticIdsRecipe) -> tuple[list[str], dict[str, list[str | None]]]:
    titles: list[str] = []
    labels: dict[str, list[str | None]] = {"category": [], "brand": []}
    for item in recipe.data.catalogue():
        titles.append(item.title)
        for name, values in labels.items():
            values.append(getattr(item, name))
    return titles, labels


def _shelves(codes: Codes, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Some prefixes with their items: of two codes if enough of these have several items, else of one. Drawn, not chosen."""
    for length in (2, 1):
        prefix = codes.prefixes(length)
        full = np.flatnonzero(np.bincount(prefix) >= SHOWN // 2)
        if len(full) >= SHELVES or length == 1:
            break
    found = []
    for one in np.sort(rng.choice(full, min(SHELVES, len(full)), replace=False)):
        rows = np.flatnonzero(prefix == one)
        name = " ".join(str(code) for code in codes.values[rows[0], :length])
        found.append({"prefix": name, "count": len(rows), "rows": rows[:SHOWN]})
    return found


def _photo(item: Pair) -> Markup | None:
    """A small photo as a data: URL; None without one that can be read."""
    if item.image is None:
        return None
    try:
        image = bounded(load_image(item.image), PHOTO_PIXELS)
    except ImageError:
        return None
    data = io.BytesIO()
    image.save(data, format="JPEG")  # encoded anew: the stored bytes may hold anything behind the photo
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}")
