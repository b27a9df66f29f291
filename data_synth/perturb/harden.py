"""Stage harden: perturbs a share of the training pairs, labels and reasoning kept, so that a judge trained on them has met sellers
who write orders, fake verdicts and the query itself into their texts.

    lore run recipes/harden.yaml

Attacks are worded as in the set `train`; the robustness suite uses the set `test`. Only perturbations under which a rationale stays
true word for word are used. Left out of adversarial training: attacks searched for against the judge at hand.

The run folder holds pairs/<split>.parquet. A file that is there is whole and is not written again.
"""

import random
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import PairWriter, read_pairs
from lore.data_synth.perturb.config import HardenRecipe
from lore.data_synth.perturb.perturb import Perturber
from lore.data_synth.perturb.wordings import wordings_hash
from lore.data_synth.synthesis.output import DEFAULT_SPLIT, file_name
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say
from lore.support.progress import track

MARK = "perturbed:"
"""Begins the slice that names a row's perturbation."""


def run(recipe: HardenRecipe, folder: RunFolder) -> None:
    """Writes the pairs, split by split. The main process does it alone; other processes return at once."""
    if not is_main_process():
        return
    source = PairSource(recipe.data, folder)
    rubric = source.rubric
    folder.note(data_fingerprint=source.fingerprint, rubric_hash=rubric.hash, wordings=wordings_hash(recipe.language))
    hardener = Hardener(recipe, Perturber(rubric, recipe.language, "train", seed=recipe.seed))
    out = folder / "pairs"
    with ExitStack() as files:
        writers: dict[str, PairWriter | None] = {}
        for pair in track(source.labelled(), "hardening pairs"):
            split = file_name(pair.split)
            if split not in writers:
                file = out / f"{split}.parquet"
                writer = None if file.is_file() else PairWriter(file, metadata=recipe.data.metadata())
                writers[split] = writer and files.enter_context(writer)
            if writers[split] is not None:
                for row in hardener.rows(pair) if split == DEFAULT_SPLIT else [pair]:
                    writers[split].write(row)
    if DEFAULT_SPLIT not in writers:
        found = f"pairs of split {', '.join(sorted(writers))} alone" if writers else "no labelled pair"
        raise LoreError(
            f"harden: the data section selects {found}, so there is no training pair to perturb. Only split {DEFAULT_SPLIT}, and "
            "pairs without a split, are changed: check data.path, data.split, data.slices and data.limit against `lore data stats`."
        )
    folder.finish({**counts(out), "set": str(out)})
    summary = folder.summary
    say(f"{summary['perturbed']:,} of {summary['train_rows']:,} training rows are perturbed")


class Hardener:
    """Decides pair by pair, by seed and pair_id, whether and how it is perturbed."""

    def __init__(self, recipe: HardenRecipe, perturber: Perturber):
        self.recipe, self.perturber = recipe, perturber

    def rows(self, pair: Pair) -> list[Pair]:
        """The training rows of a pair: as it is, perturbed in its place, or both.

        Of the recipe's perturbations one that applies is drawn; a pair to which none applies stays as it is.
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
    """Rows in all and of training, and how many of these are perturbed, by perturbation; read from the files themselves."""
    rows, by_split, by_name = 0, Counter(), Counter()
    for pair in read_pairs(pairs, columns=["slices", "split"]):
        rows += 1
        by_split[file_name(pair.split)] += 1
        by_name.update(name.removeprefix(MARK) for name in pair.slices if name.startswith(MARK))
    perturbed = dict(sorted(by_name.items()))
    return {"rows": rows, "train_rows": by_split[DEFAULT_SPLIT], "perturbed": sum(perturbed.values()), "by_perturbation": perturbed}
