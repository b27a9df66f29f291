"""Rows of any table become question rows. A column is checked as a whole; RowChecker checks the rows that need more than that.

    questions, kept, rejections = questions_of(raw, columns, checker)

The result is that of RowChecker for every row. Rows that a column as a whole cannot decide, such as a title with HTML or a price
with a currency, are called odd here and go through RowChecker. So do all rows of a column of an unusual type. Nothing in this
module opens a file.
"""

import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lore.data.images import MAX_BYTES, REFUSED
from lore.data.importers.table import row_values
from lore.data.pair import MARKETS, Pair, item_key, make_pair_id, market_of
from lore.data.parquet import to_column, to_pairs
from lore.data.photo_places import PhotoPlaces
from lore.data.rejected_rows import Rejection
from lore.data.row_validation import (
    MAX_ATTRIBUTES_CHARACTERS,
    MAX_CHARACTERS,
    MAX_LIST,
    MAX_OTHER_CHARACTERS,
    RowChecker,
)
from lore.data.tables.ids import id_text
from lore.data.tables.text_tables import column_cells
from lore.label.schema import QUESTION_FIELDS, QUESTION_SCHEMA
from lore.support.bounds import MAX_MEASURE

TEXTS = ("query", "title", "description", "category", "brand", "shop")
"""Fields with text for people, which may hold HTML."""
IDS = ("pair_id", "item_id")
NUMBERS = {"price": (-np.inf, np.inf), "query_frequency": (0.0, MAX_MEASURE)}
SINGLE = "attributes."
"""Prefix of a target that is one attribute."""

# Each pattern finds all rows that RowChecker may treat differently, and some more.
_MAY_BE_HTML = r"<[/!\pL]|&[#\pL][\pL\pN]{0,32};"
_MAY_BE_FLOAT = r"^-?\p{Nd}+(?:\.\p{Nd}+(?:[eE]\+?\p{Nd}{1,3})?|[eE]\+\p{Nd}{1,3})$"
_SURELY_VISIBLE = (
    r"[0-9A-Za-z\x{c0}-\x{d6}\x{d8}-\x{f6}\x{410}-\x{44f}\x{3b1}-\x{3c9}\x{5d0}-\x{5ea}\x{621}-\x{64a}\x{905}-\x{939}"
    r"\x{e01}-\x{e2e}\x{3041}-\x{3096}\x{30a1}-\x{30fa}\x{4e00}-\x{9fa5}\x{ac00}-\x{d7a3}]"
)
_PLAIN_NUMBER = r"^[0-9]{1,15}(?:\.[0-9]{1,15})?$"


_ENTRIES = QUESTION_SCHEMA.field("attributes").type
_ARROW_TYPES = {
    str: (pa.string(),),
    int: (pa.int64(),),
    float: (pa.float64(),),
    dict: (pa.map_(pa.string(), pa.string()),),
    list: (pa.list_(pa.string()), _ENTRIES),
}
"""Types to try for the values of a column of a text file."""


@dataclass
class Raw:
    """Rows of a table as they were read. file: for errors and, if it is a path, the place of its photos; numbers: the row numbers;
    columns: the cells by column name, None for one whose cells have several types; cells: the rows at some places, as Python
    values by column name."""

    file: str
    numbers: Sequence[int]
    columns: dict[str, pa.Array | None]
    cells: Callable[[list[int]], list[dict[str, Any]]]

    def __len__(self) -> int:
        return len(self.numbers)


def raw_of_batch(batch: pa.RecordBatch, file: str, first: int) -> Raw:
    """Rows of an Arrow table. first: the number of the first one."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))

    def cells(places: list[int]) -> list[dict[str, Any]]:
        values = [column_cells(column.take(pa.array(places, pa.int64()))) for column in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]

    return Raw(file, range(first, first + batch.num_rows), columns, cells)


def raw_of_records(records: Sequence[tuple[int, dict[str, Any]]], file: str, names: Iterable[str]) -> Raw:
    """Rows of a text file: row numbers and cells. names: the columns that are read."""
    columns = {name: _column([cells.get(name) for _, cells in records]) for name in names}
    return Raw(file, [number for number, _ in records], columns, lambda places: [records[place][1] for place in places])


def _column(values: list[Any]) -> pa.Array | None:
    """Values of one type as a column. None for others, and for text that Arrow cannot hold."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    for kind in _ARROW_TYPES.get(kinds.pop(), ()) if len(kinds) == 1 else ():
        try:
            return pa.array(values if not pa.types.is_map(kind) else [one and list(one.items()) for one in values], kind)
        except (pa.ArrowException, UnicodeError, TypeError, OverflowError):
            continue  # half a character, a number of more than 64 bits, or other values inside
    return None


