"""The OpenAI chat protocol without network code: builds requests, reads replies and redacts errors.

A reply is read once, into types with ranges (Reply). A reply outside of them is a Fault of its request and is never stored.

Servers support different extensions of the standard. A request contains every field that makes the engines agree; fields that
a server rejects by name are omitted from later requests (Dialect).
"""

import base64
import io
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from lore.codec.chat_template import parts_of
from lore.config.secrets import MASK, mask
from lore.engines.chat import visible
from lore.engines.config import EndpointSection
from lore.engines.engine import Completion, Messages, RequestRefused, Sampling, Usage
from lore.support.text import encodable
from lore.support.untrusted_json import parse_json, shown_json

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
MAX_TOKENS = 10_000_000
"""Of one request; no model reads or writes more."""
MAX_LISTED = 4096
"""Choices, positions or tokens that a reply lists."""
ROUNDING = 1e-2
"""How far a rounded log-probability may lie above 0."""
MAX_SAID = 400  # characters of an error's message
SHOWN_BYTES = 1000  # of a reply in a Fault; the client cuts it after it has removed the key
SHORTEST_KEY, SHORTEST_WORD = 8, 1  # characters of a key that is removed from answers, and from errors
_VERSION = re.compile(r"[-@:_](\d{3,}([-.][\w.-]*)?|latest)")


class Fault(Exception):
    """A reply that is not a valid answer to the request."""


def _text(text: str, info: ValidationInfo) -> str:
    return _without_key(encodable(text), (info.context or {}).get("key"))


Text = Annotated[str, AfterValidator(_text)]
"""Text of a server, without the key that validation gets in its context: a server has the key and can repeat it in an answer."""


class ReplyPart(BaseModel):
    """What a server writes beyond these fields is ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class TokenLogprob(ReplyPart):
    token: Text
    logprob: float = Field(le=ROUNDING)


class Position(TokenLogprob):
    top_logprobs: list[TokenLogprob] | None = Field(None, max_length=MAX_LISTED)


class Logprobs(ReplyPart):
    content: list[Position] | None = Field(None, max_length=MAX_LISTED)


class Message(ReplyPart):
    content: Text | None = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class Choice(ReplyPart):
    finish_reason: Text | None = None
    message: Message | None = None
    logprobs: Logprobs | None = None
    content_filter_results: Any = None
    error: Any = None


class PromptTokensDetails(ReplyPart):
    cached_tokens: float | None = Field(None, ge=0, le=MAX_TOKENS)


class ReplyUsage(ReplyPart):
    """Floats, because some servers write 7.0."""

    prompt_tokens: float | None = Field(None, ge=0, le=MAX_TOKENS)
    completion_tokens: float | None = Field(None, ge=0, le=MAX_TOKENS)
    prompt_tokens_details: PromptTokensDetails | None = None


class Reply(ReplyPart):
    """The parts of a chat completion that LORE reads."""

    model: Text | None = None
    choices: list[Choice] = Field(min_length=1, max_length=MAX_LISTED)
    usage: ReplyUsage | None = None

    def used(self) -> Usage | None:
        """The usage that the server reports; None if it reports none."""
        usage = self.usage
        if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            return None
        details = usage.prompt_tokens_details
        cached = int((details and details.cached_tokens) or 0)
        return Usage(int(usage.prompt_tokens), int(usage.completion_tokens), min(cached, int(usage.prompt_tokens)))


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


def read_reply(data: bytes, model: str, key: str | None = None) -> Reply:
    """The reply in its types, with texts without the key. Raises Fault for anything else, including a reply from another model."""
    try:
        found = parse_json(data)
    except ValueError as error:  # includes UnicodeDecodeError
        raise Fault(f"a reply that is not JSON ({str(error)[:80]}): {data[:SHOWN_BYTES]!r}") from error
    if not isinstance(found, dict) or not found.get("choices"):
        raise Fault(f"a reply without choices: {shown_json(found, SHOWN_BYTES)}")
    try:
        reply = Reply.model_validate(found, context={"key": key})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise Fault(f"a reply with an impossible {at}: {first['msg']}; found {shown_json(first['input'], SHOWN_BYTES)}") from error
    if reply.model and not same_model(model, reply.model):
        raise Fault(f"an answer of model {reply.model[:SHOWN_BYTES]!r} to a request for {model!r}")
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


def completions(reply: Reply, n: int, max_tokens: int) -> list[Completion]:
    """At most n completions from a reply. Raises Fault for a choice without text or one that the server broke off, RequestRefused,
    with the server's words, for a choice that a filter or the model refuses. A choice without any text that was not cut is no
    answer: its `detail` says so.

    Servers report one token count for all choices. Truncated choices count as max_tokens; the rest is distributed over the
    other choices in proportion to text length.
    """
    usage = reply.used()
    texts, reasons, details = [], [], []
    for choice in reply.choices[:n]:
        message, reason = choice.message or Message(), choice.finish_reason
        text, kind = message.content, (reason or "").casefold()
        if kind in FILTERED or (not text and isinstance(message.refusal, str) and message.refusal):
            raise RequestRefused(_refusal_words(choice, message))
        # A server with a reasoning parser omits the content of an answer that was cut in its reasoning.
        has_text = kind in TOOLS or not message.model_fields_set.isdisjoint(("content", "reasoning_content", "reasoning"))
        if not kind or kind in BROKEN or not has_text:
            raise Fault(f"a choice without an answer: {shown_json(choice.model_dump(exclude_unset=True), SHOWN_BYTES)}")
        texts.append(text or "")
        reasons.append("length" if kind in CUT else "stop")
        details.append("" if kind in CUT or (text or "").strip() else _empty_words(message, reason))
    counts = _shared_out(texts, reasons, usage.completion_tokens, max_tokens) if usage else [0] * len(texts)
    prompt_tokens = usage.prompt_tokens if usage else 0
    rows = zip(texts, counts, reasons, details, strict=True)
    return [Completion(text, count, reason, prompt_tokens, detail) for text, count, reason, detail in rows]


def _empty_words(message: Message, reason: str) -> str:
    only = "" if not (message.reasoning_content or message.reasoning) else " after its reasoning"
    return f"empty answer{only}, finish_reason {reason[:80]}"


def _refusal_words(choice: Choice, message: Message) -> str:
    """The finish reason, with the model's or the filter's own words, on one line."""
    said = message.refusal
    words = said if isinstance(said, str) and said else choice.content_filter_results or choice.error or ""
    words = words if isinstance(words, str) else shown_json(words, 2 * MAX_SAID)
    reason = (choice.finish_reason or "")[:80]
    return one_line(f"the answer was blocked (finish_reason {reason}){': ' * bool(words)}{words}")[:MAX_SAID]


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
        found = parse_json(text)
    except ValueError:
        found = text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return safe_words(found if isinstance(found, str) else shown_json(found, len(text)), key, MAX_SAID)


def one_line(text: str) -> str:
    return " ".join(encodable(text).split())


def safe_words(text: str, key: str | None, most: int) -> str:
    """At most `most` characters of a server's words, on one line and without the key."""
    # Redaction gets only what can be shown. A key that the cut splits would not be found, and could move into view as the text
    # before it gets shorter: the end of a cut text is never shown.
    text, margin = one_line(text), max(map(len, _forms(key)), default=0) + 64
    if len(text) <= most + margin:
        return redact(text, key)[:most]
    return redact(text[: most + margin], key)[:-margin][:most]


