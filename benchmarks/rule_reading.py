"""Whether a base model reads the tiers of a rule book: share of the tiers below edited rules of the shop that it writes right.

    python benchmarks/rule_reading.py runs/changed_rules/pretrain/model [--texts 100] [--whole]

Worked examples of fresh texts, as in the corpus of `recipes/experiments/changed_rules.yaml` (another seed); the model has read each
example up to the tier. --whole: below the whole book, as a judge sees it. *edited*: the tier is not the shop's own, so it cannot be
known without reading. 95 % intervals by Wilson's formula.
"""

import argparse
import random

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from lore.data_synth.shop import write
from lore.data_synth.shop.world import World
from lore.online.monitor.charts import wilson
from lore.rubric.rubric import load_rubric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    write.WHOLE_BOOKS = float(arguments.whole)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rubric, world, rng = load_rubric("shop"), World(99, photos=0, limits=True), random.Random(7)
    own = {f" {rule.id} {rule.tier}" for rule in rubric.rules}
    right: dict[str, list[bool]] = {"edited": [], "unchanged": []}
    for _ in range(arguments.texts):
        row = write.with_spans(write.examples_below_rules(rng, world))
        read = tokenizer(row["text"], add_special_tokens=False, return_offsets_mapping=True)
        ids = read["input_ids"]
        with torch.no_grad():
            next_ids = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        at_end = {end: at for at, (_, end) in enumerate(read["offset_mapping"])}
        for span in row["trained"]:
            text = row["text"][span["start"] : span["end"]]
            if not text.startswith(" = "):  # a limit, not a rule and its tier
                at = at_end[span["end"]]
                right["unchanged" if text in own else "edited"].append(next_ids[at - 1] == ids[at])
    for kind, hits in right.items():
        low, high = wilson(np.array([np.mean(hits)]), np.array([float(len(hits))]))
        print(f"{kind}: {sum(hits)} of {len(hits)} tiers right [{low.item():.3f}, {high.item():.3f}]")


if __name__ == "__main__":
    main()
