"""Labels shards on a Ray cluster: ray.data gives them to actors that hold the judge, and this process commits what they answer.

    lore label pairs/ --judge runs/grpo -o labels/ --ray auto

The data set holds one block per shard, with the shard's place in the plan. An actor reads the rows itself, from the file system
that all machines share, and returns the labels as Arrow IPC bytes.

What Ray does: it starts actors where CPUs and GPUs are free, more of them while there is work; starts an actor anew, on another
machine if its own is lost, when its process ends (max_restarts); gives it the shards again that it had not finished
(max_task_retries); computes results again that were lost with their machine before this process had them (lineage); and starts no
more shards while finished ones wait for this process (the limit on object store memory).

What is ours: Ray's retries never end, and an engine is of no use after it raised. So an actor counts every attempt at a shard with
`Attempts` (lore/engines/ray_cluster.py) before it asks the judge; ends its own process when the judge raises, so that Ray opens a
fresh one; and from attempt max_attempts + 1 on returns the shard as failed, with the last words. Ray drops a shard without a word
where a restarted actor cannot open its judge (max_errored_blocks), so this process counts what came back and starts another round
with what is missing. A shard that is labelled twice is committed once, by the ledger.

Not used: Ray's checkpoints (the ledger is one), actor_task_retry_on_errors (it repeats on the same engine), and ray.data.llm, which
has no placement on CPUs and pins another vLLM.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from lore.engines.config import RaySection
from lore.engines.engine import EngineUsage
from lore.engines.ray_cluster import KILLED, connected, count_attempts, end_process, enter_folder, last_words, quiet, resources
from lore.label.judge import asked_judge
from lore.label.plan import Shard
from lore.label.worker import ShardResult, ShardWorker, Worker, WorkerSpec, failed_shard
from lore.support.errors import LoreError
from lore.support.processes import say

OPENING_DEATHS = 8  # workers in a row that end while they open their judge; then the fault is in the recipe or in every machine
UNREAD_BYTES = 256 * 2**20  # of finished shards that wait for this process, about
QUEUED = 2  # shards per worker: one that it labels and the next, so that it never waits for this process
SAID_WORDS = 300


def label_on_ray(
    shards: Iterable[Shard],
    work: Path,
    spec: WorkerSpec,
    section: RaySection,
    make_worker: Callable[[WorkerSpec], Worker] = ShardWorker,
) -> Iterator[tuple[Shard, ShardResult]]:
    """The shards with their labels, in the order in which they are finished. work: folder of the plan; make_worker: opens what
    answers, in the processes of Ray.

    Raises LoreError if there is no cluster, and if no worker can open the judge.
    """
    left = list(shards)
    with connected(section):
        attempts = count_attempts()
        for _ in range(section.max_attempts):
            missing = {shard.name: shard for shard in left}
            for name, result, words in _round(left, work, spec, section, attempts, make_worker):
                shard = missing.pop(name, None)
                if shard is None:
                    continue
                if words:
                    what = "gets no answers at this start" if result.died else "was begun again"
                    say(f"warning: shard {shard.name} of {shard.pairs:,} pairs {what}: {words[:SAID_WORDS]}")
                yield shard, result
            left = list(missing.values())
            if not left:
                return
            say(f"{len(left):,} shards were lost with their workers; labelling them again")
        for shard in left:
            yield shard, _given_up(shard.read(work), spec, KILLED)


def _round(
    shards: list[Shard],
    work: Path,
    spec: WorkerSpec,
    section: RaySection,
    attempts: Any,
    make_worker: Callable[[WorkerSpec], Worker],
) -> Iterator[tuple[str, ShardResult, str]]:
    """(name, labels, why it took more than one attempt or "") of every shard that comes back."""
    import ray.data  # optional

    quiet()  # once more, because ray.data sets up its own loggers
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a shard or the start of an engine may take long
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = OPENING_DEATHS
    options = context.execution_options
    options.preserve_order = False
    options.resource_limits = options.resource_limits.copy(object_store_memory=UNREAD_BYTES)
    judge = spec.recipe.judge
    with ray.data.DataContext.current(context):
        rows = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards))
        labels = rows.map_batches(
            LabelActor,
            fn_constructor_args=(os.getcwd(), str(work), spec, attempts, section.max_attempts, make_worker),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=min(section.min_workers, len(shards)),
                max_size=None if section.max_workers is None else min(section.max_workers, len(shards)),
                max_tasks_in_flight_per_actor=QUEUED,
            ),
            **resources(section, judge.vllm.tensor_parallel if judge.engine != "transformers" else 1),
        )
        try:
            for table in labels.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from map(_result, table.to_pylist())
        except ray.exceptions.RayError as error:
            raise LoreError(
                f"The workers on Ray cannot open the judge: {last_words(error)}\n"
                "If memory is short, give a worker more (ray.gpus_per_worker, ray.cpus_per_worker) or lower judge.vllm.\n"
                "All machines must see the same files and have the same packages. LORE_DEBUG=1 shows Ray's own output."
            ) from error


class LabelActor:
    """Holds the judge of one worker. Ray makes it in a process of its own; `folder` is the driver's working directory."""

    def __init__(
        self,
        folder: str,
        work: str,
        spec: WorkerSpec,
        attempts: Any,
        max_attempts: int,
        make_worker: Callable[[WorkerSpec], Worker],
    ):
        enter_folder(folder)
        self.work, self.spec, self.attempts, self.max_attempts = Path(work), spec, attempts, max_attempts
        self.worker = make_worker(spec)
        if isinstance(self.worker, ShardWorker):
            self.worker.scorer  # noqa: B018  (opens the judge: a worker that cannot is no worker)

    def __call__(self, batch: pa.Table) -> pa.Table:
        import ray  # optional

        shard = Shard(**batch.to_pylist()[0])
        attempt, words = ray.get(self.attempts.begin.remote(shard.name))
        if attempt > self.max_attempts:
            result = _given_up(shard.read(self.work), self.spec, words)
        else:
            try:
                result = self.worker.label(shard.read(self.work))
            except Exception as error:
                ray.get(self.attempts.failed.remote(shard.name, f"{type(error).__name__}: {error}"))
                end_process()
        usage = asdict(result.usage)
        row = {"name": shard.name, "words": words, "verdicts": _ipc(result.verdicts), "failures": _ipc(result.failures)}
        row |= {"usage": usage, "seconds": result.seconds, "questions": result.questions, "lost": list(result.lost)}
        return pa.Table.from_pylist([row | {"died": result.died}], schema=_result_schema(usage))


def _given_up(questions: pa.Table, spec: WorkerSpec, words: str) -> ShardResult:
    judge = asked_judge(spec.recipe.judge, spec.recipe.mode)
    return failed_shard(questions, judge.rubric.tier_ids, words, judge.judge_id)


def _result_schema(usage: dict[str, int]) -> pa.Schema:
    used = pa.struct([(name, pa.int64()) for name in usage])
    texts = [("name", pa.string()), ("words", pa.string()), ("verdicts", pa.large_binary()), ("failures", pa.large_binary())]
    counts = [("usage", used), ("seconds", pa.float64()), ("questions", pa.int64()), ("lost", pa.list_(pa.string()))]
    return pa.schema([*texts, *counts, ("died", pa.bool_())])


def _result(row: dict[str, Any]) -> tuple[str, ShardResult, str]:
    tables = (pa.ipc.open_stream(row[name]).read_all() for name in ("verdicts", "failures"))
    usage, lost = EngineUsage(**row["usage"]), tuple(row["lost"])
    return row["name"], ShardResult(*tables, usage, row["seconds"], row["questions"], lost, row["died"]), row["words"]


def _ipc(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
