"""Exports a trained judge as a model folder: adapter merged into the base model, processor and card, verified by scoring a sample.

The merge is computed in float32 and may change tier probabilities by at most 1e-3. A larger change means that the merge is wrong
or that the base was trained in 4 bits; then nothing is written. The merged weights are saved in the dtype of the base checkpoint,
for most models bfloat16. Rounding to 16 bits changes the probabilities of any judge by a few hundredths, so the export scores the
saved files as well and prints both differences. `--dtype float32` avoids the rounding (twice the size); `--tolerance` limits it.
Scoring runs in float32 and needs 4 bytes of memory per parameter.

The run may be of any stage that ends with a judge. A stage that continues the adapter of an earlier run saves it whole, so the
merge needs the base model and not the earlier run.

    lore export runs/quickstart/grpo --merge -o judge/
"""

import gc
import math
import os
import shutil
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat, render
from lore.codec.verdict_tokens import verdict_tokens
from lore.config.stages import load_recipe
from lore.config.yaml_text import TRUST, read_recipe_text
from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.engines.adapter import are_tied, check_untied
from lore.engines.chat import photo_of
from lore.engines.config import ModelSection
from lore.engines.loading import default_device, load_config, load_model, load_processor, meta_model
from lore.engines.model_checks import check_format, check_saving, check_vocabulary
from lore.engines.transformers import TransformersEngine
from lore.judge.card import CARD, check_card, check_template, read_card, write_card
from lore.rubric.rubric import Rubric, load_rubric
from lore.run.dry_pass import dry_pass
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import folder_written_whole
from lore.support.console import Console
from lore.support.errors import LoreError
from lore.support.full_disk import full_disk_named
from lore.support.outputs import checked_folder
from lore.train.common.checkpoint import check_room, processor_bytes

JUDGE_STAGES = ("sft", "grpo", "ppo", "dpo", "kto")
SAMPLE_PAIRS = 48
READ_PAIRS = 5000  # the sample is drawn from the first pairs of the file
TOLERANCE = 1e-3
MERGE_MOVED = (
    "A float32 merge changes less. Possible causes: a base that was trained in 4 bits (model.quantize), or corrupt weights. "
    "Train without model.quantize, or serve the base with its adapter."
)
ROUNDING_MOVED = (
    "The merge itself is exact; writing it in {dtype} moves this much. Use --dtype float32, raise --tolerance, "
    "or serve the base with its adapter."
)


@dataclass(frozen=True)
class Difference:
    """Largest difference of a tier probability from the trained judge: after the merge, and for the saved files."""

    merged: float
    written: float
    dtype: str
    pairs: int


def export(
    run: str | Path,
    out: str | Path,
    merge: bool = True,
    dtype: str | None = None,
    tolerance: float | None = None,
    *,
    trust_remote_code: bool = False,
    force: bool = False,
) -> Difference | None:
    """Writes the judge of a finished run folder to `out`, atomically: `out` is complete or does not exist.

    merge: merge the adapter into the base and re-score a sample of the run's pairs; if false, the model folder is copied
    unchanged. dtype: dtype of the merged weights (float32, bfloat16 or float16); None uses that of the base checkpoint.
    tolerance: largest change of a probability that rounding to a 16-bit dtype may cause; None only prints the change.
    trust_remote_code: allow code from the base model's repository; the run's own recipe cannot allow it. force: replace an earlier
    export; no other folder is replaced. Raises LoreError if the merge changes a probability by more than TOLERANCE, or rounding by
    more than `tolerance`.
    """
    folder, out = RunFolder(run), Path(out)
    if not folder.is_done:
        raise LoreError(
            f"{folder.path} is not a finished run, so it has no judge to export.\n"
            f"Give the run folder of a training stage ({', '.join(JUDGE_STAGES)}), or finish the run first."
        )
    shown, out = out, checked_out(out, [folder.path], force)
    stage = read_recipe_text(folder.recipe_path).data.get("stage")
    if stage not in JUDGE_STAGES:
        student = f"Export its student: lore export student {folder.path}, or give" if stage == "distill" else "Give"
        raise LoreError(
            f"{folder.path} is a run of stage {stage}, which trains no judge, so there is none to export.\n"
            f"{student} the run folder of one of the stages {', '.join(JUDGE_STAGES)}."
        )
    recipe = load_recipe(folder.recipe_path, [f"model.{TRUST}={'true' if trust_remote_code else 'false'}"])
    trained = folder / "model"
    checked_out(out, [place for place in (recipe.model.name, recipe.model.adapter) if place and Path(place).is_dir()], force)
    card = read_card(trained)
    if card is None:
        raise LoreError(f"{trained} has no lore.json, the card that records the judge's prompt format. Train the judge again.")
    with full_disk_named(out, "Then export again: nothing incomplete is left."), folder_written_whole(out) as part:
        adapted = (trained / "adapter_config.json").is_file()
        difference = None
        if merge and adapted:
            difference = write_merged(recipe, folder, part, dtype, tolerance)
        else:
            _refuse_links_outside(trained)
            shutil.copytree(trained, part, ignore=shutil.ignore_patterns("training_args.bin"))
        write_card(part, card)
    Console().print(_report(shown, difference, merge), soft_wrap=True)
    return difference


