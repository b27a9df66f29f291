"""A trained judge as one model folder: adapter folded into the base, processor, card; proven by scoring a sample twice.

Folding changes the arithmetic, and with a quantised or half-precision base it can change verdicts. So the folder gets
its name only after the merged judge has given the same tier probabilities as the trained one.

    lore export runs/quickstart/sft --merge -o judge/
"""

import gc
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from lore.card import check_card, read_card, write_card
from lore.engines.loading import default_device, is_vision, load_config, load_model, load_processor
from lore.engines.transformers_engine import TransformersEngine
from lore.errors import LoreError
from lore.folder import RunFolder
from lore.judgement import PromptFormat, render, renderer_hash
from lore.pairs import Pair, load_image, read_pairs
from lore.recipe import ModelSection, load_recipe
from lore.rubric import Rubric, load_rubric
from lore.sources import materialise

SAMPLE_PAIRS = 48
READ_PAIRS = 5000  # the sample is taken from this many pairs at the start of the file
TOLERANCE = 1e-3


def export(run: str | Path, out: str | Path, merge: bool = True, tolerance: float = TOLERANCE) -> float | None:
    """Writes the judge of a finished run folder to `out`, which appears at once or not at all.

    merge: fold the adapter into the base and re-score a sample of the run's pairs; returns the largest difference of a
    tier probability. Without it the folder is copied as it is. Raises LoreError when a probability moves by more than
    `tolerance`.
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
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        adapted = (trained / "adapter_config.json").is_file()
        difference = None
        if merge and adapted:
            judge = recipe.model.model_copy(update={"adapter": str(trained), "lora": None})
            rubric, fmt = load_rubric(recipe.data.rubric), PromptFormat(**recipe.prompt.model_dump())
            check_card(trained, renderer_hash(rubric, fmt), "lore export")
            pairs = sample_pairs(recipe, folder)
            write_merged(judge, part)
            merged = ModelSection(name=str(part), dtype=recipe.model.dtype, attn=recipe.model.attn)
            difference = compare(judge, merged, rubric, fmt, pairs, tolerance)
        else:
            shutil.copytree(trained, part)
        write_card(part, card)
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    Console().print(_report(out, difference, len(pairs) if difference is not None else 0, merge), soft_wrap=True)
    return difference


def _report(out: Path, difference: float | None, pairs: int, merge: bool) -> str:
    if difference is None:
        return f"{out}: copied" + (" (the run trained every weight: nothing to merge)" if merge else "")
    return f"{out}: merged; tier probabilities of {pairs} pairs move by at most {difference:.1e}"


def write_merged(judge: ModelSection, out: Path) -> None:
    """The base with the adapter folded in, as safetensors, with its processor. The base is loaded unquantised."""
    model = load_model(judge.model_copy(update={"quantize": None}), device=default_device())
    model.merge_and_unload(safe_merge=True).save_pretrained(out)
    load_processor(judge).save_pretrained(out)


def sample_pairs(recipe: Any, folder: RunFolder) -> list[Pair]:
    """A few dozen pairs of the run, half of them with photos where it has such, a query as rarely twice as possible."""
    path = materialise(recipe.data, folder)
    pairs = list(islice(read_pairs(path, split=recipe.data.split), READ_PAIRS))
    with_photo = [pair for pair in pairs if pair.image is not None]
    without = [pair for pair in pairs if pair.image is None]
    half = min(len(with_photo), max(SAMPLE_PAIRS // 2, SAMPLE_PAIRS - len(without)))
    return _spread(with_photo, half) + _spread(without, min(len(without), SAMPLE_PAIRS - half))


def _spread(pairs: list[Pair], count: int) -> list[Pair]:
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).astype(int)] if count else []


def compare(
    judge: ModelSection,
    merged: ModelSection,
    rubric: Rubric,
    fmt: PromptFormat,
    pairs: list[Pair],
    tolerance: float = TOLERANCE,
) -> float:
    """The largest difference of a tier probability between two judges. Raises LoreError above `tolerance`."""
    before_NT = score_pairs(judge, rubric, fmt, pairs)
    after_NT = score_pairs(merged, rubric, fmt, pairs)
    moved_NT = np.abs(before_NT - after_NT)
    largest = float(moved_NT.max())
    if not largest <= tolerance:  # nan is not
        row, tier = np.unravel_index(np.nan_to_num(moved_NT, nan=np.inf).argmax(), moved_NT.shape)
        raise LoreError(
            f"Merging moved the probability of {rubric.tier_ids[tier]} for pair {pairs[row].pair_id} from "
            f"{before_NT[row, tier]:.4f} to {after_NT[row, tier]:.4f}; at most {tolerance:g} is allowed.\n"
            "The merged judge would not be the one that was trained and measured, so nothing was written. Rounding in "
            "half precision or a quantised base does this: train with model.dtype: float32 and without model.quantize, "
            "or serve the base with its adapter."
        )
    return largest


def score_pairs(section: ModelSection, rubric: Rubric, fmt: PromptFormat, pairs: list[Pair]) -> np.ndarray:
    """Tier probabilities [N, tiers] of a judge that is loaded for this and let go again."""
    vision = is_vision(load_config(section))
    engine = TransformersEngine.load(section, rubric)
    shown = [load_image(pair.image) if vision and fmt.photo and pair.image else None for pair in pairs]
    plain = PromptFormat(**{**vars(fmt), "photo": False})
    prompts = [
        render(pair, rubric, plain if image is None else fmt, tokenizer=engine.processor, image=image)
        for pair, image in zip(pairs, shown, strict=True)
    ]
    scores = engine.score(prompts)
    del engine
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return scores
