"""The pairs to label, as batches of QUESTION_SCHEMA, streamed with flat memory."""

from lore.label.inputs.open_input import LabelInput, open_input
from lore.label.inputs.pairs import pairs_of

__all__ = ["LabelInput", "open_input", "pairs_of"]
