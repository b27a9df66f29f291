"""Rewards of answers: plain functions and their weighted mean, without torch. For reinforcement, preferences and thumbs alike.

rewards = Rewards(RewardsSection(), rubric, fmt)
print_self_test(self_test(rewards, pairs))
answers = [rewards.read(text, tokens) for text, tokens in completions]
totals = rewards.totals(rewards.parts(answers, pairs))
"""

from lore.rewards.components import Answer
from lore.rewards.config import RewardsSection
from lore.rewards.reward import Rewards
from lore.rewards.self_test import print_self_test, self_test

__all__ = ["Answer", "Rewards", "RewardsSection", "print_self_test", "self_test"]
