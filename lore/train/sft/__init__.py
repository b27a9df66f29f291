"""Supervised fine-tuning of a judge."""
