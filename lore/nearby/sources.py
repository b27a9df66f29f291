"""Places, posts and events from files into a town.

    lore nearby index places.csv -o town.db
    lore nearby index city.osm.pbf neighborhoods.geojson posts.jsonl -o town.db --country US
    lore nearby index shops.parquet --map place_id=id,name=title,lat=y,lon=x,classes=type,tags.wifi=wlan -o town.db

Tables (csv, tsv, parquet, jsonl) by the names of their columns or a map; a column that is no field is a tag. Tags may be JSON or
hstore text, as in the `other_tags` of OpenStreetMap extracts, whose last tag is left out where a program has cut the text off.
GeoJSON with all its geometries. Overpass JSON: nodes, ways with a center or geometry, relations with a center or the geometry of
their members. OpenStreetMap's .pbf needs the extra nearby-osm.

Of OpenStreetMap, everything with a tag of `keys` in lore/nearby/fclass.yaml is a place; streets are left out. A row about a place
(a post, an event) that has no coordinates takes those of the place, so name the file of places first. Rows that are equal are
folded; the memory is about 300 bytes per place, and the whole file for JSON, which may have 256 MiB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import yaml

from lore.data.import_report import Report
from lore.data.importers.table import column_map
from lore.data.rejected_rows import BadCell, RejectedWriter, Rejection, is_rejected_file, rejected_path, short, shown_value
from lore.data.row_validation import ENCODING_HINT
from lore.data.tables.any_table import suffix_of, table_records
from lore.data.tables.csv import check_delimiter
from lore.data.tables.ids import id_text
from lore.nearby.town import GAP, Encode, is_town_file, write_town
from lore.places.place import Place, parts
from lore.support.errors import LoreError, reason
from lore.support.nearest import nearest_hint
from lore.support.outputs import Output, checked_outputs
from lore.support.progress import track
from lore.support.text import encodable
from lore.support.untrusted_json import parse_json

COLUMNS = {
    "place_id": ("place_id", "osm_id", "@id", "id"),
    "name": ("name", "title", "name:en", "brand"),
    "lat": ("lat", "latitude", "y"),
    "lon": ("lon", "lng", "longitude", "x"),
    "kind": ("kind",),
    "classes": ("classes", "class", "category", "categories"),
    "fclass": ("fclass",),
    "tags": ("tags", "other_tags"),
    "text": ("text", "description", "body"),
    "hours": ("hours", "opening_hours"),
    "starts": ("starts", "starts_at", "start"),
    "ends": ("ends", "ends_at", "end"),
    "about": ("about",),
}
"""The fields and the columns that they are read from, the best one first."""
FIELDS = {column for columns in COLUMNS.values() for column in columns}
KINDS = ("place", "event", "post", "area")
MOST = {"place_id": 200, "name": 300, "kind": 20, "fclass": 100, "text": 20_000, "hours": 1_000, "about": 200, "tag": 2_000}
"""Characters. A longer text is rejected."""
MAX_TAGS, MAX_CLASSES, MAX_TAGS_CHARACTERS, MAX_POINTS = 200, 20, 2**16, 50_000
MAX_JSON_BYTES, MAX_PBF_BYTES = 2**28, 2**31
NO_REPEAT, CUT = "each id once", "tags cut off at the end of their text"
Row = tuple[str, int, dict[str, Any]]
"""File, number of the row, and its cells by field; the cell `outline` is a list of lists of (lat, lon)."""
_PAIR = re.compile(r'\s*+"((?:[^"\\]|\\.)*+)"\s*+=>\s*+(?:"((?:[^"\\]|\\.)*+)"|NULL)\s*+(?:,|\Z)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@cache
def class_table() -> tuple[list[str], set[str], dict[str, str]]:
    """Keys whose tags are classes, the classes of areas, and the class of each word of fclass."""
    table = yaml.safe_load(resources.files("lore.nearby").joinpath("fclass.yaml").read_text(encoding="utf-8"))
    words = {}
    for key, listed in table["fclass"].items():
        for word in listed.split():
            word, _, value = word.partition("=")
            words[word] = f"{key}={value or word}"
    return table["keys"], set(table["areas"]), words


def index_town(
    paths: Iterable[str | Path],
    out: Path,
    *,
    map: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    country: str | None = None,
    timezone: str | None = None,
    encoder: str | None = None,
    encode: Encode | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    force: bool = False,
) -> Report:
    """Writes the places of files to a town, and bad rows to `<name>.rejected.jsonl`. Raises LoreError if no row is a place; an
    earlier `out` is kept then.

    map: of tables, "field=column,...". country: two letters, for public holidays; timezone: name of the wall clock, such as
    America/Chicago, for times with a zone and for sunrise; encoder: the name of the one that `encode` asks. All are kept in
    Town.meta. encode, arrays: see write_town.
    """
    files, zone, columns = [Path(path).expanduser() for path in paths], _zone(timezone), _mapped(map)
    report = Report("town", out=str(out), columns={name: [column] for name, column in columns.items()})
    for file in files:
        if not file.is_file():
            raise LoreError(f"{file} does not exist. Name files of places: a table, GeoJSON, Overpass JSON or .osm.pbf.")
    outputs = [Output(out, is_town_file), Output(rejected_path(out), is_rejected_file)]
    out, listed = checked_outputs(outputs, files, force=force)
    meta = {"country": country, "timezone": timezone, "encoder": encoder, "sources": [file.name for file in files]}
    with RejectedWriter(out, listed) as rejected:
        rows = chain.from_iterable(_rows(file, columns, encoding, delimiter, report) for file in files)
        places = _checked(track(rows, "places"), zone, report, rejected)
        first = list(islice(places, 1))  # a town without places does not replace one that has some
        if first:
            report.kept = write_town(out, rejected.before(chain(first, places)), meta, encode=encode, arrays=arrays)
        else:
            rejected.publish()
    report.rejected = str(rejected_path(Path(report.out))) if rejected.count else None
    report.dropped = report.duplicates
    if not report.kept:
        why = f"The first rejected row: {report.examples[0]}" if report.examples else "The files have no rows."
        raise LoreError(f"No row is a place, so {report.out} was not written. {why}")
    return report


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ValueError, OSError, KeyError) as error:
        raise LoreError(f"--timezone {name!r} is no time zone; expected a name such as America/Chicago.") from error


def _mapped(map: str | None) -> dict[str, str]:
    """{field: column} of a map."""
    given = column_map(map, ("name", "lat", "lon") if map and "about" not in map else (), None)
    for name in given:
        if name not in COLUMNS and not name.startswith("tags."):
            expected = f"{', '.join(COLUMNS)}, tags.<key>"
            raise LoreError(f"--map: {name!r} is no field of places; expected {expected}.{nearest_hint(name, COLUMNS)}")
    return given


def _checked(rows: Iterable[Row | Rejection], zone: ZoneInfo | None, report: Report, rejected: RejectedWriter) -> Iterator[Place]:
    seen: dict[str, tuple[int, float, float]] = {}
    for row in rows:
        report.rows += 1
        if isinstance(row, Rejection):
            report.reject([row], rejected)
            continue
        file, number, cells = row
        try:
            place = _place(cells, zone, seen, report)
            place.place_id = place.place_id or f"{Path(file).name}#{number}"
            content = hash(repr(place))
            if place.place_id in seen and seen[place.place_id][0] != content:
                raise BadCell("place_id", "place_repeated", f"place {place.place_id[:80]!r} again, with other content", NO_REPEAT)
        except BadCell as bad:
            report.reject([Rejection(file, number, *bad.args, short({**cells, "outline": None}))], rejected)
            continue
        if place.place_id in seen:
            report.duplicates += 1
            continue
        seen[place.place_id] = content, place.lat, place.lon
        report.counts[f"{place.kind}s"] = report.counts.get(f"{place.kind}s", 0) + 1
        report.counts["with hours"] = report.counts.get("with hours", 0) + (place.hours is not None)
        yield place


def _place(cells: dict[str, Any], zone: ZoneInfo | None, seen: dict[str, Any], report: Report) -> Place:
    """Raises BadCell. seen: content, latitude and longitude of the places so far."""
    tags = {**_tags(cells.get("single_tags"), report), **_tags(cells.get("tags"), report)}
    place_id = _text("place_id", id_text(cells.get("place_id")))
    about = _text("about", id_text(cells.get("about"))) or None
    hours = tags.pop("opening_hours", None)
    outline = _outline(cells.get("outline"))
    if outline:
        lat, lon = _middle(outline)
    elif _is_empty(cells.get("lat")) and about is not None:
        if about not in seen:
            raise BadCell("about", "about_unknown", short(about), "coordinates, or the id of a place that was read before")
        _, lat, lon = seen[about]
    else:
        lat, lon = _degrees("lat", cells.get("lat"), 90), _degrees("lon", cells.get("lon"), 180)
    starts, ends = _time("starts", cells.get("starts"), zone), _time("ends", cells.get("ends"), zone)
    if starts and ends and ends < starts:
        raise BadCell("ends", "ends_before_start", ends.isoformat(), f"a time after {starts.isoformat()}")
    classes = _classes(cells, tags)
    kind = _text("kind", cells.get("kind")).lower()
    if kind and kind not in KINDS:
        raise BadCell("kind", "field_type", shown_value(kind), ", ".join(KINDS))
    place = Place(
        place_id=place_id,
        name=" ".join(_text("name", cells.get("name")).split()),
        lat=lat,
        lon=lon,
        kind=kind or ("event" if starts else "area" if _is_area(classes, outline) else "place"),
        classes=classes,
        tags=tags,
        text=_text("text", cells.get("text")),
        hours=_text("hours", cells.get("hours") or hours) or None,
        starts=starts,
        ends=ends,
        about=about,
        outline=outline or None,
    )
    if not place.name and not place.classes and not (place.text and place.about):
        raise BadCell("name", "name_and_class_empty", "neither a name nor a class", "one of them")
    return place


def _is_empty(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and (not cell or cell.isspace()))


def _text(name: str, cell: Any) -> str:
    if _is_empty(cell):
        return ""
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "surrogateescape")
    if not isinstance(cell, str | int | float):
        raise BadCell(name, "field_type", shown_value(cell), "a text")
    text, most = str(cell), MOST.get(name, MOST["tag"])
    if len(text) > most:
        raise BadCell(name, "text_too_long", f"{len(text):,} characters", f"at most {most:,}")
    if "\0" in text or encodable(text) != text:
        raise BadCell(name, "encoding", ascii(text[:80]), ENCODING_HINT)
    return text.strip()


def _degrees(name: str, cell: Any, most: int) -> float:
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= most:
        raise BadCell(name, "out_of_range", shown_value(cell), f"degrees from -{most} to {most}")
    return number


def _time(name: str, cell: Any, zone: ZoneInfo | None) -> datetime | None:
    """Wall clock of the town."""
    if _is_empty(cell):
        return None
    found = cell
    if isinstance(cell, str):
        with suppress(ValueError):
            found = datetime.fromisoformat(cell.strip()[:40])
    if not isinstance(found, datetime):
        raise BadCell(name, "field_type", shown_value(cell), "a date and time such as 2026-01-02T20:00")
    if found.tzinfo is None:
        return found
    if zone is None:
        raise BadCell(name, "field_type", shown_value(cell), "the town's wall clock, or --timezone for times with a zone")
    try:
        return found.astimezone(zone).replace(tzinfo=None)
    except OverflowError:
        raise BadCell(name, "out_of_range", shown_value(cell), "a year from 2 to 9998") from None


def _tags(cell: Any, report: Report) -> dict[str, str]:
    if isinstance(cell, str):
        if len(cell) > MAX_TAGS_CHARACTERS:
            raise BadCell("tags", "text_too_long", f"{len(cell):,} characters", f"at most {MAX_TAGS_CHARACTERS:,}")
        if cell.lstrip()[:1] == "{":
            try:
                cell = parse_json(cell)
            except ValueError as error:
                raise BadCell("tags", "field_type", reason(error), "a JSON object") from None
        else:
            cell, cut = hstore(cell)
            report.repairs.update([CUT] if cut else [])
    if _is_empty(cell):
        return {}
    pairs = cell.items() if isinstance(cell, dict) else cell
    if not isinstance(cell, dict | list) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise BadCell("tags", "field_type", shown_value(cell), "an object, or hstore text")  # a list of pairs: a map of Parquet
    tags = {_text("tag", key): _text("tag", value) for key, value in islice(pairs, MAX_TAGS) if not _is_empty(value)}
    if len(cell) > MAX_TAGS:
        report.repairs[f"more than {MAX_TAGS} tags"] += 1
    return {key: value for key, value in tags.items() if key and value}


def hstore(text: str) -> tuple[dict[str, str], bool]:
    """The pairs of PostgreSQL's hstore text, `"key"=>"value",...`, and whether something else follows them, such as a pair that
    a program has cut off."""
    found, at = {}, 0
    while at < len(text) and (pair := _PAIR.match(text, at)):
        if pair[2] is not None:
            found[_ESCAPED.sub(r"\1", pair[1])] = _ESCAPED.sub(r"\1", pair[2])
        at = pair.end()
    rest = text[at:].strip()
    return found, bool(rest) or text[:at].rstrip().endswith(",")


def _classes(cells: dict[str, Any], tags: dict[str, str]) -> list[str]:
    keys, _, words = class_table()
    cell, found = cells.get("classes"), []
    if not _is_empty(cell):
        found = [_text("classes", one) for one in (cell if isinstance(cell, list) else re.split(r"[;|]", _text("classes", cell)))]
    found += [f"{key}={value.strip()}" for key in keys if key in tags for value in tags[key].split(";")]
    if not any("=" in one for one in found):
        listed = [word.strip() for word in _text("fclass", cells.get("fclass")).split(";")]
        found += [words.get(word, f"fclass={word}") for word in listed if word]
    return [one.strip() for one in dict.fromkeys(found) if one.strip()][:MAX_CLASSES]


def _is_area(classes: list[str], outline: list[tuple[float, float]] | None) -> bool:
    _, areas, _ = class_table()
    is_ring = bool(outline) and any(len(part) > 3 and part[0] == part[-1] for part in parts(outline))
    return is_ring and any(one in areas or one.partition("=")[0] in areas for one in classes)


def _outline(lines: Any) -> list[tuple[float, float]]:
    """Lines with a gap between them; a line of one point is left out."""
    if not lines:
        return []
    if (count := sum(map(len, lines))) > MAX_POINTS:
        raise BadCell("outline", "outline_too_long", f"{count:,} points", f"at most {MAX_POINTS:,}")
    checked = [[(_degrees("lat", lat, 90), _degrees("lon", lon, 180)) for lat, lon in line] for line in lines]
    kept = [line for line in checked if len(line) > 1] or [checked[0] * 2 if checked[0] else []]
    return [point for line in kept for point in (GAP, *line)][1:]


def _middle(outline: list[tuple[float, float]]) -> tuple[float, float]:
    """Of its box, also across the date line."""
    points = np.array(outline)
    lats, lons = points[:, 0], points[:, 1]
    if np.nanmax(lons) - np.nanmin(lons) > 180:
        lons = lons % 360
    lat, lon = ((np.nanmin(one) + np.nanmax(one)) / 2 for one in (lats, lons))
    return float(lat), float((lon + 180) % 360 - 180)


def _rows(
    file: Path, columns: dict[str, str], encoding: str | None, delimiter: str | None, report: Report
) -> Iterator[Row | Rejection]:
    suffix = suffix_of(file)
    if suffix == ".pbf":
        yield from _pbf_rows(file, report)
    elif suffix in (".json", ".geojson"):
        yield from _json_rows(file, report)
    else:
        mark = check_delimiter(delimiter) if delimiter else None
        for record in table_records(file, [*dict.fromkeys(columns.values())], encoding=encoding, delimiter=mark, settable=True):
            if isinstance(record, Rejection):
                yield record
            elif record[1].get("type") == "Feature":  # GeoJSON in lines
                yield _feature(file, record[0], record[1], report)
            else:
                yield str(file), record[0], _fields(record[1], columns, report)


def _fields(cells: Mapping[str, Any], columns: Mapping[str, str], report: Report) -> dict[str, Any]:
    """The cells by field. columns: {field: column} of a map; without one, columns that are no field are tags."""
    if not columns:
        used = {name: [one for one in known if not _is_empty(cells.get(one))] for name, known in COLUMNS.items()}
        columns = {name: listed[0] for name, listed in used.items() if listed}
        columns |= {f"tags.{column}": column for column in cells if column not in FIELDS}
        for name, listed in used.items():
            report.columns.setdefault(name, []).extend(one for one in listed[:1] if one not in report.columns.get(name, []))
    found = {name: cells.get(column) for name, column in columns.items()}
    single = {name.removeprefix("tags."): found.pop(name) for name in columns if name.startswith("tags.")}
    return {**found, "single_tags": {key: cell for key, cell in single.items() if isinstance(cell, str | int | float)}}


def _of_openstreetmap(tags: dict[str, Any]) -> dict[str, Any]:
    name = next((tags[key] for key in COLUMNS["name"] if tags.get(key)), None)
    return {"name": name, "text": tags.get("description"), "tags": tags}


def _json_rows(file: Path, report: Report) -> Iterator[Row | Rejection]:
    """GeoJSON, or the answer of an Overpass server."""
    _bounded(file, MAX_JSON_BYTES, "Split it, or write GeoJSON in lines (.jsonl).")
    try:
        content = parse_json(file.read_bytes(), depth=12)
    except ValueError as error:
        raise LoreError(f"{file} is not JSON ({reason(error)}).") from error
    content = content if isinstance(content, dict) else {}
    listed = [content] if content.get("type") == "Feature" else content.get("elements", content.get("features"))
    if not isinstance(listed, list):
        raise LoreError(f"{file} is neither GeoJSON (features) nor Overpass JSON (elements). Other objects belong into .jsonl.")
    for number, one in enumerate(listed, 1):
        if not isinstance(one, dict):
            yield Rejection(str(file), number, "row", "field_type", shown_value(one), "a JSON object")
        elif "elements" not in content:
            yield _feature(file, number, one, report)
        elif _is_place(one.get("tags")):
            yield _element(file, number, one)
        else:
            report.left_out += 1


def _bounded(file: Path, most: int, advice: str) -> None:
    if (size := file.stat().st_size) > most:
        raise LoreError(f"{file} has {size:,} bytes, and at most {most:,} are read. {advice}")


def _is_place(tags: Any) -> bool:
    return isinstance(tags, dict) and any(key in tags for key in class_table()[0])


def _feature(file: Path, number: int, feature: dict[str, Any], report: Report) -> Row | Rejection:
    properties, geometry = feature.get("properties") or {}, feature.get("geometry")
    try:
        if not isinstance(properties, dict):
            raise ValueError("properties that are no object")
        lines, points = _geometry(geometry)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Rejection(str(file), number, "geometry", "field_type", reason(error), "a geometry of GeoJSON", short(feature))
    cells = {"place_id": feature.get("id"), **_fields(properties, {}, report)}
    if lines:
        cells["outline"] = lines
    elif len(points) > 1:
        cells["lat"], cells["lon"] = _middle(points)
    elif points:
        cells["lat"], cells["lon"] = points[0]
    return str(file), number, cells


def _geometry(geometry: Any) -> tuple[list[list[tuple[Any, Any]]], list[tuple[Any, Any]]]:
    """Lines, with the rings of polygons closed, and points of a geometry."""
    kind = geometry["type"]
    if kind == "GeometryCollection":
        found = [_geometry(one) for one in geometry["geometries"]]
        return [line for lines, _ in found for line in lines], [point for _, points in found for point in points]
    at = geometry["coordinates"]
    if kind in ("Point", "MultiPoint"):
        return [], _line([at] if kind == "Point" else at)
    depth = {"LineString": 0, "MultiLineString": 1, "Polygon": 1, "MultiPolygon": 2}[kind]
    lines = [at] if depth == 0 else at if depth == 1 else [ring for polygon in at for ring in polygon]
    made = [_line(line) for line in lines]
    return [line if "Line" in kind or line[0] == line[-1] else [*line, line[0]] for line in made if line], []


def _line(points: Any) -> list[tuple[Any, Any]]:
    return [(lat, lon) for lon, lat, *_ in points]


def _element(file: Path, number: int, element: dict[str, Any]) -> Row | Rejection:
    """A node, way or relation of Overpass (out center, out geom)."""
    kind, cells = element.get("type"), _of_openstreetmap(element["tags"])
    try:
        middle = element.get("center") or element
        members = [element, *element.get("members", [])]
        lines = [[(one["lat"], one["lon"]) for one in member["geometry"] if one] for member in members if member.get("geometry")]
        cells |= {"place_id": f"{kind}/{element['id']}", "lat": middle.get("lat"), "lon": middle.get("lon"), "outline": lines}
    except (TypeError, KeyError, AttributeError) as error:
        return Rejection(str(file), number, "row", "field_type", reason(error), "an element of Overpass", short(element))
    return str(file), number, cells


def _pbf_rows(file: Path, report: Report) -> Iterator[Row]:
    try:
        import osmium  # the extra nearby-osm
    except ImportError as error:
        raise LoreError(f"{file} needs osmium, which is not installed. pip install 'lore-relevance[nearby-osm]'") from error
    _bounded(file, MAX_PBF_BYTES, "Cut the town out of it with `osmium extract`.")
    try:
        found = osmium.FileProcessor(str(file)).with_areas().with_filter(osmium.filter.KeyFilter(*class_table()[0]))
        for number, one in enumerate(found, 1):
            if one.is_relation() or (one.is_way() and one.is_closed()):  # they come again as areas
                continue
            cells = _of_openstreetmap(dict(one.tags))
            if one.is_node():
                cells |= {"place_id": f"node/{one.id}", "lat": one.location.lat, "lon": one.location.lon}
            elif one.is_way():
                cells |= {"place_id": f"way/{one.id}", "outline": [[(at.lat, at.lon) for at in one.nodes if at.location.valid()]]}
            else:
                rings = [ring for outer in one.outer_rings() for ring in (outer, *one.inner_rings(outer))]
                cells |= {"place_id": f"{'way' if one.from_way() else 'relation'}/{one.orig_id()}"}
                cells |= {"outline": [[(at.lat, at.lon) for at in ring] for ring in rings]}
            yield str(file), number, cells
    except (RuntimeError, ValueError) as error:
        raise LoreError(f"{file} is damaged or no .osm.pbf file ({reason(error)}). Download it again.") from error
