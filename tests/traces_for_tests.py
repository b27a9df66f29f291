"""Traces in the format of a run, for tests of the dataset card and of `lore traces`."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lore.data_synth.synthesis.trace import TRACE_SCHEMA, Attempt, Check, Reply, Trace
from lore.rubric.demand import Demand

CHECKS = ("verdict", "one_verdict", "grounding", "rules", "aggregate", "coverage", "length")


def make_trace(number: int = 0, *, failed: dict[str, str] | None = None, **changes) -> Trace:
    """An accepted trace. `failed`: failed checks and their reasons, which make it a rejected trace."""
    failed = failed or {}
    failure = changes.pop("failure", "")
    accepted = not failed and not failure
    names = ["unreadable"] if failure else list(failed)
    attempts = [Attempt(0, False, "L3", names)] if accepted else [Attempt(0, False, "L3", names), Attempt(1, True, None, names)]
    replies = [
        Reply(step, f"{step}-{number}", "hash", "teacher", "{}", 100, 10, 0.001) for step in ("knowledge", "multimodal", "rules")
    ]
    values = {
        "pair_id": f"pair-{number}",
        "query": "red samovar",
        "title": "kettle in scarlet",
        "image": None,
        "label": "L3",
        "slices": ["general", "capability:knowledge"],
        "accepted": accepted,
        "tier": "L3",
        "hinted": False,
        "rationale": "category: samovar = kettle | kettle (title) | category-same L4; colour: red | scarlet (title) | near L3",
        "mismatch": None,
        "rules": ["colour-family"],
        "demands": [
            Demand("category", "samovar = kettle", "kettle", "title", "category-same", "L4"),
            Demand("colour", "red", "scarlet", "title", "colour-family", "L3"),
        ],
        "words": ["samovar", "red"],
        "caption": None,
        "facts": ["samovar = kettle (jargon, category)"],
        "failure": failure,
        "checks": [] if failure else [Check(name, failed.get(name, "")) for name in dict.fromkeys([*CHECKS, *failed])],
        "attempts": attempts,
        "replies": replies,
    }
    return Trace(**{**values, **changes})


def write_traces(run: Path, parts: list[list[Trace]]) -> Path:
    """Writes a run folder with these parts."""
    (run / "traces").mkdir(parents=True)
    for number, traces in enumerate(parts):
        table = pa.Table.from_pylist([trace.row() for trace in traces], schema=TRACE_SCHEMA)
        pq.write_table(table, run / "traces" / f"part-{number:06d}.parquet")
    return run
