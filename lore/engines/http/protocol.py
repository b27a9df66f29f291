"""The OpenAI chat protocol without network code: builds requests, parses replies and redacts errors.

Servers support different extensions of the standard. A request contains every field that makes the engines agree; fields that
a server rejects by name are omitted from later requests (Dialect).
"""

import base64
import io
import json
import re
from dataclasses import dataclass, field
from typing import Any

from lore.codec.chat_template import parts_of
from lore.engines.chat import visible
from lore.engines.config import EndpointSection
from lore.engines.engine import Completion, Messages, RequestRefused, Sampling, Usage

TEMPLATE_TOKENS = 512
"""Upper bound of the tokens that a chat template adds to a prompt, including a default system prompt."""
MESSAGE_TOKENS = 32
"""Upper bound of the tokens that a chat template adds to one message."""

# Omitted for servers that reject them. The first three override defaults from a checkpoint's generation_config.
OPTIONAL = ("top_k", "min_p", "repetition_penalty", "seed", "stop_token_ids", "chat_template_kwargs", "logprob_token_ids")
OPTIONAL += ("return_tokens_as_token_ids",)
FEW_LOGPROBS = 5  # limit of some providers
# Finish reasons beyond those of OpenAI's API, as vLLM, SGLang and providers write them.
CUT = ("length", "model_length", "max_tokens", "max_output_tokens")
FILTERED = ("content_filter", "safety", "sensitive", "refusal", "recitation", "blocklist", "prohibited_content")
BROKEN = ("error", "abort", "cancelled", "network_error", "insufficient_system_resource")
TOOLS = ("tool_calls", "function_call")
_VERSION = re.compile(r"[-@:_](\d{3,}([-.][\w.-]*)?|latest)")


class Fault(Exception):
    """A reply that is not a valid answer to the request."""


