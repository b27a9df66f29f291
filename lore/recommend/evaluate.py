"""Stage recommend_eval: trained models, baselines and controls on the same held-out events, in one table.

    lore run recipes/recommend/eval.yaml

Every row ranks the whole catalogue, by both rules of lore.recommend.metrics. Intervals are paired bootstraps over users. A control
is a row that lacks what another one claims to gain from, such as codes dealt to other items; the table says by how much the other
one is better. Rows that were measured before a run was killed are read from <run>/rows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote
from zipfile import BadZipFile

import numpy as np
from markupsafe import Markup

from lore.recommend.baselines import cooccurrence, item_knn, popularity
from lore.recommend.blend import Blend
from lore.recommend.codes import read_codes
from lore.recommend.eval_config import CONTROL, PREFIXED, RecommendEvalRecipe
from lore.recommend.eval_table import GROUPS, Table, make_table, text
from lore.recommend.histories import Histories, Part, Recommender, Targets
from lore.recommend.metrics import METRICS, RULES, Measured, measure
from lore.run.dry_pass import dry_pass, together
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic, written_whole
from lore.support.errors import LoreError
from lore.support.html import page_style, page_template
from lore.support.processes import is_main_process, say

COMPARED = ("NDCG@10", "HR@10")


def run(recipe: RecommendEvalRecipe, folder: RunFolder) -> None:
    """Measures every row of the recipe. Only the main process works; other processes return at once."""
    if not is_main_process():
        return
    histories = recipe.data.histories()
    folder.note(data_fingerprint=histories.fingerprint)
    histories = limited(histories, recipe.part, recipe.limit, recipe.seed)
    makers = recommenders(recipe, histories)
    dry_pass(recipe.stage, {"catalogue": together(makers[name] for name in recipe.models)})
    targets = histories.targets(recipe.part)
    if not len(targets):
        raise LoreError(
            f"{recipe.data.events}: no event is held out for {recipe.part}, so there is nothing to predict.\nChange data.split, or "
            "lower data.min_events."
        )
    measured = {name: _measured(folder, name, make, histories, recipe.part) for name, make in makers.items()}
    table = make_table(
        measured,
        histories,
        recipe.part,
        reference=recipe.compared_with(),
        controls=recipe.controls(),
        samples=recipe.bootstrap_samples,
        seed=recipe.seed,
    )
    write_atomic(folder / "table.json", json.dumps(table.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(folder / "report.html", report(recipe.run, table))
    for line in table.remarks():
        say(line)
    folder.finish(table.texts() | {"report": str(folder / "report.html")})


def limited(histories: Histories, part: Part, limit: int | None, seed: int) -> Histories:
    """The histories with at most `limit` targets in a part. What is known before them stays the same."""
    targets = histories.targets(part)
    if limit is None or limit >= len(targets):
        return histories
    kept = np.sort(np.random.default_rng(seed).choice(len(targets), limit, replace=False))
    return replace(histories, **{part: Targets(targets.user[kept], targets.place[kept])})


def recommenders(recipe: RecommendEvalRecipe, histories: Histories) -> dict[str, Callable[[], Recommender]]:
    """What makes the recommender of each row, by the row's name and in the table's order. Raises LoreError for codes of other
    items."""
    counted = {
        "popularity": lambda **_: popularity(histories),
        "co-occurrence": lambda **more: cooccurrence(histories, **recipe.cooccurrence.model_dump(), **more),
        "co-occurrence both ways": lambda **more: cooccurrence(histories, backward=1.0, **recipe.cooccurrence.model_dump(), **more),
        "item-kNN": lambda **more: item_knn(histories, **recipe.item_knn.model_dump(), **more),
    }
    found: dict[str, Callable[[], Recommender]] = {name: counted[name] for name in recipe.baselines}
    if recipe.prefixes is not None:
        own = read_codes(recipe.prefixes.codes, histories.item_ids)
        for name in dict.fromkeys(recipe.prefixes.of):
            for row, codes in ((name + PREFIXED, own), (name + PREFIXED + CONTROL, own.shuffled(recipe.seed))):
                shelves = {"codes": codes, "prefixes": recipe.prefixes.weights}
                found[row] = lambda name=name, shelves=shelves: counted[name](**shelves)
    for name, model in recipe.models.items():
        found[name] = lambda path=model.name: trained(path, histories)
    for name, blend in recipe.blends.items():
        weights = blend.weights or [1.0] * len(blend.of)
        found[name] = lambda name=name, of=tuple(blend.of), weights=weights: Blend(name, [found[one]() for one in of], weights)
    return {name: found[name] for name in recipe.rows()}


def trained(path: str | Path, histories: Histories) -> Recommender:
    """The model of a run of stage recommender. Raises LoreError if it scores another catalogue."""
    from lore.recommend.model import open_recommender  # loads torch: a table of counts needs none

    recommender = open_recommender(path)
    if recommender.item_ids != histories.item_ids:
        ours, its = set(histories.item_ids), set(recommender.item_ids)
        differ = f"{len(its - ours):,} of its items are not in the catalogue, and {len(ours - its):,} of the catalogue not in it"
        raise LoreError(
            f"{path} was trained on another catalogue: {differ if ours != its else 'the order of the items differs'}, so its "
            "scores would go to the wrong items.\nName the data of its recipe, or train it again."
        )
    return recommender


def kept_row(folder: RunFolder, name: str) -> Measured | None:
    """The result of a row that this run has measured; None if it is not there, or cut: then it is measured again."""
    try:
        with np.load(io.BytesIO(_place(folder, name).read_bytes()), allow_pickle=False) as kept:
            return Measured(kept["values"], kept["shown"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _place(folder: RunFolder, name: str) -> Path:
    return folder / "rows" / f"{quote(name, safe='')}.npz"


def _measured(folder: RunFolder, name: str, make: Callable[[], Recommender], histories: Histories, part: Part) -> Measured:
    """The row's result from an earlier start of this run, else measured now and kept."""
    shapes = (len(RULES), len(histories.targets(part)), len(METRICS)), (len(histories.item_ids),)
    found = kept_row(folder, name)
    if found is None or (found.values.shape, found.shown.shape) != shapes:
        found = measure(make(), histories, part, name)
        _place(folder, name).parent.mkdir(exist_ok=True)
        with written_whole(_place(folder, name)) as file:
            np.savez(file, values=found.values, shown=found.shown)
    return found


def report(title: str, table: Table) -> str:
    """The page report.html: self-contained, all names escaped, no script."""
    page = page_template(Path(__file__).parent, "eval_report.html.jinja")
    names = {"rules": RULES, "groups": GROUPS, "metrics": METRICS, "compared": COMPARED}
    return page.render(title=title, style=Markup(page_style()), table=table, text=text, **names)
