"""Stage label: a judge's verdict for every pair of the input, each exactly once.

    lore label pairs/ --judge runs/grpo -o labels/
    lore run recipes/label.yaml

It reads top to bottom: plan (lore.label.plan), ask shard by shard (lore.label.worker, or lore.label.ray_pool on a cluster), commit
(lore.label.ledger), summarize. Plan, commits and verdict store are this process's; workers only answer. See
lore/label/schema.py for the folder.
"""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from lore.data.pair import Pair, query_key
from lore.data.rejected_rows import RejectedWriter
from lore.engines.engine import EngineDied
from lore.engines.unanswered import AnswerWatch
from lore.judge.dry_pass import VERDICT_TOKENS, Asked, check_asking, judge_length
from lore.label.inputs import open_input, pairs_of
from lore.label.judge import (
    AskedJudge,
    AskedStudent,
    asked_judge,
    open_cascade_student,
    open_judge,
    stamp_of,
    trained_of,
)
from lore.label.ledger import Ledger
from lore.label.plan import PLAN, Counts, Plan, Shard, make_plan
from lore.label.progress import LabelProgress
from lore.label.recipe import LabelRecipe
from lore.label.report import write_report
from lore.label.schema import FAILURES, WORK
from lore.label.store import open_store
from lore.label.stored import StoredLabels
from lore.label.summary import RunTotals, print_summary, summarize
from lore.label.unfinished import Nothing
from lore.label.worker import ShardResult, ShardWorker, Worker, WorkerSpec, failed_shard
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say
from lore.support.text import counted

DEAD_SHARDS = 3  # shards in a row whose engine died, at every attempt: then the fault is not in the shards, and the run stops
FIRST_PAIRS = 8  # whose photos are measured before the start


def run(recipe: LabelRecipe, folder: RunFolder, make_worker: Callable[[WorkerSpec], Worker] = ShardWorker) -> None:
    """Labels the input. Only the main process works. make_worker: opens what answers; benchmarks measure everything but that."""
    if not is_main_process():
        return
    folder.renew(recipe)
    judge = asked_judge(recipe.judge, recipe.mode)
    ledger, known = opened_ledger(recipe, folder, judge)
    plan = planned(recipe, folder, ledger, known)
    say(described(plan.counts))
    shards = [shard for shard in plan.shards if not ledger.has(shard.name)]
    left = sum(shard.pairs for shard in shards)
    say(f"{judge.described()}; {counted(left, 'pair')} in {counted(len(shards), 'shard')}")
    spec = WorkerSpec(recipe.resolved(), str(folder.path))
    totals, foreign = RunTotals(), 0
    if shards:
        if make_worker is ShardWorker:
            if recipe.judge.path is not None and recipe.judge.endpoint is not None:
                from lore.judge.served import check_served  # loads torch: only for a served judge

                check_served(recipe.judge.endpoint.url, trained_of(recipe.judge), recipe.judge.endpoint.key_variable)
            if isinstance(judge, AskedJudge):
                check_asking("label", [_asked(recipe, judge, plan)], judge.rubric)
            if recipe.mode == "cascade":
                fit_threshold(recipe, judge, plan, folder)
        watch = AnswerWatch(recipe.unanswered, "judge", answered=bool(ledger.files()))
        workers = recipe.ray.workers if recipe.ray is not None else 1
        dead: list[tuple[Shard, ShardResult]] = []
        waiting: list[tuple[Shard, ShardResult, Future[bool]]] = []
        with LabelProgress(left, recipe.cost, workers) as progress, ThreadPoolExecutor(1) as thread:

            def commit(shard: Shard, result: ShardResult) -> None:
                """Commits one shard while the judge answers the next one: compressing and flushing it need not hold up a GPU."""
                settle()
                waiting.append((shard, result, thread.submit(ledger.commit, shard.name, result.verdicts, result.failures)))

            def settle() -> None:
                """Waits for the commit under way, if there is one."""
                nonlocal foreign
                for shard, result, committed in waiting:
                    if not committed.result():
                        foreign += 1
                        continue
                    progress.add(result)
                    if known is not None:
                        known.add(shard.name, result.verdicts)
                waiting.clear()

            for shard, result in answers(recipe, plan, shards, spec, judge, make_worker):
                if result.died:  # not committed yet: if the engine dies on all shards, their pairs lose no attempt
                    dead.append((shard, result))
                    if len(dead) >= DEAD_SHARDS:
                        raise LoreError(f"The engine died on {len(dead)} shards in a row, the last time with: {result.lost[0]}")
                    continue
                watch.chunk([*result.lost, *[None] * (result.questions - len(result.lost))])
                for one in dead:
                    commit(*one)
                dead.clear()
                commit(shard, result)
            for one in dead:
                commit(*one)
            settle()
        totals = RunTotals(pairs=progress.labelled, seconds=progress.seconds, usd=progress.usd, **asdict(progress.usage))
    if foreign:
        say(f"warning: another run has labelled {foreign:,} of the shards at the same time; start once more to check the folder")
    finish(recipe, folder, ledger, plan, judge, totals, foreign)


