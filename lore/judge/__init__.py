"""Asking a judge about pairs: the verdict row, the chunk store, resuming, the judge's card."""
