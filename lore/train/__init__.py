"""Stages that train a judge."""

import lore.support.library_logging  # noqa: F401  has to run before a stage imports these libraries
