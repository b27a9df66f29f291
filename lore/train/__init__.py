"""Stages that train a judge."""

import lore.quiet  # noqa: F401  before the libraries that a stage imports