def questions_of(raw: Raw, columns: dict[str, str], checker: RowChecker) -> tuple[pa.RecordBatch, np.ndarray, list[Rejection]]:
    """The good rows of a table as QUESTION_SCHEMA, their places in `raw`, and the rejections of the others.

    columns: {target: column} for fields of QUESTION_SCHEMA, attributes.<name>, locale and market. checker: with open_photos False;
    its required fields are not null in the result, and all others may be, pair_id too.
    """
    checked = _Checked(len(raw))
    held = {target: raw.columns[name] for target, name in columns.items() if name in raw.columns}
    none = pa.nulls(len(raw))
    for name in TEXTS:
        checked.text(name, held.get(name, none), name in checker.required)
    for name in IDS:
        checked.id(name, held.get(name, none), name in checker.required)
    for name, bounds in NUMBERS.items():
        checked.number(name, held.get(name, none), *bounds)
    checked.attributes(held.get("attributes", none), {name: held[name] for name in held if name.startswith(SINGLE)})
    checked.slices(held.get("slices", none), {name: held[name] for name in held if name in MARKETS})
    checked.image(held.get("image", none), checker.photo_places(raw.file))

    good = np.flatnonzero(~checked.odd)
    found = pa.record_batch([checked.columns[name] for name in QUESTION_FIELDS], QUESTION_SCHEMA)
    if len(good) == len(raw):
        return found, good, []
    pairs: list[Pair] = []
    kept: list[int] = []
    rejections: list[Rejection] = []
    odd = np.flatnonzero(checked.odd).tolist()
    for place, cells in zip(odd, raw.cells(odd), strict=True):
        pair, problems = checker.check(row_values(cells, columns), raw.file, raw.numbers[place])
        rejections += problems
        if pair is not None:
            pairs.append(pair)
            kept.append(place)
    found = found.take(pa.array(good))
    if pairs:
        ruled = pa.record_batch([_column_of(name, pairs, checker) for name in QUESTION_FIELDS], QUESTION_SCHEMA)
        both = np.concatenate([good, np.asarray(kept, dtype=good.dtype)])
        order = np.argsort(both, kind="stable")
        found = pa.concat_batches([found, ruled]).take(pa.array(order))
        good = both[order]
    return found, good, rejections


def _column_of(name: str, pairs: list[Pair], checker: RowChecker) -> pa.Array:
    """A field of checked pairs. An empty text is null: the checker fills in what it does not require."""
    values = [getattr(pair, name) for pair in pairs]
    if name == "image":  # to_column would leave out what says that a photo may not be read
        return pa.array(values, QUESTION_SCHEMA.field(name).type)
    return to_column(name, [None if value == "" and name not in checker.required else value for value in values])


