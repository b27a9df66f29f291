"""What TRL's side of vLLM has to be told for rollouts: which weights are vLLM's, and how long a prompt with its answer may be."""

from collections.abc import Iterator
from typing import Any

from lore.train.judge.rows import takes_photos
from lore.train.judge.session import Start
from lore.train.rl.config import RolloutRecipe
from lore.train.rl.value_head import HEAD


def longest(recipe: RolloutRecipe, start: Start) -> int:
    """Tokens of the longest prompt with its answer. A photo's tokens come on top of prompt.max_prompt_tokens, and train.max_tokens
    has room for them. An answer that begins with gold reasoning is as long again."""
    text = recipe.prompt.max_prompt_tokens + recipe.rollout.max_tokens * (1 if recipe.guided is None else 2)
    return max(text, recipe.train.max_tokens) if takes_photos(start.processor, start.fmt) else text


def send_only_the_judge(generation: Any) -> None:
    """Has TRL's VLLMGeneration leave out what vLLM's model has no name for and would refuse: PPO's value head, and the reference
    adapter's copies of whole modules."""
    named = generation._iter_named_params

    def judges() -> Iterator[tuple[str, Any]]:
        return ((name, weight) for name, weight in named() if HEAD not in name and ".modules_to_save." not in name)

    generation._iter_named_params = judges
