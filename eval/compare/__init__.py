"""Reads finished evaluations: compares judges pair by pair, and ranks all judges in one table."""
