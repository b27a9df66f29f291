"""A small shop in three splits, labels of a judge that knows the truth, and a distill recipe over them, for tests."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from label_folders import label_row, write_labels
from stub_scorer import TIERS, StubScorer, label_once, label_recipe

from lore.config.stages import load_recipe
from lore.config.yaml_text import to_yaml
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.data_synth.shop.world import World
from lore.distill.config import DistillRecipe
from lore.judge.card import judge_id
from lore.judge.verdict import Verdict
from lore.label.config import InputSection
from lore.label.inputs.open_input import open_input
from lore.label.keys import Keys, content_bytes
from lore.rubric.rubric import load_rubric

COUNTS = {"train": 96, "dev": 64, "test": 64}
SCRATCH = {"vocabulary": 600, "hidden": 16, "layers": 1, "heads": 2, "mlp": 24}


class TruthfulScorer(StubScorer):
    """A judge that gives .7 to the label of the pair."""

    def __init__(self, truth: dict[str, str]):
        super().__init__()
        self.truth = truth

    def _verdict(self, pair: Pair) -> Verdict:
        tier = self.truth[pair.pair_id]
        return Verdict(pair.pair_id, tier, [0.7 if name == tier else 0.1 for name in TIERS], judge_id=self.judge_id)


def shop_pairs(photos: bool = False) -> dict[str, list[Pair]]:
    """Pairs of three splits, without rationales."""
    world = World(seed=5)
    found = {}
    for split, count in COUNTS.items():
        bare = {"split": split, "rationale": None, "mismatch": None, "rules": [], "demands": []}
        pairs = (replace(pair, **bare) for pair in world.pairs(split, count))
        found[split] = [pair if photos else replace(pair, image=None) for pair in pairs]
    return found


def write_pairs(path: Path, pairs: list[Pair]) -> Path:
    """Writes a pairs file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with PairWriter(path) as writer:
        for pair in pairs:
            writer.write(pair)
    return path


def labelled(folder: Path, pairs: list[Pair]) -> Path:
    """A label folder of a truthful judge over these pairs, made by the label stage. Its input lies beside it."""
    table = write_pairs(folder.with_name(f"{folder.name}.parquet"), pairs)
    label_once(label_recipe(folder.parent, table), folder, TruthfulScorer({pair.pair_id: pair.label for pair in pairs}))
    return folder


class _Nowhere:
    def write(self, rejection: Any) -> None:
        raise AssertionError(rejection)


def write_labels_of(folder: Path, pairs: list[Pair], tiers: dict[str, str] | None = None, **more: Any) -> Path:
    """The same folder without the label stage, for speed. tiers: by pair_id, the pairs' own by default; more: of each label row."""
    table = write_pairs(folder.with_name(f"{folder.name}.parquet"), pairs)
    more = {"judge_id": judge_id("weights", load_rubric("shop").hash, "renderer")} | more
    tiers, rows, keys = tiers or {pair.pair_id: pair.label for pair in pairs}, [], Keys()
    for batch in open_input(InputSection(path=str(table)), folder / "work", _Nowhere()).batches():
        found = keys.of(batch)
        contents = content_bytes(found["high"], found["low"]).to_pylist()
        for question, content in zip(batch.to_pylist(), contents, strict=True):
            own = {name: question[name] for name in ("pair_id", "query_frequency", "slices")}
            rows.append(label_row(question["query"], question["item_id"], tiers[own["pair_id"]], content=content, **own | more))
    write_labels(folder, rows)
    (folder / "recipe.yaml").write_text(to_yaml(label_recipe(folder.parent, table).resolved()))
    return folder


def distill_body(pairs: Path, **sections: Any) -> dict[str, Any]:
    """A recipe over a pairs file: an encoder from scratch, 4 steps of 8 pairs. Sections replace keys."""
    body: dict[str, Any] = {
        "stage": "distill",
        "run": "distill",
        "data": {"path": str(pairs), "rubric": "shop"},
        "student": {"scratch": SCRATCH},
        "text": {"max_tokens": 48},
        "train": {"steps": 4, "batch_size": 8, "lr": 1e-3, "log_every": 1, "save_every": 0},
        "baselines": [],
        "bootstrap_samples": 50,
    }
    for name, section in sections.items():
        body[name] = body.get(name, {}) | section if isinstance(section, dict) else section
    return body


def distill_recipe(path: Path, pairs: Path, **sections: Any) -> DistillRecipe:
    """The typed recipe, written to a file."""
    path.write_text(json.dumps(distill_body(pairs, **sections)))
    return load_recipe(path)
