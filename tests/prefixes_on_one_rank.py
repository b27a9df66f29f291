"""Runs a recipe in which process 1 finds no common prefix in every other batch of training, as if its rows had none.

    accelerate launch --config_file launch/accelerate/zero2.yaml --num_processes 2 tests/prefixes_on_one_rank.py recipe.yaml
"""

import itertools
import os
import sys

import lore.run.devices
import lore.run.runner
from lore.train.common import shared_prefix

CHECKS = 2  # layouts of the check before step 0
layout, calls = shared_prefix.lay_out, itertools.count()


def sometimes(rows, photo=None):
    number = next(calls)
    alone = number >= CHECKS and number % 2 == 0 and os.environ["RANK"] == "1"
    print(f"rank {os.environ['RANK']}: {'alone' if alone else 'shared'}", flush=True)
    return None if alone else layout(rows, photo)


shared_prefix.lay_out = sometimes

if __name__ == "__main__":
    lore.run.devices.leave(lore.run.runner.run_command(sys.argv[1:]))
