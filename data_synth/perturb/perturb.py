"""Perturbations: changes of a pair that keep its label true. Injections try to raise the verdict; rewrites and shuffles should not
change it.

    Perturber(rubric, "en", "test").perturb("order-in-title", pair)     # -> Pair, or None if it does not apply

Perturbations are deterministic: the random draws depend only on the seed, the perturbation and pair_id. Only query, texts,
attributes and photo change; pair_id, label, rationale and demands stay.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lore.data.pair import Pair
from lore.data_synth.perturb import injections, rewrites
from lore.data_synth.perturb.material import Material
from lore.data_synth.perturb.wordings import AttackSet, load_wordings
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.text import normalize


@dataclass(frozen=True)
class Perturbation:
    name: str
    kind: Literal["injection", "rewrite", "shuffle"]
    change: Callable[[Pair, Material, random.Random], Pair | None]
    keeps_reasoning: bool = True
    """Whether a rationale of the original pair stays literally true, so that a judge can be trained on the result."""


PERTURBATIONS = {
    perturbation.name: perturbation
    for perturbation in (
        Perturbation("order-in-title", "injection", injections.order_in_title),
        Perturbation("order-in-description", "injection", injections.order_in_description),
        Perturbation("order-in-photo", "injection", injections.order_in_photo),
        Perturbation("chat-markers", "injection", injections.chat_markers),
        Perturbation("verdict-tags", "injection", injections.verdict_tags),
        Perturbation("padding-in-title", "injection", injections.padding_in_title),
        Perturbation("padding-in-description", "injection", injections.padding_in_description),
        Perturbation("homoglyphs", "injection", injections.homoglyphs),
        Perturbation("keyword-stuffing", "injection", injections.keyword_stuffing),
        Perturbation("rule-quote", "injection", injections.rule_quote),
        Perturbation("word-order", "rewrite", rewrites.word_order),
        Perturbation("case", "rewrite", rewrites.letter_case),
        Perturbation("units", "rewrite", rewrites.units, keeps_reasoning=False),
        Perturbation("typo", "rewrite", rewrites.typo, keeps_reasoning=False),
        Perturbation("spacing", "rewrite", rewrites.spacing),
        Perturbation("translation", "rewrite", rewrites.translation, keeps_reasoning=False),
        Perturbation("attribute-order", "shuffle", rewrites.attribute_order),
        Perturbation("title-order", "shuffle", rewrites.title_order),
    )
}


class Perturber:
    """Perturbs pairs with the wordings of one language and one attack set."""

    def __init__(
        self,
        rubric: Rubric,
        language: str = "en",
        attacks: AttackSet = "test",
        *,
        seed: int = 0,
        translations: dict[str, str] | None = None,
    ):
        wordings = load_wordings(language)
        known = {normalize(query): text for query, text in (translations or {}).items()}
        self.seed, self.material = seed, Material(rubric, wordings, getattr(wordings.attacks, attacks), known)

    def perturb(self, name: str, pair: Pair) -> Pair | None:
        """The perturbed pair; None if the perturbation does not apply or changes nothing."""
        rng = random.Random(f"{self.seed}/{name}/{pair.pair_id}")
        changed = PERTURBATIONS[name].change(pair, self.material, rng)
        return None if changed is None or _same(changed, pair) else changed


def _same(one: Pair, other: Pair) -> bool:
    return one == other and list(one.attributes) == list(other.attributes)  # dict equality ignores the order


def chosen(names: list[str] | None) -> list[Perturbation]:
    """The perturbations named in a recipe, in the order of PERTURBATIONS; all of them for None. Raises LoreError for an unknown
    name."""
    for name in names or ():
        if name not in PERTURBATIONS:
            raise LoreError(
                f"There is no perturbation {name!r}, so it cannot be tested. Choose from: {', '.join(PERTURBATIONS)}."
                f"{nearest_hint(name, list(PERTURBATIONS))}"
            )
    return [perturbation for name, perturbation in PERTURBATIONS.items() if names is None or name in names]