def opened_ledger(recipe: LabelRecipe, folder: RunFolder, judge: AskedJudge | AskedStudent) -> tuple[Ledger, StoredLabels | None]:
    """The ledger of the folder, and the verdict store. Raises LoreError if the folder was labelled by another judge."""
    folder.note(weights=judge.weights, rubric_hash=judge.rubric.hash, renderer_hash=judge.renderer)
    ledger = Ledger(folder.path, judge.rubric.tier_ids, stamp_of(judge, recipe.cascade))
    ledger.open()
    store = open_store(recipe.store)
    known = StoredLabels(store, ledger) if store is not None else None
    if known is not None:
        known.ingest()
    return ledger, known


def planned(
    recipe: LabelRecipe, folder: RunFolder, ledger: Ledger, known: StoredLabels | None, *, dry_run: bool = False
) -> Plan:
    """The plan of an earlier start if it is the same input's and unfinished, else a new one. dry_run: labels of the verdict store
    are counted and not taken over, and labels of changed pairs stay."""
    work = folder / WORK
    plan = Plan.load(work)
    if plan is not None and plan.stamp == ledger.stamp and not ledger.files(FAILURES):
        left = any(not ledger.has(shard.name) for shard in plan.shards)
        if left and plan.fingerprint == open_input(recipe.input, work, Nothing()).fingerprint:
            return plan
    if known is not None:
        known.only_counts = dry_run
    with RejectedWriter(folder / "labels", folder / "rejected.jsonl") as rejected:
        plan = make_plan(
            work,
            open_input(recipe.input, work, rejected),
            ledger,
            rejected,
            shard_pairs=recipe.shard_pairs,
            max_attempts=recipe.max_attempts,
            known=known,
            dry_run=dry_run,
        )
        plan.counts.rejected = rejected.count
        plan.save()
    if dry_run and (plan.counts.stored or plan.counts.changed):
        (work / PLAN).unlink()  # it lacks the pairs that the real run takes from the store, and the old labels are still there
    return plan


def described(counts: Counts) -> str:
    """One line on a plan."""
    parts = [counted(counts.rows, "row"), counted(counts.unique, "pair")]
    named = {
        "folded": "repeated rows folded",
        "labelled": "labelled before",
        "changed": "changed since",
        "given_up": "given up",
        "stored": "from the verdict store",
        "again": "without an answer before",
    }
    parts += [f"{getattr(counts, key):,} {name}" for key, name in named.items() if getattr(counts, key)]
    if counts.rejected:
        parts.append(f"{counted(counts.rejected, 'row')} rejected (rejected.jsonl says why)")
    return f"input: {', '.join(parts)}; {counts.to_label:,} to label, {counted(counts.questions, 'different question')}"


def answers(
    recipe: LabelRecipe,
    plan: Plan,
    shards: list[Shard],
    spec: WorkerSpec,
    judge: AskedJudge | AskedStudent,
    make_worker: Callable[[WorkerSpec], Worker],
) -> Iterator[tuple[Shard, ShardResult]]:
    """The shards with their labels, in the order in which they are finished."""
    if recipe.ray is not None:
        from lore.label.ray_pool import label_on_ray  # loads Ray: only for a cluster

        yield from label_on_ray(shards, plan.work, spec, recipe.ray, make_worker)
        return
    worker = make_worker(spec)
    try:
        for shard in shards:
            yield shard, _label(worker, shard.read(plan.work), judge)
    finally:
        worker.close()


