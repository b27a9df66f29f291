"""What ranks the next item best on Amazon 2018: counts, trained models. On Musical Instruments (cut and codes of MQL4GRec), or from
titles on Office Products (cut of MiniOneRec).

    python benchmarks/recommend.py $LORE_DATA/instruments                        baselines and one seed of each model
    python benchmarks/recommend.py $LORE_DATA/instruments --models none          baselines alone, a minute
    python benchmarks/recommend.py $LORE_DATA/instruments --seeds 0 1 2          means over seeds
    python benchmarks/recommend.py $LORE_DATA/amazon_office --text ENCODER       own codes, of titles, brands and co-occurrence

Everything is a run of `lore`, below $LORE_RUNS/instruments (or runs/instruments; office), so a second start goes on where the first
one was killed. The events keep the published split: of Instruments, the last item of each of 17,112 histories is the test. The
recipes are those of recipes/recommend. A control reads the same codes, dealt to other items.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import yaml

from lore.config.stages import load_recipe
from lore.recommend.eval_table import make_table, text
from lore.recommend.evaluate import kept_row
from lore.run.run_folder import RunFolder
from lore.run.summary import print_table

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "recommend"
CODES = ("Instruments.index_lemb.json", "Instruments.index_vitemb.json")
REFERENCE_POINTS = {"co-occurrence": (0.1040, 0.0930), "co-occurrence with prefixes": (0.1057, None)}
"""NDCG@10 measured before by other code, history removed and not removed."""
MODELS = {
    "BERT4Rec": ["codes={}", "network.evidence=0"],
    "SASRec": ["codes={}", "network.evidence=0", "network.kind=sasrec", "masks={}"],
    "Q-BERT4Rec": [],
    "Q-BERT4Rec, shuffled codes": ["codes.shuffled=SEED"],
    "Q-BERT4Rec, random masks only": ["masks={random: 1}"],
}
"""Overrides of pretrain.yaml. A causal model is not fine-tuned: its pre-training is the task."""
CONTROLS = {"Q-BERT4Rec, shuffled codes": "Q-BERT4Rec", "Q-BERT4Rec, random masks only": "Q-BERT4Rec", "BERT4Rec": "Q-BERT4Rec"}
BLENDED = " with item-kNN"
"""Every model also has a row in which the counts of item-kNN are added to it (lore.recommend.blend)."""
WEIGHTS = [0.3, 0.7]
"""Chosen on validation with seed 0 of Q-BERT4Rec: NDCG@10 .1342, .1361 and .1354 at .2, .3 and .5 for the model; .1285 without."""
CONTROLS |= {row + BLENDED: of + BLENDED for row, of in CONTROLS.items()} | {"Q-BERT4Rec": "Q-BERT4Rec" + BLENDED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with Instruments.*.inter and the published codes, or with *.item.json")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="rows to train, or none")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--codes", nargs="+", default=CODES[:1], help="files of published codes that the models read")
    parser.add_argument("--text", default="sentence-transformers/all-MiniLM-L6-v2", help="text encoder, for codes of *.item.json")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of both recipes: train.epochs=1")
    parser.add_argument("--part", choices=["valid", "test"], default="test")
    arguments = parser.parse_args()
    runs = Path(os.environ.setdefault("LORE_RUNS", "runs"))
    catalogue = next(arguments.data.glob("*.item.json"), None)
    work = runs / ("instruments" if catalogue is None else "office")
    work.mkdir(parents=True, exist_ok=True)
    data = {"events": str(work / "events.parquet"), "split": "given"}
    if not (work / "events.parquet").is_file():
        lore("data", "import", "events", arguments.data, "-o", work / "events.parquet")
    codes = [str(arguments.data / name) for name in arguments.codes]
    if catalogue is not None:
        data["items"] = str(work / "items.parquet")
        if not (work / "items.parquet").is_file():
            lore("data", "import", "items", catalogue, "-o", work / "items.parquet")
        text = ["use=[text,structure]", f"text={{encoder: {arguments.text}, fields: [title]}}"]
        lore("run", RECIPES / "semantic_ids.yaml", f"run={work.name}/semantic_ids", f"data={json.dumps(data)}", *text)
        codes = [str(work / "semantic_ids")]
    seconds, rows = {}, {}
    for name in [name for name in arguments.models if name != "none"]:
        for seed in arguments.seeds:
            began = time.monotonic()
            rows[f"{name}, seed {seed}"] = train(name, seed, work.name, data, codes, arguments.set)
            seconds[f"{name}, seed {seed}"] = time.monotonic() - began
    evaluated = evaluate(rows, arguments, data, codes, work)
    show(evaluated, arguments)
    print(json.dumps({"seconds of this start": {name: round(taken) for name, taken in seconds.items()}}))


def lore(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "lore", *map(str, arguments)], check=True)


def train(name: str, seed: int, study: str, data: dict[str, str], codes: list[str], more: list[str]) -> str:
    """The run folder of a model, trained unless it is done."""
    own_data = f"data={json.dumps(data)}"
    slug = name.lower().replace(", ", "-").replace(" ", "-")
    own = [one.replace("SEED", str(seed)) for one in MODELS[name]]
    overrides = [*([] if "codes={}" in own else [f"codes.paths={json.dumps(codes)}"]), *own, own_data, f"seed={seed}"]
    first = f"{study}/{slug}-{seed}/pretrain"
    lore("run", RECIPES / "pretrain.yaml", *overrides, f"run={first}", *more)
    if name == "SASRec":
        return first
    last = f"{study}/{slug}-{seed}/finetune"
    start = f"model={{name: {Path(os.environ['LORE_RUNS']) / first}}}"
    lore("run", RECIPES / "finetune.yaml", own_data, start, "needs=[]", f"seed={seed}", f"run={last}", *more)
    return last


def evaluate(rows: dict[str, str], arguments: argparse.Namespace, data: dict[str, str], codes: list[str], work: Path) -> RunFolder:
    """The finished run of stage recommend_eval with these rows."""
    runs = Path(os.environ["LORE_RUNS"])
    blends = {}
    for row in rows:
        model, _, seed = row.rpartition(", seed ")
        blends[f"{model}{BLENDED}, seed {seed}"] = {"of": [row, "item-kNN"], "weights": [*WEIGHTS]}
    name = f"eval-{arguments.part}-{crc32(' '.join(rows).encode()):08x}"  # other rows are another table
    recipe = {
        "stage": "recommend_eval",
        "run": f"{work.name}/{name}",
        "part": arguments.part,
        "data": data,
        "prefixes": {"codes": codes[0], "of": ["co-occurrence", "item-kNN"]},
        "models": {row: {"name": str(runs / run)} for row, run in rows.items()},
        "blends": blends,
    }
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    lore("run", path)
    return RunFolder.of(load_recipe(path))


def show(folder: RunFolder, arguments: argparse.Namespace) -> None:
    """Means over the seeds with paired intervals over users, and the distance of the baselines to their reference points."""
    recipe = load_recipe(folder.path.parent / f"{folder.path.name}.yaml")
    histories, joined = recipe.data.histories(), {}
    for row in recipe.rows():
        joined.setdefault(row.rpartition(", seed ")[0] or row, []).append(kept_row(folder, row))
    means = {
        row: replace(ones[0], values=np.mean([one.values for one in ones], axis=0), shown=sum(one.shown for one in ones))
        for row, ones in joined.items()
    }
    controls = recipe.controls() | {row: of for row, of in CONTROLS.items() if row in means and of in means}
    table = make_table(means, histories, recipe.part, reference="co-occurrence", controls=controls)
    texts = table.texts()
    columns = list(next(iter(texts.values())))
    cells = [[row, *values.values()] for row, values in texts.items()]
    print_table(f"seeds {arguments.seeds}, {arguments.part}", ["", *columns], cells)
    for row in table.rows:
        if row.below is not None:
            print(f"cold HR@10, {row.control_of} over {row.name}: {text(row.below['removed', 'cold', 'HR@10'], signed=True)}")
    for line in table.remarks():
        print(line)
    for row in table.rows if arguments.part == "test" and recipe.data.items is None else []:
        for rule, point in zip(("removed", "kept"), REFERENCE_POINTS.get(row.name, ()), strict=False):
            if point:
                value = row.metrics[rule, "all", "NDCG@10"].value
                print(f"{row.name}, history {rule}: {value:.4f}, reference point {point:.4f}, {100 * (value / point - 1):+.1f} %")


if __name__ == "__main__":
    main()
