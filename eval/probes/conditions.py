"""Counts the results of a capability test, and finds how many rules fit into a judge's prompt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from lore.codec.prompt import PromptFormat, count_prompt_tokens, render
from lore.data.pair import Pair, query_key
from lore.eval.measures.bootstrap import Estimate, mean_estimate, query_groups
from lore.eval.measures.results import Condition
from lore.judge.resumable import Asker, Verdicts
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.untrusted_json import read_object

FIT_SHARE = 0.95
FIT_PAIRS = 200  # pairs used to check whether the rules fit

Labels = dict[str, str]


@dataclass(frozen=True)
class Counting:
    """Settings of the intervals. samples: bootstrap resamples of the queries."""

    samples: int
    seed: int

    def estimate(self, values: np.ndarray, pairs: Sequence[Pair]) -> Estimate:
        """Mean of values [N], one per pair, with its interval over queries."""
        return mean_estimate(values, groups_of(pairs), samples=self.samples, seed=self.seed)

    def condition(
        self,
        capability: str,
        condition: str,
        pairs: Sequence[Pair],
        labels: Labels,
        verdicts: Verdicts,
        *,
        against: tuple[str, Verdicts] | None = None,
        note: str = "",
    ) -> Condition:
        """Accuracy of the verdicts on pairs [N], and the paired difference from the verdicts of `against`."""
        correct, difference = is_right(pairs, labels, verdicts), None
        failures = sum(verdicts[pair.pair_id].tier is None for pair in pairs)
        if against is not None:
            difference = self.estimate(correct - is_right(pairs, labels, against[1]), pairs)
        return Condition(
            capability,
            condition,
            len(pairs),
            len(np.unique(groups_of(pairs))),
            self.estimate(correct, pairs),
            against[0] if against else None,
            difference,
            note="; ".join(filter(None, [note, f"{failures} without a verdict" if failures else ""])),
        )


def groups_of(pairs: Sequence[Pair]) -> np.ndarray:
    """[N] integers, one per distinct query."""
    return query_groups([query_key(pair.query, pair.slices) for pair in pairs])


def is_right(pairs: Sequence[Pair], labels: Labels, verdicts: Verdicts) -> np.ndarray:
    """[N] 1.0 if the verdict equals the label, else 0.0, also without a verdict."""
    return np.asarray([float(verdicts[pair.pair_id].tier == labels[pair.pair_id]) for pair in pairs])


def verdict_changed(pairs: Sequence[Pair], before: Verdicts, after: Verdicts) -> np.ndarray:
    """[N] 1.0 if the two verdicts differ."""
    return np.asarray([float(before[pair.pair_id].tier != after[pair.pair_id].tier) for pair in pairs])


def mean_text(values: np.ndarray) -> str:
    """A mean as text for a note; – without values."""
    return f"{values.mean():.2f}" if len(values) else "–"


def format_with_rules(asker: Asker, pairs: Sequence[Pair], tag: str) -> PromptFormat | None:
    """The judge's own format with all rules; with retrieved rules if all rules leave no room for the item; None if the retrieved
    rules leave none either.

    Rules fit if at most the end of the description must be cut, for FIT_SHARE of the pairs that fit into the judge's own prompt.
    An endpoint without a known tokenizer gets all rules. The result is stored beside the answers, so a resumed run that has
    all answers does not need to open the engine.
    """
    if asker.fmt.detail == "full":
        return asker.fmt
    path = asker.folder / f"{tag}.json"
    if not path.exists():
        asker.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"detail": _detail_that_fits(asker, pairs[:FIT_PAIRS])}) + "\n")
    advice = "Delete it and run the recipe again: only the question behind it is asked again."
    detail = read_object(path, "it is unknown which rules these prompts hold", advice).get("detail")
    if detail not in (None, "full", "retrieved"):
        raise LoreError(f"{path} is damaged (detail is {detail!r}), so it is unknown which rules these prompts hold.\n{advice}")
    return None if detail is None else replace(asker.fmt, detail=detail)


def _detail_that_fits(asker: Asker, pairs: Sequence[Pair]) -> str | None:
    engine = asker.open_engine()
    tokenizer = getattr(engine, "processor", None) or engine.tokenizer
    if tokenizer is None:
        return "full"
    blank = Image.new("RGB", (1, 1), "white") if asker.fmt.photo and getattr(engine, "takes_images", True) else None

    def has_room(pair: Pair, detail: str) -> bool:
        fmt = replace(asker.fmt, detail=detail, photo=blank is not None and pair.image is not None)
        messages = render(replace(pair, description=None), asker.rubric, fmt, image=blank if fmt.photo else None)
        return count_prompt_tokens(messages, tokenizer) <= fmt.max_prompt_tokens

    roomy = [pair for pair in pairs if has_room(pair, asker.fmt.detail)]
    for detail in ("full", "retrieved"):
        if sum(has_room(pair, detail) for pair in roomy) >= FIT_SHARE * len(roomy):
            return detail
    return None
