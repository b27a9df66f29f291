"""A trained judge as one model folder: adapter folded into the base, processor, card; proven by scoring a sample.

The merge is computed in float32, where it changes no tier probability by more than 1e-3: more than that means that the
merge is wrong (or that the base was trained on in 4 bits), and nothing is written. The folder is then written in the
dtype of the base checkpoint, which for most models is bfloat16. Rounding the merged weights to 16 bits moves the
probabilities of any judge by some hundredths, merge or no merge, so it is measured on the written files and printed
beside the merge's own difference. To have none of it write `--dtype float32` (twice the size); to have a limit on it
give `--tolerance`. All of it is scored in float32, which needs 4 bytes of memory a parameter.

    lore export runs/quickstart/sft --merge -o judge/
"""

import gc
import math
import shutil
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat, render
from lore.config.stages import load_recipe
from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.engines.chat import photo_of
from lore.engines.config import ModelSection
from lore.engines.loading import default_device, load_config, load_model, load_processor
from lore.engines.transformers import TransformersEngine
from lore.judge.card import check_card, check_template, read_card, write_card
from lore.rubric.rubric import Rubric, load_rubric
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import folder_written_whole
from lore.support.errors import LoreError
from lore.train.sft.config import SFTRecipe

SAMPLE_PAIRS = 48
READ_PAIRS = 5000  # the sample is taken from this many pairs at the start of the file
TOLERANCE = 1e-3
MERGE_MOVED = (
    "In float32 a merge alone moves less: a base that was trained on in 4 bits (model.quantize) or a broken weight does "
    "this. Train without model.quantize, or serve the base with its adapter."
)
ROUNDING_MOVED = (
    "The merge itself is exact; writing it in {dtype} moves this much. Write --dtype float32, allow more with "
    "--tolerance, or serve the base with its adapter."
)


@dataclass(frozen=True)
class Difference:
    """Largest difference of a tier probability from the trained judge: of the merge, and of the files as written."""

    merged: float
    written: float
    dtype: str
    pairs: int


