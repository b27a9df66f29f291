"""Engines run a model: `generate` writes answers, `score` reads tier probabilities."""
