"""The program teacher: computes the answers of all steps by executing the rubric, without a model. There are two programs:

- shop (lore.data_synth.shop.oracle_teacher): the embedded shop, exactly;
- words (program_words.py): any rated pairs, by finding the words of the query in title, attributes and description.

`errors` makes a share of the answers wrong, as a large model's are, to measure the checks.
"""

import json
import random
from dataclasses import asdict
from typing import Protocol

from lore.data.pair import Pair
from lore.data_synth.synthesis.facts import Fact
from lore.data_synth.synthesis.trace import Evidence, Ruling, Wish
from lore.rubric.rubric import Rubric


class Program(Protocol):
    """Three capabilities as plain functions. Each may raise Unreadable for a pair that it cannot solve."""

    name: str

    def knowledge(self, pair: Pair, facts: list[Fact]) -> list[Wish]:
        """The demands of the query; the kind of thing comes first."""

    def multimodal(self, pair: Pair, wishes: list[Wish], facts: list[Fact]) -> list[Evidence]:
        """What the item offers, one finding per demand."""

    def rules(self, pair: Pair, wishes: list[Wish], evidence: list[Evidence]) -> list[Ruling]:
        """The rule of each demand; fewer if one of them already makes the item irrelevant."""


class ProgramTeacher:
    """Answers every step in the format that the prompts ask of a language model."""

    def __init__(self, program: Program, rubric: Rubric, errors: float = 0.0):
        self.program, self.rubric, self.errors = program, rubric, errors
        self.name = f"program:{program.name}" + (f" with {errors:g} errors" if errors else "")

    def knowledge(self, pair: Pair, facts: list[Fact], draw: int) -> str:
        wishes = self.program.knowledge(pair, facts)
        rng = self._slips(pair, "knowledge", draw)
        if rng and len(wishes) > 1 and rng.random() < 0.5:
            del wishes[rng.randrange(1, len(wishes))]  # misses a demand
        elif rng:
            wish = rng.choice(wishes)
            wish.wanted = self._other(rng, wish.wanted, [w.wanted for w in wishes])
        return _json(demands=[asdict(wish) for wish in wishes])

    def multimodal(self, pair: Pair, wishes: list[Wish], facts: list[Fact], draw: int) -> str:
        evidence = self.program.multimodal(pair, wishes, facts)
        if rng := self._slips(pair, "multimodal", draw):
            found = rng.choice(evidence)
            found.found = self._other(rng, found.found, [e.found for e in evidence] + [w.wanted for w in wishes])
        return _json(evidence=[asdict(found) for found in evidence])

    def rules(self, pair: Pair, wishes: list[Wish], evidence: list[Evidence], draw: int) -> str:
        rulings = self.program.rules(pair, wishes, evidence)
        if rng := self._slips(pair, "rules", draw):
            at = rng.randrange(len(rulings))
            same = [r for r in self.rubric.rules if r.dimension == wishes[at].dimension and r.id != rulings[at].rule]
            rule = rng.choice(same or self.rubric.rules)
            rulings[at] = Ruling(rule.id, rule.tier)
        verdict = self.rubric.verdict_over([ruling.tier for ruling in rulings])
        return _json(rulings=[asdict(ruling) for ruling in rulings], verdict=verdict)

    def _slips(self, pair: Pair, step: str, draw: int) -> random.Random | None:
        """A random generator if this answer must contain an error, else None. Other draws of the same pair err independently."""
        rng = random.Random(f"{pair.pair_id}/{step}/{draw}")
        return rng if rng.random() < self.errors else None

    def _other(self, rng: random.Random, value: str, nearby: list[str]) -> str:
        return rng.choice([text for text in nearby if text != value] or [f"{value}er"])


def _json(**value) -> str:
    return json.dumps(value, ensure_ascii=False)
