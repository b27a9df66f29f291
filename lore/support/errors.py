"""The one error class users see: what happened, why it matters, what to change."""


class LoreError(Exception):
    """An error with a message for the person who wrote the recipe, the rubric or the data.

    same_on_every_rank: every process of a launch meets it alike, so that one of a node shows it.
    """

    def __init__(self, message: str, *, same_on_every_rank: bool = False):
        super().__init__(message)
        self.same_on_every_rank = same_on_every_rank
