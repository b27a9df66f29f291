"""Finished evaluations read back: one judge against another, all of them in one table."""
