"""Periodic evaluation of a judge in training: metrics, best weights, collapse rules."""
