"""Evidence for a teacher: a table of facts, or the best-matching passages of a folder. Traces store it. A judge sees facts
only in one condition of the capability tests.

    facts = open_facts("runs/quickstart/world/facts.jsonl")
    [fact.text for fact in facts.about("red samovar")]     # ["samovar = kettle (jargon, category)"]

A table (.jsonl, .csv, .parquet) has the columns phrase and value, and optionally dimension, kind and text. A fact applies to a
text that contains its phrase. Passages are paragraphs of a folder's .txt and .md files, or the column text of a table without
phrases, ranked by BM25 (Robertson and Zaragoza 2009, in Lucene's form, by bm25s). Left out: stemming, and embeddings, which need
a model.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lore.codec.sanitize import neutralize
from lore.codec.tokenize import MARKS, UNSPACED, content_terms
from lore.data.rejected_rows import Rejection, shown_value
from lore.data.tables.any_table import UNPACK, WORKBOOKS, other_format, suffix_of, table_records
from lore.data.tables.text_tables import is_utf8, is_wide
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.text import normalize, printable

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
TEXTS = (".txt", ".md")
MAX_BYTES = 512 * 2**20  # all files together
MAX_FACTS = 2_000_000  # facts or passages
MAX_PHRASE = 200  # characters of a phrase, of a dimension and of a kind
MAX_PASSAGE = 600  # characters of a passage, and of the text of a fact
MAX_LOOKED_UP = 20_000  # characters of a text that are searched for phrases
RELATIONS = ("accessory", "sub-brand")  # kinds of facts whose value is related to the phrase but does not mean the same
MAX_TERMS = 256  # distinct words of the text that rank passages

_PIECES = re.compile(rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|[{MARKS}])+|[^\s\w]")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？；]")


@dataclass(frozen=True, slots=True)
class Fact:
    """One piece of evidence. text: what the teacher reads. The other fields are filled in from a table."""

    text: str
    kind: str = ""
    dimension: str = ""
    phrase: str = ""
    value: str = ""


class Facts(Protocol):
    """A searchable source of facts. files: every file that was read, for fingerprints."""

    files: list[str]

    def about(self, query: str, item_text: str = "") -> list[Fact]:
        """The facts about a query, then those about an item's text."""


def open_facts(path: str, top: int = 5) -> Facts:
    """Reads a fact table, a table of passages or a folder of texts. top: maximum facts per look-up.

    Raises LoreError for a file that is missing, too large, not UTF-8 or malformed.
    """
    if top < 1:
        raise LoreError(f"facts: at most {top} facts per look-up leaves none. Set top to 1 or more, or drop facts.")
    files, place = fact_files(path), Path(path)
    _check_size(files)
    if place.is_dir():
        return Passages((passage for file in files for passage in paragraphs(_text_of(file))), files, top)
    records = _records(place)
    first = next(records, None)
    if first is None:
        raise LoreError(f"facts: {path} has no rows. Give rows with phrase and value, or with text, or drop facts.")
    names = list(first[1])
    if "phrase" in names and "value" in names:
        return FactTable((_fact(place, *record) for record in _all(first, records)), place, top)
    if "text" in names and "phrase" not in names and "value" not in names:
        cells = (_cell(place, row, "text", record, needed=True) for row, record in _all(first, records))
        return Passages((passage for cell in cells for passage in paragraphs(cell)), [place], top)
    missing = "value" if "phrase" in names else "phrase"
    raise LoreError(
        f"facts: {path} has no column {missing!r}; found {printable(', '.join(names[:20]))}. A table of facts has the columns "
        f"phrase and value, a table of passages has text.{nearest_hint(missing, names)}"
    )


def fact_files(path: str) -> list[Path]:
    """The files that `open_facts` reads. Raises LoreError if there are none, or for another file type."""
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if _is_text(file, place))
        if not files:
            raise LoreError(f"facts: {path} has no {' or '.join(TEXTS)} file. Name a folder of texts, or a {_or(TABLES)} table.")
        return files
    if not place.is_file():
        raise LoreError(f"facts: {path} does not exist. Name a {_or(TABLES)} table with phrase and value, or a folder of texts.")
    if suffix_of(place) in (*WORKBOOKS, *UNPACK):
        raise other_format(place, TABLES, "facts: ")
    if suffix_of(place) not in TABLES:
        hint = " To use a single text, put it into a folder and name the folder." if place.suffix in TEXTS else ""
        raise LoreError(f"facts: {path} ends in {place.suffix or 'nothing'}; expected {_or(TABLES)}.{hint}")
    return [place]