class _Checked:
    """Columns as they were checked, by field, and the rows (odd) that RowChecker has to decide. A column that is None has cells of
    several types; one without values is of the null type."""

    def __init__(self, rows: int):
        self.rows, self.odd = rows, np.zeros(rows, dtype=bool)
        self.columns: dict[str, pa.Array] = {}

    def _mark(self, rows: pa.Array) -> None:
        self.odd |= np.asarray(pc.fill_null(rows, False))

    def _left_to_rows(self, name: str, column: pa.Array | None) -> None:
        """Leaves every row with a value to RowChecker."""
        self.odd |= True if column is None else np.asarray(column.is_valid())
        self.columns[name] = _empty(name, self.rows)

    def text(self, name: str, column: pa.Array | None, required: bool) -> None:
        """A text for people: no HTML, no byte order mark, not too long; null if it is empty."""
        self._text(name, column, required, markup=True)

    def id(self, name: str, column: pa.Array | None, required: bool) -> None:
        """An id: a whole number has no decimal point and no exponent."""
        if column is not None and pa.types.is_floating(column.type):
            column = pa.array([id_text(value) or None for value in column.to_pylist()], pa.string())
        self._text(name, column, required, markup=False)
        ids = self.columns[name]
        content = bytes_of(ids)[1]
        if b"." in content or b"e" in content or b"E" in content:
            floats = _matching(ids, _first_in(ids, _NUMBER_START), _MAY_BE_FLOAT)
            if floats.any():
                spelled = [id_text(text) for text in ids.filter(pa.array(floats)).to_pylist()]
                self.columns[name] = pc.replace_with_mask(ids, pa.array(floats), pa.array(spelled, pa.string()))

    def _text(self, name: str, column: pa.Array | None, required: bool, markup: bool) -> None:
        text = None if column is None else as_text(column)
        if text is None:
            self._left_to_rows(name, column)
            if required:
                self.odd |= True
            return
        text, odd = _clean(text, MAX_CHARACTERS.get(name, MAX_OTHER_CHARACTERS), markup)
        if odd is not None:
            self.odd |= odd
        if required:
            hidden = ~_first_in(text, _LETTER)
            self.odd |= hidden & ~_matching(text, hidden, _SURELY_VISIBLE)
        self.columns[name] = text

    def number(self, name: str, column: pa.Array | None, least: float, most: float) -> None:
        """A finite number within bounds; NaN and empty text are missing values."""
        if column is None:
            self._left_to_rows(name, column)
            return
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            numbers = pc.cast(column, pa.float64(), safe=False)
        elif _is_text(column.type) and (text := as_text(column)) is not None:
            text = pc.utf8_trim_whitespace(text)
            plain = pc.fill_null(pc.match_substring_regex(text, _PLAIN_NUMBER), False)
            self._mark(pc.and_(pc.invert(plain), pc.not_equal(text, "")))
            numbers = pc.if_else(plain, text, None).cast(pa.float64())
        else:
            self._left_to_rows(name, column)
            return
        numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
        inside = pc.and_(pc.and_(pc.is_finite(numbers), pc.greater_equal(numbers, least)), pc.less_equal(numbers, most))
        self._mark(pc.invert(inside))
        self.columns[name] = numbers

    def attributes(self, column: pa.Array | None, single: dict[str, pa.Array | None]) -> None:
        """Lists of names and values, and single attributes in columns of their own."""
        parts: list[tuple[np.ndarray, pa.Array, pa.Array]] = []
        entries = None if column is None else _entries(column)
        if entries is None:
            self._left_to_rows("attributes", column)
        else:
            parts.append(entries)
        for target, values in single.items():
            if (found := self._filled(values)) is not None:
                rows, texts = found
                names = pa.array([target.removeprefix(SINGLE)]).take(pa.array(np.zeros(len(rows), dtype=np.int64)))
                parts.append((rows, names, texts))
        if not parts:
            self.columns["attributes"] = _empty("attributes", self.rows)
            return
        rows, names, values = parts[0] if len(parts) == 1 else _in_row_order(parts)
        for text in (names, values):
            same, odd = _clean(text, MAX_CHARACTERS["attributes"], markup=True)
            unclean = np.asarray(pc.fill_null(pc.not_equal(same, text), True))
            self.odd[rows[unclean if odd is None else unclean | odd]] = True
        counts = np.bincount(rows, minlength=self.rows)
        if len(rows):
            self.odd |= counts > MAX_LIST
            sizes = [np.asarray(pc.fill_null(pc.utf8_length(text), 0)) for text in (names, values)]
            if int(sizes[0].sum()) + int(sizes[1].sum()) > MAX_ATTRIBUTES_CHARACTERS:
                self.odd |= np.bincount(rows, weights=sizes[0] + sizes[1], minlength=self.rows) > MAX_ATTRIBUTES_CHARACTERS
            coded = names.dictionary_encode()
            of_row = rows * len(coded.dictionary) + np.asarray(coded.indices.fill_null(0)).astype(np.int64)
            order = np.argsort(of_row, kind="stable")
            doubled = np.flatnonzero(np.diff(of_row[order]) == 0)
            self.odd[rows[order[doubled]]] = True  # RowChecker joins their values
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        entries = pa.StructArray.from_arrays([names, values], fields=list(_ENTRIES.value_type))
        self.columns["attributes"] = pa.ListArray.from_arrays(pa.array(offsets), entries, type=_ENTRIES)

    def _filled(self, column: pa.Array | None) -> tuple[np.ndarray, pa.Array] | None:
        """The rows of a column that are not empty, and their texts. None, and all rows are odd, for other types."""
        text = None if column is None else as_text(column)
        if text is None:
            self.odd |= True if column is None else np.asarray(column.is_valid())
            return None
        text = pc.utf8_trim_whitespace(text)
        rows = np.flatnonzero(np.asarray(pc.fill_null(pc.not_equal(text, ""), False)))
        return rows, text.take(pa.array(rows))

    def slices(self, column: pa.Array | None, markets: dict[str, pa.Array | None]) -> None:
        """Lists of slices, with a slice for the market."""
        parts: list[tuple[np.ndarray, pa.Array]] = []
        texts = as_text(column.flatten()) if column is not None and _is_list(column.type) else None
        if texts is None:
            self._left_to_rows("slices", column)
        else:
            parts.append((_rows_of(column), texts))
        for target, values in markets.items():
            if (found := self._filled(values)) is not None:
                rows, names = found
                parts.append((rows, pc.binary_join_element_wise(target, names, ":")))
        if not parts:
            self.columns["slices"] = _empty("slices", self.rows)
            return
        rows, texts = parts[0] if len(parts) == 1 else _in_row_order(parts)
        same, odd = _clean(texts, MAX_OTHER_CHARACTERS, markup=False)
        unclean = np.asarray(pc.fill_null(pc.not_equal(same, texts), True))
        self.odd[rows[unclean if odd is None else unclean | odd]] = True
        counts = np.bincount(rows, minlength=self.rows)
        self.odd |= counts > MAX_LIST
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.columns["slices"] = pa.ListArray.from_arrays(pa.array(offsets), texts, type=QUESTION_SCHEMA.field("slices").type)

    def image(self, column: pa.Array | None, places: PhotoPlaces) -> None:
        """Photos as bytes, or as the path to open."""
        kind = QUESTION_SCHEMA.field("image").type
        data, path = (None, None) if column is None else _photo(column, self.rows)
        if data is None or path is None:
            self._left_to_rows("image", column)
            return
        sizes = pc.fill_null(pc.binary_length(data), 0)
        self._mark(pc.or_(pc.greater(sizes, MAX_BYTES), pc.fill_null(pc.starts_with(data, REFUSED), False)))
        held = np.asarray(pc.greater(sizes, 0))
        named = np.asarray(pc.fill_null(pc.not_equal(path, ""), False))
        data = pc.if_else(pa.array(held), data, None)
        path = pc.if_else(pa.array(named), path, None)
        at = named & ~held
        if at.any():
            mask = pa.array(at)
            found = [places.placed({"bytes": None, "path": one}) for one in path.filter(mask).to_pylist()]
            path = pc.replace_with_mask(path, mask, pa.array([one["path"] for one in found], pa.string()))
            if any(one["bytes"] for one in found):
                data = pc.replace_with_mask(data, mask, pa.array([one["bytes"] for one in found], pa.binary()))
        nothing = pa.array(~(held | named))
        self.columns["image"] = pa.StructArray.from_arrays([data, path], fields=list(kind), mask=nothing)


