"""An evaluation with everything that a report can show: hostile texts, photos, two judges and a baseline with plausible
errors, samples, flips, conditions and raters."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.eval.measures.bootstrap import Estimate
from lore.eval.measures.results import Agreement, Ceiling, Condition, Flip, RiskCurve, SampleCurves
from lore.eval.report.report import write_report
from lore.eval.scorecard import Answers, Scorecard, score
from lore.eval.sections import MetricsSection, ReportSection
from lore.eval.testset import EvalData, load_split
from lore.judge.verdict import Verdict
from lore.rubric.rubric import load_rubric

RUBRIC = load_rubric("rair")
TIERS = RUBRIC.tier_ids
PLANTED = (
    '<script>window.planted = 1</script><img src="https://example.com/x.png" onerror="window.planted = 2"> '
    "</article></style> {{ 7*7 }} & \"q\" 'p'"
)
KNOWN_RULE = RUBRIC.rules[0]
PRIOR = dict(zip(TIERS, (6, 7, 27, 60), strict=True))


def photo(size: int = 900) -> dict:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def make_data(path: Path, pairs: int = 240) -> EvalData:
    """Test pairs whose texts contain markup. Every second pair has a photo, every seventh a broken one."""
    rng = np.random.default_rng(0)
    picture, broken = photo(), {"bytes": b"no image", "path": None}
    with PairWriter(path) as writer:
        for index in range(pairs):
            writer.write(
                Pair(
                    pair_id=f"{PLANTED}{index}" if index == 3 else f"p{index}",
                    query=f"{PLANTED} 红色 {index // 4}",
                    title=f"title{index} {PLANTED}" + "x" * 5000,
                    attributes={"colour": PLANTED, PLANTED: "blue"},
                    label=TIERS[int(rng.integers(0, 4))],
                    split="test",
                    slices=["general", f"capability:{'rules' if index % 3 else 'photo'}", f"slice {index % 40} {PLANTED}"],
                    image=broken if index % 7 == 0 else picture if index % 2 else None,
                    rationale=PLANTED,
                    rules=[KNOWN_RULE.id],
                )
            )
    data = EvalData(path, RUBRIC, load_split(path, "test", RUBRIC), None)
    data.ceiling = Ceiling(80, 3, near(0.78), near(0.81), near(0.93), near(0.86))
    return data


def judged(data: EvalData, skill: float, *, seed: int = 1, failing: bool = True) -> dict[str, Verdict]:
    """Verdicts that are right with probability of about `skill`. With `failing`, every tenth is a format failure."""
    rng = np.random.default_rng(seed)
    verdicts = {}
    for index, pair_id in enumerate(data.test.pair_ids):
        gold = data.test.gold[index]
        tier = gold if rng.random() < skill else int(rng.choice([other for other in range(4) if other != gold]))
        probabilities = rng.dirichlet(np.ones(4)) * 0.4
        probabilities[tier] += 0.6
        verdicts[pair_id] = Verdict(
            pair_id, TIERS[tier], probabilities.tolist(), PLANTED * 50, PLANTED, [PLANTED, KNOWN_RULE.id], photo="seen"
        )
        if failing and index % 10 == 0:
            verdicts[pair_id] = Verdict(pair_id, None, failure=PLANTED, text=PLANTED * 100, photo="failed")
    return verdicts


def cards_of(data: EvalData, verdicts: dict[str, dict[str, Verdict]], **options) -> list[Scorecard]:
    """Scorecards of the verdicts. A judge named like a baseline kind becomes a baseline."""
    slices = list(data.test.slice_sizes())
    settings = MetricsSection(bootstrap_samples=30, **options)
    return [
        score(name, name if name == "lexical" else "model", "how", rows, data=data, options=settings, slices=slices, seed=0)
        for name, rows in verdicts.items()
    ]


def near(value: float, width: float = 0.04) -> Estimate:
    return Estimate(value, max(0.0, value - width), min(1.0, value + width))


def fill_findings(card: Scorecard, answers: Answers, gold: np.ndarray) -> None:
    """Adds findings that other measurements produce, with hostile text in all text fields."""
    wrong = (answers.predicted != gold)[np.argsort(-answers.confidence())]
    coverage = [share / 20 for share in range(1, 21)]
    risk = [near(float(wrong[: max(1, int(len(wrong) * share))].mean())) for share in coverage]
    card.slices_natural = card.slices
    card.risk = RiskCurve(coverage, risk, near(float(wrong.mean())))
    curve = {k: near(0.6 + 0.05 * step) for step, k in enumerate((1, 2, 4, 8))}
    card.samples = SampleCurves(8, 1.0, 120, curve, {k: near(0.6) for k in curve})
    card.agreement = Agreement(near(0.6), near(0.7), near(0.68), near(0.66))
    card.flips = [
        Flip(name, kind, 90, 30, near(up), near(0.05), near(0.6), near(0.7), failures=2)
        for name, kind, up in (("verdict tag", "injection", 0.3), (PLANTED, "rewrite", 0.06), ("attributes", "shuffle", 0.02))
    ]
    card.conditions = [
        Condition("photo", "with photo", 70, 20, near(0.8)),
        Condition("photo", "without photo", 70, 20, near(0.5), "with photo", Estimate(-0.3, -0.4, -0.2)),
        Condition("rules", PLANTED, 60, 20, near(0.7), PLANTED, Estimate(-0.02, -0.1, 0.06), near(0.4), PLANTED),
    ]


def make_report(path: Path, data: EvalData) -> tuple[list[Scorecard], dict[str, dict[str, Verdict]]]:
    """Writes a report of two judges and a baseline. Returns their scorecards and verdicts."""
    verdicts = {
        "careful judge": judged(data, 0.8),
        "no photo": judged(data, 0.6, seed=2, failing=False),
        "lexical": judged(data, 0.3, seed=3, failing=False),
    }
    cards = cards_of(data, verdicts, prior=PRIOR)
    for card in cards:
        fill_findings(card, Answers.of(verdicts[card.name], data.test, RUBRIC), data.test.gold)
    write_report(
        path,
        title=f"run {PLANTED}",
        cards=cards,
        verdicts=verdicts,
        data=data,
        options=ReportSection(),
        details={"data": PLANTED},
        metrics=MetricsSection(bootstrap_samples=200, prior=PRIOR),
    )
    return cards, verdicts
