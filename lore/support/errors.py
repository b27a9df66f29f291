"""The base class of all errors that users see. A message says what happened, why it matters and what to change."""


class LoreError(Exception):
    """An error that the author of the recipe, the rubric or the data can fix.

    same_on_every_rank: every process of a launch raises the same error, so only one process per node prints it.
    """

    def __init__(self, message: str, *, same_on_every_rank: bool = False):
        super().__init__(message)
        self.same_on_every_rank = same_on_every_rank
