"""Exports a student to a folder that onnxruntime, Vespa and Hugging Face load: weights, tokenizer, and ONNX files in FP32, FP16 and
INT8 (lore.distill.graphs).

    lore export student runs/distill -o student/

The export scores a sample of pairs with every file and compares with the student in PyTorch. A precision that changes too much is
an error that says which tiers moved, and nothing is written. 64 of the pairs stay in the folder with their scores as canaries:
whoever opens the folder elsewhere can tell whether the student answers as it did here (lore.student.canary).

Left out: optimum and sentence-transformers[onnx], which export encoders as well. optimum-onnx needs transformers below 4.58, so it
cannot be installed beside this version's, and neither knows the heads, photos and calibration of a student.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch

from lore.config.stages import load_recipe
from lore.config.yaml_text import read_recipe_text
from lore.data.pair import Pair, query_key
from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.distill.graphs import OPSET, write_graphs
from lore.eval.measures.bootstrap import interval, query_groups, values_and_draws
from lore.judge.card import read_card
from lore.run.run_folder import RunFolder
from lore.student.canary import COUNT, raw_scores, write_canaries
from lore.student.card import StudentCard, read_student, write_student_card
from lore.student.encode import QueryTooLong
from lore.student.exported import EXPORT, Check, Export, FileNote, TokenizerNote, this_machine, versions
from lore.student.head import verdict_tiers
from lore.student.model import load_student, load_tokenizer, save_student
from lore.student.onnx_session import PRECISIONS, OnnxSession, Precision
from lore.student.scorer import StudentScorer, open_student
from lore.support.atomic_files import folder_written_whole, write_atomic
from lore.support.console import Console, Table
from lore.support.errors import LoreError
from lore.support.full_disk import full_disk_named
from lore.support.processes import say
from lore.train.export import checked_out

SAMPLE = 2000
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3}
"""Largest difference of a tier's probability."""
F1_LOSS, CHANGED = 0.005, 0.05
"""Of INT8: Macro-F1 on the human labels that may be lost, and share of the pairs that may get another tier."""
DRAWS = 500
"""Resamples of the queries behind the interval of the loss."""


def export_student(
    run: str | Path,
    out: str | Path,
    *,
    pairs: str | Path | None = None,
    sample: int = SAMPLE,
    precisions: Sequence[Precision] = PRECISIONS,
    f1_loss: float = F1_LOSS,
    changed: float = CHANGED,
    photo_embeddings: str | Path | None = None,
    force: bool = False,
) -> Export:
    """Writes the student of a run folder or model folder to `out`, atomically: `out` is complete or does not exist.

    pairs: file of pairs to compare on; null takes those of the run's data, test before dev. sample: at most so many of them.
    precisions: what to write besides FP32. f1_loss, changed: see F1_LOSS and CHANGED. photo_embeddings: see open_student. force:
    replace an earlier export; no other folder is replaced. Raises LoreError if a precision changes the answers too much.
    """
    card = read_student(run)
    if (card.folder / EXPORT).is_file():
        raise LoreError(
            f"{card.folder} is an exported student already, and ONNX files are made from the weights of a training.\nGive the run "
            "folder of stage distill, or its model folder."
        )
    shown, out = Path(out), checked_out(Path(out), [run, *([pairs] if pairs else [])], force)
    precisions = [one for one in PRECISIONS if one == "fp32" or one in precisions]
    asked, to_fix = sample_of_file(Path(pairs), sample) if pairs else sample_of_run(Path(run), sample)
    open_it = partial(open_student, photo_embeddings=photo_embeddings)
    with closing(open_it(card.folder, runtime="torch")) as student:
        say(f"scoring {len(asked):,} pairs with the student as it is")
        before = raw_scores(student, asked, alone=False)
    answered = np.isfinite(before).all(axis=1)
    asked, before = [pair for pair, kept in zip(asked, answered, strict=True) if kept], before[answered]
    if not asked:
        raise LoreError(
            f"{card.folder} answers none of the pairs of {pairs or run}, so nothing can be compared.\nGive other pairs: --pairs "
            "pairs.parquet"
        )
    if student.encoder.config.photo != "none" and not all(_any_photo(student, some) for some in (asked, to_fix or asked)):
        raise LoreError(
            f"{card.folder} reads photos, and none of the pairs of {pairs or run} has one that can be read, so its files cannot be "
            "compared.\nPut the photos back where the pairs name them, or give other pairs: --pairs pairs.parquet"
        )
    lengths = [row["length"] for row in student.encoder.rows(asked)]
    canaries = canaries_of(before, lengths, [pair.image is not None for pair in asked])
    kept = [asked[at] for at in canaries]
    with full_disk_named(out, "Then export again: nothing incomplete is left."), folder_written_whole(out) as part:
        record, scores = _write(card, student, part, precisions, to_fix or asked), {}
        for precision in precisions:
            say(f"comparing {precision}")
            with closing(open_it(part, runtime="onnx", precision=precision)) as scorer:
                after = raw_scores(scorer, asked, alone=False)
                check = compare(card, asked, before, after)
                refuse_changes(check, precision, f1_loss, changed)
                scores[precision] = raw_scores(scorer, kept, alone=True)
            moved = np.abs(scores[precision] - after[canaries]).max()
            record.checks[precision] = check.model_copy(update={"batch_difference": float(moved)})
        write_canaries(part, kept, scores, student.encoder.embeddings)
        record = record.model_copy(update={"canaries": len(kept)})
        write_atomic(part / EXPORT, record.model_dump_json(indent=1) + "\n")
    _print(shown, record)
    return record


