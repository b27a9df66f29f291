"""Reinforcement learning: stages grpo and ppo."""
