"""Canaries: pairs that travel with an exported student, with the scores that it gave them when it was exported.

    check = check_canaries(open_student("student"), "student")

A file that was damaged, mixed up or quantized again, another onnxruntime, or a CPU that multiplies in another way all show here.
Every canary is scored alone: in a batch, INT8 scores depend on the other pairs. Scores are those before calibration.

canary.parquet is a file of pairs, photos included, with one column of scores per precision. Whoever has the folder can read it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.images import ImageError, image_bytes
from lore.data.pair import FIELDS, PAIR_SCHEMA, Pair
from lore.data.parquet import to_column, to_pairs
from lore.student.calibration import Calibration
from lore.student.exported import ADVICE, cpu_flags, read_export
from lore.student.head import verdict_tiers
from lore.student.photo_embeddings import PhotoEmbeddings
from lore.student.scorer import StudentScorer
from lore.support.atomic_files import open_part, part_of, replace_file
from lore.support.errors import LoreError, translated

CANARIES = "canary.parquet"
COUNT = 64
MAX_BYTES = 256 * 2**20
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "int8": 2e-2}
"""Largest difference of a tier's probability that another machine may cause. An INT8 score moves by rounding alone: a sum that
differs in its last bit can fall on the other side of a step."""
EMBEDDING, UNREADABLE = "photo_embedding", b"unreadable"


@dataclass(frozen=True)
class CanaryCheck:
    """How far a student's scores are from those at its export."""

    pairs: int
    precision: str
    largest: float
    """Largest difference of a tier's probability."""
    changed_tiers: int
    then: list[str]
    now: list[str]
    """Instruction sets of the CPU at the export, and of this one."""


def raw_scores(scorer: StudentScorer, pairs: Sequence[Pair], *, alone: bool) -> np.ndarray:
    """Tier probabilities before calibration [N, K]; nan in the rows of pairs without an answer. alone: one pair per batch."""
    raw = replace(scorer, card=replace(scorer.card, calibration=Calibration()))
    verdicts = [raw.score([pair])[0] for pair in pairs] if alone else raw.score(list(pairs))
    nothing = [np.nan] * len(scorer.tier_ids)
    return np.asarray([verdict.probabilities or nothing for verdict in verdicts], dtype=np.float64).reshape(len(pairs), -1)


def write_canaries(
    folder: Path, pairs: Sequence[Pair], scores: Mapping[str, np.ndarray], embeddings: PhotoEmbeddings | None = None
) -> None:
    """Writes the pairs, with the bytes of their photos, and the scores [N, K] of each precision. embeddings: the photos' vectors of
    a student that reads them."""
    pairs = [replace(pair, image=_with_bytes(pair)) for pair in pairs]
    columns = {name: to_column(name, [getattr(pair, name) for pair in pairs]) for name in FIELDS}
    columns |= {precision: pa.array(found.tolist(), pa.list_(pa.float64())) for precision, found in scores.items()}
    if embeddings is not None:
        rows = [embeddings.row(pair.item_id) for pair in pairs]
        vectors = [None if row is None else embeddings.vectors[row].tolist() for row in rows]
        columns[EMBEDDING] = pa.array(vectors, pa.list_(pa.float32()))
    part = part_of(folder / CANARIES)
    with open_part(part, folder / CANARIES) as file:
        pq.write_table(pa.table(columns).replace_schema_metadata(PAIR_SCHEMA.metadata), file, compression="zstd")
    replace_file(part, folder / CANARIES)


def check_canaries(scorer: StudentScorer, folder: str | Path, tolerance: float | None = None) -> CanaryCheck:
    """Scores the canaries again. Raises LoreError for scores that differ by more than the tolerance.

    folder: the exported folder. tolerance: of a tier's probability; null takes that of the precision.
    """
    precision = scorer.session.precision
    pairs, then, embeddings = _read(Path(folder), precision)
    if embeddings is not None:
        scorer = replace(scorer, encoder=replace(scorer.encoder, embeddings=embeddings))
    if then.shape[1] != len(scorer.tier_ids):
        raise LoreError(
            f"{folder} has canaries with scores for {then.shape[1]} tiers, and the student has {len(scorer.tier_ids)}.\n{ADVICE}"
        )
    now = raw_scores(scorer, pairs, alone=True)
    moved = np.abs(now - then)
    known = read_export(folder)
    check = CanaryCheck(
        len(pairs),
        precision,
        float(moved.max()),
        int((_tiers(scorer, now) != _tiers(scorer, then)).sum()),
        known.machine.flags,
        cpu_flags(),
    )
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    if not check.largest <= limit:  # also true for nan
        row, tier = np.unravel_index(np.nan_to_num(moved, nan=np.inf).argmax(), moved.shape)
        raise LoreError(
            f"{folder}: the student ({precision}) gives canary {pairs[row].pair_id} the probability {now[row, tier]:.4f} of tier "
            f"{scorer.tier_ids[tier]}; at the export it was {then[row, tier]:.4f}, and {limit:g} may be between them. "
            f"{check.changed_tiers} of {len(pairs)} canaries have another tier.\n{_why(check)}"
        )
    return check


def _tiers(scorer: StudentScorer, scores: np.ndarray) -> np.ndarray:
    return verdict_tiers(scorer.card.calibration.apply(np.nan_to_num(scores)), scorer.card.verdict)


def _why(check: CanaryCheck) -> str:
    if check.then != check.now:
        then, now = (", ".join(flags) or "none known" for flags in (check.then, check.now))
        return (
            f"The CPU of the export has other instruction sets ({then}) than this one ({now}). Export the student on a machine "
            "like this one, or use fp32."
        )
    return f"The files differ from those of the export, or another onnxruntime reads them. {ADVICE}"


def _with_bytes(pair: Pair) -> dict[str, object] | None:
    """The photo by its bytes; one that cannot be read stays as broken as it is."""
    if pair.image is None:
        return None
    try:
        return {"bytes": image_bytes(pair.image), "path": None}
    except ImageError:
        return {"bytes": UNREADABLE, "path": None}


def _read(folder: Path, precision: str) -> tuple[list[Pair], np.ndarray, PhotoEmbeddings | None]:
    """(pairs, scores [N, K], vectors of their photos)."""
    path = folder / CANARIES
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no such file"
        raise LoreError(f"{path}: {found}, so the student cannot be compared with its export.\n{ADVICE}")
    with translated(lambda _: (f"{path} is damaged, so the student cannot be compared with its export", ADVICE)):
        table = pq.read_table(path)
        pairs = [pair for batch in table.select(list(FIELDS)).to_batches() for pair in to_pairs(batch, FIELDS, path)]
        scores = np.asarray(table.column(precision).to_pylist(), dtype=np.float64)
        if not pairs or scores.ndim != 2 or not np.isfinite(scores).all():
            raise ValueError("no finite scores")
        for pair in pairs:  # a path would open a file of this machine
            pair.image = pair.image and {"bytes": pair.image.get("bytes") or UNREADABLE, "path": None}
        if EMBEDDING not in table.column_names:
            return pairs, scores, None
        found = zip(pairs, table.column(EMBEDDING).to_pylist(), strict=True)
        vectors = {pair.item_id: vector for pair, vector in found if vector is not None and pair.item_id is not None}
        return pairs, scores, PhotoEmbeddings(list(vectors), np.asarray(list(vectors.values()), dtype=np.float32), str(path))
