"""benchmarks/align.py on a small evaluation: its table has the Macro-F1 of scikit-learn and reads the samples of the judges."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from lore.judge.chunk_store import ChunkStore
from lore.judge.resumable import SAMPLES_SCHEMA
from lore.support.errors import LoreError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TIERS = ["L1", "L2", "L3", "L4"]


@pytest.fixture
def align(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import align

    return align


@pytest.fixture
def evaluation(tmp_path) -> Path:
    rng = np.random.default_rng(3)
    labels = [TIERS[i] for i in rng.integers(0, 4, 40)]
    tiers = [None if rng.random() < 0.1 else TIERS[i] for i in rng.integers(0, 3, 40)]
    rows = [
        {"judge": "sft", "pair_id": f"{i:02}", "query": f"q{i % 8}", "label": label, "tier": tier}
        for i, (label, tier) in enumerate(zip(labels, tiers, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "predictions.parquet")
    (tmp_path / "metrics.json").write_text(json.dumps({"judges": {"sft": {"metrics": {"ece_calibrated": {"value": 0.1}}}}}))
    store = ChunkStore(tmp_path / "verdicts" / "sft" / "samples", SAMPLES_SCHEMA, "a judge", "samples")
    for half in (rows[:10], rows[10:20]):
        store.append({"pair_id": row["pair_id"], "tiers": [row["label"]] * 6 + [None] * 2} for row in half)
    return tmp_path


def test_macro_f1_is_the_mean_over_the_tiers_of_labels_and_verdicts(align, evaluation):
    rows = pq.read_table(evaluation / "predictions.parquet").to_pylist()
    expected = f1_score([row["label"] for row in rows], [row["tier"] or "none" for row in rows], labels=TIERS, average="macro")
    header, _, row = (line.split(" | ") for line in align.tables([evaluation]).splitlines())
    assert row[header.index("Macro-F1")].startswith(f"{expected:.3f} [")
    assert row[header.index("pass@1")].startswith("0.750 [") and row[header.index("of samples")] == "25.00%"


def test_a_damaged_part_of_the_samples_is_named(align, evaluation):
    (part, *_) = sorted((evaluation / "verdicts" / "sft" / "samples").iterdir())
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(LoreError, match="part-000000.parquet cannot be read .*its samples are lost"):
        align.judged(evaluation)
