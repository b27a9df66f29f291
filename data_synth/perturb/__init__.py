"""Perturbed pairs: sellers' injections, harmless rewrites, shuffles."""
