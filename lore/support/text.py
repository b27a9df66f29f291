"""Shop text: converts HTML to plain text and normalizes text for comparison.

`html.parser` is not used: in Python 3.11 it takes minutes on 200,000 hostile characters, and it drops text that only looks like a
tag ("ring <5 mm>"). Here only real HTML elements count as markup, and every step is linear in the length of the text.
"""

import html
import re
import unicodedata
from html.entities import html5
from typing import Literal

from lore.support.errors import LoreError

INLINE = """
a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd label mark q s samp small span strike strong sub sup
tt u var wbr
"""
BLOCK = """
address article aside blockquote body br button caption center col colgroup dd details div dl dt embed fieldset
figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html iframe img input legend li link main meta nav
noscript object ol option p param picture pre script section select source style summary svg table tbody td textarea
tfoot th thead title tr ul video
"""

_INLINE = frozenset(INLINE.split())
_NAMES = "|".join(sorted(INLINE.split() + BLOCK.split(), key=len, reverse=True))
_MARKUP = re.compile(rf"<(?:(/?)({_NAMES})(?:\s[^<>=]*=[^<>]*|\s*/?)>|(!--)|!doctype\b[^<>]*>)", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|([a-z][a-z0-9]{1,31}));", re.IGNORECASE)
_CLOSING = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in ("script", "style")}
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
"""Invisible characters that str.isprintable accepts: fillers, variation selectors and joiners (Unicode's
Default_Ignorable_Code_Point), and the empty braille cell.
"""

MAX_MARKS, SHORT = 30, 1_000  # Unicode's stream-safe text has at most 30 marks in a row
_ROUNDS = 4  # shops escape twice ("&amp;lt;br&amp;gt;"); with unlimited rounds a hostile text would take quadratic time


def normalize(text: str) -> str:
    """Normalized text for comparing queries and titles: Unicode compatibility form (NFKC), case-folded, single spaces."""
    return " ".join((text.lower() if text.isascii() else compatible(text).casefold()).split())


def compatible(text: str, form: Literal["NFKC", "NFKD"] = "NFKC") -> str:
    """A compatibility form of Unicode. Of more than MAX_MARKS combining marks in a row, which no script writes, the rest are
    dropped from a long text: sorting them takes the square of their number.
    """
    if len(text) > SHORT and not text.isascii():
        kept, marks = [], 0
        for letter in text:
            marks = marks + 1 if unicodedata.combining(letter) else 0
            if marks <= MAX_MARKS:
                kept.append(letter)
        text = "".join(kept)
    return unicodedata.normalize(form, text)


def has_html(text: str) -> bool:
    """True if the text contains an HTML element, comment or entity. `a < b & c` contains none."""
    if "<" in text and _MARKUP.search(text):
        return True
    return "&" in text and any(_is_entity(found) for found in _ENTITY.finditer(text))


def html_to_text(text: str) -> str:
    """Plain text with single spaces. Scripts, styles and comments are dropped; other text in angle brackets stays."""
    for _ in range(_ROUNDS):
        if not has_html(text):
            break
        text = " ".join(_ENTITY.sub(_decode, _without_markup(text)).split())
    return text


def _without_markup(text: str) -> str:
    parts, at, never_closed = [], 0, set()
    while found := _MARKUP.search(text, at):
        parts.append(text[at : found.start()])
        at = found.end()
        name = (found[2] or "").lower()
        if name not in _INLINE:
            parts.append(" ")
        if found[3] and "!--" not in never_closed:
            end = text.find("-->", at)
            if end < 0:
                never_closed.add("!--")
            at = end + 3 if end >= 0 else at
        elif name in _CLOSING and not found[1] and name not in never_closed:
            closing = _CLOSING[name].search(text, at)
            if closing is None:
                never_closed.add(name)
            at = closing.end() if closing else at
    parts.append(text[at:])
    return "".join(parts)


def _is_entity(found: re.Match) -> bool:
    name = found[1]
    return name is None or f"{name};" in html5 or f"{name.lower()};" in html5


def _decode(found: re.Match) -> str:
    if not _is_entity(found):
        return found[0]
    # Titles in title case contain `&Amp;` and `&Nbsp;`, which are not HTML entities.
    known = found[1] is None or f"{found[1]};" in html5
    return html.unescape(found[0] if known else found[0].lower())


_EMOJI = "\u00a9\u00ae\u203c\u2049\u20e3\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_JOINED = "\u0600-\u0dff\u1780-\u17ff\ufb50-\ufdff\ufe70-\ufefc"  # scripts that are spelled with joiners, such as Persian and Hindi
_UNSEEN = re.compile(
    rf"((?<=[{_JOINED}])[\u200c\u200d](?=[{_JOINED}])|(?<=[{_EMOJI}\ufe0f])\u200d(?=[{_EMOJI}])|(?<=[#*0-9{_EMOJI}])[\ufe0e\ufe0f])"
    "|[\x00-\x1f\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ud800-\udfff\ufeff\ufff0-\ufffb\ufffe\uffff"
    f"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a]|{INVISIBLE.pattern}"
)


def printable(value: object) -> str:
    """Untrusted text for a terminal: one line without control characters, direction marks and invisible characters. White space
    becomes a space, and everything else that a reader would not see becomes U+FFFD."""
    return _UNSEEN.sub(_seen, str(value))


def printable_lines(value: object) -> str:
    """The same for text of several lines, whose line ends stay."""
    return "\n".join(map(printable, str(value).split("\n")))


def counted(number: int, noun: str) -> str:
    """A number and its noun: `1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def shortened(text: str, limit: int) -> str:
    """The text in at most `limit` characters; a text that is cut ends with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _seen(found: re.Match) -> str:
    return found[0] if found[1] else " " if found[0].isspace() else "\ufffd"


def encodable(text: str) -> str:
    """The text with every half of a surrogate pair joined to its other half or replaced by U+FFFD, so that UTF-8 can encode it.

    JSON (`"\\ud83d"`), YAML and undecodable file names bring such halves in; no file, request or tokenizer takes them.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def named(text: str, what: str) -> str:
    """A name from the command line or the environment, unchanged. Raises LoreError for one with bytes that are not UTF-8: no table,
    recipe or manifest could hold it. what: where it was given."""
    if encodable(text) != text:
        raise LoreError(
            f"{what} holds bytes that are not UTF-8: {encodable(text)}\n"
            "Recipes, tables and run folders could not name this file. Rename it, for example in letters of ASCII."
        )
    return text
