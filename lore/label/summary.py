"""Summary of a label folder: its counts (lore.label.tally) and their drift against the last run (lore.label.drift).

The last run is another label folder, or the folder's own summary.json before it is written again. If that summary describes the
labels that are there now, because the same run was started again, the drift stays the one that it has.
"""

import json
import math
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from lore.label.drift import in_deciles, psi, psi_noise, reading
from lore.label.schema import VERDICTS
from lore.label.tally import ALL, BANDS, SCRATCH_FILES, Band, Count, Example, Failures, Labels, Part, Spill
from lore.rubric.rubric import Rubric
from lore.support.atomic_files import scratch_folder, write_atomic
from lore.support.console import Console, Table, Text, with_room
from lore.support.errors import LoreError
from lore.support.text import counted
from lore.support.untrusted_json import read_object

SUMMARY = "summary.json"
MAX_SLICES = 24


class RunTotals(Part):
    """What the labelling of this start took. seconds: wall time; usd: None if no price is known. pairs: those that were asked."""

    pairs: Count = 0
    seconds: float = 0.0
    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    generated_tokens: Count = 0
    usd: float | None = None


class BandDrift(Part):
    """PSI of one band against the last run, of the tier shares and of P(relevant), each with the value that chance alone reaches in
    5 % of the cases and its reading. None where one of the runs has nothing to compare."""

    before: Count
    now: Count
    tiers: float | None
    tiers_noise: float
    tiers_reading: str
    relevance: float | None
    relevance_noise: float
    relevance_reading: str
    relevance_bins: Count


class Changed(Part):
    """Pairs that have a tier in both runs. moves: numbers of pairs from one tier (outer) to another (inner)."""

    both: Count
    changed: Count
    moves: dict[str, dict[str, Count]]


class Drift(Part):
    against: str
    """The last run: a folder, or `the earlier labels of this folder`."""
    before: dict[str, Band]
    bands: dict[str, BandDrift]
    changed: Changed | None = None
    """None against the folder's own earlier labels: they are not kept."""


class Summary(Part):
    """Everything in summary.json."""

    rubric: str
    tiers: list[str]
    pairs: Count
    """Pairs with a verdict."""
    queries: Count
    pending: Count
    """Pairs without a verdict that are asked again at the next start."""
    final: Count
    """Pairs without a verdict that are not asked again."""
    head_from: float | None
    """Searches of a query from which on it belongs to the head. None: no band but `unknown`."""
    torso_from: float | None
    bands: dict[str, Band]
    slices: dict[str, dict[str, Count]]
    """Tiers of the largest slices."""
    more_slices: Count
    failures: list[Failures]
    sources: dict[str, Count]
    """Pairs by who gave the verdict: judge, student, cache."""
    judges: dict[str, Count]
    """Pairs by judge_id."""
    photos: dict[str, Count]
    generated_tokens: Count
    seconds: float
    """Sum of the seconds per pair of all workers, where the label files have them."""
    examples: list[Example]
    drift: Drift | None
    no_drift: str
    """Why there is no drift; empty if there is one."""
    totals: RunTotals | None


class _Earlier(BaseModel):
    """The parts of an earlier summary.json that drift needs. Other versions may have other parts besides."""

    model_config = ConfigDict(strict=True)
    tiers: list[str]
    bands: dict[str, Band]
    drift: Drift | None = None