def export(
    run: str | Path, out: str | Path, merge: bool = True, dtype: str | None = None, tolerance: float | None = None
) -> Difference | None:
    """Writes the judge of a finished run folder to `out`, which appears at once or not at all.

    merge: fold the adapter into the base and re-score a sample of the run's pairs; without it the folder is copied as it
    is. dtype: of the merged weights, float32, bfloat16 or float16; none takes that of the base checkpoint. tolerance: how
    far rounding to a 16-bit dtype may move a probability; none prints how far it does. Raises LoreError when the merge
    moves one by more than TOLERANCE, or the rounding by more than `tolerance`.
    """
    folder, out = RunFolder(run), Path(out)
    if not folder.is_done:
        raise LoreError(
            f"{folder.path} is no finished run, so it holds no judge to write out.\n"
            "Give the run folder of an sft recipe, or run the recipe to its end first."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LoreError(f"{out} is there already and not empty. Nothing is overwritten: choose another folder.")
    recipe = load_recipe(folder.recipe_path)
    if recipe.stage != "sft":
        raise LoreError(f"{folder.path} is a run of stage {recipe.stage}; only sft runs hold a judge.")
    trained = folder / "model"
    card = read_card(trained)
    if card is None:
        raise LoreError(f"{trained} holds no lore.json, which says how the judge is asked. Train it again.")
    with folder_written_whole(out) as part:
        adapted = (trained / "adapter_config.json").is_file()
        difference = None
        if merge and adapted:
            difference = write_merged(recipe, folder, part, dtype, tolerance)
        else:
            shutil.copytree(trained, part, ignore=shutil.ignore_patterns("training_args.bin"))
        write_card(part, card)
    Console().print(_report(out, difference, merge), soft_wrap=True)
    return difference


def _report(out: Path, difference: Difference | None, merge: bool) -> str:
    if difference is None:
        return f"{out}: copied" + (" (the run trained every weight: nothing to merge)" if merge else "")
    merged = f"{out}: merged; tier probabilities of {difference.pairs} pairs move by at most {difference.merged:.1e}"
    if difference.dtype == "float32":
        return merged
    return (
        f"{merged} in float32, and by {difference.written:.1e} as written in {difference.dtype}, whose rounding is "
        "not the merge's. --dtype float32 writes without it, --tolerance sets a limit."
    )


def write_merged(recipe: SFTRecipe, folder: RunFolder, out: Path, dtype: str | None, tolerance: float | None) -> Difference:
    """The base with the adapter folded in, as safetensors, with its processor, scored before and after it is written."""
    judge = recipe.model.model_copy(update={"adapter": str(folder / "model"), "lora": None, "dtype": "float32"})
    rubric, fmt = load_rubric(recipe.data.rubric), PromptFormat(**recipe.prompt.model_dump())
    check_card(judge, renderer_hash(rubric, fmt), "lore export")
    processor = load_processor(judge, chat=True)
    check_template(judge, processor, "lore export")
    dtype = dtype or saved_dtype(judge)
    pairs = sample_pairs(recipe, folder)
    before_NT = score_pairs(judge, rubric, fmt, pairs)
    model = load_model(judge.model_copy(update={"quantize": None}), device=default_device())
    model = model.merge_and_unload(safe_merge=True)
    after_NT = score_with(TransformersEngine(model, processor, rubric), rubric, fmt, pairs)
    merged = compare(before_NT, after_NT, rubric, pairs, TOLERANCE, MERGE_MOVED)
    model.to(getattr(torch, dtype)).save_pretrained(out)
    processor.save_pretrained(out)
    del model
    written_NT = score_pairs(ModelSection(name=str(out), dtype="float32", attn=judge.attn), rubric, fmt, pairs)
    limit = TOLERANCE if dtype == "float32" else math.inf if tolerance is None else tolerance
    written = compare(before_NT, written_NT, rubric, pairs, limit, ROUNDING_MOVED.format(dtype=dtype))
    return Difference(merged, written, dtype, len(pairs))


def saved_dtype(judge: ModelSection) -> str:
    """The dtype the base checkpoint was saved in, float32 where its config does not say."""
    config = load_config(judge)
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    return str(found).removeprefix("torch.")


def sample_pairs(recipe: Any, folder: RunFolder) -> list[Pair]:
    """A few dozen pairs of the run, half of them with photos where it has such, a query as rarely twice as possible."""
    source = PairSource(recipe.data, folder)
    pairs = list(islice(read_pairs(source.path, split=recipe.data.split), READ_PAIRS))
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
    if not largest <= tolerance:  # nan is not
        row, tier = np.unravel_index(np.nan_to_num(moved_NT, nan=np.inf).argmax(), moved_NT.shape)
        raise LoreError(
            f"Merging moved the probability of {rubric.tier_ids[tier]} for pair {pairs[row].pair_id} from "
            f"{before_NT[row, tier]:.4f} to {after_NT[row, tier]:.4f}; at most {tolerance:g} is allowed.\n"
            f"The merged judge would not be the one that was trained and measured, so nothing was written. {advice}"
        )
    return largest


def score_pairs(section: ModelSection, rubric: Rubric, fmt: PromptFormat, pairs: list[Pair]) -> np.ndarray:
    """Tier probabilities [N, tiers] of a judge that is loaded for this and let go again."""
    model = load_model(section, device=default_device())  # the engine's own loading would fold the adapter in
    scores = score_with(TransformersEngine(model, load_processor(section, chat=True), rubric), rubric, fmt, pairs)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return scores


def score_with(engine: TransformersEngine, rubric: Rubric, fmt: PromptFormat, pairs: list[Pair]) -> np.ndarray:
    """Tier probabilities [N, tiers]; a photo that cannot be shown is left out, as in the evaluation."""
    shown = [photo_of(pair, fmt, engine.processor)[0] if engine.takes_images else None for pair in pairs]
    plain = replace(fmt, photo=False)
    return engine.score(
        [
            render(pair, rubric, plain if image is None else fmt, tokenizer=engine.processor, image=image)
            for pair, image in zip(pairs, shown, strict=True)
        ]
    )
