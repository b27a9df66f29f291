"""Stage pool: samples a judge's answers to labeled pairs, as data for reinforcement and preference learning.

    lore run recipes/pool.yaml

The judge answers each pair once greedily, as in the evaluation, with the tier probabilities at the verdict. Then it answers
`samples` times at the training temperature. <run>/pool.parquet has one row per pair, in the order of the pairs; photos and texts
stay in the file of the pairs. Each chunk has its own random seed and is saved before the next one starts, so a killed and resumed
run ends with the same rows. rejected.jsonl lists the pairs that got no answer, with reasons; too many of them stop the run
(lore.engines.unanswered), and their chunk is not saved. The next start asks the refused pairs of saved chunks again.
"""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat
from lore.data.images import ImageError
from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.rejected_rows import RejectedWriter, Rejection
from lore.engines.apart import generate_apart
from lore.engines.chat import open_photo
from lore.engines.engine import Completion, Engine, Sampling
from lore.engines.open_engine import open_engine
from lore.engines.unanswered import AnswerWatch
from lore.judge.answer import read_answer
from lore.judge.ask import REFUSED, TOO_LONG, judge_prompts, note_refusal, render_chunk
from lore.judge.card import check_card, check_template
from lore.judge.chunk_store import ChunkStore, in_chunks
from lore.judge.dry_pass import Asked, check_asking, judge_length
from lore.judge.verdict import Verdict
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic, written_whole
from lore.support.errors import LoreError, reason
from lore.support.fingerprint import model_fingerprint
from lore.support.processes import is_main_process, say
from lore.support.progress import track
from lore.support.untrusted_json import parse_json
from lore.train.pool.config import JUDGE, RENDERER, TIERS, PoolRecipe
from lore.train.pool.report import print_report, report_markdown

SAMPLE = pa.struct([("text", pa.string()), ("tokens", pa.int32()), ("tier", pa.string()), ("truncated", pa.bool_())])
POOL_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("query", pa.string()),
        ("label", pa.string()),
        ("label_weight", pa.float64()),
        ("slices", pa.list_(pa.string())),
        ("tier", pa.string()),
        ("probabilities", pa.list_(pa.float64())),
        ("confidence", pa.float64()),
        ("agrees", pa.bool_()),
        ("samples", pa.list_(SAMPLE)),
        ("pass_rate", pa.float64()),
        ("sample_agreement", pa.float64()),
    ]
)
DUPLICATE, UNKNOWN_TIER = DATA_PROBLEMS = ("duplicate", "unknown_tier")
_CHUNK_SCHEMA = POOL_SCHEMA.append(pa.field("rejected", pa.string()))


def run(recipe: PoolRecipe, folder: RunFolder) -> None:
    """Writes pool.parquet, pool.md and rejected.jsonl. Only the main process works; others return immediately."""
    if not is_main_process():
        return
    source = PairSource(recipe.data, folder)
    rubric = source.rubric
    fmt = PromptFormat(**recipe.prompt.model_dump())
    renderer = renderer_hash(rubric, fmt)
    check_card(recipe.model, renderer, "model")
    weights = model_fingerprint(recipe.model.name, recipe.model.adapter)
    folder.note(data_fingerprint=source.fingerprint, rubric_hash=rubric.hash, renderer_hash=renderer, weights=weights)
    check_asking("pool", [asked_model(recipe, source, fmt)], rubric)
    store = ChunkStore(folder / "chunks", _CHUNK_SCHEMA)
    chunks = ask(store, recipe, source, fmt)
    metadata = {TIERS: json.dumps(rubric.tier_ids), RENDERER: renderer, JUDGE: weights}
    path, rejected = merge(store, chunks, folder, metadata)
    table = pq.read_table(path, columns=[name for name in POOL_SCHEMA.names if name not in ("samples", "query")])
    print_report(table, rubric.tier_ids)
    write_atomic(folder / "pool.md", report_markdown(path, table, rubric.tier_ids))
    rates = table["pass_rate"].to_numpy()
    counts = {"pairs": len(table), "rejected": rejected, "greedy_accuracy": float(np.mean(table["agrees"].to_numpy()))}
    folder.finish(counts | {f"pass@1 of {recipe.samples}": float(rates.mean()), "pool": str(path)})