class FactTable:
    """Facts indexed by phrase. A look-up scans the text once, for any number of facts."""

    def __init__(self, facts: Iterable[Fact], file: Path, top: int):
        self.files, self.top = [str(file)], top
        self._facts: list[Fact] = []
        self._by_phrase: dict[str, list[int]] = {}
        self._lengths: dict[str, list[int]] = {}  # first word of a phrase -> lengths of such phrases, in words
        for fact in dict.fromkeys(facts):
            pieces = _pieces(fact.phrase)
            if not pieces:
                raise LoreError(f"facts: {file} has the phrase {fact.phrase!r} without any word to look up. Remove the row.")
            lengths = self._lengths.setdefault(pieces[0], [])
            if len(pieces) not in lengths:
                lengths.append(len(pieces))
            self._by_phrase.setdefault(" ".join(pieces), []).append(len(self._facts))
            self._facts.append(fact)

    def __len__(self) -> int:
        return len(self._facts)

    def about(self, query: str, item_text: str = "") -> list[Fact]:
        """Facts whose phrase occurs in the query, then in the item's text; longest phrases first, at most `top`."""
        found = self._in(query)[: self.top]
        if item_text and len(found) < self.top:
            found += [index for index in self._in(item_text) if index not in found]
        return [self._facts[index] for index in found[: self.top]]

    def _in(self, text: str) -> list[int]:
        pieces, found = _pieces(text[:MAX_LOOKED_UP]), {}
        for at, piece in enumerate(pieces):
            for length in self._lengths.get(piece, ()):
                for index in self._by_phrase.get(" ".join(pieces[at : at + length]), ()):
                    found[index] = None
        return sorted(found, key=lambda index: (-len(self._facts[index].phrase), index))


class Passages:
    """Passages ranked by BM25 over words, and over character pairs in scripts without spaces."""

    def __init__(self, passages: Iterable[str], files: list[Path], top: int):
        import bm25s  # only for passages: a dry run with facts loads this module

        self.files, self.top = [str(file) for file in files], top
        self._passages = list(dict.fromkeys(_bounded(passages, "passages")))
        self._vocabulary: dict[str, int] = {}
        known = self._vocabulary
        ids = [[known.setdefault(term, len(known)) for term in content_terms(text)] for text in self._passages]
        if not known:
            raise LoreError(f"facts: {self.files[0]} has no passage with a word to look up. Give texts with words, or drop facts.")
        self._index = bm25s.BM25()
        self._index.index((ids, dict(known)), show_progress=False)

    def __len__(self) -> int:
        return len(self._passages)

    def about(self, query: str, item_text: str = "") -> list[Fact]:
        """The best passages that share a content word with the query or the item, at most `top`."""
        terms = dict.fromkeys(content_terms(f"{query}\n{item_text}"[:MAX_LOOKED_UP]))
        ids = [self._vocabulary[term] for term in terms if term in self._vocabulary][:MAX_TERMS]
        if not ids:
            return []
        scores = self._index.get_scores_from_ids(ids)
        found = np.flatnonzero(scores > 0)  # in Lucene's form every shared term scores above 0
        if len(found) > self.top:
            found = found[scores[found] >= np.partition(scores[found], -self.top)[-self.top]]
        best = found[np.argsort(-scores[found], kind="stable")][: self.top]
        return [Fact(self._passages[index]) for index in best]