def _empty(name: str, rows: int) -> pa.Array:
    """A column without values: empty lists for lists, as pairs have them, and null for the rest."""
    kind = QUESTION_SCHEMA.field(name).type
    if not pa.types.is_list(kind):
        return pa.nulls(rows, kind)
    return pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, dtype=np.int32)), pa.array([], kind.value_type))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def as_text(column: pa.Array) -> pa.Array | None:
    """A column of text or whole numbers as text, as Python's str writes it. None for other types and for bytes that are not
    UTF-8."""
    if pa.types.is_null(column.type):
        return column.cast(pa.string())
    if not _is_text(column.type) and not pa.types.is_integer(column.type):
        return None
    try:
        text = column if pa.types.is_string(column.type) else column.cast(pa.string())
        if _is_text(column.type):
            text.validate(full=True)
    except pa.ArrowException:
        return None
    return text


def _clean(text: pa.Array, limit: int, markup: bool) -> tuple[pa.Array, np.ndarray | None]:
    """Text without white space around it, null if nothing is left; and the rows that RowChecker decides, None if there are none."""
    offsets, content = bytes_of(text)
    odd: list[np.ndarray] = []
    sizes = np.diff(offsets)
    if len(sizes) and sizes.max() > limit:
        odd.append(np.asarray(pc.fill_null(pc.greater(pc.utf8_length(text), limit), False)))
    if b"\0" in content:
        odd.append(np.asarray(pc.fill_null(pc.match_substring(text, "\0"), False)))
    if markup and b"\xef\xbb\xbf" in content:
        odd.append(np.asarray(pc.fill_null(pc.starts_with(text, "\ufeff"), False)))
    if markup and (b"<" in content or b"&" in content):
        codes = np.frombuffer(content, dtype=np.uint8)
        at = np.flatnonzero((codes == ord("<")) | (codes == ord("&")))
        at = at[_AFTER_MARK[codes[np.minimum(at + 1, len(codes) - 1)]]]
        if len(at):
            may_be = np.zeros(len(text), dtype=bool)
            may_be[np.searchsorted(offsets, at, side="right") - 1] = True
            odd.append(_matching(text, may_be, _MAY_BE_HTML))
    if not len(content) or _may_have_space(offsets, content):
        text = pc.utf8_trim_whitespace(text)
        text = pc.if_else(pc.equal(text, ""), None, text)
    elif not sizes.all():
        text = pc.if_else(pc.equal(text, ""), None, text)
    if not odd:
        return text, None
    found = odd[0]
    for rows in odd[1:]:
        found = found | rows
    return text, found if found.any() else None


