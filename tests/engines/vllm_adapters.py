"""What vLLM does with adapters, in a separate process: vLLM keeps its memory until the process ends.

python tests/engines/vllm_adapters.py FOLDER vision|text

FOLDER holds tiny/ and adapters/<name>/; found.json gets per adapter the error of check_applied, and the largest differences of a
tier probability from transformers and from the base.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main(folder: str, kind: str) -> None:
    from test_transformers_engine import RUBRIC, prompts
    from tiny import Tiny
    from vllm.lora.request import LoRARequest

    from lore.engines.config import ModelSection, VllmSection
    from lore.engines.open_engine import open_engine
    from lore.engines.vllm_adapter import check_applied
    from lore.support.errors import LoreError

    tiny = Tiny(*(Path(folder) / "tiny" / name for name in ("pairs", "vision", "text")))
    adapters = sorted((Path(folder) / "adapters").iterdir())
    sections = {path.name: ModelSection(name=str(getattr(tiny, kind)), adapter=str(path), dtype="float32") for path in adapters}
    plain = sections["plain"]
    base = open_engine(plain.model_copy(update={"adapter": None}), RUBRIC, device="cpu")
    asked = prompts(tiny, base.processor)
    untouched = base.score(asked)
    options = VllmSection(eager=True, kv_cache_gib=0.1, max_model_tokens=1024, max_lora_rank=8)
    engine = open_engine(plain, RUBRIC, vllm=options)
    found: dict[str, dict] = {}
    for number, (name, section) in enumerate(sections.items(), 2):
        found[name] = {"error": None}
        request = LoRARequest(name, number, section.adapter)
        try:
            check_applied(engine.llm, request, section)
        except LoreError as error:
            found[name]["error"] = str(error)
            if name != "everywhere":
                continue
        engine._adapter = request
        scores = open_engine(section, RUBRIC, device="cpu").score(asked)
        found[name]["difference"] = float(np.abs(engine.score(asked) - scores).max())
        found[name]["base"] = float(np.abs(scores - untouched).max())
    (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
