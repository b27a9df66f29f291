"""Stage distill: labels of a judge, of raters, or of both become a student, a small encoder that answers in milliseconds.

    lore run recipes/distill.yaml

Order: rows (lore.distill.rows), one training per student (lore.distill.training), curve, calibration on human labels, table,
report. The recipe's student is trained first, then the same on human labels alone and a plain cross-encoder, for comparison. A
killed run resumes from its last checkpoint; a finished student is not trained again.

Compared with the textbook method (Hinton et al. 2015, arXiv 1503.02531): the temperature of the targets is fitted on human labels
and not chosen, a margin within a query joins the divergence over the tiers, and the raters' labels gain weight at the end. Left
out: matching of hidden layers, since judge and student share no tokenizer and no width.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from lore.data.pair import Pair
from lore.distill.config import DistillRecipe
from lore.distill.curve import measure_curve
from lore.distill.labels import Human, human_pairs
from lore.distill.report import write_report
from lore.distill.rows import texts_of, training_rows, unmeasured_rows, write_lengths, write_training_rows
from lore.distill.table import Measured, Verdicts, make_table, pairs_of_test, save_table, timed
from lore.distill.targets import tier_gains
from lore.distill.training import Setup, Variant, train_student
from lore.eval.measures.calibration import negative_log_likelihood
from lore.eval.testset import read_chosen
from lore.run.dry_pass import dry_pass
from lore.run.run_folder import RunFolder
from lore.student.calibration import Calibration, Threshold, fit_calibration, fit_thresholds
from lore.student.card import student_card, write_student_card
from lore.student.config import StudentConfig
from lore.student.encode import PairEncoder
from lore.student.model import load_student, load_tokenizer, save_student, train_tokenizer
from lore.student.photo_embeddings import read_photo_embeddings
from lore.student.scorer import StudentScorer, open_student
from lore.support.atomic_files import folder_written_whole, scratch_folder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say
from lore.support.progress import track
from lore.support.untrusted_json import read_object
from lore.train.common.checkpoint import check_disk, saved_bytes
from lore.train.common.trainer import own_network_arguments, total_steps

FEWEST_TO_CALIBRATE = 40
"""Labeled pairs of dev, half of which choose the kind of calibration."""
ASKED_AT_ONCE = 2048
PHOTOS_TRIED = 64
SAMPLED, SAME = 4, 1e-4
"""Of the dry pass: rows whose logits are compared before and after a save, and how far they may be apart."""


def run(recipe: DistillRecipe, folder: RunFolder) -> None:
    """Trains the student in <run>/model and the baselines, then measures them on the test pairs."""
    set_seed(recipe.seed)
    args = own_network_arguments(recipe.train, folder, 1, recipe.seed)  # joins the process group
    human = human_pairs(recipe, folder)
    with args.main_process_first(local=False, desc="training rows"):
        setup = prepare(recipe, folder, human)
    whole = setup.training_set()
    steps = total_steps(recipe.train, len(whole.kept))
    check_distilling(setup, steps)
    variants = [Variant("student", "student", steps)]
    variants += baselines(recipe, steps, judge=bool(whole.judge_weight.any()), raters=bool(whole.human_weight.any()))
    seconds = [train_student(variant, setup) for variant in variants]
    curve = None
    if recipe.curve is not None:
        labels = int((setup.rows.rank[whole.kept] >= 0).sum())
        curve = measure_curve(recipe, human, labels, lambda size: _answers_of_size(size, labels, setup, human))
    if is_main_process():
        students = {variant.title: measured(variant, setup, human) for variant in variants}
        table = make_table(recipe, folder, human, setup.rows, students)
        summary = targets_summary(folder)
        save_table(recipe, folder, human, table, {"targets": summary, "curve": curve and curve.to_json()})
        write_report(recipe, folder, human, table, curve, summary)
        say(f"measured on {human.test}; 95 % intervals over queries")
        about = {"steps": steps, "loss": folder.last_record("loss")["loss"], "train_seconds": round(seconds[0], 2)}
        about |= {"model": str(folder / "model"), "report": str(folder / "report.html")}
        folder.finish(table.texts(len(setup.tier_ids)) | about)


def prepare(recipe: DistillRecipe, folder: RunFolder, human: Human) -> Setup:
    """Rows, tokenizer and card. The main process writes what is missing, and the others read it."""
    rubric, fmt = human.source.rubric, recipe.text.format()
    if is_main_process():
        folder.note(data_fingerprint=human.source.fingerprint, rubric_hash=rubric.hash)
        write_training_rows(recipe, folder, human)
        write_tokenizer(recipe, folder)
    tokenizer = load_tokenizer(recipe.student.encoder or folder / "data" / "tokenizer")
    if is_main_process():
        write_lengths(folder, PairEncoder(tokenizer, fmt, StudentConfig(kind=recipe.student.kind, tiers=rubric.tier_ids)))
    photos = recipe.student.photo_embeddings
    embeddings = None if photos is None else read_photo_embeddings(photos)
    summary = targets_summary(folder)
    card = student_card(
        recipe.student,
        fmt,
        rubric,
        rubric_name=recipe.data.rubric,
        verdict=recipe.verdict,
        judge=summary.get("judge"),
        labels={key: value for key, value in summary.items() if key != "judge"} | _label_fingerprints(folder),
        data=folder.fingerprints.get("data_fingerprint"),
    )
    return Setup(recipe, folder, training_rows(folder), rubric.tier_ids, tier_gains(rubric), tokenizer, embeddings, card)


def _label_fingerprints(folder: RunFolder) -> dict[str, str]:
    """Of the label folders, as the run has noted them."""
    return {key: value for key, value in folder.fingerprints.items() if key.startswith("input labels.")}


def write_tokenizer(recipe: DistillRecipe, folder: RunFolder) -> None:
    """Trains the tokenizer of an encoder from scratch on the texts of the rows, unless it is there."""
    path = folder / "data" / "tokenizer"
    if recipe.student.encoder is None and not path.is_dir():
        tokenizer = train_tokenizer(texts_of(unmeasured_rows(folder), recipe.text.format()), recipe.student.scratch)
        with folder_written_whole(path) as part:
            tokenizer.save_pretrained(part)


def targets_summary(folder: RunFolder) -> dict[str, Any]:
    """What write_training_rows has used and left out."""
    lost, advice = "it is unknown what the student learns from", f"Delete {folder / 'data'} and run the recipe again."
    return read_object(folder / "targets" / "summary.json", lost, advice, same_on_every_rank=True)


def baselines(recipe: DistillRecipe, steps: int, *, judge: bool, raters: bool) -> list[Variant]:
    """Students to compare with, as far as they differ from the recipe's. judge, raters: whose labels the student learns from."""
    found = []
    if "human" in recipe.baselines and judge:
        if raters:
            found.append(Variant("human", "human labels alone", steps, labels=0))
        else:
            say("baseline human: the train split has no human labels, so there is no student on them alone")
    if "hard" in recipe.baselines:
        found.append(Variant("hard", "plain cross-encoder", steps, hard=True))
    return found


