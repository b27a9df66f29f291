"""GRPO: the judge's own answers, rewarded against the rater's verdict and compared within groups, on TRL's GRPOTrainer.

Beside the textbook method (arXiv 2402.03300): clip-higher and the token-level loss of DAPO, no KL by default, dynamic sampling,
guided replay, an SFT term and clamped advantages, each a section or key of the recipe. Left out: rewards by another model and
tools.

    accelerate launch recipes/quickstart/grpo.yaml
"""

from lore.run.run_folder import RunFolder
from lore.train.rl.config import GRPORecipe
from lore.train.rl.rollout_trainer import JudgeRollouts
from lore.train.rl.setup import Setup, run_trainer, set_up, trainer_arguments


def run(recipe: GRPORecipe, folder: RunFolder) -> None:
    """Trains and leaves the best adapter (or model) by the watch, its processor and its card in <run>/model."""
    setup, trainer = prepare(recipe, folder)
    run_trainer(setup, trainer, "grpo")


def prepare(recipe: GRPORecipe, folder: RunFolder) -> tuple[Setup, JudgeRollouts]:
    """The trainer, ready for its first step."""
    loss = recipe.grpo
    setup = set_up(recipe, folder, loss, loss_type=loss.loss, scale_rewards=loss.scale)
    return setup, JudgeRollouts(**trainer_arguments(setup))
