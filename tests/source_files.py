"""Small files in the formats of public data sets, and an import in one call."""

import csv
import json

from lore.data.import_pairs import import_pairs
from lore.data.import_report import Report
from lore.data.importers import open_source
from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.rubric.rubric import load_rubric


def load(name, path, tmp_path, rubric=None, encoding=None, options=None, **kwargs) -> tuple[list[Pair], Report, list[dict]]:
    """The pairs, the report and the rejected rows of an import."""
    source = open_source(name, path, encoding=encoding, options=options)
    out = tmp_path / "out" / "pairs.parquet"
    report = import_pairs(source, out, load_rubric(rubric or source.rubric), **kwargs)
    rejected = tmp_path / "out" / "pairs.rejected.jsonl"
    lines = [json.loads(line) for line in rejected.read_text().splitlines()] if rejected.exists() else []
    assert report.rows == report.kept + report.rejected_rows + report.dropped
    return list(read_pairs(out)), report, lines


def write_csv(path, rows, delimiter=",", encoding="utf-8", quoting=csv.QUOTE_MINIMAL):
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(rows)
    return path


def write_parquet(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


CROWDFLOWER = ["id", "query", "product_title", "product_description", "median_relevance", "relevance_variance"]


def crowdflower(tmp_path, rows, header=CROWDFLOWER, **kwargs):
    return write_csv(tmp_path / "train.csv", [header, *rows], quoting=csv.QUOTE_ALL, **kwargs)