def check_distilling(setup: Setup, steps: int) -> None:
    """The dry pass. Raises LoreError with all problems, in every process."""
    recipe, folder = setup.recipe, setup.run
    # Reads positions, vocabulary and padding of the encoder, and raises an error that is reported once.
    student = cache(setup.new_student)

    def saving() -> None:
        model, encoder = student()
        rows = encoder.rows(setup.rows.pairs(np.flatnonzero(setup.rows.lengths)[:SAMPLED]))
        inputs = {name: torch.from_numpy(array) for name, array in encoder.batch(rows).items()}
        with scratch_folder(folder / "dry_pass") as place, torch.no_grad():
            save_student(model, place, setup.tokenizer)
            moved = (load_student(place)(**inputs) - model.eval()(**inputs)).abs().max().item()
            if not moved <= SAME:
                raise LoreError(
                    f"student.encoder {recipe.student.encoder or 'scratch'}: its student answers otherwise once it is saved and "
                    f"read again (logits differ by {moved:.3g}), so the one that you serve would not be the one that was trained.\n"
                    "Take another encoder."
                )

    def photos() -> None:
        images = setup.rows.table.column("image").is_valid().to_numpy()
        places = np.flatnonzero(images & (setup.rows.lengths > 0))
        tried = places[np.linspace(0, len(places) - 1, min(PHOTOS_TRIED, len(places))).astype(np.int64)] if len(places) else places
        encoder = student()[1]
        if not any("photo_mask" in encoder.batch([row]) for row in encoder.rows(setup.rows.pairs(tried))):
            found = f"none of {len(tried):,} photos that were tried can be read" if len(tried) else "no training pair has a photo"
            raise LoreError(
                f"student.photo is tower, and {found}, so the tower would learn nothing.\nA photo that a table names by its path "
                "has to lie in the table's folder or in data.image_root. Without photos, set student.photo to none.",
                same_on_every_rank=True,
            )

    def disk_space() -> None:
        check_disk(recipe.train, folder, saved_bytes(student()[0], None), steps, setup.tokenizer)

    read = dict.fromkeys(("positions", "vocabulary", "neighbors"), student)
    dry_pass(recipe.stage, read | {"saving": saving, "disk space": disk_space})
    if recipe.student.photo == "tower":
        photos()


def measured(variant: Variant, setup: Setup, human: Human) -> Measured:
    """A finished student, calibrated, on the test pairs."""
    folder = variant.folder(setup.run) / "model"
    with closing(opened(folder, setup.recipe)) as scorer:
        how = _how(variant, setup.recipe)
        if not variant.hard:
            calibration, thresholds, told = calibrated(scorer, setup.recipe, human)
            card = setup.card | {"calibration": calibration.model_dump()}
            write_student_card(folder, card | {"thresholds": {use: one.model_dump() for use, one in thresholds.items()}})
            say(f"{variant.title}: {told}")
            how = f"{how}; {told}"
            scorer.card = replace(scorer.card, calibration=calibration, thresholds=thresholds)
        verdicts, cost = timed(scorer.score, pairs_of_test(human))
    parameters = sum(weight.numel() for weight in load_student(folder).parameters())
    megabytes = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    return Measured(how, verdicts, replace(cost, parameters=parameters, megabytes=megabytes))


