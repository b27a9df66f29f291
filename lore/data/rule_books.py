"""Rule books of pairs that are not rated under the rubric of the whole data: `Pair.rubric` names a rubric file beside the pairs.

Stage sft trains each pair under its own book. Every other stage knows one rubric and refuses such pairs: `under_one_rubric`.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lore.data.pair import Pair
from lore.rubric.demand import read_demands
from lore.rubric.rubric import Rubric, load_rubric
from lore.support.errors import LoreError
from lore.support.text import printable


class RuleBooks:
    """The rule book of each pair. folders: of the pairs' files; rubric: of pairs that name none."""

    def __init__(self, folders: Iterable[Path], rubric: Rubric):
        self.folders, self.rubric = [folder.resolve() for folder in folders], rubric
        self._books: dict[str, Rubric] = {}
        self._refused: dict[str, str] = {}  # why, so that a damaged book is read once and not for each of its pairs

    def of(self, pair: Pair) -> Rubric:
        """Raises LoreError for a book that is missing, lies elsewhere or has other tiers, and for a label or a rationale that
        contradicts the pair's own book."""
        if pair.rubric is None:
            return self.rubric
        if why := self._refused.get(pair.rubric):
            raise LoreError(why)
        if pair.rubric not in self._books:
            try:
                self._books[pair.rubric] = self._read(pair.rubric)
            except LoreError as error:
                self._refused[pair.rubric] = str(error)
                raise
        book = self._books[pair.rubric]
        if why := contradiction(pair, book):
            name = printable(pair.rubric[:200])
            raise LoreError(f"{why}, in the pair's rule book {name}. Rate it under this book, or name the book of its label.")
        return book

    def _read(self, name: str) -> Rubric:
        paths = book_files(self.folders, name)
        if not paths:
            where = ", ".join(map(str, self.folders[:3]))
            raise LoreError(
                f"The rule book {printable(name[:200])} of a pair is not a .yaml file below {where}, where the pairs lie, so the "
                "rules behind its label are unknown. Copy the books along with the pairs."
            )
        books = {load_rubric(path).hash: path for path in paths}
        if len(books) > 1:
            one, other = list(books.values())[:2]
            raise LoreError(
                f"{one} and {other} are different rule books of one name, and a pair that names {printable(name[:200])} does not "
                "say which of them its label follows. Rename one, or read the folders in runs of their own."
            )
        path = paths[0]
        book = load_rubric(path)
        if book.tier_ids != self.rubric.tier_ids:
            raise LoreError(
                f"{path} has the tiers {', '.join(book.tier_ids)}, and data.rubric {self.rubric.name} has "
                f"{', '.join(self.rubric.tier_ids)}. One judge gives one scale of verdicts: use the same tiers in both."
            )
        return book


def under_one_rubric(pairs: Iterable[Pair], path: str | Path) -> Iterator[Pair]:
    """Pairs of `path` whose labels follow data.rubric. Raises LoreError at the first labeled pair with a book of its own."""
    for pair in pairs:
        if pair.rubric is not None and pair.label is not None:
            raise LoreError(
                f"Pair {printable(pair.pair_id[:80])} of {path} is rated under a rule book of its own, "
                f"{printable(pair.rubric[:200])}, and this stage knows data.rubric only, so its label would be wrong. Stage sft "
                "trains on such pairs; for other stages use pairs that are rated under data.rubric."
            )
        yield pair


def book_files(folders: Iterable[Path], name: str) -> list[Path]:
    """The file of a book below each of `folders` that has it. A name cannot lead out of a folder."""
    found = []
    for folder in folders if name.endswith((".yaml", ".yml")) else ():
        with suppress(OSError, RuntimeError, ValueError):  # a name that no file can have, or a link in a circle
            path = (folder / name).resolve()
            if path.is_relative_to(folder.resolve()) and path.is_file():
                found.append(path)
    return found


def contradiction(pair: Pair, book: Rubric) -> str | None:
    """Why a pair's label and rationale cannot come from a book; None if they may."""
    tiers = {rule.id: rule.tier for rule in book.rules}
    demands = read_demands(pair.rationale or "")
    for demand in demands:
        if demand and demand.tier and demand.tier != tiers.get(demand.rule, demand.tier):
            return f"the rationale gives {demand.rule} the tier {demand.tier}, and it is {tiers[demand.rule]}"
    if demands and all(demand and demand.tier in book.tier_ids for demand in demands):
        verdict = book.verdict_over([demand.tier for demand in demands])
        if verdict not in (None, pair.label):
            return f"the label is {pair.label}, and {verdict} follows from the rationale"
    return None
