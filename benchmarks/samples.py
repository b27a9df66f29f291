"""Seconds for k sampled completions per prompt: one shared prefill per prompt compared with one prefill per sample, alternating.

    python benchmarks/samples.py                  32 prompts with 24 rules (about 1,700 tokens), 8 samples of 32 tokens

    python benchmarks/samples.py --model 8b --tokens 128 --pairs 1    on a GPU with 80 GB

Uses one model with random weights (a small Llama, or the shape of Qwen3-8B) and the same random draws in both variants. The rules
make the prompts long.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from models import SIZES, make_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="tokens per completion")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", choices=SIZES, default="small")
    options = parser.parse_args()

    from lore.codec.prompt import PromptFormat, count_prompt_tokens, render
    from lore.data_synth.shop.world import World
    from lore.engines.config import ModelSection
    from lore.engines.engine import Sampling
    from lore.engines.open_engine import open_engine
    from lore.engines.transformers import TransformersEngine
    from lore.rubric.rubric import load_rubric

    world, rubric = World(seed=0), load_rubric("shop")
    fmt = PromptFormat(detail="retrieved", retrieved_rules=24, photo=False, max_prompt_tokens=2000)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), world, options.model)
        engine = open_engine(ModelSection(name=f"{folder}/model"), rubric, batch_tokens=32768)
        prompts = [render(pair, rubric, fmt, tokenizer=engine.processor) for pair in world.pairs("test", options.prompts)]
        lengths = [count_prompt_tokens(messages, engine.processor) for messages in prompts]
        print(f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, {options.samples} samples of {options.tokens}")
        sampling = Sampling(temperature=1.0, n=options.samples, max_tokens=options.tokens)
        shares = TransformersEngine._can_share

        def seconds(shared: bool) -> tuple[float, list]:
            TransformersEngine._can_share = shares if shared else False
            start = time.perf_counter()
            answers = engine.generate(prompts, sampling)
            return time.perf_counter() - start, answers

        seconds(True)
        ratios = []
        for _ in range(options.pairs):
            (once, first), (each, second) = seconds(True), seconds(False)
            same = sum(a == b for a, b in zip(first, second, strict=True))
            ratios.append(each / once)
            print(f"shared {once:.2f} s, {options.samples} prefills {each:.2f} s: {each / once:.2f} ({same} prompts alike)")
        print(f"ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
