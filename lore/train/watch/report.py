"""Writes report.html of a training run: plots of metrics.jsonl, a table of all evaluations, and the latest answers.

The page is self-contained and rewritten at each evaluation. Queries, titles and answers are untrusted text, so the template
escapes everything and the page's content security policy allows no scripts and no external resources.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.errors import reason
from lore.support.html import page_style, page_template
from lore.support.processes import say
from lore.support.text import shortened
from lore.support.untrusted_json import parse_object
from lore.train.watch.collapse_rules import Watch
from lore.train.watch.console import COLUMNS, watch_cells

FOLDER = Path(__file__).parent
ANSWERS = "answers.json"
EXAMPLES = 6
SHOWN_CHARACTERS = 600
POINTS = 400  # per line; more points are not visible and make the page slow
GAP = "sampling/sampling_logp_difference/mean"
# (title, lines), each line (name, source, key). A chart without values is omitted.
CHARTS = [
    ("Loss", [("loss", "log", "loss")]),
    ("Reward", [("in training", "log", "reward"), ("on the probe", "probe", "reward")]),
    (
        "Implicit rewards of good and bad answers",
        [("good", "log", "rewards/chosen"), ("bad", "log", "rewards/rejected"), ("margin", "log", "rewards/margins")],
    ),
    (
        "Answers on the probe",
        [("pass@1", "probe", "pass_at_1"), ("pass@k", "probe", "pass_at_k"), ("Macro-F1", "probe", "macro_f1")],
    ),
    ("Entropy (nats per token)", [("training", "log", "entropy"), ("probe", "probe", "entropy")]),
    ("Answer length (tokens)", [("training", "log", "completions/mean_length"), ("probe", "probe", "length")]),
    (
        "Answers without a verdict",
        [
            ("no verdict, probe", "probe", "format_failures"),
            ("truncated, probe", "probe", "truncated"),
            ("truncated, training", "log", "completions/clipped_ratio"),
        ],
    ),
    ("Most frequent tier (share of the verdicts)", [("probe", "probe", "top_share")]),
    ("Zero-advantage groups (share)", [("training", "log", "frac_reward_zero_std")]),
    ("Sampler vs. trainer (log-probability gap)", [("training", "log", GAP)]),
    ("KL divergence to the reference model", [("training", "log", "kl")]),
    ("Gradient norm", [("training", "log", "grad_norm")]),
]


def write_training_report(folder: RunFolder, title: str, watch: Watch) -> None:
    """Writes <run>/report.html from metrics.jsonl and the answers of the last evaluation; replaces the old file atomically."""
    from lore.support.svg_plots import TEXT_MARKS  # loads matplotlib: only where a report is written

    lines = folder.metrics()
    best = watch.best_step
    html = page_template(FOLDER, "report.html.jinja").render(
        title=title,
        style=Markup(page_style()),
        stopped=watch.stopped,
        best=next((line for line in watch.history if line["step"] == best), None),
        picked=watch.section.best,
        charts=[chart for chart in _charts(lines, best) if chart],
        marks=TEXT_MARKS,
        columns=[name for name, *_ in COLUMNS],
        rows=[{"cells": watch_cells(line), "best": line["step"] == best} for line in watch.history],
        samples=watch.section.samples,
        examples=_examples(folder),
    )
    write_atomic(folder / "report.html", html)


def _charts(lines: Sequence[dict[str, Any]], best: int | None) -> list[dict[str, Any] | None]:
    logs = [line for line in lines if "loss" in line and "probe" not in line]
    probes = [{"step": line["step"], **line["probe"]} for line in lines if "probe" in line]
    charts = [*CHARTS]
    for title, place, found, start, end in (
        ("Reward components on the probe", "probe", probes, "reward/", ""),
        ("Components of the training reward", "log", logs, "rewards/", "/mean"),
    ):
        parts = sorted({key for line in found for key in line if key.startswith(start) and key.endswith(end)})
        charts.insert(2, (title, [(key.removeprefix(start).removesuffix(end), place, key) for key in parts]))
    return [_chart(title, sources, {"log": logs, "probe": probes}, best) for title, sources in charts]


def _chart(title: str, sources: list[tuple[str, str, str]], found: dict[str, list], best: int | None) -> dict[str, Any] | None:
    from lore.support.svg_plots import TEXT_MARKS, Line, line_chart  # loads matplotlib: only where a report is written

    lines, names = [], []
    for name, place, key in sources:
        points = [(line["step"], line[key]) for line in found[place] if _is_number(line.get(key))]
        if points:
            number = len(names) % len(TEXT_MARKS)
            points = _thinned(points)
            lines.append(Line([x for x, _ in points], [y for _, y in points], series=number))
            names.append({"name": name, "series": number, "last": f"{points[-1][1]:.4g}"})
    if not lines:
        return None
    steps = [x for line in lines for x in line.x]
    values = [y for line in lines for y in line.y]
    low, high = min(0.0, *values), max(values)
    margin = 0.06 * (high - low) or 0.5
    limits = (low - margin if low < 0 else 0.0, high + margin)
    if best is not None and any(place == "probe" for _, place, _ in sources):
        lines.append(Line([best, best], limits, series=5))
        names.append({"name": f"best step {best}", "series": 5, "last": ""})
    svg = line_chart(lines, title, xlabel="step", ylabel="", ylim=limits, xticks=_ticks(min(steps), max(steps)))
    return {"title": title, "svg": Markup(svg), "lines": names}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS points: the means of equally long intervals."""
    width = -(-len(points) // POINTS)
    stretches = [points[at : at + width] for at in range(0, len(points), width)]
    return [(stretch[-1][0], sum(y for _, y in stretch) / len(stretch)) for stretch in stretches]


def _ticks(first: int, last: int) -> list[int]:
    """About five round step numbers."""
    raw = max((last - first) / 5, 1)
    power = 10 ** math.floor(math.log10(raw))
    size = int(power * next(times for times in (1, 2, 5, 10) if raw <= times * power))
    return list(range(-(-first // size) * size, last + 1, size))


def _examples(folder: RunFolder) -> dict[str, Any] | None:
    """The answers of the last evaluation to the first pairs of each label; long texts are truncated."""
    path = folder / ANSWERS
    if not path.is_file():
        return None
    try:
        content = parse_object(path.read_bytes())
        by_label: dict[str, list] = {}
        for pair in content["pairs"]:
            by_label.setdefault(pair["label"], []).append(pair)
    except (OSError, ValueError, KeyError, TypeError) as error:  # the report can do without them
        say(f"{path} is damaged ({reason(error)}): the report shows no answers of the last evaluation")
        return None
    turns = max(map(len, by_label.values()), default=0)
    mixed = [pairs[turn] for turn in range(turns) for _, pairs in sorted(by_label.items()) if turn < len(pairs)]
    return {"step": content.get("step"), "pairs": [_bounded(pair) for pair in mixed[:EXAMPLES]]}


def _bounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_bounded(inner) for inner in value]
    return shortened(value, SHOWN_CHARACTERS) if isinstance(value, str) else value
