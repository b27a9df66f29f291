"""Engines run a model: `generate` samples completions, `score` returns tier probabilities."""
