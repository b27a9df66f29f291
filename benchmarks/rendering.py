"""Pairs per second of rendering and tokenizing on one core: what labelling does with a pair before the judge reads it.

    OMP_NUM_THREADS=1 python benchmarks/rendering.py [--pairs 5000] [--rounds 3]

The slow way tokenizes every prompt whole three times: to cut it to its budget, to sort it into a batch, and to read it. Seconds are
CPU seconds of this process, because the machine is shared; the ways take turns. Messages and token ids of both ways are compared.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import numpy as np
import tiny

from lore.codec import prefix_ids, prompt
from lore.codec.prompt import PromptFormat
from lore.codec.verdict_tokens import verdict_tokens
from lore.data.pair import Pair
from lore.data_synth.shop.world import World
from lore.engines.chat import at_verdict, prompt_text
from lore.engines.config import ModelSection
from lore.engines.loading import load_processor
from lore.judge.ask import render_chunk
from lore.rubric.rubric import load_rubric

RUBRIC, FORMAT = load_rubric("shop"), PromptFormat("answer_only", "tiers", photo=False, max_prompt_tokens=2000)
CHUNK = 250


def plainly(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def rows_of(pairs: list[Pair], engine: SimpleNamespace, slowly: bool) -> tuple[list, list]:
    """(messages, token ids) of all pairs, in chunks as a judge gets them."""
    messages, ids, prefix = [], [], engine.verdict.prefix_text
    for at in range(0, len(pairs), CHUNK):
        _, prompts, _ = render_chunk(pairs[at : at + CHUNK], engine, RUBRIC, FORMAT)
        texts = [prompt_text(engine.processor, at_verdict(one, prefix))[0] for one in prompts]
        if slowly:
            engine.tokenizer(texts, add_special_tokens=False)
            ids += engine.tokenizer(texts, add_special_tokens=False)["input_ids"]
        else:
            ids += [prefix_ids.text_ids(engine.tokenizer, text) for text in texts]
        messages += prompts
    return messages, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    made = list(World(seed=5).pairs("train", chosen.pairs))
    texts = [" ".join(pair.title for pair in made[n : n + 4]) for n in range(len(made))]
    pairs = [
        Pair(pair_id=str(n), query=pair.query, title=pair.title, description=text, price=pair.price)
        for n, (pair, text) in enumerate(zip(made, texts, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        models = tiny.make(Path(folder))
        processors = {kind: load_processor(ModelSection(name=str(getattr(models, kind)))) for kind in ("text", "vision")}
    fast = prefix_ids.text_ids, prompt.surely_within
    for kind, processor in processors.items():
        engine = SimpleNamespace(tokenizer=getattr(processor, "tokenizer", processor), processor=processor)
        engine.verdict = verdict_tokens(processor, RUBRIC)
        seconds, found = {True: [], False: []}, {}
        for _ in range(chosen.rounds):
            for slowly in (True, False):
                prefix_ids.text_ids, prompt.surely_within = (plainly, lambda *_: False) if slowly else fast
                began = time.process_time()
                found[slowly] = rows_of(pairs, engine, slowly)
                seconds[slowly].append((time.process_time() - began) / len(pairs))
        prefix_ids.text_ids, prompt.surely_within = fast
        tokens = np.mean([len(ids) for ids in found[False][1]])
        old, new = (1 / np.median(seconds[slowly]) for slowly in (True, False))
        print(f"{kind}: {tokens:.0f} tokens a prompt; {old:.0f} pairs/s slowly, {new:.0f} now, {new / old:.1f} x", end="; ")
        print(f"equal: {found[True] == found[False]}; all rounds {[round(1 / one) for one in seconds[False]]}", flush=True)


if __name__ == "__main__":
    main()
