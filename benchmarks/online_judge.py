"""The judge's server of the benchmarks: the stub of the tests, in a process of its own.

    python benchmarks/online_judge.py PORT NAME LOW_MS HIGH_MS

It draws the tiers' probabilities from the prompt, so every prompt has one answer, and takes between LOW_MS and HIGH_MS for it.
"""

import hashlib
import math
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from openai_server import Answer, Request, reply, serve

DRAW = random.Random(0)


def scores(request: Request, low_ms: float, high_ms: float) -> Answer:
    """Log-probabilities of the tiers, as vLLM returns them."""
    ids = request.body["logprob_token_ids"]
    drawn = hashlib.blake2b(request.text.encode(), digest_size=len(ids)).digest()
    logs = [math.log((1 + one) / (len(drawn) + sum(drawn))) for one in drawn]
    entries = [{"token": f"token_id:{number}", "logprob": value} for number, value in zip(ids, logs, strict=True)]
    answer = reply("", model=request.body["model"], seconds=DRAW.uniform(low_ms, high_ms) / 1000)
    answer.body["choices"][0]["logprobs"] = {"content": [entries[0] | {"top_logprobs": entries}]}
    return answer


def main() -> None:
    port, name, low_ms, high_ms = sys.argv[1:]

    def answer(request: Request) -> Answer:
        server.requests.clear()
        return scores(request, float(low_ms), float(high_ms))

    with serve(answer, port=int(port)) as server:
        server.models = [name]
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
