"""The pairs to label, as batches of QUESTION_SCHEMA, streamed with flat memory.

    given = open_input(recipe.input, Path("labels/work"), rejected)
    for batch in given.batches():
        pairs = pairs_of(pa.Table.from_batches([batch]))

An input is a table of pairs, or a search log (User Behavior Insights, too) joined with a catalogue. Labels in it are ignored. Rows
that are no pairs go to the rejected rows, as in an import; a file that cannot be read stops the run with its name. Photos are not
opened here. Each has its bytes or the absolute path to open; one that may not be read has bytes that say so (see
lore.data.photo_places), and the judge is asked without it.
"""

from lore.label.inputs.open_input import LabelInput, RejectedSink, open_input
from lore.label.inputs.questions import pairs_of

__all__ = ["LabelInput", "RejectedSink", "open_input", "pairs_of"]
