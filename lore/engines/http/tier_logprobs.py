"""Tier probabilities from the log-probabilities that a server lists for one token.

vLLM lists exactly the tokens it is asked for (logprob_token_ids), so with the local tokenizer the result is that of the
other engines. Other servers list their most likely tokens, 20 or 5: a tier that is not among them gets at most what the
list leaves, which is an upper bound and makes it look more likely than it is. Without a local tokenizer tokens are told
apart by their text.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lore.codec.verdict_tokens import VerdictTokens
from lore.engines.engine import Messages
from lore.rubric.rubric import Rubric

OPENING, CLOSING = "<verdict>", "</verdict>"
TOKEN_ID = "token_id:"  # how vLLM writes tokens with return_tokens_as_token_ids


def scoring_fields(verdict: VerdictTokens | None) -> dict[str, Any]:
    """What a request says to have the tier tokens' log-probabilities listed."""
    said: dict[str, Any] = {"logprobs": True, "top_logprobs": 20}
    if verdict is not None:
        said |= {"logprob_token_ids": list(verdict.tier_ids), "return_tokens_as_token_ids": True}
    return said


def begun_at_verdict(messages: Messages, rubric: Rubric, verdict: VerdictTokens | None) -> Messages:
    """`messages` up to right before the tier. Without tokens that is behind what all tier ids have in common (<verdict>L),
    also where the caller, who does not know it either, stopped at <verdict>.
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
    """What follows for each tier: `1</verdict>` behind `<verdict>L`."""
    prefix = verdict.prefix_text if verdict else OPENING + os.path.commonprefix(list(rubric.tier_ids))
    return [f"{OPENING}{tier}{CLOSING}"[len(prefix) :] for tier in rubric.tier_ids]


def listed_tokens(reply: dict[str, Any]) -> dict[str, float] | None:
    """Tokens and log-probabilities at the reply's first position; None where the server lists none."""
    logprobs = reply["choices"][0].get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    entries = [content[0], *(content[0].get("top_logprobs") or [])]
    found = {entry.get("token"): entry.get("logprob") for entry in entries if isinstance(entry, dict)}
    return {token: float(value) for token, value in found.items() if isinstance(token, str) and isinstance(value, int | float)}


def tier_probabilities(listed: dict[str, float], ends: Sequence[str], verdict: VerdictTokens | None) -> tuple[np.ndarray, bool]:
    """Probabilities [tiers] that sum to 1, and whether the list held any tier at all."""
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
    """The one tier that a token begins or is; None for any other token and for one that several tiers share."""
    if token.startswith(TOKEN_ID) and verdict is not None:
        number = token.removeprefix(TOKEN_ID)
        ids = [str(tier_id) for tier_id in verdict.tier_ids]
        return ids.index(number) if number in ids else None
    tiers = [index for index, end in enumerate(ends) if token and end.startswith(token)]
    return tiers[0] if len(tiers) == 1 else None
