"""Errors, files, processes, progress, text, plots: what knows no search relevance and no torch."""