def checked_out(out: Path, inputs: list[str | Path], force: bool) -> Path:
    """The folder to write. Raises LoreError if it holds anything but, with `force`, an earlier export."""
    real = checked_folder(out, inputs)
    if not real.is_dir():
        return real
    if real in (here := Path.cwd().resolve(), *here.parents):
        raise LoreError(f"{out} holds the folder that you are in, which cannot be replaced. Name another folder.")
    if any(real.iterdir()):
        if not force:
            raise LoreError(
                f"{out} already exists and is not empty, and export replaces the whole folder. Choose another one, or pass --force "
                "to replace an earlier export."
            )
        if not (real / CARD).is_file() or any(path.is_dir() for path in real.iterdir()) or (real.parent / "recipe.yaml").exists():
            raise LoreError(f"{out} is no earlier export, and --force replaces nothing else: choose another folder.")
    return real


def _refuse_links_outside(folder: Path) -> None:
    """Raises LoreError for a link out of a model's folder: a run of somebody else's could copy private files into the export."""
    for path in folder.rglob("*"):
        target = Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for links in a circle
        if path.is_symlink() and not target.is_relative_to(os.path.realpath(folder)):
            raise LoreError(
                f"{path} is a link to {target}, outside of the run, and an export copies every file of {folder}.\n"
                "Put the file itself there if it belongs to the judge, or delete the link."
            )


def _report(out: Path, difference: Difference | None, merge: bool) -> str:
    if difference is None:
        return f"{out}: copied" + (" (the run trained every weight: nothing to merge)" if merge else "")
    merged = f"{out}: merged; tier probabilities of {difference.pairs} pairs change by at most {difference.merged:.1e}"
    if difference.dtype == "float32":
        return merged
    return (
        f"{merged} in float32, and by {difference.written:.1e} as written in {difference.dtype} because of rounding. "
        "--dtype float32 avoids the rounding, --tolerance limits it."
    )


def write_merged(recipe: Any, folder: RunFolder, out: Path, dtype: str | None, tolerance: float | None) -> Difference:
    """Writes the base with the merged adapter as safetensors, with its processor; scores it before and after writing.

    recipe: of one of JUDGE_STAGES, which all have the sections model, data and prompt.
    """
    judge = recipe.model.model_copy(update={"adapter": str(folder / "model"), "lora": None, "dtype": "float32"})
    rubric, fmt = load_rubric(recipe.data.rubric), PromptFormat(**recipe.prompt.model_dump())
    check_card(judge, renderer_hash(rubric, fmt), "lore export")
    processor = load_processor(judge, chat=True)
    check_template(judge, processor, "lore export")
    dtype = dtype or saved_dtype(judge)
    check_export(judge, rubric, processor, out, dtype)
    pairs = sample_pairs(recipe, folder)
    check_untied(meta_model(judge), str(judge.adapter))
    before_NT = score_pairs(judge, rubric, fmt, pairs)
    model = load_model(judge.model_copy(update={"quantize": None}), device=default_device())
    model = model.merge_and_unload(safe_merge=True)
    for config in (model.config, model.config.get_text_config()):
        # An adapter that trained one of two tied embeddings parts them; PEFT clears only the outer config of a vision model.
        if getattr(config, "tie_word_embeddings", False) and not are_tied(model):
            config.tie_word_embeddings = False
    after_NT = score_with(TransformersEngine(model, processor, rubric), rubric, fmt, pairs)
    merged = compare(before_NT, after_NT, rubric, pairs, TOLERANCE, MERGE_MOVED)
    model.to(getattr(torch, dtype)).save_pretrained(out)
    processor.save_pretrained(out)
    del model
    saved = ModelSection(name=str(out), dtype="float32", attn=judge.attn, trust_remote_code=judge.trust_remote_code)
    written_NT = score_pairs(saved, rubric, fmt, pairs)
    limit = TOLERANCE if dtype == "float32" else math.inf if tolerance is None else tolerance
    written = compare(before_NT, written_NT, rubric, pairs, limit, ROUNDING_MOVED.format(dtype=dtype))
    return Difference(merged, written, dtype, len(pairs))


