"""Shared by all stages that train a judge: setup, training rows, collator and image store."""
