"""Labels from the verdict store, as label files of this folder: earlier verdicts of the same judge about the same content.

The store is only an index of label files. If it is damaged, full or locked, the run says so and goes on without it.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa

from lore.label.ledger import Ledger
from lore.label.store import VerdictStore
from lore.support.errors import LoreError
from lore.support.terminal import print_note

OF_THE_PAIR = ("pair_id", "query", "item_id", "query_frequency", "slices", "content")
T = TypeVar("T")


class StoredLabels:
    """The verdict store for the judge of one ledger. only_counts: `label` commits nothing."""

    def __init__(self, store: VerdictStore, ledger: Ledger):
        self.store, self.ledger, self.only_counts = store, ledger, False
        self._off = False

    def ingest(self) -> None:
        """Adds label files that are not in the store yet, for example because a run was killed after a commit."""
        self._unless_off(lambda: self.store.add_missing(self.ledger.stamp, self.ledger.files()), 0)

    def add(self, name: str, verdicts: pa.Table) -> None:
        """Adds the verdicts of a committed shard."""
        if verdicts.num_rows:
            self._unless_off(lambda: self.store.put(self.ledger.stamp, verdicts, name), 0)

    def label(self, name: str, questions: pa.Table) -> np.ndarray:
        """See lore.label.plan.Known."""
        contents = questions.column("content").to_pylist()
        if self.only_counts:
            known = self._unless_off(lambda: self.store.known(self.ledger.stamp, dict.fromkeys(contents)), set())
            return np.fromiter((content in known for content in contents), bool, len(contents))
        found = self._unless_off(lambda: self.store.get(self.ledger.stamp, dict.fromkeys(contents)), {})
        have = np.fromiter((content in found for content in contents), bool, len(contents))
        if have.any():
            kept = questions.filter(pa.array(have))
            columns = [kept.column(one).to_pylist() for one in (*OF_THE_PAIR, "asked_before")]
            rows = []
            for *own, before in zip(*columns, strict=True):
                row = found[own[-1]] | dict(zip(OF_THE_PAIR, own, strict=True))
                rows.append(row | {"attempts": before + 1, "slices": row["slices"] or []})
            table = pa.Table.from_pylist(rows, schema=self.ledger.schema)
            self.ledger.commit(name, table, table.slice(0, 0))
        return have

    def _unless_off(self, use: Callable[[], T], otherwise: T) -> T:
        if self._off:
            return otherwise
        try:
            return use()
        except LoreError as error:
            self._off = True
            print_note(f"warning: the run goes on without the verdict store. {error}")
            return otherwise
