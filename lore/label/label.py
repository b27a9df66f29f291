"""Stage label: a judge's verdict for every pair of the input, each exactly once.

    lore label pairs/ --judge runs/grpo -o labels/
    lore run recipes/label.yaml

It reads top to bottom: plan (lore.label.plan), ask shard by shard (lore.label.worker, or lore.label.ray_pool on a cluster), commit
(lore.label.ledger), summarize. The plan, the commits and the verdict store are the driver's; workers only answer. See
lore/label/schema.py for the folder.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from lore.data.rejected_rows import RejectedWriter
from lore.engines.engine import EngineDied, EngineUsage
from lore.engines.unanswered import AnswerWatch
from lore.judge.verdict import to_row
from lore.label.config import LabelRecipe
from lore.label.inputs import open_input
from lore.label.judge import AskedJudge, asked_judge
from lore.label.ledger import Ledger, is_final
from lore.label.plan import Counts, Plan, Shard, make_plan
from lore.label.progress import LabelProgress
from lore.label.schema import FAILURES, VERDICTS, WORK
from lore.label.worker import ShardResult, ShardWorker, Worker, WorkerSpec, failed_shard
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import clear_parts
from lore.support.console import Console, Table
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say

DEAD_SHARDS = 3  # shards in a row whose engine died: then the fault is the engine's, and the run stops
