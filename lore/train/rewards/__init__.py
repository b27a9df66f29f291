"""Rewards of answers: plain functions and their weighted mean, without torch. For reinforcement, preferences and thumbs alike.

rewards = Rewards(RewardsSection(), rubric, fmt)
print_self_test(self_test(rewards, pairs))
answers = [rewards.read(text, tokens) for text, tokens in completions]
totals = rewards.totals(rewards.parts(answers, pairs))
"""

from lore.train.rewards.config import RewardsSection
from lore.train.rewards.parts import Answer
from lore.train.rewards.proof import print_self_test, self_test
from lore.train.rewards.rewards import Rewards

__all__ = ["Answer", "Rewards", "RewardsSection", "print_self_test", "self_test"]