def with_values(text: str, facts: Iterable[Fact]) -> str:
    """Replaces the phrases of facts in a text by their values, longest first from the left."""
    values: dict[tuple[str, ...], str] = {}
    for fact in facts:
        values.setdefault(tuple(_pieces(fact.phrase)), fact.value)
    found = [(normalize(piece[0]), *piece.span()) for piece in _PIECES.finditer(text)]
    longest, out, copied, at = max(map(len, values), default=0), [], 0, 0
    while at < len(found):
        for length in range(min(longest, len(found) - at), 0, -1):
            value = values.get(tuple(piece for piece, _, _ in found[at : at + length]))
            if value is not None:
                out += [text[copied : found[at][1]], value]
                at += length
                copied = found[at - 1][2]
                break
        else:
            at += 1
    return "".join([*out, text[copied:]])


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs as one line each, with the heading in front of the first one. Long ones are split at the end of a sentence."""
    heading = ""
    for block in re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n")):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if not lines:
            continue
        if all(line.startswith("#") for line in lines):
            heading = lines[-1].lstrip("# ")[:MAX_PHRASE]
            continue
        rest = neutralize(" ".join([heading, *lines] if heading else lines))
        heading = ""
        at = 0
        while len(rest) - at > MAX_PASSAGE:
            least, most = at + MAX_PASSAGE // 2, at + MAX_PASSAGE
            ends = [found.end() for found in _SENTENCE_END.finditer(rest, least, most)]
            cut = ends[-1] if ends else rest.rfind(" ", least, most)
            cut = cut if cut > at else most
            yield rest[at:cut].strip()
            at = cut + (len(rest) > cut and rest[cut] == " ")  # `neutralize` leaves single spaces
        if rest[at:]:
            yield rest[at:]


def _pieces(text: str) -> list[str]:
    """Words, single marks, and single characters of scripts without spaces: the units that phrases consist of."""
    return _PIECES.findall(normalize(text))


def _fact(file: Path, row: int, record: dict[str, Any]) -> Fact:
    phrase, value = (_cell(file, row, name, record, needed=True) for name in ("phrase", "value"))
    dimension, kind, text = (_cell(file, row, name, record) for name in ("dimension", "kind", "text"))
    if len(phrase) > MAX_PHRASE:
        raise LoreError(f"facts: {file} row {row} has a phrase of {len(phrase):,} characters, more than {MAX_PHRASE}. Shorten it.")
    phrase, value, dimension, kind = (neutralize(part)[:MAX_PASSAGE] for part in (phrase, value, dimension, kind))
    notes = ", ".join(note[:MAX_PHRASE] for note in (kind, dimension) if note)
    text = neutralize(text[: 4 * MAX_PASSAGE]) or f"{phrase} = {value}" + (f" ({notes})" if notes else "")
    return Fact(text[:MAX_PASSAGE], kind[:MAX_PHRASE], dimension[:MAX_PHRASE], phrase, value)


def _cell(file: Path, row: int, name: str, record: dict[str, Any], needed: bool = False) -> str:
    value = record.get(name)
    text = "" if value is None else str(value).strip() if isinstance(value, str | int | float) else None
    if text is None or (needed and not text) or not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        expected = f"text in UTF-8{'' if needed else ', or nothing'}; correct or drop the row"
        raise LoreError(f"facts: {file} row {row}, column {name}: found {shown_value(value)}, expected {expected}.")
    return text


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows, from 1. Raises LoreError at the first unreadable one."""
    if suffix_of(file) != ".parquet" and not is_wide(file):
        _check_utf8(file)
    for record in _bounded(table_records(file), "rows"):
        if isinstance(record, Rejection):
            raise LoreError(f"facts: {record}. Correct or drop the row.")
        yield record


def _all(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _bounded(values: Iterable[Any], what: str) -> Iterator[Any]:
    for number, value in enumerate(values):
        if number >= MAX_FACTS:
            raise LoreError(f"facts: more than {MAX_FACTS:,} {what}, which would not fit into memory. Keep only relevant ones.")
        yield value


def _is_text(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.suffix in TEXTS and not hidden and file.is_file()


def _check_size(files: list[Path]) -> None:
    size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        where = files[0] if len(files) == 1 else files[0].parent
        raise LoreError(f"facts: {where} has {size:,} bytes, and the maximum is {MAX_BYTES:,}. Keep only relevant texts.")


def _check_utf8(file: Path) -> None:
    if not is_utf8(file):
        raise LoreError(f"facts: {file} is not UTF-8, so look-ups would miss its words. Save it as UTF-8.")


def _text_of(file: Path) -> str:
    _check_utf8(file)
    return file.read_text(encoding="utf-8-sig")


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
