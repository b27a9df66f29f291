"""Pairs per second of the transformers engine: each prompt read whole, and what prompts begin with read once.

    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py [--widths 64,256,576] [--queries 6] [--items 20] [--rounds 3]
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py --detail full --queries 125 --items 4 --written 300   as in an evaluation

Llamas with random weights and the tokenizer of the tests; the ways take turns. Seconds are CPU seconds of this
process, because the machine is shared. Probabilities and texts of the ways are compared.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import numpy as np
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lore.codec.prompt import PromptFormat, render
from lore.data.pair import Pair
from lore.data_synth.shop.world import World
from lore.engines import transformers
from lore.engines.chat import prompt_tokens
from lore.engines.config import ModelSection
from lore.engines.engine import Sampling
from lore.engines.loading import load_processor
from lore.engines.transformers import TransformersEngine
from lore.rubric.rubric import load_rubric

WAYS = ("whole", "rubric once", "rubric and query once")
LAYERS = {64: 2, 256: 4, 576: 6}
RUBRIC = load_rubric("shop")


def model_of(width: int, tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = max(2, width // 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=LAYERS.get(width, 6),
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads,
        intermediate_size=8 * width // 3,
        max_position_embeddings=16384,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=width**-0.5,
    )
    return LlamaForCausalLM(config).eval()


def pairs(queries: int, items: int) -> list[Pair]:
    """Pairs sorted by query as labelling sorts them."""
    made = list(World(seed=5).pairs("train", queries * items))
    texts = [" ".join(pair.title for pair in made[n : n + 4]) for n in range(len(made))]
    asked = [f"{made[n // items].query} no {n // items}" for n in range(len(made))]
    return [
        Pair(pair_id=str(n), query=asked[n], title=pair.title, description=texts[n], price=pair.price)
        for n, pair in enumerate(made)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="64,256,576")
    parser.add_argument("--queries", type=int, default=6)
    parser.add_argument("--items", type=int, default=20, help="of a query")
    parser.add_argument("--detail", default="tiers", help="of the rubric, as in prompt.detail")
    parser.add_argument("--written", type=int, default=40, help="prompts that are answered with 16 tokens")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_processor(ModelSection(name=str(tiny.make(Path(folder)).text)))
    fmt = PromptFormat("answer_only", chosen.detail, photo=False, max_prompt_tokens=16000)
    prompts = [render(pair, RUBRIC, fmt, tokenizer=tokenizer) for pair in pairs(chosen.queries, chosen.items)]
    for width in map(int, chosen.widths.split(",")):
        measure(model_of(width, tokenizer), tokenizer, prompts, chosen.written, chosen.rounds)


def measure(model: LlamaForCausalLM, tokenizer, prompts: list, written: int, rounds: int) -> None:
    by_query = transformers.runs
    engines = {name: TransformersEngine(model, tokenizer, RUBRIC, shared_prefix=name != WAYS[0]) for name in WAYS}
    seconds, answers = {}, {}
    for _ in range(rounds):
        for what, ask, asked in (("verdict", score, prompts), ("16 tokens written", write, prompts[:written])):
            for name, engine in engines.items():
                transformers.runs = by_query if name == WAYS[2] else lambda *_: []
                began = time.process_time()
                answers[what, name] = ask(engine, asked)
                seconds.setdefault((what, name), []).append((time.process_time() - began) / len(answers[what, name]))
    prefix = len(engines[WAYS[1]]._prefixes._held[0].ids)
    own = np.mean([prompt_tokens(tokenizer, prompt) for prompt in prompts]) - prefix
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(f"width {model.config.hidden_size}, {size:.1f} M parameters: {prefix} tokens of rubric, {own:.0f} of a pair")
    for (what, name), spent in seconds.items():
        median, whole = np.median(spent), np.median(seconds[what, WAYS[0]])
        rates = ", ".join(f"{1 / one:.1f}" for one in spent)
        found, expected = answers[what, name], answers[what, WAYS[0]]
        told = f"p {np.abs(found - expected).max():.1e}" if what == "verdict" else equal_texts(found, expected)
        print(f"  {what}, {name}: {1 / median:.1f} pairs/s ({rates}), {whole / median:.2f} x; {told}", flush=True)


def equal_texts(found: list, expected: list) -> str:
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    return f"{same} of {len(found)} texts equal"


def score(engine: TransformersEngine, prompts: list) -> np.ndarray:
    return engine.score(prompts)


def write(engine: TransformersEngine, prompts: list) -> list:
    return engine.generate(prompts, Sampling(max_tokens=16))


if __name__ == "__main__":
    main()
