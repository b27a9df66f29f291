"""Recipe of stage harden. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict
from lore.data.section import JudgedDataSection
from lore.support.nearest import nearest


class HardenRecipe(BaseRecipe):
    """Perturbs a share of the training pairs as sellers and shoppers would. Labels and reasoning stay."""

    result_files = frozenset({"pairs"})

    stage: Literal["harden"] = "harden"
    data: JudgedDataSection
    """Pairs with their reasoning, as stage synthesize writes them. Only split train, and pairs without a split, are perturbed."""
    language: Literal["en", "zh"] = "en"
    """Language of the inserted texts; see data_synth/perturb/perturbations."""
    share: float = Field(0.5, gt=0, le=1)
    """Share of the training pairs to perturb; each gets one perturbation."""
    perturbations: list[str] | None = Field(None, min_length=1)
    """Names to draw from (see docs/robustness.md); null: every injection."""
    copies: bool = False
    """true: keep the original pair and add the perturbed copy with its own pair_id; false: replace the pair by the copy."""

    def names(self) -> list[str]:
        """The perturbations to draw from."""
        from lore.data_synth.perturb.perturb import PERTURBATIONS  # loads pyarrow: only for this stage

        injections = [name for name, perturbation in PERTURBATIONS.items() if perturbation.kind == "injection"]
        return injections if self.perturbations is None else list(dict.fromkeys(self.perturbations))

    def conflicts(self) -> Iterator[Conflict]:
        from lore.data_synth.perturb.perturb import PERTURBATIONS  # loads pyarrow: only for this stage

        usable = [name for name, perturbation in PERTURBATIONS.items() if perturbation.keeps_reasoning]
        for name in self.perturbations or ():
            if name not in PERTURBATIONS:
                yield Conflict(("perturbations",), name, f"some of: {', '.join(usable)}", nearest(name, usable))
            elif name not in usable:
                expected = f"no {name}: a rationale that quotes the pair would become wrong. Some of: {', '.join(usable)}"
                yield Conflict(("perturbations",), name, expected)

    def derived(self) -> dict[str, Any]:
        return {"drawn_from": self.names(), "wordings": "train"}
