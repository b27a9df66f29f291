"""Stages that train a judge."""