def opened(folder: Path, recipe: DistillRecipe) -> StudentScorer:
    """A student as it was trained, without calibration."""
    scorer = open_student(folder, runtime="torch")
    scorer.card, scorer.batch_tokens = replace(scorer.card, calibration=Calibration(), thresholds={}), recipe.batch_tokens
    return scorer


def verdicts_of(scorer: StudentScorer, pairs: Iterable[Pair], total: int, title: str) -> Verdicts:
    """The verdicts by pair_id, with a progress bar."""
    found: Verdicts = {}
    pairs = track(pairs, title, total=total)
    while batch := list(islice(pairs, ASKED_AT_ONCE)):
        found |= {verdict.pair_id: verdict for verdict in scorer.score(batch)}
    return found


def calibrated(scorer: StudentScorer, recipe: DistillRecipe, human: Human) -> tuple[Calibration, dict[str, Threshold], str]:
    """(calibration, thresholds, what was fitted) on the human labels of dev."""
    dev, source = human.dev, human.source
    pairs = read_chosen(source.path, dev.split, dev.pair_ids, image_roots=source.image_roots)
    verdicts = verdicts_of(scorer, pairs, len(dev), "answers on dev")
    known = [at for at, pair_id in enumerate(dev.pair_ids) if verdicts[pair_id].probabilities is not None]
    if recipe.calibration == "none" or len(known) < FEWEST_TO_CALIBRATE:
        why = "" if recipe.calibration == "none" else f", since dev has {len(known)} labeled pairs of {FEWEST_TO_CALIBRATE} needed"
        return Calibration(), {}, f"not calibrated{why}"
    probabilities = np.asarray([verdicts[dev.pair_ids[at]].probabilities for at in known])
    gold, weights = dev.gold[known], dev.weights[known]
    if len(np.unique(dev.gold[known])) < 2:
        return Calibration(), {}, f"not calibrated, since all labels of dev are {source.rubric.tier_ids[dev.gold[known[0]]]}"
    kind, told = recipe.calibration, ""
    if kind == "auto":
        kind, told = better_calibration(probabilities, gold, weights, dev.groups[known], recipe.seed)
    calibration = fit_calibration(probabilities, gold, weights, kind)
    after = calibration.apply(probabilities)
    side = np.asarray(source.rubric.relevant_mask, dtype=bool)
    uses = {"recall": recipe.uses.filter_recall, "precision": recipe.uses.page_precision}
    thresholds = fit_thresholds(after @ side, side[gold], weights, **uses)
    return calibration, thresholds, f"{kind} fitted on {len(known):,} pairs of dev{told}"


def better_calibration(
    probabilities: np.ndarray, gold: np.ndarray, weights: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[str, str]:
    """(temperature or isotonic, why): the one that, fitted on half of the queries, gives the pairs of the other half the better
    likelihood; the mean of both ways round. groups [N]: an integer per query."""
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return "temperature", " (dev has too few queries to compare it with isotonic)"
    first = (np.random.default_rng(seed).permutation(len(names)) < len(names) // 2)[group]
    losses = {"temperature": 0.0, "isotonic": 0.0}
    for kind in losses:
        for fit in (first, ~first):
            fitted = fit_calibration(probabilities[fit], gold[fit], weights[fit], kind)
            losses[kind] += negative_log_likelihood(fitted.apply(probabilities[~fit]), gold[~fit], weights[~fit]) / 2
    best = min(losses, key=losses.__getitem__)
    other = next(kind for kind in losses if kind != best)
    return best, f" ({losses[best]:.4f} nats on held-out halves, {other} {losses[other]:.4f})"


def _answers_of_size(size: int, labels: int, setup: Setup, human: Human) -> tuple[Verdicts, Verdicts]:
    """Verdicts on dev and test of a student on so many labels of the judge; on all of them it is the recipe's."""
    kept = setup.training_set(labels=size).kept
    variant = Variant("student", "student", 0)
    if size < labels:
        variant = Variant(str(size), f"{size:,} labels of the judge", total_steps(setup.recipe.train, len(kept)), labels=size)
        train_student(variant, setup)
    source, answers = human.source, []
    with closing(opened(variant.folder(setup.run) / "model", setup.recipe)) as scorer:
        for part in (human.dev, human.test):
            pairs = read_chosen(source.path, part.split, part.pair_ids, image_roots=source.image_roots)
            answers.append(verdicts_of(scorer, pairs, len(part), f"answers on {part.split}"))
    return answers[0], answers[1]


def _how(variant: Variant, recipe: DistillRecipe) -> str:
    section = recipe.student
    of = section.encoder or "an encoder from scratch"
    kind = "cross-encoder" if variant.hard or section.kind == "cross_encoder" else "bi-encoder"
    return f"{kind} on {of}, {variant.steps:,} steps of {recipe.train.batch_size} pairs"
