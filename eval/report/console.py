"""Console tables: one row per judge, one column per metric, each value with its 95 % interval."""

from collections.abc import Callable
from math import isnan

from lore.eval.measures.bootstrap import Estimate
from lore.eval.measures.metrics import metric_names
from lore.eval.measures.results import SampleCurves
from lore.eval.scorecard import Part, Scorecard
from lore.support.console import Console, Table, Text, with_room
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

LOWER_IS_BETTER = {"cost", "brier", "ece", "ece_calibrated", "failure_rate", "refused_rate"}
READABLE = ("acc_2", "acc_k", "macro_f1", "qwk", "cost", "auc", "ndcg", "ece", "ece_calibrated", "failure_rate", "refused_rate")
"""Columns if metrics.shown is not set."""
NOTHING = Estimate(float("nan"))
FIRST_COLUMN = 26
PADDING = 3


def column_titles(tier_ids: list[str]) -> dict[str, str]:
    """Maps each metric to its column title, in the order of `metric_names`."""
    return {
        "acc_2": "Acc@2",
        "acc_k": f"Acc@{len(tier_ids)}",
        "macro_f1": "Macro-F1",
        "micro_f1": "Micro-F1",
        **{f"f1_{tier}": f"F1 {tier}" for tier in tier_ids},
        "qwk": "QWK",
        "cost": "cost",
        "auc": "AUC",
        "ndcg": "nDCG",
        "brier": "Brier",
        "ece": "ECE",
        "ece_calibrated": "ECE after T",
        "failure_rate": "no verdict",
        "refused_rate": "refused",
    }


def check_shown(shown: list[str] | None, tier_ids: list[str]) -> None:
    """Raises LoreError if metrics.shown names an unknown metric."""
    known = metric_names(tier_ids)
    for name in shown or []:
        if name not in known:
            raise LoreError(
                f"metrics.shown names {name!r}, which is not a metric, so the table would lack a column; expected some of "
                f"{', '.join(known)}.{nearest_hint(name, known)}"
            )


def shown_columns(parts: list[Part], tier_ids: list[str], chosen: list[str] | None = None) -> dict[str, str]:
    """Columns with a value in some row, in the order of `chosen` (metrics.shown; none: READABLE). The failure column needs a
    failure in some row."""
    check_shown(chosen, tier_ids)
    titles, shown = column_titles(tier_ids), {}
    for name in READABLE if chosen is None else chosen:
        title = titles[name]
        values = [part.metrics.get(name, NOTHING).value for part in parts]
        known = [value for value in values if not isnan(value)]
        if any(known) if name == "failure_rate" else known:
            shown[name] = title
    return shown


def best_value(name: str, parts: dict[str, Part]) -> float | None:
    """The best value of a column; None if fewer than two rows have a value."""
    values = [part.metrics.get(name, NOTHING).value for part in parts.values()]
    known = [value for value in values if not isnan(value)]
    return (min(known) if name in LOWER_IS_BETTER else max(known)) if len(known) > 1 else None


def print_table(
    cards: list[Scorecard],
    tier_ids: list[str],
    title: str,
    *,
    console: Console | None = None,
    natural: bool = False,
    shown: list[str] | None = None,
) -> None:
    """Prints the metrics of all judges. natural: under the recipe's prior; shown: metrics.shown."""
    parts = {card.name: card.natural if natural else card.whole for card in cards}
    columns = {}
    for name, heading in shown_columns(list(parts.values()), tier_ids, shown).items():
        best = best_value(name, parts)
        values = [part.metrics.get(name, NOTHING) for part in parts.values()]
        columns[heading] = [(value, value.value == best) for value in values]
    _print(title, "judge", list(parts), columns, console)


def print_slices(cards: list[Scorecard], tier_ids: list[str], *, console: Console | None = None) -> None:
    """Prints the accuracy per slice, with one column per judge."""
    slices = cards[0].slices
    if slices:
        rows = [f"{name} ({part.pairs})" for name, part in slices.items()]
        columns = {card.name: [(part.metrics["acc_k"], False) for part in card.slices.values()] for card in cards}
        _print(f"Acc@{len(tier_ids)} by slice (pairs)", "slice", rows, columns, console)


def print_samples(curves: dict[str, SampleCurves], *, console: Console | None = None) -> None:
    """Prints pass@k and majority@k of the sampled judges."""
    rows = [f"{judge}, {kind}@k" for judge in curves for kind in ("pass", "majority")]
    columns: dict[str, list[tuple[Estimate, bool]]] = {}
    for k in dict.fromkeys(k for found in curves.values() for k in found.pass_at):
        values = [at.get(k, NOTHING) for found in curves.values() for at in (found.pass_at, found.majority_at)]
        columns[f"k = {k}"] = [(value, False) for value in values]
    first = next(iter(curves.values()))
    title = f"{first.n} samples of {first.pairs} pairs at temperature {first.temperature:g}"
    _print(title, "judge", rows, columns, console)


def _print(
    title: str,
    corner: str,
    rows: list[str],
    columns: dict[str, list[tuple[Estimate, bool]]],
    console: Console | None,
) -> None:
    """Prints one table if it fits the terminal, else intervals below the values and as many tables as the columns need."""
    console = console or Console()
    first = min(FIRST_COLUMN, max(map(len, [corner, *rows]))) + PADDING + 1

    def width(name: str, stacked: bool) -> int:
        cells = [_cell(value, stacked) for value, _ in columns[name]]
        return max([len(part) for cell in cells for part in cell.split("\n")] + [min(len(name), 12)]) + PADDING

    needed = first + sum(width(name, stacked=False) for name in columns)
    console = with_room(console, needed)
    stacked = console.width < needed
    for number, names in enumerate(_packed(list(columns), lambda name: width(name, stacked), console.width - first)):
        table = Table(title=f"{title}, continued" if number else title, title_justify="left")
        table.add_column(corner, overflow="fold", width=first - PADDING - 1)
        for name in names:
            table.add_column(name, justify="right", overflow="fold", width=width(name, stacked) - PADDING)
        for index, row in enumerate(rows):
            cells = [(_cell(value, stacked), best) for value, best in (columns[name][index] for name in names)]
            table.add_row(row, *(Text(cell, "bold" if best else "") for cell, best in cells))
        console.print(table)




def _packed(names: list[str], width: Callable[[str], int], space: int) -> list[list[str]]:
    """Groups of names that fit the space, each with at least one name."""
    groups: list[list[str]] = []
    left = 0
    for name in names:
        if not groups or width(name) > left:
            groups.append([])
            left = space
        groups[-1].append(name)
        left -= width(name)
    return groups


def _cell(value: Estimate, stacked: bool) -> str:
    return str(value).replace(" ", "\n", 1) if stacked else str(value)
