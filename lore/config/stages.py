"""The table of stages, and loading of recipe files and grids as typed recipes. Nothing here imports torch."""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lore.config.grid import Grid, grid_run_text, read_grid, split_address
from lore.config.library_names import counterpart
from lore.config.recipe import BaseRecipe
from lore.config.validation import known_as, validate
from lore.config.yaml_text import Problem, RecipeError, RecipeText, read_recipe_text, short
from lore.support.errors import LoreError
from lore.support.nearest import nearest

STAGES = {
    "world": ("lore.data_synth.shop.config:WorldRecipe", "lore.data_synth.shop.write:run"),
    "town": ("lore.data_synth.local_life.config:TownRecipe", "lore.data_synth.local_life.write:run"),
    "words": ("lore.data_synth.shop.config:WordsRecipe", "lore.data_synth.shop.word_matching_corpus:run"),
    "sessions": ("lore.data_synth.shop.config:SessionsRecipe", "lore.data_synth.shop.sessions:run"),
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
    "label": ("lore.label.recipe:LabelRecipe", "lore.label.label:run"),
    "distill": ("lore.distill.config:DistillRecipe", "lore.distill.distill:run"),
    "semantic_ids": ("lore.recommend.config:SemanticIdsRecipe", "lore.recommend.semantic_ids:run"),
    "recommender": ("lore.recommend.recommender_recipe:RecommenderRecipe", "lore.recommend.training:run"),
    "recommend_eval": ("lore.recommend.eval_config:RecommendEvalRecipe", "lore.recommend.evaluate:run"),
    "online": ("lore.online.config:OnlineRecipe", "lore.online.start:run"),
}

RENAMED = {"rair": "evaluate", "base": "pretrain"}
"""Stage names of earlier versions, which old recipes and run folders still use."""


def _named(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


def stage_function(stage: str) -> Any:
    """The function run(recipe, folder) of a stage. Imports the stage's dependencies."""
    return _named(STAGES[stage][1])


def recipe_class(stage: str) -> type[BaseRecipe]:
    """The recipe class of a stage. Does not import torch."""
    return _named(STAGES[stage][0])


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> BaseRecipe:
    """The typed recipe of a file, or of one run of a grid (x.yaml:run). overrides: KEY=VALUE, such as train.lr=2e-4. Raises
    RecipeError with all problems."""
    file, run = split_address(path)
    if run is not None:
        return _typed(grid_run_text(file, run, overrides))
    text = read_recipe_text(path, overrides)
    if "grid" in text.data:
        names = ", ".join(read_grid(path).runs)
        raise RecipeError([Problem(str(path), "", "a grid of several recipes", f"{path}:RUN with one of: {names}")], text.path)
    return _typed(text)


def load_grid(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Grid:
    """All recipes of a grid. Raises RecipeError with the problems of all runs; each problem names a run that has it."""
    text = read_grid(path, overrides)
    recipes: dict[str, BaseRecipe] = {}
    found: dict[Problem, list[str]] = {}
    for name, run in text.runs.items():
        try:
            recipes[name] = _typed(run)
        except RecipeError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(name)
    problems = [*text.problems, *(replace(problem, key=f"{_several(names)}: {problem.key}") for problem, names in found.items())]
    if problems:
        raise RecipeError(problems, text.path)
    return Grid(text.path, text.name, text.names, text.seeds, recipes, text.siblings)


def _several(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def called(option: str, recipe: str | None) -> tuple[str, list[str]] | None:
    """(what else to know, keys) of an option such as --learning_rate or --train.lr: the keys that it has in the recipe, or in any
    stage if the recipe cannot be read. None for an unknown name."""
    name, stage = option.lstrip("-"), None
    if recipe is not None:
        with suppress(LoreError):
            stage = read_recipe_text(recipe).data.get("stage")
    if isinstance(stage, str) and stage in STAGES:
        return known_as(name.replace("-", "_"), recipe_class(stage), _recipe_classes)
    told = counterpart(name)
    return told and (told.note, list(told.keys[:2]))


def _typed(text: RecipeText) -> BaseRecipe:
    stage = text.data.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        found, near = "nothing" if stage is None else short(stage), nearest(str(stage), STAGES)
        if stage in RENAMED:
            found, near = f"{short(stage)}, the name of an earlier version", RENAMED[stage]
        problem = Problem(text.where(("stage",)), "stage", found, f"one of: {', '.join(STAGES)}", near)
        raise RecipeError([*text.problems, problem], text.path)
    return validate(text, recipe_class(stage), _recipe_classes)


def _recipe_classes() -> dict[str, type[BaseRecipe]]:
    return {name: recipe_class(name) for name in STAGES}