def _write(
    card: StudentCard, student: StudentScorer, part: Path, precisions: Sequence[Precision], to_fix: Sequence[Pair]
) -> Export:
    """Writes weights, tokenizer, card, ONNX files and a record without checks. to_fix: pairs that fix the ranges of INT8."""
    model, tokenizer = load_student(card.folder), load_tokenizer(card.folder)
    save_student(model, part, tokenizer)
    write_student_card(part, read_card(card.folder) or {})
    # ModernBERT and others read no token types, whatever their tokenizer writes.
    names = [name for name in student.encoder.token_arrays if name != "token_type_ids" or model.reads_types]
    say(f"writing the graphs of {sum(one.numel() for one in model.parameters()):,} parameters")

    def ask(session: OnnxSession) -> None:
        replace(student, session=session, batch_tokens=session.batch_tokens).score(list(to_fix))

    operators = write_graphs(model, part, names, precisions, ask)
    record = Export(
        opset=OPSET,
        tokenizer=TokenizerNote(pad_token_id=tokenizer.pad_token_id, model_input_names=tokenizer.model_input_names),
        files={name: FileNote(bytes=(part / name).stat().st_size, operators=found) for name, found in operators.items()},
        machine=this_machine(torch.backends.cpu.get_cpu_capability()),
        versions=versions(),
    )
    write_atomic(part / EXPORT, record.model_dump_json() + "\n")
    return record


def sample_of_run(run: Path, most: int) -> tuple[list[Pair], list[Pair]]:
    """(pairs of split test to compare on, pairs of split dev that fix the ranges of INT8) of the run's data."""
    folder = RunFolder(run)
    if not folder.recipe_path.is_file():
        raise LoreError(
            f"{run} has no recipe.yaml, so it is unknown which pairs to compare the export on.\nGive the run folder of stage "
            "distill, or a file of pairs: --pairs pairs.parquet"
        )
    stage = read_recipe_text(folder.recipe_path).data.get("stage")
    if stage != "distill":
        raise LoreError(f"{run} is a run of stage {stage}, which trains no student. Give the run folder of stage distill.")
    source = PairSource(load_recipe(folder.recipe_path).data, folder, splits=True)
    read = partial(read_pairs, source.path, image_roots=source.image_roots)
    asked, to_fix = (_spread(partial(read, split=split), most) for split in ("test", "dev"))
    return asked, to_fix


def sample_of_file(path: Path, most: int) -> tuple[list[Pair], list[Pair]]:
    """(pairs to compare on, pairs that fix the ranges of INT8) of a file, folder or glob."""
    found = _spread(partial(read_pairs, path, image_roots=()), 2 * most)
    return found[::2], found[1::2]


def _spread(read: partial[Iterable[Pair]], most: int) -> list[Pair]:
    """At most this many pairs, evenly over all of them; the labeled ones if there are enough. Reads twice, so that only the chosen
    pairs and photos are in memory."""
    labeled = np.asarray([pair.label is not None for pair in read(columns=["label"])], dtype=bool)
    among = np.flatnonzero(labeled) if labeled.sum() >= most else np.arange(len(labeled))
    chosen = set(among[np.linspace(0, len(among) - 1, min(most, len(among))).astype(np.int64)].tolist()) if len(among) else set()
    return [pair for at, pair in zip(count(), read()) if at in chosen]


def _any_photo(student: StudentScorer, pairs: Sequence[Pair]) -> bool:
    """Whether the student sees the photo of at least one pair."""
    rows = (row for row in student.encoder.rows(pairs) if not isinstance(row, QueryTooLong) and row["photo"] is not None)
    return any("photo_mask" in student.encoder.batch([row]) for row in rows)


def canaries_of(scores_NT: np.ndarray, lengths: Sequence[int], with_photo: Sequence[bool]) -> list[int]:
    """Which pairs are canaries: at most COUNT, spread over tiers, photos and lengths in tokens."""
    order = np.lexsort((lengths, with_photo, scores_NT.argmax(axis=1)))
    return order[np.linspace(0, len(order) - 1, min(COUNT, len(order))).astype(np.int64)].tolist()


