"""Labels pairs with lore label and the stub in place of its model. Called by label_faults.py and label_scale.py.

Everything but the model is what the command runs: recipe, plan, ledger, commits, retries, summary.
"""

import os
import sys
from functools import partial
from pathlib import Path

from label_stub import TIERS, Job, ask, read_job

import lore.label.label as stage
from lore.config.stages import load_recipe
from lore.data.pair import Pair
from lore.engines.engine import EngineUsage
from lore.judge.verdict import Verdict
from lore.label.worker import ShardWorker, WorkerSpec
from lore.run.entry import exit_status
from lore.run.run_folder import RunFolder
from lore.run.runner import is_finished, run_in

COMMAND = Path(stage.__file__).with_name("command.yaml")


class StubScorer:
    """The stub as a Scorer. A pair that it cannot answer is a failure of that pair, as the judge's engines report it."""

    tier_ids = list(TIERS)
    judge_id = "stub"
    usage = EngineUsage()

    def __init__(self, job: Job):
        self.job = job

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        tiers = ask([pair.title for pair in pairs], self.job)
        return [Verdict(pair.pair_id, tier, [float(tier == one) for one in TIERS]) for pair, tier in zip(pairs, tiers, strict=True)]


def label(job: Job, *overrides: str) -> None:
    """`lore label pairs/ --judge judge/ -o out/` with the stub."""
    values = [f"input.path={job.pairs}", f"judge.path={job.judge}", "shard_pairs=250", "store=none", *overrides]
    recipe = load_recipe(COMMAND, values)
    folder = RunFolder(job.out, recipe)
    stage.run = partial(stage.run, make_worker=partial(worker, job))
    if not is_finished(recipe, folder):
        run_in(recipe, folder, "lore label")


def worker(job: Job, spec: WorkerSpec) -> ShardWorker:
    return ShardWorker(spec, StubScorer(job))


if __name__ == "__main__":
    os.environ["TERM"] = "dumb"
    sys.exit(exit_status(lambda: label(read_job())))
