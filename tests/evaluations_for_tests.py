"""Finished evaluations of synthetic judges, made by the real stage."""

import json
from pathlib import Path

import numpy as np

from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.rubric.rubric import load_rubric
from lore.run.runner import run_recipe

RUBRIC = load_rubric("homedepot")
TIERS = RUBRIC.tier_ids


def made_pairs(queries: int = 30, each: int = 5) -> list[Pair]:
    """Test queries with all tiers, two slices and different label weights, and similar train and dev splits."""
    rng = np.random.default_rng(5)
    pairs = []
    for split, count in (("train", 12), ("dev", 6), ("test", queries)):
        for q in range(count):
            for i in range(each):
                pairs.append(
                    Pair(
                        pair_id=f"{split}-{q}-{i}",
                        query=f"{split} lamp {q}",
                        title=f"{split} lamp {q} number {i}" if i % 2 else f"chair {i}",
                        label=TIERS[int(rng.integers(len(TIERS)))],
                        label_weight=[1.0, 0.5, 2.0][int(rng.integers(3))],
                        split=split,
                        slices=["general"] if q % 3 else ["general", "hard"],
                    )
                )
    return pairs


def write_pairs(path: Path, pairs: list[Pair]) -> Path:
    with PairWriter(path) as writer:
        for pair in pairs:
            writer.write(pair)
    return path


def right_in(share: float, seed: int, *, where=lambda pair: True, failures: float = 0.0):
    """A judge that is right on about `share` of the pairs for which `where` is true, and on half of all others."""

    def judged(pair: Pair) -> dict:
        rng = np.random.default_rng([seed, *pair.pair_id.encode()])
        if rng.random() < failures:
            return {"tier": None}
        label = TIERS.index(pair.label)
        right = rng.random() < (share if where(pair) else 0.5)
        tier = TIERS[label if right else (label + 1) % len(TIERS)]
        mass = float(rng.uniform(0.5, 0.95))
        rest = (1 - mass) / (len(TIERS) - 1)
        return {"tier": tier} | {f"p_{t}": mass if t == tier else rest for t in TIERS}

    return judged


def evaluate(data: Path, tmp: Path, run: str, judges: dict, pairs: list[Pair], **more) -> Path:
    """The run folder of a finished evaluation. judges: maps a name to a function of a pair."""
    sections = {}
    for name, judged in judges.items():
        file = tmp / f"{run.replace('/', '_')}-{name}.jsonl"
        rows = [{"pair_id": pair.pair_id, **judged(pair)} for pair in pairs if pair.split in ("test", "dev")]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sections[name] = {"kind": "predictions", "predictions": str(file)}
    body = {
        "stage": "evaluate",
        "run": run,
        "data": {"path": str(data), "rubric": "homedepot"},
        "prompt": {"order": "answer_only", "detail": "name"},
        "judges": sections,
        "baselines": ["majority"],
        "metrics": {"bootstrap_samples": 200},
    }
    recipe = tmp / f"{run.replace('/', '_')}.yaml"
    recipe.write_text(json.dumps(body | more), encoding="utf-8")
    return run_recipe(recipe).path
