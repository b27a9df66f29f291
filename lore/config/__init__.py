"""Strict recipes: sections, YAML text, validation, and the table of stages."""
