"""Which stages there are, by dotted name, and from a recipe file to the typed recipe of its stage. Nothing here imports torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lore.config.recipe import BaseRecipe
from lore.config.validation import validate
from lore.config.yaml_text import Problem, RecipeError, read_recipe_text, short
from lore.support.nearest import nearest

STAGES = {
    "world": ("lore.data_synth.shop.config:WorldRecipe", "lore.data_synth.shop.write:run"),
    "words": ("lore.data_synth.shop.config:WordsRecipe", "lore.data_synth.shop.word_matching_corpus:run"),
    "synthesize": ("lore.data_synth.synthesis.config:SynthesizeRecipe", "lore.data_synth.synthesis.synthesize:run"),
    "harden": ("lore.data_synth.perturb.config:HardenRecipe", "lore.data_synth.perturb.harden:run"),
    "pretrain": ("lore.train.pretrain.config:PretrainRecipe", "lore.train.pretrain.pretrain:run"),
    "sft": ("lore.train.sft.config:SFTRecipe", "lore.train.sft.sft:run"),
    "pool": ("lore.train.pool.config:PoolRecipe", "lore.train.pool.pool:run"),
    "grpo": ("lore.train.rl.config:GRPORecipe", "lore.train.rl.grpo:run"),
    "ppo": ("lore.train.rl.config:PPORecipe", "lore.train.rl.ppo:run"),
    "dpo": ("lore.train.preference.config:DPORecipe", "lore.train.preference.preference:run"),
    "kto": ("lore.train.preference.config:KTORecipe", "lore.train.preference.preference:run"),
    "evaluate": ("lore.eval.config:EvaluateRecipe", "lore.eval.evaluate:run"),
}

RENAMED = {"rair": "evaluate", "base": "pretrain"}
"""Words of earlier versions, which old recipes and run folders still have."""


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
        found, near = "nothing" if stage is None else short(stage), nearest(str(stage), STAGES)
        if stage in RENAMED:
            found, near = f"{short(stage)}, the name of an earlier version", RENAMED[stage]
        problem = Problem(text.where(("stage",)), "stage", found, f"one of: {', '.join(STAGES)}", near)
        raise RecipeError([*text.problems, problem], text.path)
    return validate(text, recipe_class(stage))
