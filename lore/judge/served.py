"""A judge behind an OpenAI-compatible server. The name under which it is served says which weights answer, and how they have to be
asked, so that a client does not take the answers of another judge for its own."""

import asyncio

from lore.codec.verdict_tokens import verdict_tokens
from lore.engines.config import EndpointSection
from lore.engines.conversation_check import check_conversation, check_server_template
from lore.engines.http.client import Client
from lore.engines.loading import load_processor
from lore.judge.card import check_template
from lore.judge.trained import TrainedJudge
from lore.support.errors import LoreError


def served_name(judge: TrainedJudge) -> str:
    """The model name of a served judge: `judge-<weights>-<renderer>`, two hashes of 16 hex digits. The renderer's covers the rubric
    and the prompt format."""
    return f"judge-{judge.weights}-{judge.renderer}"


def check_served(url: str, judge: TrainedJudge, key_variable: str | None = None) -> None:
    """Raises LoreError unless the server lists this judge among its models.

    url: base URL with the version; key_variable: name of the environment variable with the API key. Sends one request, which ends
    after 10 seconds. Call it outside of an event loop.
    """
    wanted = served_name(judge)

    async def names() -> list[str]:
        client = Client(EndpointSection(url=url, model=wanted, key_variable=key_variable))
        try:
            return await client.model_names()
        finally:
            await client.aclose()

    found = asyncio.run(names())
    if wanted in found:
        return
    how = f"Start it with `lore serve judge {judge.folder}`, or serve it under the name {wanted}."
    same = [name for name in found if name.startswith("judge-")]
    weights, renderer = f"judge-{judge.weights}-", f"-{judge.renderer}"
    if any(name.startswith(weights) for name in same):
        what = "asks the same weights with another rubric or prompt format"
    elif any(name.endswith(renderer) for name in same):
        what = "has the same rubric and prompt format, but other weights"
    else:
        what = "is another model"
    shown = ", ".join((same or found)[:4])
    raise LoreError(
        f"{url} serves {shown}, which {what}: {judge.folder} is {wanted}.\n"
        f"The answers would be stored as this judge's, so nothing was asked. {how}"
    )


def check_servable(judge: TrainedJudge) -> None:
    """Raises LoreError for a judge that a server would ask in another way than its training: its chat template has changed or is
    none that a server can apply, or no token tells its tiers apart."""
    processor = load_processor(judge.model, chat=True)
    check_template(judge.model, processor, str(judge.folder))
    verdict_tokens(processor, judge.rubric)
    check_conversation(processor, judge.rubric, judge.fmt, written=judge.fmt.order == "reason_first")
    for begun in (True, False):
        check_server_template(processor, begun=begun)