def asked_model(recipe: PoolRecipe, source: PairSource, fmt: PromptFormat) -> Asked:
    """What the dry pass checks about the judge."""
    text = f"the longest prompt with an answer of {recipe.max_tokens:,} tokens"
    length = judge_length(fmt, source.rubric, source.labeled, recipe.max_tokens)
    return Asked("model", recipe.model, length, text, "lower prompt.max_prompt_tokens or max_tokens", recipe.vllm, fmt)


def ask(store: ChunkStore, recipe: PoolRecipe, source: PairSource, fmt: PromptFormat) -> int:
    """Asks about every chunk that is not stored yet. Returns the number of chunks. Opens the engine at the first such chunk."""
    engine, count, seen, rubric = None, 0, set(), source.rubric
    watch = AnswerWatch(recipe.unanswered, f"judge {recipe.model.name}")
    for number, chunk in enumerate(track(in_chunks(source.labeled(), recipe.chunk_pairs), "chunks of pairs")):
        count += 1
        first = [pair.pair_id not in seen and not seen.add(pair.pair_id) for pair in chunk]
        stored = store.is_current(number)
        asked = _refused(store, number) if stored else list(range(len(chunk)))
        if not asked:
            continue
        if engine is None:
            engine = open_engine(recipe.model, rubric, vllm=recipe.vllm, batch_tokens=recipe.batch_tokens)
            check_template(recipe.model, getattr(engine, "processor", engine.tokenizer), "model")
        seed = int(np.random.SeedSequence([recipe.seed, number]).generate_state(1)[0])
        numbers = [number * recipe.chunk_pairs + at + 1 for at in asked]
        pairs, first = [chunk[at] for at in asked], [first[at] for at in asked]
        answers = ask_chunk(pairs, first, engine, rubric, fmt, recipe, seed, str(source.path), numbers)
        watch.chunk([why for answer in answers if (why := _no_answer(answer)) is None or not stored])
        rows = [
            row | {"rejected": None} if isinstance(row, dict) else {"rejected": json.dumps(asdict(row), ensure_ascii=False)}
            for row in answers
        ]
        if stored:
            known = dict(enumerate(store.rows([number])))
            rows = list((known | dict(zip(asked, rows, strict=True))).values())
        store.write(number, rows)
    return count


def _refused(store: ChunkStore, number: int) -> list[int]:
    """Places in a stored chunk of the pairs that the engine refused."""
    rejected = [line for batch in store.batches(number, ["rejected"]) for line in batch["rejected"].to_pylist()]
    return [at for at, line in enumerate(rejected) if line is not None and _rejection(store, number, line).reason == REFUSED]


def _rejection(store: ChunkStore, number: int, line: str) -> Rejection:
    try:
        return Rejection(**parse_json(line))
    except (TypeError, ValueError) as error:
        raise LoreError(
            f"{store.path(number)} is damaged ({reason(error)}), so its {store.holds} are lost. Delete it and {store.repair}."
        ) from error


def _no_answer(answer: dict[str, Any] | Rejection) -> str | None:
    """Why a pair was not asked or not answered; None for a row of the pool and for a wrong row of the data."""
    if isinstance(answer, dict) or answer.reason in DATA_PROBLEMS:
        return None
    return f"{answer.reason}: {answer.found}"


def ask_chunk(
    pairs: list[Pair],
    first: list[bool],
    engine: Engine,
    rubric: Rubric,
    fmt: PromptFormat,
    recipe: PoolRecipe,
    seed: int,
    file: str,
    numbers: list[int],
) -> list[dict[str, Any] | Rejection]:
    """A pool row or a Rejection per pair. first: whether a pair's id occurs for the first time; numbers: of the pairs, from 1."""
    greedy = Sampling(max_tokens=recipe.max_tokens)
    sampling = Sampling(recipe.temperature, max_tokens=recipe.max_tokens, n=recipe.samples, seed=seed)
    shown = fmt if getattr(engine, "takes_images", True) else replace(fmt, photo=False)
    verdicts, prompts, asked = render_chunk(pairs, engine, rubric, shown)
    judge_prompts(prompts, asked, engine, rubric, shown, greedy)
    drawn = dict(zip([id(verdict) for verdict in asked], generate_apart(engine, prompts, sampling), strict=True))
    for verdict in asked:
        note_refusal(verdict, drawn[id(verdict)])
    rows: list[dict[str, Any] | Rejection] = []
    for number, pair, verdict, is_first in zip(numbers, pairs, verdicts, first, strict=True):
        problem = _problem(pair, verdict, is_first, rubric, shown, engine)
        if problem:
            known = {"pair_id": pair.pair_id, "query": pair.query[:300], "label": pair.label}
            rows.append(Rejection(file, number, f"pair {pair.pair_id}, {problem[0]}", *problem[1:], known))
        else:
            rows.append(pool_row(pair, verdict, drawn[id(verdict)], rubric, shown))
    return rows