def _among(characters: str, more: bool) -> np.ndarray:
    """Whether a byte is one of some characters. more: or part of a character beyond ASCII."""
    found = np.zeros(256, dtype=bool)
    found[[ord(one) for one in characters]] = True
    found[128:] = more
    return found


_LETTER = _among(string.ascii_letters + string.digits, more=False)
_NUMBER_START = _among(string.digits + "-", more=True)
_SPACE = _among("\t\n\v\f\r\x1c\x1d\x1e\x1f ", more=True)
_AFTER_MARK = _among(string.ascii_letters + "/!#", more=True)


def bytes_of(text: pa.Array) -> tuple[np.ndarray, bytes]:
    """Where each text begins, and the bytes of all texts, one behind the other."""
    if not len(text):
        return np.zeros(1, dtype=np.int32), b""
    offsets = np.frombuffer(text.buffers()[1], dtype=np.int32)[text.offset : text.offset + len(text) + 1]
    data, first = text.buffers()[2], int(offsets[0])
    return offsets - first, b"" if data is None else data[first : int(offsets[-1])].to_pybytes()


def _first_in(text: pa.Array, among: np.ndarray) -> np.ndarray:
    """Whether the first byte of each text is one of `among`; False for an empty one."""
    offsets, content = bytes_of(text)
    if not content:
        return np.zeros(len(text), dtype=bool)
    codes = np.frombuffer(content, dtype=np.uint8)
    return among[codes[np.minimum(offsets[:-1], len(codes) - 1)]] & (np.diff(offsets) > 0)


def _may_have_space(offsets: np.ndarray, content: bytes) -> bool:
    """Whether a text may begin or end with white space."""
    codes = np.frombuffer(content, dtype=np.uint8)
    filled = np.diff(offsets) > 0
    return bool(_SPACE[codes[offsets[:-1][filled]]].any() or _SPACE[codes[offsets[1:][filled] - 1]].any())


def _matching(text: pa.Array, rows: np.ndarray, pattern: str) -> np.ndarray:
    """Which of some rows match a pattern."""
    found = np.zeros(len(text), dtype=bool)
    if rows.any():
        found[rows] = np.asarray(pc.fill_null(pc.match_substring_regex(text.filter(pa.array(rows)), pattern), False))
    return found


