"""What the vectors and codes of finished runs of stage semantic_ids are worth, beside each other.

    python benchmarks/recommend_codes.py runs/recommend/semantic_ids runs/recommend/text_only [--labels styles.jsonl=colour]

Per run: codes in use; the share of validation events whose item is among the ten nearest, by cosine, to one of the last five items
before it (history removed; cold: at most five training events); the share whose item has the first code of an earlier item, beside
the same codes shuffled; accuracy of linear probes from vectors and codes. labels: JSON lines with item_id and labels to probe.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from lore.config.recipe import BaseRecipe
from lore.config.stages import recipe_class
from lore.recommend.codes import read_codes
from lore.recommend.codes_report import probes, usage
from lore.recommend.histories import COLD
from lore.recommend.quantize import load_arrays
from lore.run.run_folder import RunFolder

LAST, NEAREST = 5, 10


def measured(run: str, labels: str | None) -> dict[str, object]:
    values = RunFolder(run).recipe_values
    recipe: BaseRecipe = recipe_class("semantic_ids").model_validate(values)
    items = list(recipe.data.catalogue())
    codes = read_codes(run, [item.item_id for item in items])
    control = codes.shuffled(0)
    vectors = load_arrays(Path(run) / "vectors.safetensors", "vectors")["vectors"]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    row = {
        "used": " ".join(str(level["used"]) for level in usage(codes)),
        "perplexity": [one["perplexity"] for one in usage(codes)],
    }
    if recipe.data.events:
        histories = recipe.data.histories()
        cold_items, targets = histories.training_counts() <= COLD, histories.valid
        found = []
        for at, place in enumerate(targets.place):
            before, item = histories.before(targets, at), histories.items[place]
            if item in before:
                continue
            near = (unit @ unit[before[-LAST:]].T).max(axis=1)
            near[before] = -np.inf
            rank = int((near > near[item]).sum())
            prefix = [(one.values[before, 0] == one.values[item, 0]).any() for one in (codes, control)]
            found.append((cold_items[item], rank < NEAREST, *prefix))
        cold, hit, own, shuffled = np.asarray(found).T
        for name, part in (("warm", ~cold), ("cold", cold)):
            row[name] = {"events": int(part.sum())}
            row[name] |= {
                key: round(float(one[part].mean()), 4) for key, one in (("HR@10", hit), ("first code", own), ("shuffled", shuffled))
            }
    known = {"category": [item.category for item in items], "brand": [item.brand for item in items]}
    if labels:
        path, _, key = labels.partition("=")
        named = {one["item_id"]: one[key] for one in map(json.loads, Path(path).read_text().splitlines())}
        known[key] = [named.get(item.item_id) for item in items]
    return row | {"probes": probes(known, {"vectors": vectors}, codes, control, np.arange(len(items)), 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--labels")
    arguments = parser.parse_args()
    for run in arguments.runs:
        print(json.dumps({"run": run, **measured(run, arguments.labels)}, indent=1))


if __name__ == "__main__":
    main()
