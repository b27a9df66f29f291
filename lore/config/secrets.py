"""Finds keys, passwords and tokens in the data of a recipe: by the names of entries, and by the form of values.

A recipe is stored with its run and printed in reports, so it must hold none. A name counts in every spelling (`x-api-key`,
`apiKey`, `Authorization`), at any depth, in lists of name and value, and in texts such as a header, a query string or JSON.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from lore.support.untrusted_json import parse_json

HIDDEN = "a value that is not shown because it may be a key"
MASK = "[key]"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SURE = re.compile(
    "apikey|authori[sz]ation|authentication|secret|passw|passphrase|credential|cookie|privatekey|accesskey|signingkey|accountkey"
    "|subscriptionkey|encryptionkey|licensekey|masterkey|sharedkey|servicekey|adminkey|projectkey|bearer|jwt|sessionid"
)
_LAST = ("auth", "pwd", "pw", "creds", "pat", "sig", "signature")
# A key or a token of a prompt: eos_token, prompt_cache_key.
_PROMPT_TOKENS = frozenset(
    "bos eos pad unk sep cls mask stop start end image video audio max min per first last next new think thinking special".split()
)
_KEY_OF = frozenset("api x ai auth ssh aws azure gcp google openai anthropic mistral hf huggingface deploy token".split())
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk[-_][\w-]{8,}|[pr]k_(?:live|test)_\w{8,}|hf_[A-Za-z0-9]{8,}(?!\w)|gh[pousr]_[A-Za-z0-9]{8,}|github_pat_\w{8,}"
    r"|glpat-[\w-]{8,}|xox[abeoprs]-[\w-]{8,}|gsk_[A-Za-z0-9]{12,}|xai-[A-Za-z0-9]{12,}|nvapi-[\w-]{8,}|pplx-[A-Za-z0-9]{12,}"
    r"|r8_[A-Za-z0-9]{16,}|fw_[A-Za-z0-9]{16,}|tgp_v1_[\w-]{8,}|csk-[\w-]{12,}|AGE-SECRET-KEY-\w+"
    r"|npm_[A-Za-z0-9]{20,}|AIza[\w-]{16,}|ya29\.[\w-]{8,}|A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{8,}|eyJ[\w-]{8,}\.[\w-]{4,}[\w.-]*"
    r"|(?i:bearer)(?:\s|%20)+[\w.~+/=-]{6,}|(?i:token|api-?key)\s+(?=[A-Za-z_-]*\d)[\w.~+/=-]{12,}"
    r"|(?i:basic)\s+(?=[A-Za-z]*[\d=])[A-Za-z0-9+/]{8,}={0,2}"
    r")|-----BEGIN [A-Z ]{0,30}PRIVATE KEY"
)
_IN_URL = re.compile(r"(?<=://)[^\s/@]+@")  # the user of an address
_QUERY = re.compile(r"(://[^\s'\"?#]{0,300}[?#])[^\s'\",}]+")
_RUN = re.compile(r"[A-Za-z0-9]+")
_BASE64 = re.compile(r"(?<![\w+/-])[A-Za-z0-9+/]{40,}={0,2}(?![\w+/-])")
_NAME = re.compile(r"(?<![\w.-])([\"']?)(-{0,2}[A-Za-z][\w.-]*)\1(\s{0,9}[:=]\s{0,9})")
_QUOTED = r"\"[^\"]*\"|'[^']*'|[\"'][^\s]*"
_VALUE = {":": re.compile(rf"{_QUOTED}|(?:\[key\]|[^,;}}\]\n\"'])+"), "=": re.compile(rf"{_QUOTED}|[^\s,;}}\]&\"']+")}
_NOTHING = ("", "null", "None", "true", "True", "false", "False", MASK)
_NAMES, _VALUES = ("name", "key", "header", "field", "k"), ("value", "values", "val", "v", "content")


def is_secret_name(name: object) -> bool:
    """Whether an entry of this name holds a key, a password or a token. `max_tokens`, `eos_token` and `tokenizer` do not."""
    words = [word.lower() for word in _WORD.findall(unicodedata.normalize("NFKC", str(name)[:500]))]
    while len(words) > 1 and words[-1].isdigit():  # token_2
        words.pop()
    if not words:
        return False
    before, last = words[-2] if len(words) > 1 else "", words[-1]
    if _SURE.search("".join(words)) or last in _LAST or words == ["pass"]:
        return True
    if last.endswith("token"):  # authtoken
        return (last.removesuffix("token") or before) not in _PROMPT_TOKENS
    if last in ("tokens", "keys"):
        return before in _KEY_OF | {"access", "refresh", "session"}
    return last == "key" and (not before or before in _KEY_OF)


def looks_like_key(text: str) -> bool:
    """Whether a text holds something in the form of a key: of a known provider, a JWT, an address with a password, or 20 and more
    random letters and digits."""
    return _masked_forms(text) != text


def secret_places(value: Any, at: str = "") -> Iterator[str]:
    """Dotted paths of the entries that hold a key. A name that is a key itself is masked in its path."""
    if isinstance(value, dict):
        folded = {str(name).lower(): inner for name, inner in value.items()}
        named = next((folded[name] for name in _NAMES if isinstance(folded.get(name), str)), None)
        pair = named is not None and is_secret_name(named) and any(_holds(folded.get(name)) for name in _VALUES)
        for name, inner in value.items():
            path, lower = f"{at}.{mask(str(name))}" if at else mask(str(name)), str(name).lower()
            of_pair = (pair and lower in _VALUES) or (lower in _NAMES and any(other in folded for other in _VALUES))
            named_only = of_pair or (at.endswith("properties") and _is_schema(inner))
            secret = not named_only and is_secret_name(name) and _holds(inner)
            if secret or (pair and lower in _VALUES) or looks_like_key(str(name)):
                yield path
            else:
                yield from secret_places(inner, path)
    elif isinstance(value, list | tuple):
        names_only = at.rpartition(".")[2] in ("required", "enum", "stop")
        if len(value) == 2 and not names_only and isinstance(value[0], str) and is_secret_name(value[0]) and _holds(value[1]):
            yield f"{at}.1"
            return
        for index, inner in enumerate(value):
            yield from secret_places(inner, f"{at}.{index}" if at else str(index))
    elif isinstance(value, str) and (mask(value) != value or holds_secret(_json_inside(value))):
        yield at


def holds_secret(value: Any) -> bool:
    """Whether `secret_places` finds any."""
    try:
        return next(secret_places(value), None) is not None
    except RecursionError:
        return True  # JSON in a text, nested as deeply as no setting is


def is_secret_key(dotted: str) -> bool:
    """Whether a dotted key of a recipe names a secret: in its last part, or in any part of an endpoint's additional fields."""
    first, _, extra = dotted.partition(".extra.")
    return any(map(is_secret_name, extra.split("."))) if extra else is_secret_name(first.rpartition(".")[2])


