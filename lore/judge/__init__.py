"""Asks a judge about pairs: verdict rows, chunk store, resuming and the judge's card."""