def _label(worker: Worker, questions: pa.Table, judge: AskedJudge | AskedStudent) -> ShardResult:
    """One shard. An engine that dies on it is opened once more; if it dies again, the shard's pairs get no answer at this start."""
    try:
        return worker.label(questions)
    except EngineDied as error:
        say(f"warning: the engine died and is opened again: {error}")
    worker.close()  # outside, because the error refers to the engine and would keep its memory
    try:
        return worker.label(questions)
    except EngineDied as error:
        worker.close()
        return failed_shard(questions, judge.rubric.tier_ids, str(error), judge.judge_id)


def fit_threshold(recipe: LabelRecipe, judge: AskedJudge, plan: Plan, folder: RunFolder) -> None:
    """Chooses the threshold of a cascade, unless an earlier start has done so."""
    from lore.label.cascade import CASCADE, open_cascade  # loads scikit-learn: only for a cascade

    path = folder / CASCADE
    if path.is_file():
        return
    pairs = min(recipe.cascade.pairs, sum(shard.pairs for shard in plan.shards))
    say(f"choosing the threshold of the cascade on about {counted(pairs, 'pair')}")
    asked, student = open_judge(judge, recipe), open_cascade_student(recipe, judge.rubric)
    cascade = open_cascade(
        student, asked, lambda: sample(plan, recipe.cascade.pairs), path, target=recipe.cascade.agreement, seed=recipe.seed
    )
    say(str(cascade.fit))
    cascade.close()


def sample(plan: Plan, pairs: int) -> Iterator[Pair]:
    """About `pairs` pairs of the plan, in whole queries. Shards are sorted by the hash of the query, so the first ones are a random
    sample of the queries."""
    found = 0
    rows = (pair for shard in plan.shards for pair in pairs_of(shard.read(plan.work)))
    for _, query in groupby(rows, key=lambda pair: query_key(pair.query, pair.slices)):
        if found >= pairs:
            return
        for pair in query:
            found += 1
            yield pair


def _asked(recipe: LabelRecipe, judge: AskedJudge, plan: Plan) -> Asked:
    """What the dry pass checks about the judge."""
    answer = judge.max_tokens if judge.writes else VERDICT_TOKENS
    return Asked(
        "judge",
        judge.section,
        judge_length(judge.fmt, judge.rubric, lambda: sample(plan, FIRST_PAIRS), answer),
        f"the longest prompt with an answer of {answer:,} tokens",
        "take a judge with a smaller prompt.max_prompt_tokens, or lower judge.max_tokens",
        judge.vllm,
        judge.fmt,
    )


def finish(
    recipe: LabelRecipe,
    folder: RunFolder,
    ledger: Ledger,
    plan: Plan,
    judge: AskedJudge | AskedStudent,
    totals: RunTotals,
    foreign: int = 0,
) -> None:
    """Writes summary and report, and marks the folder as done. foreign: shards that another run has committed meanwhile."""
    ledger.settle_failures()
    failures, final = ledger.count_failures(recipe.max_attempts)
    compare = Path(recipe.compare) if recipe.compare else None
    summary = summarize(folder.path, judge.rubric, compare=compare, max_attempts=recipe.max_attempts, totals=totals)
    print_summary(summary)
    write_report(folder.path, summary, judge.rubric, judge.described())
    (folder / WORK / PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder / WORK / "shards", ignore_errors=True)
    folder.finish(
        {
            "pairs": summary.pairs,
            "rejected rows": plan.counts.rejected,
            "failures": failures,
            "pending": failures - final - plan.counts.absent,
            "foreign": foreign,
            "files": len(ledger.files()) + len(ledger.files(FAILURES)),
            "input": plan.fingerprint,
            "labels": str(folder / "verdicts"),
            "report": str(folder / "report.html"),
        }
    )
