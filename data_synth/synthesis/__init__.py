"""Reasoning for rated pairs, written by a teacher and checked."""