def without_secrets(value: Any, key: str = "") -> Any:
    """The same data for people, with HIDDEN in place of every value that may be a key. key: its dotted key."""
    if is_secret_key(key) and _holds(value):
        return HIDDEN
    if isinstance(value, dict):
        hidden = {place.split(".", 1)[0] for place in secret_places(value)}
        return {mask(str(key)): HIDDEN if mask(str(key)) in hidden else inner for key, inner in value.items()}
    return HIDDEN if holds_secret(value) else value


def mask_problem(text: str) -> str:
    """`mask`, for a text that quotes any part of a recipe. It also hides what follows ? or # in an address, and the value of an
    override with names, which have no quotation marks."""
    if text.startswith("override "):
        name, _, value = text.partition("=")
        names = re.search(r":(?!\d+$)", value) is not None  # a line number may follow
        text = f"{name}=..." if names and value.lstrip().startswith(("{", "[", "-", "|", ">")) else text
    return mask(_QUERY.sub(rf"\1{MASK}", text))


def mask(text: str, *, random: bool = True) -> str:
    """A text for people in which every key is MASK, also the value after a secret name (`api_key=...`, `"token": "..."`). Takes
    time in proportion to the length of the text. random: also letters and digits in random order, such as ids of requests."""
    text = _masked_forms(text, random)
    parts, at = [], 0
    while found := _NAME.search(text, at):
        parts.append(text[at : found.end()])
        at, sign = found.end(), found[3].strip()
        if not _names_secret(found[2].rpartition(".")[2], quoted=bool(found[1]), assigned=sign == "="):
            continue
        value = _VALUE[sign].match(text, at)
        if value and value[0].strip(" \"'") not in _NOTHING:
            parts.append(MASK)
            at = value.end()
    return "".join([*parts, text[at:]])


def _names_secret(name: str, *, quoted: bool, assigned: bool) -> bool:
    # In a sentence, `token: the smallest part of a text` is no key.
    return is_secret_name(name) and (quoted or assigned or _SURE.search("".join(_WORD.findall(name[:500])).lower()) is not None)


def _masked_forms(text: str, random: bool = True) -> str:
    text = _IN_URL.sub(f"{MASK}@", _FORMS.sub(MASK, text))
    if not random:
        return text
    text = _BASE64.sub(lambda found: MASK if _is_mixed(found[0]) else found[0], text)
    return _RUN.sub(lambda found: MASK if _is_random(found[0]) else found[0], text)


def _is_mixed(run: str) -> bool:
    return not run.isalpha() and any(map(str.islower, run)) and any(map(str.isupper, run)) and any(map(str.isdigit, run))


def _is_random(run: str) -> bool:
    """Whether letters and digits are mixed as in a key. Names of models and words in camel case have longer parts."""
    if len(run) < 20 or run.isdigit():
        return False
    kinds = [character.isdigit() for character in run]
    turns = sum(one != other for one, other in zip(kinds, kinds[1:], strict=False))
    return turns >= 4 or (len(run) >= 24 and len(run) <= 2.2 * len(_WORD.findall(run)))


def _holds(value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and value not in ("", [], {})


def _is_schema(value: Any) -> bool:
    """Whether a value describes a property of JSON answers, which may be called `key` or `token`."""
    kinds = ("string", "number", "integer", "boolean", "array", "object", "null")
    return isinstance(value, dict) and (value.get("type") in kinds or any(name in value for name in ("$ref", "anyOf", "enum")))


def _json_inside(text: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return parse_json(text)
    except ValueError:
        return None
