"""`lore label --dry-run`: what labelling an input would take, before it is started.

The input is planned in the label folder's work/, where the real run finds the plan again. A probe of pairs is rendered and
answered, and its answers are thrown away.
"""

import time
from dataclasses import dataclass
from itertools import islice

from lore.codec.chat_template import text_ids
from lore.data.pair import Pair
from lore.engines.engine import EngineUsage
from lore.judge.ask import render_chunk
from lore.judge.scorer import JudgeScorer
from lore.label.inputs import pairs_of
from lore.label.judge import asked_judge, open_judge
from lore.label.label import opened_ledger, planned
from lore.label.plan import Counts, Plan
from lore.label.progress import clock, cost_of
from lore.label.recipe import LabelRecipe
from lore.run.run_folder import RunFolder
from lore.student.scorer import StudentScorer
from lore.support.console import Console, Table
from lore.support.text import counted

PROBE_PAIRS = 200
WARM_UP_PAIRS = 20  # answered first and not timed: the first call compiles and allocates


@dataclass(frozen=True)
class Forecast:
    """counts: of the plan; questions: to be asked; prefix_tokens: begin every prompt, the rest differs; seconds, usd: of the whole
    run, without the engine's start; usd None without a price."""

    counts: Counts
    shards: int
    probe_pairs: int
    questions_per_second: float
    prefix_tokens: int
    unique_tokens: float
    generated_tokens: float
    cached_share: float
    seconds: float
    usd: float | None

    def print(self, console: Console) -> None:
        """Prints the plan and the forecast as a table."""
        table = Table(title="plan", title_justify="left", show_header=False)
        for _ in range(2):
            table.add_column()
        counts, asked = self.counts, self.counts.questions
        table.add_row("rows that are pairs", f"{counts.rows:,}")
        table.add_row("pairs, each once", f"{counts.unique:,}")
        for name, number in (
            ("rejected rows (rejected.jsonl)", counts.rejected),
            ("repeated rows folded", counts.folded),
            ("labelled before", counts.labelled),
            ("changed since they were labelled", counts.changed),
            ("given up", counts.given_up),
            ("already in the verdict store", counts.stored),
        ):
            table.add_row(name, f"{number:,}")
        table.add_row("to label", f"{counted(counts.to_label, 'pair')} in {counted(self.shards, 'shard')}")
        table.add_row("different questions among them", f"{asked:,}")
        if self.probe_pairs:
            table.add_row("prompt tokens", f"{self.prefix_tokens:,} before every question + {self.unique_tokens:,.1f} of its own")
            table.add_row("all prompt tokens", f"{asked * (self.prefix_tokens + self.unique_tokens):,.0f}")
            table.add_row("not shared by all", f"{asked * self.unique_tokens:,.0f}")
            table.add_row("generated tokens", f"{asked * self.generated_tokens:,.0f}")
            table.add_row("prefix-cache hits of the probe", f"{100 * self.cached_share:.0f} %")
            table.add_row("speed of the probe", f"{self.questions_per_second:,.1f} questions/s (one worker)")
            table.add_row("time", clock(self.seconds) if self.seconds >= 1 else "less than a second")
            table.add_row("cost", "unknown: give --usd-per-hour, or prices in cost" if self.usd is None else f"${self.usd:,.2f}")
        console.print(table)


def forecast(recipe: LabelRecipe, folder: RunFolder) -> Forecast:
    """Plans the input and answers a probe of its pairs."""
    judge = asked_judge(recipe.judge, recipe.mode)
    ledger, known = opened_ledger(recipe, folder, judge)
    plan = planned(recipe, folder, ledger, known, dry_run=True)
    probe = list(islice(_spread(plan), PROBE_PAIRS + WARM_UP_PAIRS))
    if not probe:
        return Forecast(plan.counts, len(plan.shards), 0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, None)
    scorer = open_judge(judge, recipe)
    try:
        return _measured(recipe, plan, scorer, probe)
    finally:
        scorer.close()


def _measured(recipe: LabelRecipe, plan: Plan, scorer: JudgeScorer | StudentScorer, probe: list[Pair]) -> Forecast:
    warm, timed = probe[:WARM_UP_PAIRS], probe[WARM_UP_PAIRS:] or probe
    scorer.score(warm)
    before = EngineUsage(**vars(scorer.usage))
    began = time.perf_counter()
    scorer.score(timed)
    rate = len(timed) / (time.perf_counter() - began)
    usage = {name: getattr(scorer.usage, name) - getattr(before, name) for name in vars(before)}
    # A student has no prompt that questions share.
    tokens = usage["prompt_tokens"] / len(timed)
    prefix, unique = prompt_tokens(scorer, probe) if isinstance(scorer, JudgeScorer) else (0, tokens)
    questions, workers = plan.counts.questions, 1 if recipe.ray is None else recipe.ray.workers
    whole = EngineUsage(**{name: round(tokens / len(timed) * questions) for name, tokens in usage.items()})
    seconds = questions / rate / workers
    return Forecast(
        plan.counts,
        len(plan.shards),
        len(timed),
        rate,
        prefix,
        unique,
        usage["generated_tokens"] / len(timed),
        usage["cached_tokens"] / max(usage["prompt_tokens"], 1),
        seconds,
        cost_of(recipe.cost, seconds * workers, whole),
    )


def prompt_tokens(scorer: JudgeScorer, pairs: list[Pair]) -> tuple[int, float]:
    """(tokens that all prompts begin with, mean number of the other tokens), text only. Zeros for a server without a tokenizer."""
    from lore.engines.chat import prompt_text  # loads Pillow: only where prompts are rendered

    engine = scorer.engine
    if engine.tokenizer is None:
        return 0, 0.0
    processor = getattr(engine, "processor", engine.tokenizer)
    _, prompts, _ = render_chunk(pairs, engine, scorer.rubric, scorer.fmt)
    rows = [text_ids(engine.tokenizer, prompt_text(processor, messages)[0]) for messages in prompts]
    if not rows:
        return 0, 0.0
    first, last = min(rows), max(rows)
    differing = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    shared = next(differing, min(len(first), len(last)))
    return shared, sum(map(len, rows)) / len(rows) - shared


def _spread(plan: Plan) -> list[Pair]:
    """Pairs of up to ten shards across the plan, whole queries as they lie there."""
    wanted = PROBE_PAIRS + WARM_UP_PAIRS
    step = max(1, len(plan.shards) // 10)
    chosen = plan.shards[::step][:10]
    each = -(-wanted // max(1, len(chosen)))
    return [pair for shard in chosen for pair in pairs_of(shard.read(plan.work).slice(0, each))]
