"""Batch labelling: a judge's verdict for every pair of a search log, each exactly once."""
