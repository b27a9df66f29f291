"""Shared helpers of the synthesize tests: a small shop, a recipe for it, a teacher behind a server, the traces of a run."""

import os
from pathlib import Path

import pytest
import yaml

from lore.data_synth.shop.world import World
from lore.data_synth.shop.write import write_extras, write_pairs
from lore.data_synth.synthesis.trace import Trace, read_traces, trace_store
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError

MODEL = "program"


def make_shop(folder: Path, pairs: int) -> Path:
    """Writes pairs/train.parquet and facts.jsonl to `folder`."""
    world = World(11)
    write_pairs(world, "train", pairs, folder / "pairs" / "train.parquet")
    write_extras(world, folder, 0, 4)
    return folder


def write_recipe(folder: Path, run: str, shop: Path, **more) -> Path:
    """Writes a recipe with the shop's program as teacher. `more` replaces its keys."""
    body = {
        "stage": "synthesize",
        "run": run,
        "data": {"path": str(shop / "pairs"), "rubric": "shop", "split": "train"},
        "teacher": {"kind": "program", "program": "shop"},
        "facts": {"path": str(shop / "facts.jsonl")},
        "attempts": {"hint": "never"},
        "chunk_pairs": 20,
    }
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump({**body, **more}), encoding="utf-8")
    return path


def endpoint(server, **more) -> dict:
    """A teacher section for a server of tests/openai_server.py. `endpoint` in `more` replaces keys of the inner section."""
    section = {"url": server.url, "model": MODEL, "timeout_seconds": 20.0, "max_concurrency": 8, "max_down_seconds": 10.0}
    return {"kind": "endpoint", "endpoint": section | more.pop("endpoint", {}), "temperature": 0.0} | more


def run_that_accepts_nothing(path: Path) -> RunFolder:
    """The folder of a run that ends with traces and no accepted one: it says so and is not finished."""
    with pytest.raises(LoreError, match=r"no trace of [\d,]+ pairs was accepted"):
        run_recipe(path)
    folder = RunFolder(Path(os.environ["LORE_RUNS"]) / path.stem)
    assert not folder.is_done and not any(trace.accepted for trace in traces_of(folder))
    return folder


def traces_of(folder: RunFolder) -> list[Trace]:
    store = trace_store(folder.path)
    return [trace for number in store.numbers() for trace in read_traces(store, number)]
