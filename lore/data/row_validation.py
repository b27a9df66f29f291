"""Validates and cleans raw rows and turns them into pairs. A row with problems becomes one rejection per problem, each with a
short reason code; the import continues with the next row.

Reasons: query_empty, title_empty, nul_byte, text_too_long, label_unknown, image_missing, image_corrupt,
image_too_large, image_outside, encoding, field_type, attributes_too_long, and html with `strict`. lore.data.tables.csv adds
unclosed_quote; lore.data.tables.text_tables adds doubled_key; lore.data.import_pairs adds duplicate_pair and conflicting_label;
lore.label.inputs adds item_id_empty, item_unknown, item_repeated and search_unknown.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from lore.data.images import MAX_BYTES, ImageError, check_image
from lore.data.label_distribution import Spread, from_mean, from_median, problem
from lore.data.pair import DEMAND_FIELDS, FIELDS, REQUIRED, Pair, item_key, make_pair_id, market_of
from lore.data.photo_places import PhotoPlaces
from lore.data.rejected_rows import Rejection, short, shown_value
from lore.data.tables.ids import id_text
from lore.rubric.demand import Demand
from lore.rubric.rubric import Rubric
from lore.support.bounds import MAX_MEASURE, MAX_WEIGHT
from lore.support.errors import LoreError
from lore.support.text import INVISIBLE, has_html, html_to_text
from lore.support.untrusted_json import parse_json

MAX_CHARACTERS = {"query": 1_000, "description": 200_000, "rationale": 200_000, "attributes": 200_000}
MAX_ATTRIBUTES_CHARACTERS = 200_000  # sum over all attributes of an item
MAX_OTHER_CHARACTERS = 10_000
MAX_LIST = 1_000
ENCODING_HINT = "UTF-8 text; for a Latin-1 file pass --encoding latin-1 (in a recipe: data.encoding: latin-1)"
HALF_HINT = "whole characters: JSON writes one beyond U+FFFF as two escapes, and one of them is missing"

_SURROGATE = re.compile("[\ud800-\udfff]")  # undecodable bytes are read as surrogates, see lore.data.tables.text_tables
_OF_A_BYTE = range(0xDC80, 0xDD00)
_FIELDS = frozenset(FIELDS)
_MARKUP = frozenset(("query", "title", "description", "category", "brand", "shop"))
_TEXTS = _MARKUP | {"pair_id", "item_id", "split", "source", "rationale", "mismatch", "rubric"}
_IDS = ("pair_id", "item_id")
_OTHER_TYPES = Decimal | UUID | date | time | timedelta
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")


def is_visible(text: str | None) -> bool:
    """False for text that only has white space, control and invisible characters."""
    if text and text[0].isascii() and text[0].isalnum():  # as most texts: saves the search
        return True
    return bool(text) and not all(unicodedata.category(character)[0] in "CZ" for character in INVISIBLE.sub("", text))


def _entry(item: Any) -> tuple[Any, Any]:
    """Name and value of one attribute. A string is an error, although Python could unpack one of two characters."""
    if isinstance(item, dict):
        return item["key"], item["value"]
    if not isinstance(item, list | tuple):
        raise ValueError(f"{shown_value(item)} is not a name with a value")
    key, content = item
    return key, content


MAX_SHOWN_PHOTOS = 100
NO_PHOTO = b"unreadable"  # not a valid image, so judges are told that the photo is unreadable


class RowChecker:
    """Validates and cleans raw rows. `repairs` counts fixes that keep the row: html, byte_order_mark, nameless_attribute,
    spread_that_no_ratings_have (the pair gets no label_distribution).

    strict: reject rows with HTML.
    tier_ids_only: labels must be tier ids, as in a file that was imported before.
    image_folder: folder of the table, below which its photos lie and at which their relative paths start. None: that of the row's
    file.
    image_roots: more folders below which photos may lie.
    embed_images: store the photo's bytes in the pair in addition to its path.
    keep_bad_photos: keep a row with an unreadable photo. The photo counts as a repair (unreadable_photo), is listed in bad_photos,
    and is replaced by bytes that no reader accepts as an image.
    open_photos: False: photos are located and not opened. One that may not be read gets bytes that raise its error when it is
    opened, as in `read_pairs`.
    required: fields that must not be empty. Tables that are joined later lack the others; their rows get no pair_id.
    """

    def __init__(
        self,
        rubric: Rubric | None,
        *,
        strict: bool = False,
        tier_ids_only: bool = False,
        image_folder: Path | None = None,
        image_roots: Sequence[str | Path] = (),
        embed_images: bool = False,
        keep_bad_photos: bool = False,
        open_photos: bool = True,
        required: Sequence[str] = REQUIRED[1:],
    ):
        self.rubric, self.strict, self.tier_ids_only = rubric, strict, tier_ids_only
        self.image_folder, self.image_roots, self.embed_images = image_folder, image_roots, embed_images
        self.keep_bad_photos, self.open_photos, self.required = keep_bad_photos, open_photos, tuple(required)
        self.repairs: Counter[str] = Counter()
        self.bad_photos: list[str] = []
        self._place, self._file = "", ""
        self._places: dict[str, PhotoPlaces] = {}
        self._tiers: dict[str, tuple[str, dict[str, float] | None]] = {}
        self._of_mean: dict[str, float] | None = None
        self._problems: list[tuple[str, str, str, str]] = []

    def check(self, raw: dict[str, Any], file: str = "", row: int = 0) -> tuple[Pair | None, list[Rejection]]:
        """Returns the pair and no rejections, or None and one rejection per problem."""
        self._problems, self._place, self._file, self._of_mean = [], f"{file} row {row}", file, None
        unknown = raw.keys() - _FIELDS
        if unknown:
            raise LoreError(
                f"A row has unknown fields: {', '.join(sorted(map(str, unknown)))}. The fields of a Pair are {', '.join(FIELDS)}."
            )
        values: dict[str, Any] = {"pair_id": "", "query": "", "title": ""}
        for name, value in raw.items():
            if value is None:
                continue
            value = id_text(value) if name in _IDS and isinstance(value, str | bytes | float | Decimal) else value
            cleaned = self._text(name, value, name in _MARKUP) if name in _TEXTS else getattr(self, f"_{name}")(value)
            if cleaned is not None:
                values[name] = cleaned
        for name in self.required:
            if not is_visible(values.get(name)) and not any(problem[0] == name for problem in self._problems):
                self._bad(name, f"{name}_empty", shown_value(raw.get(name)), "text")
        self._set_distribution(values)
        if self._problems:
            record = short(raw)
            return None, [Rejection(file, row, *problem, record) for problem in self._problems]
        pair = Pair(**values)
        if not pair.pair_id and self.required == REQUIRED[1:]:
            pair.pair_id = make_pair_id(pair.query, pair.item_id or item_key(pair), market_of(pair.slices))
        return pair, []

    def _bad(self, field: str, reason: str, found: str, expected: str) -> None:
        self._problems.append((field, reason, found, expected))

    def _text(self, field: str, value: Any, markup: bool = True) -> str | None:
        """Cleaned text. None if it is empty; None and a recorded problem if it is invalid."""
        if value is None:
            return None
        if isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        if not isinstance(value, str):
            if isinstance(value, float) and math.isnan(value):
                return None  # a missing value in a table
            if isinstance(value, int) and value.bit_length() > 4 * MAX_OTHER_CHARACTERS:
                return self._bad(field, "text_too_long", shown_value(value), f"at most {MAX_OTHER_CHARACTERS:,} characters")
            if not isinstance(value, int | float | _OTHER_TYPES):
                return self._bad(field, "field_type", f"{type(value).__name__} {shown_value(value)}", "text")
            value = str(value)
        limit = MAX_CHARACTERS.get(field.partition(".")[0], MAX_OTHER_CHARACTERS)
        if len(value) > limit:
            return self._bad(field, "text_too_long", f"{len(value):,} characters", f"at most {limit:,}")
        if not value.isascii():
            if self._undecodable(field, value):
                return None
            if markup and value.startswith("\ufeff"):
                value = value.lstrip("\ufeff")
                self.repairs["byte_order_mark"] += 1
        if "\0" in value:
            return self._bad(field, "nul_byte", f"a NUL byte at character {value.index(chr(0))}", "text without NUL bytes")
        if markup and ("<" in value or "&" in value) and has_html(value):
            if self.strict:
                return self._bad(field, "html", short(value), "plain text; without --strict HTML is converted to plain text")
            value = html_to_text(value)
            self.repairs["html"] += 1
        return value.strip() or None

    def _undecodable(self, field: str, value: str) -> bool:
        wrong = _SURROGATE.search(value)
        if wrong:
            start, a_byte = max(0, wrong.start() - 20), ord(wrong[0]) in _OF_A_BYTE
            what = "undecodable bytes" if a_byte else "half a character"
            found = f"{what} in {value[start : wrong.start() + 20]!a}"
            self._bad(field, "encoding", found, ENCODING_HINT if a_byte else HALF_HINT)
        return wrong is not None

    def _slices(self, value: Any) -> list[str]:
        return self._texts("slices", value)

    def _rules(self, value: Any) -> list[str]:
        return self._texts("rules", value)

    def _price(self, value: Any) -> float | None:
        return self._number("price", value)

    def _label_weight(self, value: Any) -> float | None:
        return self._number("label_weight", value, 0.0, MAX_WEIGHT)

    def _query_frequency(self, value: Any) -> float | None:
        return self._number("query_frequency", value, 0.0, MAX_MEASURE)

    def _texts(self, field: str, value: Any) -> list[str]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or len(value) > MAX_LIST:
            self._bad(
                field,
                "field_type",
                f"{type(value).__name__} {shown_value(value)}",
                f"a list of at most {MAX_LIST} texts",
            )
            return []
        return [text for item in value if (text := self._text(field, item, False))]

    def _attributes(self, value: Any) -> dict[str, str]:
        if not value:
            return {}
        found: dict[str, list[str]] = {}
        try:
            items = value.items() if isinstance(value, dict) else [value] if isinstance(value, str) else list(value)
            if any(isinstance(item, str) and self._undecodable("attributes", item) for item in items):
                return {}
            entries = [_entry(item) for item in items]
            if len(entries) > MAX_LIST:
                raise ValueError(f"{len(entries):,} entries")
            for key, content in entries:
                name, content = self._text("attributes", key), self._text(f"attributes.{short(key)}", content)
                if content is None:
                    continue
                if name is None:
                    self.repairs["nameless_attribute"] += 1
                    continue
                found.setdefault(name, []).append(content)
        except (TypeError, ValueError, KeyError) as error:
            shown = f"{type(value).__name__} {shown_value(value)} ({error})"
            self._bad("attributes", "field_type", shown, f"at most {MAX_LIST:,} names with values")
        joined = {name: ", ".join(contents) for name, contents in found.items()}
        characters = sum(len(name) + len(content) for name, content in joined.items())
        if characters > MAX_ATTRIBUTES_CHARACTERS:
            found_text = f"{characters:,} characters in {len(found)} attributes"
            self._bad("attributes", "attributes_too_long", found_text, f"at most {MAX_ATTRIBUTES_CHARACTERS:,} in total")
        return joined

    def _number(self, field: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float | None:
        if isinstance(value, str) and not value.strip():
            return None
        try:
            text = value.strip() if isinstance(value, str) else value
            if isinstance(text, str):
                for currency in (text[0], text[-1]):
                    if unicodedata.category(currency) == "Sc":
                        text = text.strip(currency).strip()
                text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
            number = float(text)
        except (TypeError, ValueError, OverflowError):
            return self._bad(field, "field_type", shown_value(value), "a number such as 12.99")
        if math.isnan(number) and not isinstance(value, str):
            return None
        if not math.isfinite(number) or not least <= number <= most:
            bounds = "" if least == -math.inf else f" of at least {least:g} and at most {most:g}"
            return self._bad(field, "field_type", shown_value(value), f"a finite number{bounds}")
        return number

    def _label(self, value: Any) -> str | None:
        label = self._text("label", value, False)
        if label is None or self.rubric is None:
            return label
        found = self._tiers.get(label)
        if found is None:
            try:
                if self.tier_ids_only and label not in self.rubric.tier_ids:
                    raise LoreError("")
                found = self.rubric.tier_of(label), from_mean(self.rubric.mean_of(label), self.rubric)
            except LoreError:
                tiers = ", ".join(self.rubric.tier_ids)
                return self._bad("label", "label_unknown", shown_value(label), f"a tier of rubric {self.rubric.name}: {tiers}")
            if len(self._tiers) < 10_000:  # averaged labels have many values, but free text must not fill the memory
                self._tiers[label] = found
        tier, self._of_mean = found
        return tier

    def _label_distribution(self, value: Any) -> dict[str, float] | Spread | None:
        """A distribution as {tier: probability}, as entries of tier and probability, or as probabilities in the order of the tiers;
        each also as JSON text. Entries may be tuples, as Parquet's maps are read."""
        if isinstance(value, Spread) or value is None or value == "":
            return value or None
        given, tiers = value, self.rubric.tier_ids if self.rubric else None
        try:
            if isinstance(value, str):
                value = parse_json(value)
            if isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value):
                if tiers is None or len(value) != len(tiers):
                    raise ValueError(f"{len(value)} probabilities")
                value = dict(zip(tiers, value, strict=True))
            elif isinstance(value, list | tuple):
                value = dict((one["tier"], one["probability"]) if isinstance(one, dict) else one for one in value)
            if not value:
                return None
            found = {str(name): float(share) for name, share in value.items() if share is not None}
            wrong = problem(found, tiers or list(found))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            wrong = str(error)
        if wrong is None:
            return {name: found[name] for name in tiers or found if name in found}
        expected = f"a probability per tier that sum to 1, such as {{{', '.join((tiers or ['L1', 'L2'])[:2])}: ...}}"
        return self._bad("label_distribution", "field_type", f"{shown_value(given)} ({short(wrong)})", expected)

    def _set_distribution(self, values: dict[str, Any]) -> None:
        """Makes the distribution that a spread or a mean between two tiers gives. The label stays the single tier."""
        given, tier = values.get("label_distribution"), values.get("label")
        if isinstance(given, Spread):
            values["label_distribution"] = found = from_median(tier, given, self.rubric) if tier and self.rubric else None
            if tier and self.rubric and found is None:
                self.repairs["spread_that_no_ratings_have"] += 1
        elif given is None and self._of_mean:
            values["label_distribution"] = dict(self._of_mean)

    def _image(self, value: Any) -> dict[str, Any] | None:
        if isinstance(value, str):
            value = {"bytes": None, "path": value.strip()}
        elif isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        if value is None or value == {} or (isinstance(value, dict) and not value.get("bytes") and not value.get("path")):
            return None
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
        if not isinstance(value, dict) or not isinstance(data, bytes | None) or not isinstance(path, str | None):
            return self._bad(
                "image",
                "field_type",
                f"{type(value).__name__} {shown_value(value)}",
                "image bytes or the path of an image",
            )
        if path and self._undecodable("image", path):
            return None
        if not self.open_photos:
            if data and len(data) > MAX_BYTES:
                return self._bad("image", "image_too_large", f"an image of {len(data):,} bytes", f"at most {MAX_BYTES:,} bytes")
            return self.photo_places(self._file).placed({"bytes": data or None, "path": path or None})
        try:
            if path and not data:
                path = self.photo_places(self._file).find(path)
            checked = check_image({"bytes": data, "path": path})
        except ImageError as error:
            if not self.keep_bad_photos:
                return self._bad("image", error.reason, error.found, error.expected)
            self.repairs["unreadable_photo"] += 1
            if len(self.bad_photos) < MAX_SHOWN_PHOTOS:
                self.bad_photos.append(f"{self._place}: {error.found}")
            return {"bytes": NO_PHOTO, "path": path}
        return {"bytes": checked if self.embed_images else data, "path": path}

    def photo_places(self, file: str) -> PhotoPlaces:
        """Where the photos of a table may lie."""
        folder = str(self.image_folder or Path(file).parent)
        if folder not in self._places:
            self._places[folder] = PhotoPlaces(folder, self.image_roots)
        return self._places[folder]

    def _demands(self, value: Any) -> list[Demand]:
        try:
            if len(value) > MAX_LIST:
                raise TypeError(f"{len(value):,} entries")
            given = [{name: getattr(item, name) for name in DEMAND_FIELDS} if isinstance(item, Demand) else item for item in value]
            return [Demand(**{name: self._text("demands", item[name], False) or "" for name in DEMAND_FIELDS}) for item in given]
        except (TypeError, KeyError) as error:
            expected = f"a list of at most {MAX_LIST:,} with {', '.join(DEMAND_FIELDS)}"
            self._bad("demands", "field_type", f"{shown_value(value)} ({error})", expected)
            return []
