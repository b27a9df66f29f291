"""Stages that train a judge."""

import lore.support.library_logging  # noqa: F401  before the libraries that a stage imports
