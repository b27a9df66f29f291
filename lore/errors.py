"""The one error class users see: what happened, why it matters, what to change."""


class LoreError(Exception):
    """An error with a message for the person who wrote the recipe, the rubric or the data."""
