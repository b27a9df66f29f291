"""Labels as judgments for search tools: TREC qrels, a Quepid case, OpenSearch's Search Relevance Workbench.

    lore label export labels/ --format qrels -o labels.qrels          trec_eval, ir_measures, ranx, pyterrier
    lore label export labels/ --format quepid -o case.csv
    lore label export labels/ --format opensearch -o judgments.json

- qrels: `query_id 0 item_id gain`. TREC ids hold no spaces, so a query is `q` and 16 hex digits of its text and market, the same in
  every export; `<name>.queries.csv` beside the file has query_id, query and market.
- quepid: `query,docid,rating`, the header that Quepid's import of a case expects.
- opensearch: the body of PUT _plugins/_search_relevance/judgments.

Left out of the file, and counted: pairs without a tier, and an item that a query has twice (the lower gain is kept). The labels are
streamed into partitions by query in a scratch folder beside the output, so that the rows of a query come together and memory does
not grow with the labels.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lore.data.pair import MARKETS, market_of, query_key
from lore.data.tables.csv import csv_line, csv_lines, without_formulas
from lore.label.read import count_labels, opened_labels, read_labels
from lore.support.atomic_files import scratch_folder, written_whole
from lore.support.bounds import MAX_WEIGHT
from lore.support.errors import LoreError
from lore.support.full_disk import full_disk_named
from lore.support.outputs import Output, begins_with, checked_outputs, head_of, never
from lore.support.progress import track

FORMATS = ("qrels", "quepid", "opensearch")
DOCUMENTS = ("item_id", "pair_id")
PARTITION_ROWS, MAX_PARTITIONS = 250_000, 256
READ_ROWS = 65_536
LARGE_BODY = 100 * 2**20  # of OpenSearch's http.max_content_length
REMEMBERED_QUERIES = 100_000
QREL = re.compile(rb"q[0-9a-f]{16} 0 \S+ -?\d+\n")
QUERIES_HEADER = ("query_id", "query", "market")
OPENSEARCH_BEGIN = '{"type": "IMPORT_JUDGMENT", "description": "Labels of LORE'
ROWS = pa.schema(
    [("id", pa.uint64()), ("query", pa.string()), ("market", pa.string()), ("document", pa.string()), ("tier", pa.int8())]
)
SPACE = re.compile(r"\s")


@dataclass
class Exported:
    """What an export wrote. without_tier, doubled: pairs that are not in the file."""

    pairs: int = 0
    queries: int = 0
    without_tier: int = 0
    doubled: int = 0
    escaped: int = 0
    """Cells with an apostrophe in front, because a spreadsheet program would run them."""
    refused: int = 0
    """Lines with a comma and a double quote in a text, which Quepid's import dialog takes for damaged ones."""
    bytes: int = 0
    files: list[Path] = field(default_factory=list)


@dataclass
class RatedQuery:
    id: int
    query: str
    market: str
    rated: list[tuple[str, float]]
    """Documents and their gains."""

    @property
    def name(self) -> str:
        return f"q{self.id:016x}"


def export_labels(
    folder: str | Path,
    out: Path,
    to: str,
    *,
    gains: str | None = None,
    document: str = "item_id",
    market: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> Exported:
    """Writes the labels of a folder in one of FORMATS. The file appears complete or not at all.

    gains: `L4=3,L3=1,...` for every tier; None: 0, 1, 2, ... from the worst tier. document: what names an item. market: only pairs
    of this market, such as `locale:us`. name: of the judgments in OpenSearch; None: the name of the folder.
    """
    tiers = opened_labels(folder).schema.names
    gain = read_gains(gains, [tier[2:] for tier in tiers if tier.startswith("p_")], whole=to == "qrels")
    outputs = [Output(out, _MARKS[to])]
    if to == "qrels":
        outputs.append(Output(out.with_suffix(".queries.csv"), begins_with(",".join(QUERIES_HEADER))))
    paths = checked_outputs(outputs, [folder], force=force)
    done = Exported(files=[output.path for output in outputs])
    with full_disk_named(out.parent, "Then export again."), ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(paths[0]))
        partitions = _partitioned(Path(folder), scratch, list(gain), document, market, done)
        if to != "qrels":
            _one_market(partitions.markets, to)
        queries = _counted(_grouped(partitions.files, list(gain.values()), done), done)
        files = [stack.enter_context(written_whole(path)) for path in paths]
        match to:
            case "qrels":
                _write_qrels(queries, *files)
            case "quepid":
                _write_quepid(queries, files[0], done)
            case "opensearch":
                _write_opensearch(queries, files[0], name or Path(folder).resolve().name)
        if not done.pairs:
            of = f" of market {market}" if market is not None else ""
            raise LoreError(f"{folder} has no pair{of} with a tier, so there is nothing to export and {out} was not written.")
        done.bytes = files[0].tell()
    return done


