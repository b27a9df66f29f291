"""Stage harden: perturbs a share of the training pairs and keeps their labels and reasoning, so that a judge learns to ignore
sellers who write instructions, fake verdicts or the query into their texts.

    lore run recipes/harden.yaml

Attacks use the wordings of the set `train`; the robustness probe uses the set `test`. Only perturbations that keep every rationale
literally true are used. Left out of adversarial training: attacks optimized against the current judge.

The run folder holds pairs/<split>.parquet. An existing file is complete and is not rewritten.
"""

import random
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import PairWriter, read_pairs
from lore.data.photo_places import embedded
from lore.data.tables.parquet_files import already_written
from lore.data_synth.perturb.config import HardenRecipe
from lore.data_synth.perturb.perturb import Perturber
from lore.data_synth.perturb.wordings import wordings_hash
from lore.data_synth.synthesis.output import DEFAULT_SPLIT, file_name
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say
from lore.support.progress import track

MARK = "perturbed:"
"""Prefix of the slice that names a row's perturbation."""


def run(recipe: HardenRecipe, folder: RunFolder) -> None:
    """Writes the pairs by split. Only the main process works; other processes return at once."""
    if not is_main_process():
        return
    source = PairSource(recipe.data, folder)
    rubric = source.rubric
    folder.note(data_fingerprint=source.fingerprint, rubric_hash=rubric.hash, wordings=wordings_hash(recipe.language))
    hardener = Hardener(recipe, Perturber(rubric, recipe.language, "train", seed=recipe.seed))
    out = folder / "pairs"
    with ExitStack() as files:
        writers: dict[str, PairWriter | None] = {}
        for pair in track(source.labeled(), "hardening pairs"):
            split = file_name(pair.split)
            if split not in writers:
                file = out / f"{split}.parquet"
                writer = None if already_written(file) else PairWriter(file, metadata=recipe.data.metadata())
                writers[split] = writer and files.enter_context(writer)
            if writers[split] is not None:
                for row in hardener.rows(pair) if split == DEFAULT_SPLIT else [pair]:
                    writers[split].write(replace(row, image=embedded(row.image)))
    if DEFAULT_SPLIT not in writers:
        found = f"only pairs of split {', '.join(sorted(writers))}" if writers else "no labeled pair"
        raise LoreError(
            f"harden: the data section selects {found}, so there is no training pair to perturb. Only split {DEFAULT_SPLIT}, and "
            "pairs without a split, are changed: check data.path, data.split, data.slices and data.limit against `lore data stats`."
        )
    folder.finish({**counts(out), "set": str(out)})
    summary = folder.summary
    say(f"{summary['perturbed']:,} of {summary['train_rows']:,} training rows are perturbed")


class Hardener:
    """Decides from the seed and pair_id whether and how a pair is perturbed."""

    def __init__(self, recipe: HardenRecipe, perturber: Perturber):
        self.recipe, self.perturber = recipe, perturber

    def rows(self, pair: Pair) -> list[Pair]:
        """The training rows of a pair: the original, the perturbed copy, or both.

        One of the recipe's perturbations that apply is drawn. A pair to which none applies stays unchanged.
        """
        rng = random.Random(f"{self.recipe.seed}/harden/{pair.pair_id}")
        if rng.random() >= self.recipe.share:
            return [pair]
        names = self.recipe.names()
        for name in rng.sample(names, len(names)):
            changed = self.perturber.perturb(name, pair)
            if changed is not None:
                marked = replace(changed, slices=[*pair.slices, f"{MARK}{name}"])
                return [pair, replace(marked, pair_id=f"{pair.pair_id}-{name}")] if self.recipe.copies else [marked]
        return [pair]


def counts(pairs: Path) -> dict:
    """Number of rows, of training rows, and of perturbed rows in total and by perturbation; read from the files."""
    rows, by_split, by_name = 0, Counter(), Counter()
    for pair in read_pairs(pairs, columns=["slices", "split"]):
        rows += 1
        by_split[file_name(pair.split)] += 1
        by_name.update(name.removeprefix(MARK) for name in pair.slices if name.startswith(MARK))
    perturbed = dict(sorted(by_name.items()))
    return {"rows": rows, "train_rows": by_split[DEFAULT_SPLIT], "perturbed": sum(perturbed.values()), "by_perturbation": perturbed}
