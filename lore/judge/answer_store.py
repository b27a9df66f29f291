"""What a judge has answered so far: numbered files, each written whole, so that a killed run asks nothing twice."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lore.judge.verdicts import Verdict, from_row, to_row, verdict_fields

SHARD = re.compile(r"^part-(\d{6})\.parquet$")


def write_table(path: Path, rows: list[dict], fields: list[tuple[str, pa.DataType]]) -> None:
    """The whole file or nothing."""
    part = path.with_name(f".{path.name}.part")
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), part)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


class Parts:
    """Answers so far: numbered files, each written whole, so that a killed run asks nothing twice."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if SHARD.match(path.name))

    def _rows(self) -> Iterator[dict]:
        for path in self._files():
            yield from pq.read_table(path).to_pylist()

    def _write(self, rows: list[dict], fields: list[tuple[str, pa.DataType]]) -> None:
        files = self._files()
        number = int(SHARD.match(files[-1].name)[1]) + 1 if files else 0
        write_table(self.folder / f"part-{number:06d}.parquet", rows, fields)


class Shards(Parts):
    """What one judge has answered so far."""

    def __init__(self, folder: Path, tier_ids: list[str]):
        super().__init__(folder)
        self.tier_ids = tier_ids

    def read(self) -> dict[str, Verdict]:
        """Verdicts by pair_id."""
        verdicts = (from_row(row, self.tier_ids) for row in self._rows())
        return {verdict.pair_id: verdict for verdict in verdicts}

    def add(self, verdicts: list[Verdict]) -> None:
        self._write([to_row(verdict, self.tier_ids) for verdict in verdicts], verdict_fields(self.tier_ids))


@dataclass(slots=True)
class Samples:
    """Several answers of one judge to one pair: a tier each, None for a format failure."""

    pair_id: str
    tiers: list[str | None]


class SampleShards(Parts):
    """Sampled answers so far."""

    def read(self) -> dict[str, Samples]:
        """Samples by pair_id."""
        return {row["pair_id"]: Samples(row["pair_id"], row["tiers"]) for row in self._rows()}

    def add(self, samples: list[Samples]) -> None:
        fields = [("pair_id", pa.string()), ("tiers", pa.list_(pa.string()))]
        self._write([{"pair_id": row.pair_id, "tiers": row.tiers} for row in samples], fields)
