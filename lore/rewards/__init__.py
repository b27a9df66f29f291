"""Rewards of answers: pure functions and their weighted mean, without torch. Used by RL, preference data and user feedback.

    rewards = Rewards(RewardsSection(), rubric, fmt)            # lore.rewards.reward, lore.rewards.config
    print_self_test(self_test(rewards, pairs))                  # lore.rewards.self_test
    answers = [rewards.read(text, tokens) for text, tokens in completions]
    totals = rewards.totals(rewards.parts(answers, pairs))
"""
