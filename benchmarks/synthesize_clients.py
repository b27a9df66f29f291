"""Two other clients that benchmarks/synthesize.py starts. The second one runs in its own Python environment.

    python benchmarks/synthesize_clients.py bare JOB.json        a minimal Python client: aiohttp, stores no completions
    python benchmarks/synthesize_clients.py curator JOB.json     bespokelabs-curator 0.1.31

JOB.json: url, model, concurrency, tokens (per completion), temperature, prompts (a jsonl of {"prompt": messages}), out. Writes
{"seconds", "tokens"} of the requests to `out`. Does not import LORE.
"""

import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path


def bare(job: dict, prompts: list[list[dict]]) -> dict:
    """Request bodies are built in advance. Of each response only the token count is kept."""
    import asyncio

    import aiohttp

    fields = {"model": job["model"], "max_tokens": job["tokens"], "temperature": job["temperature"], "ignore_eos": True}
    bodies = iter([json.dumps(fields | {"messages": messages}).encode() for messages in prompts])
    headers = {"Content-Type": "application/json"}

    async def worker(session: aiohttp.ClientSession) -> int:
        tokens = 0
        for body in bodies:
            async with session.post(job["url"] + "/chat/completions", data=body, headers=headers) as response:
                response.raise_for_status()
                tokens += json.loads(await response.read())["usage"]["completion_tokens"]
        return tokens

    async def run() -> dict:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            start = time.perf_counter()
            tokens = await asyncio.gather(*(worker(session) for _ in range(job["concurrency"])))
            return {"seconds": time.perf_counter() - start, "tokens": sum(tokens)}

    return asyncio.run(run())


def curator(job: dict, prompts: list[list[dict]]) -> dict:
    """Uses curator's OpenAI backend with rate limits that never apply. Truncated completions are accepted, as all are truncated."""
    # curator counts tokens with a vocabulary that tiktoken would download. Its dependency litellm ships this vocabulary.
    litellm = Path(find_spec("litellm").origin).parent
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(litellm / "litellm_core_utils" / "tokenizers"))
    from bespokelabs import curator as library

    class Asker(library.LLM):
        def prompt(self, row: dict) -> list[dict]:
            return json.loads(row["prompt"])

        def parse(self, row: dict, answer: str) -> dict:
            return {"answer": answer}

    asker = Asker(
        model_name=job["model"],
        backend="openai",
        generation_params={"max_tokens": job["tokens"], "temperature": job["temperature"], "ignore_eos": True},
        backend_params={
            "base_url": job["url"],
            "api_key": "none",
            "max_concurrent_requests": job["concurrency"],
            "max_requests_per_minute": 10**6,
            "max_tokens_per_minute": 10**9,
            "invalid_finish_reasons": ["content_filter"],
        },
    )
    rows = [{"prompt": json.dumps(messages)} for messages in prompts]
    start = time.perf_counter()
    answered = asker(rows, working_dir=job["out"] + ".work")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": answered.token_usage.output}


def main() -> None:
    client, path = sys.argv[1:]
    job = json.loads(Path(path).read_text())
    prompts = [json.loads(line)["prompt"] for line in Path(job["prompts"]).read_text().splitlines()]
    found = {"bare": bare, "curator": curator}[client](job, prompts)
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