def summarize(
    folder: Path,
    rubric: Rubric,
    *,
    compare: Path | None = None,
    max_attempts: int | None = None,
    totals: RunTotals | None = None,
) -> Summary:
    """Reads the label files of a folder and writes its summary.json.

    compare: label folder of the last run; None: the folder's own earlier summary. max_attempts: attempts after which a failure is
    final; None: all are pending. totals: what this start took. Raises LoreError for a damaged label file and for a tier that the
    rubric does not have.
    """
    with scratch_folder(folder / SUMMARY) as scratch:
        labels = Labels(folder, rubric, scratch / "now", max_attempts)
        labels.read(keep_tiers=compare is not None)
        drift, why = _drift(folder, rubric, labels, compare, scratch)
    bands = labels.bands()
    failures = sorted(labels.failures.values(), key=lambda one: (-one.pending - one.final, one.reason))
    slices = labels.slices.most_common()
    summary = Summary(
        rubric=rubric.name,
        tiers=rubric.tier_ids,
        pairs=bands[ALL].pairs,
        queries=labels.queries,
        pending=sum(one.pending for one in failures),
        final=sum(one.final for one in failures),
        head_from=labels.head_from,
        torso_from=labels.torso_from,
        bands=bands,
        slices={name: labels.slice_tiers(name) for name, _ in slices[:MAX_SLICES]},
        more_slices=max(0, len(slices) - MAX_SLICES),
        failures=failures,
        sources=dict(labels.sources.most_common()),
        judges=dict(labels.judges.most_common()),
        photos=dict(labels.photos.most_common()),
        generated_tokens=labels.tokens,
        seconds=round(labels.seconds, 3),
        examples=labels.examples(),
        drift=drift,
        no_drift=why,
        totals=totals,
    )
    write_atomic(folder / SUMMARY, json.dumps(summary.model_dump(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return summary


def _drift(
    folder: Path, rubric: Rubric, labels: Labels, compare: Path | None, scratch: Path
) -> tuple[Drift | None, str]:
    """The drift of the labels, or None and why there is none."""
    now = labels.bands()
    if compare is not None:
        if not (compare / VERDICTS).is_dir():
            raise LoreError(f"{compare} has no folder {VERDICTS}, so there are no labels to compare with. Name a label folder.")
        other = Labels(compare, rubric, scratch / "before")
        try:
            other.read(keep_tiers=True)
        except LoreError as error:
            return None, f"{compare} cannot be compared with: {str(error).splitlines()[0]}"
        changed = _changed(other.tiers_by_id, labels.tiers_by_id, rubric.tier_ids)
        return drift_of(str(compare), other.bands(), now, changed), ""
    if not (folder / SUMMARY).is_file():
        return None, "there is no earlier run"
    try:
        content = read_object(folder / SUMMARY, "the earlier summary", "It is written again.")
        earlier = _Earlier.model_validate(content)
    except (LoreError, ValidationError) as error:
        return None, f"the earlier summary cannot be read ({str(error).splitlines()[0]})"
    if earlier.tiers != rubric.tier_ids:
        return None, f"the earlier labels have the tiers {', '.join(earlier.tiers)}"
    if earlier.bands == now:  # the same labels, summarized again
        return earlier.drift, "" if earlier.drift else "there is no earlier run"
    return drift_of("the earlier labels of this folder", earlier.bands, now), ""


def drift_of(against: str, before: dict[str, Band], now: dict[str, Band], changed: Changed | None = None) -> Drift:
    """The drift per band that both runs have. Each run's bands are those of its own traffic."""
    found = {}
    for name in (name for name in (ALL, *BANDS) if name in before and name in now):
        first, second = before[name], now[name]
        tiers = psi(list(first.tiers.values()), list(second.tiers.values()))
        noise = psi_noise(len(first.tiers), first.pairs, second.pairs)
        bins = in_deciles(first.relevance, second.relevance)
        relevance = psi(*bins)
        relevance_noise = psi_noise(len(bins[0]), bins[0].sum(), bins[1].sum())
        found[name] = BandDrift(
            before=first.pairs,
            now=second.pairs,
            tiers=_number(tiers),
            tiers_noise=round(noise, 6),
            tiers_reading=reading(tiers, noise),
            relevance=_number(relevance),
            relevance_noise=round(relevance_noise, 6),
            relevance_reading=reading(relevance, relevance_noise),
            relevance_bins=len(bins[0]),
        )
    return Drift(against=against, before=before, bands=found, changed=changed)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _changed(before: Spill, now: Spill, tier_ids: list[str]) -> Changed:
    """Compares the tiers of the pairs that are in both runs, file by file."""
    moves = np.zeros((len(tier_ids), len(tier_ids)), np.int64)
    for number in range(SCRATCH_FILES):
        first, second = before.part(number), now.part(number)
        _, one, other = np.intersect1d(first["key"], second["key"], return_indices=True)
        cell = first["value"][one].astype(np.int64) * len(tier_ids) + second["value"][other]
        moves += np.bincount(cell, minlength=moves.size).reshape(moves.shape)
    named = {
        tier: {other: int(moves[row, column]) for column, other in enumerate(tier_ids) if row != column and moves[row, column]}
        for row, tier in enumerate(tier_ids)
    }
    both = int(moves.sum())
    return Changed(both=both, changed=both - int(np.trace(moves)), moves={tier: to for tier, to in named.items() if to})


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Prints tiers by query frequency with the drift, the failures, and what the labels are."""
    console = console or Console()
    queries = f"{summary.queries:,} {'query' if summary.queries == 1 else 'queries'}"
    title = f"{counted(summary.pairs, 'pair')} of {queries} labelled"
    table = Table(title=title, title_justify="left")
    for name in ("queries", "pairs", *summary.tiers, "confidence", "entropy"):
        table.add_column(name, justify="left" if name == "queries" else "right")
    for name in ("drift of tiers", "of P(relevant)") if summary.drift is not None else ():
        table.add_column(name)
    for name, band in summary.bands.items():
        shares = [f"{100 * band.tiers[tier] / band.pairs:.1f} %" if band.pairs else "–" for tier in summary.tiers]
        means = ["–" if value is None else f"{value:.3f}" for value in (band.confidence, band.entropy)]
        cells = [] if summary.drift is None else drift_cells(summary.drift.bands.get(name))
        table.add_row(band_title(name, summary), f"{band.pairs:,}", *shares, *means, *cells)
    with_room(console, 132).print(table)
    for line in remarks(summary):
        console.print(Text(line), soft_wrap=True)


def drift_cells(drift: BandDrift | None) -> list[str]:
    """PSI and its reading, of the tiers and of P(relevant)."""
    if drift is None:
        return ["–", "–"]
    found = [(drift.tiers, drift.tiers_reading), (drift.relevance, drift.relevance_reading)]
    return ["–" if value is None else f"{value:.3f} {said}" for value, said in found]


def band_title(name: str, summary: Summary) -> str:
    """The name of a band with its frequencies."""
    head, torso = summary.head_from, summary.torso_from
    if head is None or torso is None or name in (ALL, BANDS[-1]):
        return name
    head_from, torso_from = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (head, torso))
    searches = {"head": f"from {head_from} searches", "torso": f"from {torso_from}", "tail": f"below {torso_from}"}
    return f"{name} ({searches[name]})"


def remarks(summary: Summary) -> list[str]:
    """Sentences about failures, sources, photos and drift."""
    lines = []
    for one in summary.failures:
        lines.append(f"no verdict, {one.reason}: {one.pending:,} asked again at the next start, {one.final:,} final")
    counted = {"sources": summary.sources, "photos": summary.photos}
    for name, found in counted.items():
        if found and (name != "photos" or set(found) != {"none"}):
            lines.append(f"{name}: " + ", ".join(f"{key} {pairs:,}" for key, pairs in found.items()))
    if summary.drift is None:
        lines.append(f"no drift measured: {summary.no_drift}")
        return lines
    lines.append(f"drift (PSI) against {summary.drift.against}: below 0.1 stable, to 0.25 some, above it large")
    if changed := summary.drift.changed:
        share = f" ({100 * changed.changed / changed.both:.2f} %)" if changed.both else ""
        lines.append(f"{changed.changed:,} of {changed.both:,} pairs in both runs changed their tier{share}")
    return lines
