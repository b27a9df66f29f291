"""Asking a judge about pairs: the verdict row, the answer store, resuming, the judge's card."""