def check_export(judge: ModelSection, rubric: Rubric, processor: Any, out: Path, dtype: str) -> None:
    """The dry pass of a merge, before weights load. Raises LoreError with all problems."""
    base, beside = meta_model(judge, adapter=False), out.parent / "dry_pass"
    needed = base.num_parameters() * getattr(torch, dtype).itemsize + processor_bytes(processor, beside)
    dry_pass(
        "export",
        {
            "saving": lambda: check_saving(judge, base, processor, beside),
            "weights format": lambda: check_format(judge, base, beside),
            "verdict tokens": lambda: verdict_tokens(processor, rubric),
            "vocabulary": lambda: check_vocabulary(judge, base, processor),
            "disk space": lambda: check_room(
                out.parent, needed, f"the merged weights in {dtype}", ["use a smaller --dtype", "write to a larger disk"]
            ),
        },
    )


def saved_dtype(judge: ModelSection) -> str:
    """The dtype of the base checkpoint; float32 if its config does not name one."""
    config = load_config(judge)
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    return str(found).removeprefix("torch.")


def sample_pairs(recipe: Any, folder: RunFolder) -> list[Pair]:
    """SAMPLE_PAIRS pairs, spread evenly over the run's first READ_PAIRS; half of them with photos if there are enough."""
    source = PairSource(recipe.data, folder)
    pairs = list(islice(read_pairs(source.path, split=recipe.data.split, image_roots=source.image_roots), READ_PAIRS))
    with_photo = [pair for pair in pairs if pair.image is not None]
    without = [pair for pair in pairs if pair.image is None]
    half = min(len(with_photo), max(SAMPLE_PAIRS // 2, SAMPLE_PAIRS - len(without)))
    return _spread(with_photo, half) + _spread(without, min(len(without), SAMPLE_PAIRS - half))


def _spread(pairs: list[Pair], count: int) -> list[Pair]:
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).astype(int)] if count else []


def compare(
    before_NT: np.ndarray, after_NT: np.ndarray, rubric: Rubric, pairs: list[Pair], tolerance: float, advice: str
) -> float:
    """The largest difference of a tier probability between two judges. Raises LoreError above `tolerance`."""
    moved_NT = np.abs(before_NT - after_NT)
    largest = float(moved_NT.max())
    if not largest <= tolerance:  # also true for nan
        row, tier = np.unravel_index(np.nan_to_num(moved_NT, nan=np.inf).argmax(), moved_NT.shape)
        raise LoreError(
            f"Merging moved the probability of {rubric.tier_ids[tier]} for pair {pairs[row].pair_id} from "
            f"{before_NT[row, tier]:.4f} to {after_NT[row, tier]:.4f}; at most {tolerance:g} is allowed.\n"
            f"The merged judge would differ from the trained judge, so nothing was written. {advice}"
        )
    return largest


def score_pairs(section: ModelSection, rubric: Rubric, fmt: PromptFormat, pairs: list[Pair]) -> np.ndarray:
    """Tier probabilities [N, tiers]; loads the judge and frees its memory afterwards."""
    model = load_model(section, device=default_device())  # TransformersEngine.load would merge the adapter
    scores = score_with(TransformersEngine(model, load_processor(section, chat=True), rubric), rubric, fmt, pairs)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return scores


def score_with(engine: TransformersEngine, rubric: Rubric, fmt: PromptFormat, pairs: list[Pair]) -> np.ndarray:
    """Tier probabilities [N, tiers]; an unreadable photo is omitted, as in the evaluation."""
    shown = [photo_of(pair, fmt, engine.processor)[0] if engine.takes_images else None for pair in pairs]
    plain = replace(fmt, photo=False)
    return engine.score(
        [
            render(pair, rubric, plain if image is None else fmt, tokenizer=engine.processor, image=image)
            for pair, image in zip(pairs, shown, strict=True)
        ]
    )
