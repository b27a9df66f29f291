"""The steps of accepted traces as separate tasks, to train single capabilities beside judging (`auxiliary` of an SFT recipe). The
prompt is the step's prompt without facts; the answer comes from the accepted trace.

    tasks/<step>.parquet   task, pair_id, label, messages (JSON), completion, image
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.images import ImageError
from lore.data.pair import PAIR_SCHEMA, Pair
from lore.data.photo_places import PhotoPlaces, as_stored
from lore.data.tables.text_tables import parquet_records
from lore.data_synth.synthesis import knowledge, multimodal, rules
from lore.data_synth.synthesis.teacher_prompts import Prompts
from lore.data_synth.synthesis.trace import Evidence, Trace, Wish
from lore.engines.chat import without_images
from lore.support.atomic_files import written_whole
from lore.support.errors import LoreError, reason
from lore.support.untrusted_json import parse_json

BATCH = 500
SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("task", "pair_id", "label", "messages", "completion")],
        PAIR_SCHEMA.field("image"),
    ]
)


class TaskWriter:
    """Writes the rows of one step to an open file."""

    def __init__(self, file: pq.ParquetWriter, step: str, prompts: Prompts):
        self.file, self.step, self.prompts = file, step, prompts
        self._rows: list[dict[str, Any]] = []
        self._last_query: str | None = None

    def write(self, pair: Pair, trace: Trace) -> None:
        """Adds the step of an accepted trace. For neighboring pairs with the same query, knowledge is written once."""
        if self.step == "knowledge" and pair.query == self._last_query:
            return
        self._last_query = pair.query
        self._rows.append(task_row(self.step, pair, trace, self.prompts))
        if len(self._rows) >= BATCH:
            self.flush()

    def flush(self) -> None:
        self.file.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows = []


@contextmanager
def task_file(folder: Path, step: str, prompts: Prompts) -> Iterator[TaskWriter]:
    """Opens the file of one step. The file appears when the block ends without an error."""
    with written_whole(folder / f"{step}.parquet") as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as parquet:
        writer = TaskWriter(parquet, step, prompts)
        yield writer
        writer.flush()


def task_row(step: str, pair: Pair, trace: Trace, prompts: Prompts) -> dict[str, Any]:
    """One training example of a step."""
    demands = trace.demands
    words = [*trace.words, *[""] * len(demands)]
    wishes = [Wish(d.dimension, said, d.wanted) for d, said in zip(demands, words, strict=False)]
    evidence = [Evidence(d.found, d.source) for d in demands]
    photo = step == "multimodal" and pair.image is not None
    if step == "knowledge":
        messages = knowledge.prompt(prompts, pair, [])
        answer = {"demands": [{"dimension": w.dimension, "words": w.words, "wanted": w.wanted} for w in wishes]}
    elif step == "multimodal":
        try:
            messages = multimodal.prompt(prompts, pair, wishes, [], caption=None, photo=photo)
        except ImageError:  # the teacher did not need the photo either
            photo, messages = False, multimodal.prompt(prompts, pair, wishes, [], caption=None, photo=False)
        answer = {"evidence": [{"found": e.found, "source": e.source} for e in evidence]}
    else:
        messages = rules.prompt(prompts, pair, wishes, evidence, None)
        answer = {"rulings": [{"rule": d.rule, "tier": d.tier} for d in demands], "verdict": trace.tier}
    return {
        "task": step,
        "pair_id": pair.pair_id,
        "label": pair.label,
        "messages": json.dumps([without_images(message) for message in messages], ensure_ascii=False),
        "completion": json.dumps(answer, ensure_ascii=False),
        "image": as_stored(pair.image) if photo else None,
    }


def read_tasks(files: list[Path], image_roots: Iterable[Path] = ()) -> Iterator[dict[str, Any]]:
    """The rows of task files, with messages as Python values. Raises LoreError for a file that is damaged or lacks a column.
    image_roots: see read_pairs."""
    hint = "A run of stage synthesize with `tasks` writes such a file, tasks/<step>.parquet."
    for file in files:
        places = PhotoPlaces(file.parent, image_roots)
        for number, row in parquet_records(file, SCHEMA.names, batch_rows=BATCH, hint=hint):
            yield row | {"messages": _messages(file, number, row["messages"], hint), "image": places.placed(row["image"])}


def _messages(file: Path, row: int, text: Any, hint: str) -> list[dict[str, Any]]:
    try:
        messages = parse_json(text)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError("no list of messages")
    except (ValueError, TypeError) as error:
        raise LoreError(f"{file}, row {row}: its messages are damaged ({reason(error)}), so there is no prompt.\n{hint}") from error
    return messages