def _forms(key: str | None) -> set[str]:
    """The key as texts contain it: plain, in JSON, in a URL and in a basic authorization."""
    if not key:
        return set()
    return {key, json.dumps(key)[1:-1], quote(key, safe=""), base64.b64encode(key.encode()).decode()}


def redact(text: str, key: str | None) -> str:
    """`text` without the key, other keys in a known form, the token after `Bearer` and partly masked keys (sk-a***xyz). Takes time
    in proportion to the length of the text."""
    text = re.sub(r"(?i)\bbearer\s+\S+", MASK, _without_key(text, key, SHORTEST_WORD))
    # A part of the key, as in: Incorrect API key provided: sk-proj-abcd
    ends = (key[:8], key[-8:]) if key and len(key) >= 12 else None
    text = re.sub(r"\S+", lambda word: _without_part(word[0], ends), text)
    return mask(text, random=False)  # ids of requests stay


def _without_key(text: str, key: str | None, shortest: int = SHORTEST_KEY) -> str:
    """`text` without any form of the key, if it has at least `shortest` characters. A short one (`EMPTY`, `token` of a server that
    needs none) is replaced only as a whole word."""
    for form in _forms(key) if key and len(key) >= shortest else ():
        if len(form) >= SHORTEST_KEY:
            text = text.replace(form, MASK)
        elif form in text:
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", MASK, text)
    return text


def _without_part(word: str, ends: tuple[str, str] | None) -> str:
    """A word without the part that begins as the key does or ends as it does."""
    if "***" in word:
        return MASK
    if ends is not None:
        if (last := word.rfind(ends[1])) >= 0:
            word = MASK + word[last + len(ends[1]) :]
        if (begins := word.find(ends[0])) >= 0:
            word = word[:begins] + MASK
    return word


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