def read_gains(given: str | None, tiers: list[str], *, whole: bool = False) -> dict[str, float]:
    """The gain of each tier, in the order of the rubric. whole: only whole numbers, as trec_eval reads them."""
    if given is None:
        return {tier: float(number) for number, tier in enumerate(tiers)}
    found: dict[str, float] = {}
    expected = f"one number for each of {', '.join(tiers)}, such as {','.join(f'{t}={n}' for n, t in enumerate(tiers))}"
    for part in given.split(","):
        tier, _, number = (one.strip() for one in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if tier not in tiers or tier in found or not abs(value) <= MAX_WEIGHT:
            raise LoreError(f"--gains has {part.strip()!r}; expected {expected}.")
        if whole and not value.is_integer():
            raise LoreError(f"--gains has {part.strip()!r}, and the gains of TREC qrels are whole numbers.")
        found[tier] = value
    if missing := [tier for tier in tiers if tier not in found]:
        raise LoreError(f"--gains has no gain for {', '.join(missing)}; expected {expected}.")
    return {tier: found[tier] for tier in tiers}


@dataclass
class _Partitions:
    files: list[Path]
    markets: Counter[str]


def _partitioned(folder: Path, scratch: Path, tiers: list[str], document: str, market: str | None, done: Exported) -> _Partitions:
    """Writes the rows to export into files by the hash of the query."""
    total = count_labels(folder)
    parts = min(MAX_PARTITIONS, max(1, -(-total // PARTITION_ROWS)))
    paths = [scratch / f"{number:03d}.arrow" for number in range(parts)]
    keys, markets = _QueryIds(), Counter[str]()
    columns = list(dict.fromkeys(["pair_id", "query", "slices", "tier", document]))
    with ExitStack() as stack:
        writers = []
        for path in paths:
            file = stack.enter_context(open(path, "wb"))
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writers.append(stack.enter_context(pa.ipc.new_stream(file, ROWS, options=options)))
        batches = read_labels(folder, columns, batch_rows=READ_ROWS)
        for batch in track(batches, "reading labels", total=None):
            rows = _rows(batch, keys, tiers, document, market, done)
            markets.update(dict(zip(*(one.to_pylist() for one in pc.value_counts(rows.column("market")).flatten()), strict=True)))
            part = (rows.column("id").to_numpy() >> np.uint64(33)) % np.uint64(parts)  # 31 bits: enough for the partitions
            order = np.argsort(part, kind="stable")
            ends = np.searchsorted(part[order], np.arange(parts + 1))
            rows = rows.take(pa.array(order))
            for number in np.flatnonzero(np.diff(ends)):
                writers[number].write_batch(rows.slice(ends[number], ends[number + 1] - ends[number]))
    return _Partitions(paths, markets)


def _rows(
    batch: pa.RecordBatch, keys: "_QueryIds", tiers: list[str], document: str, market: str | None, done: Exported
) -> pa.RecordBatch:
    """The rows of a batch that are exported, as ROWS."""
    ids, markets = keys.of(batch)
    tier = pc.index_in(batch.column("tier"), pa.array(tiers)).cast(pa.int8())
    if len(strangers := batch.column("tier").filter(pc.and_(pc.is_valid(batch.column("tier")), pc.is_null(tier)))):
        raise LoreError(f"The labels hold tier {strangers[0].as_py()!r}, which is none of {', '.join(tiers)}.")
    rows = pa.RecordBatch.from_arrays(
        [pa.array(ids, pa.uint64()), batch.column("query"), pa.array(markets, pa.string()), batch.column(document), tier],
        schema=ROWS,
    )
    if market is not None:
        rows = rows.filter(pc.equal(rows.column("market"), market))
    done.without_tier += rows.column("tier").null_count
    rows = rows.filter(pc.is_valid(rows.column("tier")))
    if missing := pc.sum(pc.equal(pc.fill_null(rows.column("document"), ""), "")).as_py():
        raise LoreError(
            f"{missing:,} pairs in one file have no {document}, so their judgments would belong to no document of the search "
            "engine.\nLabel pairs with an item_id, or name documents by their pair: --document pair_id."
        )
    return rows


class _QueryIds:
    """Ids and markets of query texts. Remembers them, because the pairs of a query lie together."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[int, str]] = {}

    def of(self, batch: pa.RecordBatch) -> tuple[list[int], list[str]]:
        ids, markets = [], []
        slices = batch.column("slices")
        named = pc.any(pc.match_substring_regex(slices.flatten(), f"^({'|'.join(MARKETS)}):")).as_py()
        for query, names in zip(batch.column("query").to_pylist(), slices.to_pylist() if named else [()] * len(batch), strict=True):
            key = (query or "", *(names or ()))
            if key not in self._known:
                if len(self._known) >= REMEMBERED_QUERIES:
                    self._known.clear()
                text = query_key(key[0], key[1:]).encode(errors="surrogatepass")
                number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
                self._known[key] = number, market_of(key[1:]).replace("\x1f", ",")
            number, market = self._known[key]
            ids.append(number)
            markets.append(market)
        return ids, markets


def _one_market(markets: Counter[str], to: str) -> None:
    if len(markets) > 1:
        found = ", ".join(market or "pairs without a market ('')" for market, _ in markets.most_common(10))
        raise LoreError(
            f"The labels are of {len(markets)} markets ({found}), and {to} knows a query by its text alone: equal texts would "
            "become one query with mixed ratings.\nExport one file per market with --market."
        )


def _grouped(paths: list[Path], gains: list[float], done: Exported) -> Iterator[RatedQuery]:
    """The queries, each with all of its documents, one partition in memory at a time."""
    for path in paths:
        with pa.ipc.open_stream(path) as stream:
            table = stream.read_all().sort_by([(name, "ascending") for name in ("id", "document", "tier")])
        path.unlink()
        rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
        for number, group in groupby(rows, key=lambda row: row[0]):
            texts, markets, rated = Counter[str](), set(), {}
            for _, query, market, document, tier in group:
                markets.add(market)
                texts[query] += 1
                gain = gains[tier]
                done.doubled += document in rated
                rated[document] = min(gain, rated.get(document, gain))
            query = min(texts, key=lambda text: (-texts[text], text))  # the usual spelling
            yield RatedQuery(number, query, markets.pop(), list(rated.items()))


def _counted(queries: Iterable[RatedQuery], done: Exported) -> Iterator[RatedQuery]:
    for query in queries:
        done.queries += 1
        done.pairs += len(query.rated)
        yield query


def _write_qrels(queries: Iterable[RatedQuery], file: BinaryIO, table: BinaryIO) -> None:
    def rows() -> Iterator[tuple[str, str, str]]:
        for query in queries:
            for document, _ in query.rated:
                if SPACE.search(document):
                    raise LoreError(
                        f"The document {document!r} of query {query.query!r} has a space in its id, which TREC qrels cannot hold. "
                        "Label with ids without spaces, or export --document pair_id."
                    )
            file.write("".join(f"{query.name} 0 {document} {gain:.0f}\n" for document, gain in query.rated).encode())
            yield query.name, query.query, query.market

    for line in csv_lines(QUERIES_HEADER, rows()):
        table.write(line.encode())


def _write_quepid(queries: Iterable[RatedQuery], file: BinaryIO, done: Exported) -> None:
    file.write(b"query,docid,rating\n")
    for query in queries:
        text = " ".join(query.query.split())  # Quepid takes every line end for the end of a row
        for document, gain in query.rated:
            cells = [text, " ".join(document.split())]
            safe = [without_formulas(cell) for cell in cells]
            done.escaped += sum(cell != one for cell, one in zip(cells, safe, strict=True))
            line = csv_line([*safe, f"{gain:g}"])
            done.refused += line.count(",") > 2 and line.count('"') != 2
            file.write(line.encode())


def _write_opensearch(queries: Iterable[RatedQuery], file: BinaryIO, name: str) -> None:
    file.write(f'{OPENSEARCH_BEGIN}", "name": {json.dumps(name)}, "judgmentRatings": ['.encode())
    for number, query in enumerate(queries):
        # Ratings as texts: earlier versions of OpenSearch read nothing else.
        ratings = [{"docId": document, "rating": f"{gain:g}"} for document, gain in query.rated]
        entry = json.dumps({"query": query.query, "ratings": ratings}, ensure_ascii=False)
        file.write(f"{',' * bool(number)}\n{entry}".encode())
    file.write(b"\n]}\n")


_MARKS: dict[str, Callable[[Path], bool]] = {
    "qrels": lambda path: QREL.match(head_of(path)) is not None,
    "quepid": never,  # an export of Quepid itself looks the same
    "opensearch": begins_with(OPENSEARCH_BEGIN),
}
