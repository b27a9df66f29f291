"""Scores of the in-process vLLM engine that reads the tiers in one of its two ways, in a separate process.

python tests/engines/vllm_scores.py FOLDER_OF_TINY vision|text logprobs|pooling OUT.json [ADAPTER]
"""

import json
import multiprocessing
import sys
from pathlib import Path

REASON = "color: red asked, blue found; " * 40


def main(folder: str, kind: str, scoring: str, out: str, adapter: str | None = None) -> None:
    from test_transformers_engine import FORMAT, RUBRIC, prompts
    from tiny import Tiny

    from lore.codec.verdict_tokens import with_verdict_prefix
    from lore.engines.config import ModelSection, VllmSection
    from lore.engines.engine import Sampling
    from lore.engines.open_engine import open_engine
    from lore.support.errors import LoreError

    tiny = Tiny(*(Path(folder) / name for name in ("pairs", "vision", "text")))
    model = ModelSection(name=str(getattr(tiny, kind)), adapter=adapter, dtype="float32")
    options = VllmSection(eager=True, kv_cache_gib=0.1, max_model_tokens=1024, scoring=scoring)
    engine = open_engine(model, RUBRIC, vllm=options, only_scores=True)
    asked = prompts(tiny, engine.processor, 40)
    found = {"scores": engine.score(asked).tolist(), "usage": vars(engine.usage).copy()}
    reasoned = [with_verdict_prefix(p, FORMAT, engine.verdict, rationale=REASON) for p in asked[:8]]
    found["reasoned"], found["cached"] = [], []
    for _ in range(2):
        before = engine.usage.cached_tokens
        found["reasoned"].append(engine.score(reasoned).tolist())
        found["cached"].append(engine.usage.cached_tokens - before)
    found["none"] = list(engine.score([]).shape)
    try:
        engine.generate(asked[:1], Sampling(max_tokens=1))
    except LoreError as error:
        found["generate"] = str(error)
    found["processes"] = [len(multiprocessing.active_children())]
    engine.close()
    found["processes"].append(len(multiprocessing.active_children()))
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
