"""Shared helpers without search relevance and without torch: errors, files, processes, progress, text, plots."""
