"""Charts of the report with their text alternatives: calibration, risk against coverage, sampled answers.

Each shows the raters' ceiling as a line: how often a single rater agrees with the median of the others.
"""

from math import floor, isnan
from typing import Any

from markupsafe import Markup

from lore.eval.measures.bootstrap import Estimate
from lore.eval.report.tables import curve_rows, risk_rows
from lore.eval.scorecard import Scorecard
from lore.eval.testset import EvalData
from lore.support.svg_plots import Line, line_chart, reliability_svg

ECE = {"ece": "ECE", "ece_calibrated": "after temperature"}


def reliabilities(cards: list[Scorecard], data: EvalData) -> list[dict[str, Any]]:
    """One reliability diagram per judge with probabilities."""
    found = []
    for card in cards:
        if card.reliability:
            shown = "before and after temperature" if card.reliability_calibrated else "as given"
            ece = [f"{name} {card.whole.metrics[key]}" for key, name in ECE.items() if key in card.whole.metrics]
            about = f"Reliability of {card.name}, {shown}: accuracy against confidence. {'; '.join(ece)}."
            ceiling = _ceiling(data, "acc_k")
            svg = reliability_svg(card.reliability, card.reliability_calibrated, about, ceiling=ceiling)
            bins = [row for row in card.reliability if row["confidence"] is not None]
            found.append(
                {
                    "judge": card.name,
                    "svg": Markup(svg),
                    "ece": "; ".join(ece),
                    "bins": bins,
                }
            )
    return found


def risk_section(cards: list[Scorecard], data: EvalData) -> dict[str, Any] | None:
    """The risk-coverage curves of all judges in one chart, and their areas."""
    rows = risk_rows(cards)
    if not rows:
        return None
    lines = [
        Line(card.risk.coverage, *_columns(card.risk.risk), series=number)
        for number, card in enumerate(cards)
        if card.risk and card.risk.coverage
    ]
    ceiling = _ceiling(data, "acc_k")
    drawn = [end for line in lines for end in [*line.y, *(line.high or ())] if not isnan(end)]
    highest = max([*drawn, 0.0 if ceiling is None else 1 - ceiling])
    told = "; ".join(f"{row['judge']} area {row['cells'][0]['value']}" for row in rows)
    svg = line_chart(
        lines,
        f"Error among the verdicts that are kept, against the share of pairs kept. {told}.",
        xlabel="share of the pairs kept, most confident first",
        ylabel="error among them",
        ylim=(0, min(1.0, 1.08 * highest) or 1.0),
        ceiling=None if ceiling is None else 1 - ceiling,
    )
    return {"svg": Markup(svg), "rows": rows, "judges": [row["judge"] for row in rows]}


def sample_section(cards: list[Scorecard], data: EvalData) -> list[dict[str, Any]]:
    """pass@k and majority@k of all judges, each as a chart and a table."""
    sampled = [(number, card) for number, card in enumerate(cards) if card.samples]
    ceiling = _ceiling(data, "acc_k")
    found = []
    for at, name in (("pass_at", "pass@k"), ("majority_at", "majority@k")):
        table = curve_rows(cards, at)
        if not table["ks"]:
            continue
        lines = []
        for number, card in sampled:
            curve = dict(sorted(getattr(card.samples, at).items()))
            lines.append(Line(list(curve), *_columns(list(curve.values())), series=number))
        told = "; ".join(
            f"{row['judge']} " + ", ".join(f"k={k} {one['value']}" for k, one in zip(table["ks"], row["cells"], strict=True))
            for row in table["rows"]
        )
        svg = line_chart(
            lines,
            f"{name} against the number of sampled answers k. {told}.",
            xlabel="sampled answers k",
            ylabel=name,
            ylim=(_below(lines, ceiling), 1.02),
            xticks=table["ks"],
            log_x=True,
            ceiling=ceiling,
        )
        judges = [card.name for _, card in sampled]
        found.append({"name": name, "svg": Markup(svg), "table": table, "judges": judges})
    return found


def _below(lines: list[Line], ceiling: float | None) -> float:
    """Start of the y axis: a tenth below everything in the chart."""
    ends = [end for line in lines for end in [*line.y, *(line.low or ())] if not isnan(end)]
    ends.append(1.0 if ceiling is None else ceiling)
    return max(0.0, floor(10 * min(ends) - 0.5) / 10)


def _columns(values: list[Estimate]) -> tuple[list[float], list[float] | None, list[float] | None]:
    """Values and the ends of their intervals; the ends are None unless all are known."""
    ends = [[value.low for value in values], [value.high for value in values]]
    known = not any(isnan(end) for end in ends[0] + ends[1])
    return [value.value for value in values], *(ends if known else (None, None))


def _ceiling(data: EvalData, name: str) -> float | None:
    value = getattr(data.ceiling, name).value if data.ceiling else float("nan")
    return None if isnan(value) else value