def compare(card: StudentCard, pairs: Sequence[Pair], before_NT: np.ndarray, after_NT: np.ndarray) -> Check:
    """What changes from one array of scores to another, both before calibration."""
    tiers = [verdict_tiers(card.calibration.apply(scores), card.verdict) for scores in (before_NT, after_NT)]
    moves = Counter(f"{card.tiers[old]} > {card.tiers[new]}" for old, new in zip(*tiers, strict=True) if old != new)
    places = {tier: at for at, tier in enumerate(card.tiers)}
    labeled = np.asarray([at for at, pair in enumerate(pairs) if pair.label in places], dtype=np.int64)
    before = after = loss = None
    if len(labeled):
        gold = np.asarray([places[pairs[at].label] for at in labeled], dtype=np.int64)
        groups = query_groups([query_key(pairs[at].query, pairs[at].slices) for at in labeled])
        relevant = [tier in card.relevant for tier in card.tiers]
        # The same seed draws the same queries for both.
        found = [values_and_draws(gold, one[labeled], groups, card.tiers, relevant, samples=DRAWS) for one in tiers]
        before, after = (values["macro_f1"] for values, _ in found)
        draws = [drawn.get("macro_f1") for _, drawn in found]
        if draws[0] is not None:
            loss = interval("macro_f1", before - after, draws[0] - draws[1], int(groups.max()) + 1)
    difference = np.abs(before_NT - after_NT)
    return Check(
        pairs=len(pairs),
        largest_difference=float(np.where(np.isnan(difference), 1.0, difference).max()),
        changed_tiers=moves.total(),
        moves=dict(moves.most_common()),
        labeled=len(labeled),
        macro_f1_before=before,
        macro_f1=after,
        macro_f1_loss=None if loss is None else [loss.low, loss.high],
    )


def refuse_changes(check: Check, precision: Precision, f1_loss: float, changed: float) -> None:
    """Raises LoreError if a precision changes more than is allowed. A loss of Macro-F1 counts if its interval is above 0: on 500
    pairs, an equally good student loses a point by chance."""
    wrong = []
    limit = TOLERANCES.get(precision)
    if limit is not None and check.largest_difference > limit:
        wrong.append(f"a tier's probability changes by {check.largest_difference:.2g}, and {limit:g} is allowed")
    if limit is None:
        share = check.changed_tiers / check.pairs
        if share > changed:
            wrong.append(f"{share:.1%} of {check.pairs:,} pairs get another tier, and {changed:.1%} may")
        low, high = check.macro_f1_loss or (0.0, 0.0)
        if low > 0 and check.macro_f1_before - check.macro_f1 > f1_loss:
            wrong.append(
                f"Macro-F1 on {check.labeled:,} labeled pairs falls from {check.macro_f1_before:.4f} to {check.macro_f1:.4f} (95 % "
                f"interval of the loss: {low:.4f} to {high:.4f}), and {f1_loss:g} may be lost"
            )
    if not wrong:
        return
    moves = moved_tiers(check)
    advice = "Leave it out (--no-int8), or allow more (--f1-loss, --changed) and tell whoever uses the student."
    if limit is not None:
        advice = "Leave it out (--no-fp16)." if precision == "fp16" else "Serve the student with torch."
    raise LoreError(
        f"{precision} is not the same student: {' and '.join(wrong)}. Tiers that moved: {moves}.\nNothing was written. {advice}"
    )


def moved_tiers(check: Check) -> str:
    """The most frequent moves between tiers, in words."""
    return "; ".join(f"{move}: {pairs} pairs" for move, pairs in list(check.moves.items())[:6]) or "none"


def _print(out: Path, record: Export) -> None:
    headers = ("", "MB", "largest difference", "alone or in a batch", "other tier", "Macro-F1")
    table = Table(title=f"{out}: compared with the student on {record.checks['fp32'].pairs:,} pairs", box=None)
    for at, header in enumerate(headers):
        table.add_column(header, justify="right" if at else "left")
    for precision, check in record.checks.items():
        size = sum(note.bytes for name, note in record.files.items() if _precision_of(name) == precision)
        f1 = "–" if check.macro_f1 is None else f"{check.macro_f1_before:.4f} > {check.macro_f1:.4f} ({check.labeled:,} labeled)"
        if check.macro_f1_loss is not None and check.changed_tiers:
            f1 += f", loss in [{check.macro_f1_loss[0]:.4f}, {check.macro_f1_loss[1]:.4f}]"
        differences = [f"{one:.1e}" for one in (check.largest_difference, check.batch_difference)]
        table.add_row(precision, f"{size / 1e6:.1f}", *differences, str(check.changed_tiers), f1)
    console = Console()
    console.print(table)
    for precision, check in record.checks.items():
        if check.moves:
            console.print(f"{precision}: pairs with another tier: {moved_tiers(check)}")


def _precision_of(name: str) -> str:
    return next((one for one in ("fp16", "int8") if name.endswith(f"_{one}.onnx")), "fp32")
