"""Perturbed pairs: prompt injections by sellers, harmless rewrites, shuffles."""