def _rows_of(column: pa.Array) -> np.ndarray:
    """The row of each entry of a column of lists."""
    return np.repeat(np.arange(len(column)), np.asarray(pc.fill_null(pc.list_value_length(column), 0)))


def _entries(column: pa.Array) -> tuple[np.ndarray, pa.Array, pa.Array] | None:
    """Row, name and value of each entry of a column of attributes. None for other types."""
    kind = column.type
    if pa.types.is_map(kind):
        kind = pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
        column = column.cast(kind)
    if not _is_list(kind) or not pa.types.is_struct(kind.value_type):
        return None
    if sorted(kind.value_type.names) != ["key", "value"]:
        return None
    flat = column.flatten()
    if flat.null_count:
        return None
    children = dict(zip(kind.value_type.names, flat.flatten(), strict=True))
    names, values = as_text(children["key"]), as_text(children["value"])
    return None if names is None or values is None else (_rows_of(column), names, values)


def _in_row_order(parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Entries of several columns, row by row: rows, and the columns of the entries."""
    rows = np.concatenate([part[0] for part in parts])
    order = np.argsort(rows, kind="stable")
    columns = [pa.concat_arrays(one).take(pa.array(order)) for one in zip(*(part[1:] for part in parts), strict=True)]
    return rows[order], *columns


def _photo(column: pa.Array, rows: int) -> tuple[pa.Array | None, pa.Array | None]:
    """Bytes and path of each photo; None for a column of another type."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.binary()), pa.nulls(rows, pa.string())
    if _is_text(kind):
        path = as_text(column)
        return pa.nulls(rows, pa.binary()), None if path is None else pc.utf8_trim_whitespace(path)
    if not pa.types.is_struct(kind) or sorted(kind.names) != ["bytes", "path"]:
        return None, None
    parts = dict(zip(kind.names, column.flatten(), strict=True))
    data, path = parts["bytes"], parts["path"]
    data = pa.nulls(rows, pa.binary()) if pa.types.is_null(data.type) else data
    path = pa.nulls(rows, pa.string()) if pa.types.is_null(path.type) else path
    binary = pa.types.is_binary(data.type) or pa.types.is_large_binary(data.type)
    return data.cast(pa.binary()) if binary else None, as_text(path) if _is_text(path.type) else None


def with_pair_ids(questions: pa.RecordBatch) -> pa.RecordBatch:
    """The rows, with the pair id of RowChecker where a row has none. query and title are not null."""
    ids = questions.column("pair_id")
    if not ids.null_count:
        return questions
    missing = ids.is_null()
    rows = questions.filter(missing)
    items = rows.column("item_id").to_pylist()
    unnamed = rows.column("item_id").is_null()
    if pc.any(unnamed).as_py():
        some = rows.filter(unnamed).set_column(0, QUESTION_SCHEMA.field("pair_id"), pa.array([""] * pc.sum(unnamed).as_py()))
        keys = (item_key(pair) for pair in to_pairs(some, QUESTION_FIELDS, "questions"))
        items = [next(keys) if item is None else item for item in items]
    made = [
        make_pair_id(query, item, market)
        for query, item, market in zip(rows.column("query").to_pylist(), items, markets_of(rows.column("slices")), strict=True)
    ]
    ids = pc.replace_with_mask(ids, missing, pa.array(made, pa.string()))
    return questions.set_column(0, QUESTION_SCHEMA.field("pair_id"), ids)


def markets_of(slices: pa.ListArray) -> list[str]:
    """The market of each row, see market_of."""
    names = slices.flatten()
    in_market = pc.match_substring_regex(names, f"^(?:{'|'.join(MARKETS)}):")
    if not pc.any(in_market).as_py():
        return [""] * len(slices)
    return [market_of(one or ()) for one in slices.to_pylist()]


def pairs_of(table: pa.Table) -> list[Pair]:
    """The pairs of rows of QUESTION_SCHEMA, in order. The photo of each is ready to be opened."""
    return [pair for batch in table.to_batches() for pair in to_pairs(batch, QUESTION_FIELDS, "questions")]
