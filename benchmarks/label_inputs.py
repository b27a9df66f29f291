"""Reads inputs of batch labelling of growing size and measures rows a second and peak memory.

    python benchmarks/label_inputs.py --rows 100000 1000000 5000000 -o out/

Forms: a pairs file, the same pairs as csv and jsonl, a search log (Parquet) with a catalogue, and User Behavior Insights (jsonl)
with the same catalogue. The rows are made: queries by a Zipf law, 20 items a query, a catalogue of one item per 50 rows. Each
measurement is a process of its own. The first reading starts with an empty work folder; it hashes the files, makes the databases of
the catalogue and of the searches, and reads all batches. "Again" is the same with what the first one left. Rows a CPU second are
those of one core that does nothing else.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lore.data.pair import PAIR_SCHEMA
from lore.label.config import InputSection
from lore.label.inputs import open_input

FORMS = ("pairs", "csv", "jsonl", "log", "ubi")
CHUNK = 100_000
SHOWN = 20
COLOURS = ("red", "blue", "green", "black", "white", "brass")
THINGS = ("mug", "chair", "lamp", "shirt", "kettle", "rug")


class Nowhere:
    """Takes rejected rows."""

    def write(self, rejection: Any) -> None:
        raise AssertionError(str(rejection))


def made(rows: int, form: str, folder: Path) -> InputSection:
    """Writes an input, unless it is there."""
    folder = folder / f"{form}-{rows}"
    done = folder / "done"
    items = max(1000, rows // 50)
    columns = {name: name for name in ("query", "title", "item_id", "category", "brand", "price")}
    catalogue = str(folder / "catalogue.parquet")
    section = {
        "pairs": {"path": str(folder / "pairs.parquet")},
        "csv": {"path": str(folder / "pairs.csv"), "map": columns | {"attributes.colour": "colour"}},
        "jsonl": {"path": str(folder / "pairs.jsonl")},
        "log": {"path": str(folder / "log.parquet"), "catalogue": catalogue},
        "ubi": {"ubi": {name: str(folder / f"{name}.jsonl") for name in ("queries", "events")}, "catalogue": catalogue},
    }[form]
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        {"pairs": _pairs, "csv": _csv, "jsonl": _jsonl, "log": _log, "ubi": _ubi}[form](folder, rows, items)
        done.touch()
    return InputSection(**section)


def _chunks(rows: int, items: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Search, query and item of each row. SHOWN rows in a row are one search."""
    random = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        here = min(CHUNK, rows - start)
        searches = np.arange(start // SHOWN, start // SHOWN + -(-here // SHOWN))
        queries = np.minimum(random.zipf(1.3, len(searches)), rows // 40 + 1)
        yield np.repeat(searches, SHOWN)[:here], np.repeat(queries, SHOWN)[:here], random.integers(0, items, here)


def _query(number: int) -> str:
    return f"{COLOURS[number % 6]} {THINGS[number // 6 % 6]} size {number}"


def _item(number: int) -> dict[str, Any]:
    colour, thing = COLOURS[number % 6], THINGS[number // 7 % 6]
    attributes = {"colour": colour, "material": "brass", "size": str(number)}
    return {
        "item_id": str(100_000 + number),
        "title": f"{colour.title()} {thing} Lumo & Co. model {number}, for home and office",
        "attributes": [{"key": key, "value": value} for key, value in attributes.items()],
        "category": f"Home > {thing}",
        "brand": "Lumo",
        "price": 5 + number % 1000 / 10,
    }


def _items(items: int) -> pa.Table:
    """The catalogue, one row per item."""
    schema = pa.schema([(name, PAIR_SCHEMA.field(name).type) for name in _item(0)])
    return pa.Table.from_pylist([_item(number) for number in range(items)], schema)


def _columns(queries: np.ndarray, items: np.ndarray, catalogue: pa.Table) -> pa.Table:
    """Rows of query and item."""
    distinct, place = np.unique(queries, return_inverse=True)
    texts = pa.array([_query(number) for number in distinct.tolist()]).take(pa.array(place))
    return catalogue.take(pa.array(items)).add_column(0, "query", texts)


def _pairs(folder: Path, rows: int, items: int) -> None:
    catalogue = _items(items)
    names = "pair_id query title item_id attributes category brand price label slices query_frequency".split()
    schema = pa.schema([PAIR_SCHEMA.field(name) for name in names])
    with pq.ParquetWriter(folder / "pairs.parquet", schema, compression="zstd") as writer:
        for number, (_, queries, found) in enumerate(_chunks(rows, items)):
            here = len(queries)
            table = _columns(queries, found, catalogue)
            columns = {name: table[name] for name in table.column_names} | {
                "pair_id": pa.array([f"p{number * CHUNK + at:016x}" for at in range(here)]),
                "label": pa.array(["L4"] * here),
                "slices": pa.array([["general"]] * here, schema.field("slices").type),
                "query_frequency": pa.array(queries.astype(float)),
            }
            writer.write_table(pa.table([columns[name] for name in names], schema=schema), 4096)


def _csv(folder: Path, rows: int, items: int) -> None:
    catalogue = _items(items)
    catalogue = catalogue.drop_columns("attributes").append_column("colour", pa.array([COLOURS[n % 6] for n in range(items)]))
    with open(folder / "pairs.csv", "wb") as file:
        for number, (_, queries, found) in enumerate(_chunks(rows, items)):
            pa.csv.write_csv(_columns(queries, found, catalogue), file, pa.csv.WriteOptions(include_header=number == 0))


def _jsonl(folder: Path, rows: int, items: int) -> None:
    with open(folder / "pairs.jsonl", "w") as file:
        for _, queries, found in _chunks(rows, items):
            for query, item in zip(queries.tolist(), found.tolist(), strict=True):
                one = _item(item)
                one["attributes"] = {part["key"]: part["value"] for part in one["attributes"]}
                file.write(json.dumps({"query": _query(query), **one}) + "\n")


def _catalogue(folder: Path, items: int) -> pa.Table:
    table = _items(items)
    pq.write_table(table, folder / "catalogue.parquet")
    return table


def _log(folder: Path, rows: int, items: int) -> None:
    catalogue = _catalogue(folder, items).select(["item_id"])
    schema = pa.schema([("query", pa.string()), ("item_id", pa.string()), ("search_id", pa.int64()), ("position", pa.int64())])
    with pq.ParquetWriter(folder / "log.parquet", schema) as writer:
        for searches, queries, found in _chunks(rows, items):
            table = _columns(queries, found, catalogue)
            shown = np.arange(len(queries)) % SHOWN + 1
            writer.write_table(pa.table([table["query"], table["item_id"], searches, shown], schema=schema))


def _ubi(folder: Path, rows: int, items: int) -> None:
    """A fifth of the pairs has an event, too. Rows are shown items and events together."""
    _catalogue(folder, items)
    shown = rows * 5 // 6
    with open(folder / "queries.jsonl", "w") as queries_file, open(folder / "events.jsonl", "w") as events_file:
        for searches, queries, found in _chunks(shown, items):
            for at in range(0, len(queries), SHOWN):
                hits = [str(100_000 + one) for one in found[at : at + SHOWN].tolist()]
                search = f"{searches[at]:032x}"
                source = {"query_id": search, "user_query": _query(int(queries[at])), "query_response_hit_ids": hits}
                queries_file.write(json.dumps({"_index": "ubi_queries", "_source": source}) + "\n")
                for hit in hits[::5]:
                    where = {"object": {"object_id": hit}, "position": {"ordinal": 1}}
                    event = {"action_name": "click", "query_id": search, "event_attributes": where}
                    events_file.write(json.dumps({"_index": "ubi_events", "_source": event}) + "\n")


def measure(section: InputSection, work: Path) -> dict[str, Any]:
    """Reads an input from nothing, then once more with what the first reading left in `work`."""
    found: dict[str, Any] = {}
    before = _peak_mib()
    for name in ("first", "again"):
        start, busy = time.perf_counter(), time.process_time()
        given = open_input(section, work, Nowhere())
        opened = time.process_time() - busy
        rows = sum(len(batch) for batch in given.batches())
        found |= {"rows": rows, f"{name}_open_cpu_seconds": opened, f"{name}_cpu_seconds": time.process_time() - busy}
        found[f"{name}_seconds"] = time.perf_counter() - start
    return found | {"peak_mib": _peak_mib(), "imports_mib": before}


def _peak_mib() -> float:
    """Peak memory of this process. ru_maxrss would count that of the process that started it, too."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(found.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the inputs and results.jsonl")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        form, rows = given.measure[0], int(given.measure[1])
        section = made(rows, form, given.out)
        work = given.out / f"{form}-{rows}" / "work"
        for file in work.glob("*"):
            file.unlink()
        print(json.dumps(measure(section, work)))
        return
    print("| form | rows | first, rows/s | first, rows/CPU s | opening, CPU s | again, rows/CPU s | peak, MiB | imports, MiB |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: |", flush=True)
    for form in given.forms:
        for rows in given.rows:
            made(rows, form, given.out)  # in this process, whose memory is not measured
            command = [sys.executable, __file__, "-o", str(given.out), "--measure", form, str(rows)]
            one = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rates = [one["rows"] / one[name] for name in ("first_seconds", "first_cpu_seconds", "again_cpu_seconds")]
            print(
                f"| {form} | {one['rows']:,} | {rates[0]:,.0f} | {rates[1]:,.0f} | {one['first_open_cpu_seconds']:.1f} "
                f"| {rates[2]:,.0f} | {one['peak_mib']:,.0f} | {one['imports_mib']:,.0f} |",
                flush=True,
            )
            with open(given.out / "results.jsonl", "a") as file:
                file.write(json.dumps({"form": form, **one}) + "\n")


if __name__ == "__main__":
    main()
