"""Inputs of the perturbations: rubric, wordings, shop vocabulary, translations."""

from dataclasses import dataclass, field
from functools import cached_property

from lore.data_synth.perturb.wordings import Attacks, Wordings
from lore.data_synth.shop.query_parser import ShopWords, shop_words
from lore.rubric.rubric import Rubric

OTHER_LANGUAGE = {"en": "zh", "zh": "en"}


@dataclass(frozen=True)
class Material:
    """Inputs that all perturbations share."""

    rubric: Rubric
    wordings: Wordings
    attacks: Attacks
    translations: dict[str, str] = field(default_factory=dict)
    """Normalized query -> query in another language."""

    @property
    def shop(self) -> ShopWords:
        return shop_words(self.wordings.language)

    @property
    def other_shop(self) -> ShopWords:
        return shop_words(OTHER_LANGUAGE[self.wordings.language])

    @cached_property
    def best_rules(self) -> list[str]:
        """Ids of the rules for the best tier."""
        return [rule.id for rule in self.rubric.rules if rule.tier == self.rubric.tier_ids[-1]]
