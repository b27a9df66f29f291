"""Does a cascade keep its target agreement on pairs it has not seen, and what share of them does the judge answer?

    lore run recipes/quickstart/world.yaml run=cascade_world pairs.test=12000
    python benchmarks/label_cascade.py runs/cascade_world/pairs --judge runs/quickstart/grpo --student runs/quickstart/sft \\
        --verdicts runs/cascade_verdicts

All judges answer the pairs of the test split once; a second start reads the saved verdicts. Then the threshold is chosen on samples
of whole queries, drawn with 50 seeds, and the cascade's labels of all other pairs are compared with the judge's.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from lore.data.pair import Pair, query_key
from lore.data.parquet import read_pairs
from lore.engines.engine import Sampling
from lore.engines.open_engine import open_engine
from lore.eval.testset import whole_queries
from lore.judge.ask import predict
from lore.judge.card import judge_id
from lore.judge.chunk_store import ChunkStore
from lore.judge.trained import trained_judge
from lore.judge.verdict import Verdict, from_row, to_row, verdict_schema
from lore.label.cascade import Cascade, fit_cascade, read_lexical_scorer
from lore.support.console import Console, Table, with_room
from lore.support.progress import track


class Known:
    """A Scorer that reads saved verdicts."""

    def __init__(self, verdicts: dict[str, Verdict], tier_ids: list[str], name: str):
        self.verdicts, self.tier_ids, self.judge_id = verdicts, tier_ids, name

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        return [self.verdicts[pair.pair_id] for pair in pairs]


def answered(path: str, folder: Path, pairs: list[Pair]) -> Known:
    """Verdicts of a trained judge, from the chunks of an earlier start where there are any. Prints pairs per second."""
    judge = trained_judge(path)
    name, tier_ids = judge_id(judge.weights, judge.rubric.hash, judge.renderer), judge.rubric.tier_ids
    store = ChunkStore(folder, verdict_schema(tier_ids), name, "verdicts")
    found = {row["pair_id"]: from_row(row, tier_ids) for row in store.rows()}
    left = [pair for pair in pairs if pair.pair_id not in found]
    if left:
        engine = open_engine(judge.model, judge.rubric)
        began = time.perf_counter()
        chunks = predict(left, engine, judge.rubric, judge.fmt, Sampling(max_tokens=256), judge_id=name)
        for chunk in track(chunks, path, total=-(-len(left) // 256)):
            store.append([to_row(verdict, tier_ids) for verdict in chunk])
            found |= {verdict.pair_id: verdict for verdict in chunk}
        print(f"{path}: {len(left) / (time.perf_counter() - began):.1f} pairs a second")
    return Known(found, tier_ids, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", help="folder of pairs with the splits train and test")
    parser.add_argument("--judge", required=True)
    parser.add_argument("--student", required=True, help="a trained judge as answer source; the lexical baseline is always one")
    parser.add_argument("--verdicts", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--target", type=float, nargs="+", default=[0.95, 0.98])
    parser.add_argument("--sample", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--limit", type=int, help="first pairs of the test split; all without it")
    options = parser.parse_args()

    pairs = list(read_pairs(options.pairs, split="test", limit=options.limit))
    keys = [query_key(pair.query, pair.slices) for pair in pairs]
    print(f"{len(pairs):,} pairs of {len(set(keys)):,} queries")
    judge = answered(options.judge, options.verdicts / "judge", pairs)
    rubric = trained_judge(options.judge).rubric
    began = time.perf_counter()
    lexical = read_lexical_scorer(options.pairs, rubric, split="train")
    trained = time.perf_counter()
    lexical = Known({verdict.pair_id: verdict for verdict in lexical.score(pairs)}, rubric.tier_ids, lexical.judge_id)
    print(f"lexical: trained in {trained - began:.1f} s, {len(pairs) / (time.perf_counter() - trained):.0f} pairs a second")
    students = {"lexical": lexical, options.student: answered(options.student, options.verdicts / "student", pairs)}

    right = judge.score(pairs)
    console = Console()
    for name, student in students.items():
        first = student.score(pairs)
        same = np.mean([one.tier == other.tier for one, other in zip(first, right, strict=True)])
        title = f"{name}: agrees with the judge on {100 * same:.1f} % of the pairs"
        table = Table(title=title, title_justify="left")
        for column in ("target", "sample", "no threshold", "agreement", "5th percentile", "missed", "to judge", "check"):
            table.add_column(column, justify="right")
        for target in options.target:
            for size in options.sample:
                cells = measured(student, judge, pairs, keys, target, size, options.draws)
                table.add_row(f"{100 * target:g} %", f"{size:,}", *cells)
        with_room(console, 120).print(table)


def measured(
    student: Known, judge: Known, pairs: list[Pair], keys: list[str], target: float, size: int, draws: int
) -> list[str]:
    """The cells of one row. Agreement, its 5th percentile and missed are over all draws, on the pairs outside the sample; a draw
    without a threshold has agreement 1. check: mean agreement on the second half of the sample, of draws with a threshold."""
    agreements, shares, checks, nothing = [], [], [], 0
    for seed in track(range(draws), f"{target:g}, {size}"):
        chosen = whole_queries(keys, size, seed)
        inside = np.zeros(len(pairs), dtype=bool)
        inside[chosen] = True
        sample = [pairs[row] for row in chosen]
        fit = fit_cascade(
            student.score(sample),
            judge.score(sample),
            [keys[row] for row in chosen],
            target,
            seed,
            tier_ids=judge.tier_ids,
            student=student.judge_id,
            judge=judge.judge_id,
        )
        rest = [pair for pair, known in zip(pairs, inside, strict=True) if not known]
        final = Cascade(student, judge, fit).score(rest)
        right = judge.score(rest)
        agreements.append(np.mean([one.tier == other.tier for one, other in zip(final, right, strict=True)]))
        shares.append(np.mean([verdict.source == "judge" for verdict in final]))
        nothing += fit.threshold is None
        if fit.threshold is not None:
            checks.append(fit.agreement[0])
    low, mean = np.percentile(agreements, 5), np.mean(agreements)
    missed = np.mean(np.asarray(agreements) < target)
    check = f"{100 * np.mean(checks):.2f} %" if checks else "–"
    told = [f"{100 * share:.2f} %" for share in (mean, low)]
    return [f"{nothing} of {draws}", *told, f"{100 * missed:.0f} %", f"{100 * np.mean(shares):.1f} %", check]


if __name__ == "__main__":
    main()