@dataclass
class Dialect:
    """The fields that one server supports, learned from its error replies."""

    needed: frozenset[str] = frozenset()
    """Fields without which the server would answer another prompt; they are never omitted."""
    refused: set[str] = field(default_factory=set)
    limit_field: str = "max_tokens"
    top_logprobs: int = 20

    def fields(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with only the fields and field names that this server supports."""
        sent = {key: value for key, value in body.items() if key not in self.refused}
        if "max_tokens" in sent:
            sent[self.limit_field] = sent.pop("max_tokens")
        if "top_logprobs" in sent:
            sent["top_logprobs"] = self.top_logprobs
        return sent

    def learn(self, sent: dict[str, Any], message: str) -> bool:
        """Whether an error names a field of `sent` that can be omitted or renamed; if so, later calls of `fields` do that."""
        named = {name for name in OPTIONAL if name in sent and name not in self.needed and _names(message, name)}
        self.refused |= named
        if "max_tokens" in sent and re.search(r"use\W+max_completion_tokens\W+instead", message, re.IGNORECASE):
            self.limit_field, named = "max_completion_tokens", named | {"max_tokens"}
        if sent.get("top_logprobs", 0) > FEW_LOGPROBS and _names(message, "top_logprobs"):
            self.top_logprobs, named = FEW_LOGPROBS, named | {"top_logprobs"}
        return bool(named)


def _names(message: str, name: str) -> bool:
    """Whether an error message names a field. Stricter for plain words such as seed, because errors may quote the prompt."""
    before = r"(?<![A-Za-z_])" if "_" in name else r"(?:(?:argument|parameter|field)s?(?: supplied)?\W+(?:\w+, )*|\"body\", \")"
    return re.search(rf"{before}{name}(?![A-Za-z_])", message) is not None


def request_body(section: EndpointSection, messages: Messages, sampling: Sampling, *, n: int, seed: int) -> dict[str, Any]:
    """The body of one request. A trailing assistant message is used as prefill (continue_final_message of vLLM and SGLang)."""
    body: dict[str, Any] = {
        **section.extra,
        "model": section.model,
        "messages": [_message(message) for message in messages],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "repetition_penalty": 1.0,
    }
    if n > 1:
        body["n"] = n
    if sampling.temperature > 0:
        body |= {"top_p": sampling.top_p, "top_k": -1, "min_p": 0.0, "seed": seed}
    if messages[-1]["role"] == "assistant":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def bound_of(section: EndpointSection, messages: Messages, sampling: Sampling, n: int) -> Usage:
    """Upper bound of the tokens of a request."""
    return Usage(prompt_bound(messages, section.max_image_tokens), n * sampling.max_tokens)


def prompt_bound(messages: Messages, max_image_tokens: int) -> int:
    """Upper bound of the tokens of a prompt. A token covers at least one byte of UTF-8."""
    parts = [part for message in messages for part in parts_of(message)]
    texts = sum(len(part["text"].encode()) for part in parts if part["type"] == "text")
    photos = sum(part["type"] == "image" for part in parts)
    return TEMPLATE_TOKENS + MESSAGE_TOKENS * len(messages) + texts + photos * max_image_tokens


def reply_usage(reply: dict[str, Any]) -> Usage | None:
    """The usage that the server reports; None if it reports none."""
    usage = reply.get("usage")
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else [None]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Usage(*counts)


def read_reply(data: bytes, model: str) -> dict[str, Any]:
    """The parsed reply with its choices. Raises Fault for anything else, including a reply from another model."""
    try:
        reply = json.loads(data)
    except ValueError as error:  # includes UnicodeDecodeError
        raise Fault(f"a reply that is not JSON: {data[:120]!r}") from error
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise Fault(f"a reply without choices: {data[:120]!r}")
    answered = reply.get("model")
    if isinstance(answered, str) and answered and not same_model(model, answered):
        raise Fault(f"an answer of model {answered[:120]!r} to a request for {model!r}")
    return reply


def same_model(asked: str, answered: str) -> bool:
    """Whether `answered` names the same model as `asked`.

    The owner may be missing and a version suffix may be added (gpt-4o, gpt-4o-2024-08-06); another variant (gpt-4o-mini)
    does not match.
    """
    asked, answered = asked.lower(), answered.lower()
    if "/" not in asked or "/" not in answered:
        asked, answered = asked.rsplit("/", 1)[-1], answered.rsplit("/", 1)[-1]
    asked, answered = asked.removesuffix(":latest"), answered.removesuffix(":latest")
    return asked == answered or (answered.startswith(asked) and _VERSION.fullmatch(answered[len(asked) :]) is not None)


def completions(reply: dict[str, Any], n: int, max_tokens: int) -> list[Completion]:
    """At most n completions from a reply. Raises Fault for a choice without text or one that the server broke off, RequestRefused,
    with the server's words, for a choice that a filter or the model refuses. A choice without any text that was not cut is no
    answer: its `detail` says so.

    Servers report one token count for all choices. Truncated choices count as max_tokens; the rest is distributed over the
    other choices in proportion to text length.
    """
    usage = reply_usage(reply)
    texts, reasons, details = [], [], []
    for choice in reply["choices"][:n]:
        message, reason = choice.get("message"), choice.get("finish_reason")
        message = message if isinstance(message, dict) else {}
        text, said = message.get("content"), message.get("refusal")
        kind = reason.casefold() if isinstance(reason, str) else ""
        if kind in FILTERED or (not text and isinstance(said, str) and said):
            raise RequestRefused(_refusal_words(choice, reason, said))
        # A server with a reasoning parser omits the content of an answer that was cut in its reasoning.
        has_text = kind in TOOLS or any(key in message for key in ("content", "reasoning_content", "reasoning"))
        if not kind or kind in BROKEN or not isinstance(text, str | None) or not has_text:
            raise Fault(f"a choice without an answer: {json.dumps(choice)[:120]}")
        texts.append(text or "")
        reasons.append("length" if kind in CUT else "stop")
        details.append("" if kind in CUT or (text or "").strip() else _empty_words(message, reason))
    counts = _shared_out(texts, reasons, usage.completion_tokens, max_tokens) if usage else [0] * len(texts)
    prompt_tokens = usage.prompt_tokens if usage else 0
    rows = zip(texts, counts, reasons, details, strict=True)
    return [Completion(text, count, reason, prompt_tokens, detail) for text, count, reason, detail in rows]


def _empty_words(message: dict[str, Any], reason: str) -> str:
    only = "" if not (message.get("reasoning_content") or message.get("reasoning")) else " after its reasoning"
    return f"empty answer{only}, finish_reason {reason}"


def _refusal_words(choice: dict[str, Any], reason: str, said: Any) -> str:
    """The finish reason, with the model's or the filter's own words, on one line."""
    words = said if isinstance(said, str) and said else choice.get("content_filter_results") or choice.get("error") or ""
    words = words if isinstance(words, str) else json.dumps(words, ensure_ascii=False)
    return " ".join(f"the answer was blocked (finish_reason {reason}){': ' * bool(words)}{words}".split())[:400]


def _shared_out(texts: list[str], reasons: list[str], total: int, max_tokens: int) -> list[int]:
    counts = [max_tokens if reason == "length" and len(texts) > 1 else 0 for reason in reasons]
    rest = [i for i, count in enumerate(counts) if not count]
    left, weight = max(0, total - sum(counts)), sum(len(texts[i]) + 1 for i in rest)
    for i in rest:
        share = len(texts[i]) + 1
        counts[i] = round(left * share / weight)
        left, weight = left - counts[i], weight - share
    return counts


def error_text(data: bytes, key: str | None) -> str:
    """The message of an error reply on one line, without the key."""
    text = data.decode("utf-8", errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    said = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return redact(" ".join(said.split()), key)[:400]


def redact(text: str, key: str | None) -> str:
    """`text` without the key, without the token after `Bearer` and without partly masked keys (sk-a***xyz)."""
    if key:
        for form in {key, json.dumps(key)[1:-1], base64.b64encode(key.encode()).decode()}:
            text = text.replace(form, "[key]")
        if len(key) >= 12:  # a part of the key, as in: Incorrect API key provided: sk-proj-abcd
            text = re.sub(rf"{re.escape(key[:8])}\S*|\S*{re.escape(key[-8:])}", "[key]", text)
    text = re.sub(r"(?<=://)[^\s/@]+@", "[key]@", text)  # credentials of a proxy
    return re.sub(r"(?i)\bbearer\s+\S+|\S*\*{3,}\S*", "[key]", text)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_part(part) for part in message["content"]]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    data = io.BytesIO()
    visible(part["image"]).save(data, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}