def _problem(pair: Pair, verdict: Verdict, is_first: bool, rubric: Rubric, fmt: PromptFormat, engine: Engine) -> tuple | None:
    """(field, reason, found, expected) of a pair that later stages could not train on either; None for a usable pair."""
    if not is_first:
        return "pair_id", DUPLICATE, pair.pair_id, "an id that no earlier pair has: later stages join rows by id"
    if pair.label not in rubric.tier_ids:
        return "label", UNKNOWN_TIER, str(pair.label), f"one of {', '.join(rubric.tier_ids)}"
    if verdict.failure == REFUSED:
        return "query", REFUSED, verdict.detail or "no reason", "a prompt that the engine answers"
    if verdict.failure == TOO_LONG:
        return "query", TOO_LONG, f"{len(pair.query):,} characters", "a query that fits prompt.max_prompt_tokens"
    if verdict.photo == "failed":
        try:
            open_photo(pair.image, fmt, getattr(engine, "processor", engine.tokenizer))
        except ImageError as error:
            if error.reason != "image_refused":  # a rejected photo is omitted and the pair judged as text, as in training
                return "image", error.reason, error.found, error.expected
    return None


def pool_row(pair: Pair, verdict: Verdict, completions: list[Completion], rubric: Rubric, fmt: PromptFormat) -> dict[str, Any]:
    """One row of pool.parquet. verdict: greedy; completions: sampled. A format failure counts as an incorrect sample."""
    answers = [read_answer(completion, rubric, fmt) for completion in completions]
    samples = [{name: getattr(answer, name) for name in ("text", "tokens", "tier", "truncated")} for answer in answers]
    tiers = Counter(sample["tier"] for sample in samples if sample["tier"])
    return {
        "pair_id": pair.pair_id,
        "query": pair.query,
        "label": pair.label,
        "label_weight": pair.label_weight,
        "slices": pair.slices,
        "tier": verdict.tier,
        "probabilities": verdict.probabilities,
        "confidence": max(verdict.probabilities) if verdict.probabilities else None,
        "agrees": verdict.tier == pair.label,
        "samples": samples,
        "pass_rate": tiers[pair.label] / len(samples),
        "sample_agreement": max(tiers.values(), default=0) / len(samples),
    }


def merge(store: ChunkStore, chunks: int, folder: RunFolder, metadata: dict[str, str]) -> tuple[Path, int]:
    """Writes pool.parquet and rejected.jsonl, with one chunk in memory at a time. Returns (path, number of rejected rows)."""
    path, kept = folder / "pool.parquet", 0
    with written_whole(path) as file, pq.ParquetWriter(file, POOL_SCHEMA.with_metadata(metadata)) as writer:
        with RejectedWriter(path, folder / "rejected.jsonl") as rejected:  # published before the pool
            for number in range(chunks):
                table = pa.Table.from_batches(store.batches(number), _CHUNK_SCHEMA)
                good = table.filter(table["rejected"].is_null()).drop_columns("rejected")
                writer.write_table(good.cast(POOL_SCHEMA.with_metadata(metadata)))
                kept += len(good)
                for line in table["rejected"].drop_null().to_pylist():
                    rejected.write(_rejection(store, number, line))
            if not kept:
                raise LoreError(
                    f"{folder / 'pool.parquet'} would have no rows: the data section selects no labeled pair that can be asked "
                    f"about ({rejected.count:,} were rejected).\nCheck data.path, data.split, data.slices and data.limit against "
                    "`lore data stats`, and prompt.max_prompt_tokens."
                )
    if rejected.count:
        say(f"{rejected.count:,} pairs were rejected; {rejected.path} has the reasons")
    return path, rejected.count
