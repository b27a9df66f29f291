"""Scores and greedy answers of the in-process vLLM engine, in a separate process, which kills itself at the end: vLLM's own process
has to end with it, and who waits for its output would wait for both.

python tests/engines/vllm_answers.py FOLDER_OF_TINY vision|text OUT.json [ADAPTER]
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path


def many_tiers(tokenizer, count: int):
    """A rubric with so many tiers, whose ids are words of one token each."""
    from lore.rubric.rubric import Rubric, Tier

    words = sorted(word[1:] for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalnum() and word[1:].islower())
    tiers = [Tier(id=word, name=word, meaning=word, relevant=place > 2) for place, word in enumerate(words[:count])]
    assert len(tiers) == count
    return Rubric(name=f"tiers{count}", version="1", tiers=tiers)


def main(folder: str, kind: str, out: str, adapter: str | None = None) -> None:
    from test_transformers_engine import RUBRIC, prompts
    from tiny import Tiny

    from lore.engines.config import ModelSection, VllmSection
    from lore.engines.engine import Sampling
    from lore.engines.open_engine import open_engine
    from lore.engines.vllm import VllmEngine

    tiny = Tiny(*(Path(folder) / name for name in ("pairs", "vision", "text")))
    model = ModelSection(name=str(getattr(tiny, kind)), adapter=adapter, dtype="float32")
    engine = open_engine(model, RUBRIC, vllm=VllmSection(eager=True, kv_cache_gib=0.1, max_model_tokens=1024))
    asked = prompts(tiny, engine.processor)
    sampling = Sampling(temperature=1.0, n=3, max_tokens=6, seed=5)
    drawn = [engine.generate([asked[0], asked[0], asked[1]], sampling) for _ in range(2)]
    found = {
        "scores": engine.score(asked).tolist(),
        "greedy": [[vars(c) for c in row] for row in engine.generate(asked, Sampling(max_tokens=16, n=2))],
        "drawn": [[[c.text for c in row] for row in rows] for rows in drawn],
        "none": [engine.generate([], Sampling()), list(engine.score([]).shape)],
    }
    try:
        engine.generate([[{"role": "user", "content": "a " * 2000}]], Sampling())
    except Exception as error:
        found["too_long"] = f"{type(error).__name__}: {error}"
    many = VllmEngine(engine.llm, engine.processor, many_tiers(engine.tokenizer, 25), set(), engine._adapter)
    found["many"] = many.score(asked[:4]).tolist()
    many.verdict = replace(many.verdict, tier_ids=tuple(range(129)))  # the tiny tokenizer has too few words
    try:
        many.score(asked[:1])
    except Exception as error:
        found["too_many"] = f"{type(error).__name__}: {error}"
    Path(out).write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
