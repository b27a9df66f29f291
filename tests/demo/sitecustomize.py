"""Registers the stages of demo_stage.py in every Python process that a test starts with this folder on its path."""

import lore.config.stages

lore.config.stages.STAGES["demo"] = ("demo_stage:DemoRecipe", "demo_stage:run")
lore.config.stages.STAGES["train_demo"] = ("demo_stage:TrainDemoRecipe", "demo_stage:train")
