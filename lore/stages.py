"""Which stages there are, by dotted name, and from a recipe file to the typed recipe of its stage. Nothing here imports torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lore.recipe import BaseRecipe
from lore.recipe_check import validate
from lore.recipe_file import Problem, RecipeError, nearest, read_recipe_text, short

STAGES = {
    "world": ("lore.data_synth.config:WorldRecipe", "lore.data_synth.world_stage:run"),
    "words": ("lore.data_synth.config:WordsRecipe", "lore.data_synth.words:run"),
    "synthesize": ("lore.data_synth.synth_config:SynthesizeRecipe", "lore.data_synth.synthesize:run"),
    "harden": ("lore.data_synth.config:HardenRecipe", "lore.data_synth.harden:run"),
    "base": ("lore.train.config:BaseModelRecipe", "lore.train.base:run"),
    "sft": ("lore.train.config:SFTRecipe", "lore.train.sft:run"),
    "pool": ("lore.train.pool_config:PoolRecipe", "lore.train.pool:run"),
    "grpo": ("lore.train.align_config:GRPORecipe", "lore.train.grpo:run"),
    "ppo": ("lore.train.align_config:PPORecipe", "lore.train.ppo:run"),
    "dpo": ("lore.train.preference_config:DPORecipe", "lore.train.preference:run"),
    "kto": ("lore.train.preference_config:KTORecipe", "lore.train.preference:run"),
    "rair": ("lore.eval.config:RairRecipe", "lore.eval.rair:run"),
}


def _named(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


def stage_function(stage: str) -> Any:
    """run(recipe, folder) of a stage; imports what it needs."""
    return _named(STAGES[stage][1])


def recipe_class(stage: str) -> type[BaseRecipe]:
    """The recipe class of a stage; imports no torch."""
    return _named(STAGES[stage][0])


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> BaseRecipe:
    """The typed recipe of a file with `train.lr=2e-4` style overrides. Raises RecipeError with every problem found."""
    text = read_recipe_text(path, overrides)
    stage = text.data.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        found = "nothing" if stage is None else short(stage)
        problem = Problem(text.where(("stage",)), "stage", found, f"one of: {', '.join(STAGES)}", nearest(str(stage), STAGES))
        raise RecipeError([*text.problems, problem], text.path)
    return validate(text, recipe_class(stage))
