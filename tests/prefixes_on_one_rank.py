"""Runs a recipe in which process 1 finds no common prefix in two of four batches of training, as if its rows had none.

    accelerate launch --config_file launch/accelerate/zero2.yaml --num_processes 2 tests/prefixes_on_one_rank.py recipe.yaml
"""

import itertools
import os
import sys

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    import fsdp_on_cpus  # noqa: F401 (it replaces accelerate's choice of device)

import lore.run.devices
import lore.run.runner
from lore.train.common import shared_prefix

layout, check, calls = shared_prefix.lay_out, shared_prefix.SharedPrefix.on_train_begin, itertools.count()


def sometimes(rows, photo=None):
    number = next(calls)
    found = None if number // 2 % 2 and os.environ["RANK"] == "1" else layout(rows, photo)
    print(f"rank {os.environ['RANK']}: {'alone' if found is None else 'shared'}", flush=True)
    return found


def begin(self, *arguments, **options):
    """Layouts of the memory estimate and of the check before step 0 are those of the product."""
    check(self, *arguments, **options)
    shared_prefix.lay_out = sometimes


shared_prefix.SharedPrefix.on_train_begin = begin

if __name__ == "__main__":
    lore.run.devices.leave(lore.run.runner.run_command(sys.argv[1:]))
