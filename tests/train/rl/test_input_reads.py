"""A GRPO run on a CSV reads it twice until its first step: once to hash it, once to import it."""

import builtins
import csv
import os
from collections import Counter
from pathlib import Path

import pytest
import transformers

from lore.data.parquet import read_pairs
from lore.run.runner import run_recipe
from lore.support import fingerprint

COLUMNS = ["pair_id", "query", "title", "label", "rationale", "split"]


class Step0(Exception):
    pass


def test_a_run_on_a_csv_reads_it_at_most_twice(tiny, runs, tmp_path, monkeypatch):
    with open(tmp_path / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(pair, name) for name in COLUMNS] for pair in read_pairs(tiny.asked))
    sections = {
        "data": {"path": str(tmp_path / "pairs.csv"), "source": "table"},
        "replay": {"rows": 4, "split": None},
        "watch": {"every": 1, "split": None, "pairs": 4},
    }
    (tmp_path / "grpo.yaml").write_text(tiny.align("grpo", tiny.text, **sections))
    opens, plain_open = Counter(), builtins.open

    def counting_open(file, mode="r", *rest, **options):
        if mode == "rb" and isinstance(file, str | os.PathLike):
            opens[Path(file).name] += 1
        return plain_open(file, mode, *rest, **options)

    def stop(*_, **__):
        raise Step0

    monkeypatch.setattr(fingerprint, "_digests", {})
    monkeypatch.setattr(builtins, "open", counting_open)
    monkeypatch.setattr(transformers.Trainer, "train", stop)
    with pytest.raises(Step0):
        run_recipe(tmp_path / "grpo.yaml")
    assert opens["pairs.csv"] == 2 and opens["pairs.parquet"] <= 1
