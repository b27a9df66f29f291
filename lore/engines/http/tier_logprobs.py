"""Tier probabilities from the log-probabilities that a server returns for one token.

vLLM returns exactly the requested tokens (logprob_token_ids), so with a local tokenizer the result equals that of the other
engines. Other servers return their 20 or 5 most likely tokens. A tier that is not among them gets the smallest listed
probability or the remaining probability mass, whichever is less: an upper bound that overestimates the tier. Without a local
tokenizer, tokens are matched to tiers by their text.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lore.codec.verdict_tokens import VerdictTokens
from lore.engines.engine import Messages
from lore.engines.http.protocol import Reply
from lore.rubric.rubric import Rubric

OPENING, CLOSING = "<verdict>", "</verdict>"
TOKEN_ID = "token_id:"  # vLLM's token format with return_tokens_as_token_ids


def scoring_fields(verdict: VerdictTokens | None) -> dict[str, Any]:
    """Request fields that ask for the log-probabilities of the tier tokens."""
    said: dict[str, Any] = {"logprobs": True, "top_logprobs": 20}
    if verdict is not None:
        said |= {"logprob_token_ids": list(verdict.tier_ids), "return_tokens_as_token_ids": True}
    return said


def begun_at_verdict(messages: Messages, rubric: Rubric, verdict: VerdictTokens | None) -> Messages:
    """`messages` with a prefill that ends right before the tier.

    Without a local tokenizer the prefill ends after the common prefix of all tier ids (`<verdict>L`); a caller's prefill that
    ends with `<verdict>` is extended to it.
    """
    common = OPENING + os.path.commonprefix(list(rubric.tier_ids))
    if messages[-1]["role"] != "assistant":
        return [*messages, {"role": "assistant", "content": verdict.prefix_text if verdict else common}]
    *rest, last = messages
    content = last["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    if verdict is None and text.endswith(OPENING):
        text += common.removeprefix(OPENING)
    return [*rest, {"role": "assistant", "content": text}]


def tier_ends(rubric: Rubric, verdict: VerdictTokens | None) -> list[str]:
    """The text after the prefill for each tier, such as `1</verdict>` after `<verdict>L`."""
    prefix = verdict.prefix_text if verdict else OPENING + os.path.commonprefix(list(rubric.tier_ids))
    return [f"{OPENING}{tier}{CLOSING}"[len(prefix) :] for tier in rubric.tier_ids]


def listed_tokens(reply: Reply) -> dict[str, float] | None:
    """Tokens and log-probabilities at the reply's first position; None if the server returns none."""
    logprobs = reply.choices[0].logprobs
    if logprobs is None or not logprobs.content:
        return None
    first = logprobs.content[0]
    return {entry.token: min(entry.logprob, 0.0) for entry in (first, *(first.top_logprobs or ()))}


def tier_probabilities(listed: dict[str, float], ends: Sequence[str], verdict: VerdictTokens | None) -> tuple[np.ndarray, bool]:
    """Probabilities [tiers] that sum to 1, and whether `listed` contains any tier."""
    logs = np.full(len(ends), -np.inf)
    for token, value in listed.items():
        tier = _tier_of(token, ends, verdict)
        if tier is not None:
            logs[tier] = np.logaddexp(logs[tier], value)
    missing = np.isneginf(logs)
    if missing.any():
        left = max(1.0 - sum(np.exp(value) for value in listed.values()), 0.0)
        logs[missing] = min(np.log(left) if left > 0 else -np.inf, min(listed.values(), default=0.0))
        if np.isneginf(logs).all():
            logs[:] = 0.0
    weights = np.exp(logs - logs.max())
    return weights / weights.sum(), not missing.all()


def _tier_of(token: str, ends: Sequence[str], verdict: VerdictTokens | None) -> int | None:
    """Index of the only tier whose text starts with the token; None if no tier or several tiers match."""
    if token.startswith(TOKEN_ID) and verdict is not None:
        number = token.removeprefix(TOKEN_ID)
        ids = [str(tier_id) for tier_id in verdict.tier_ids]
        return ids.index(number) if number in ids else None
    tiers = [index for index, end in enumerate(ends) if token and end.startswith(token)]
    return tiers[0] if len(tiers) == 1 else None
