"""The pairs of one split as arrays, without texts and photos: the input of the metrics. Judges stream the pairs
themselves."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lore.data.pair import Pair, query_key
from lore.data.splits import read_split
from lore.eval.derived_slices import derived_slices
from lore.eval.measures.agreement import Ratings
from lore.eval.measures.bootstrap import query_groups
from lore.eval.measures.results import Ceiling
from lore.rubric.computed_rules import computed_of
from lore.rubric.rubric import Rubric
from lore.support.bounds import MAX_WEIGHT
from lore.support.errors import LoreError

LIGHT = ["pair_id", "query", "title", "label", "label_weight", "slices", "query_frequency", "category", "mismatch"]
SHOWN_IDS = 5


@dataclass
class Labeled:
    """Labeled pairs of one split. Every list and array has one entry per pair, in file order."""

    split: str
    pair_ids: list[str]
    queries: list[str]
    gold: np.ndarray
    weights: np.ndarray
    slices: list[list[str]]
    """Pairs in the same slices may share one list, which saves memory."""
    unlabeled: int = 0
    """Number of pairs of the split without a label; they cannot be scored."""
    repeated: int = 0
    """Number of rows that repeat an earlier pair and its label; each pair counts once."""
    computed: list[list[str]] | None = None
    """The rules among the pair's demands that a program has computed; None for a rubric without computed dimensions."""

    def __post_init__(self):
        one: dict[str, str] = {}  # equal keys are stored once
        keys = (query_key(query, names) for query, names in zip(self.queries, self.slices, strict=True))
        self.query_keys = [one.setdefault(key, key) for key in keys]
        self.groups = query_groups(self.query_keys)
        self.position = {pair_id: index for index, pair_id in enumerate(self.pair_ids)}
        memberships: dict[tuple[str, ...], int] = {}
        self._membership = np.asarray([memberships.setdefault(tuple(names), len(memberships)) for names in self.slices], np.int64)
        self._memberships = [frozenset(names) for names in memberships]

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def n_queries(self) -> int:
        return len(np.unique(self.groups))

    def in_slice(self, name: str) -> np.ndarray:
        inside = np.asarray([name in names for names in self._memberships], dtype=bool)
        return inside[self._membership] if len(self) else np.zeros(0, dtype=bool)

    def __str__(self) -> str:
        remarks = [f"{self.unlabeled} more without a label"] * bool(self.unlabeled)
        remarks += [f"{self.repeated} repeated rows counted once"] * bool(self.repeated)
        in_brackets = f" ({', '.join(remarks)})" if remarks else ""
        return f"{len(self)} pairs of {self.n_queries} queries of split {self.split}{in_brackets}"

    def slice_sizes(self) -> dict[str, int]:
        """Pairs per slice, the largest first."""
        sizes: dict[str, int] = {}
        for names, pairs in zip(self._memberships, np.bincount(self._membership).tolist(), strict=True):
            for name in names:
                sizes[name] = sizes.get(name, 0) + pairs
        return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))


@dataclass
class EvalData:
    """The data that every judge is measured on."""

    path: Path
    rubric: Rubric
    test: Labeled
    dev: Labeled | None
    """The pairs that temperatures are fitted on. None if the data has none or calibration is off."""
    ceiling: Ceiling | None = None
    """Agreement among raters, if single raters' labels are given."""
    ratings: Ratings | None = None
    """Single raters' labels."""
    image_roots: tuple[Path, ...] = ()
    """See PairSource.image_roots."""

    @property
    def parts(self) -> list[Labeled]:
        return [self.test] if self.dev is None else [self.test, self.dev]


def load_split(
    path: Path,
    split: str,
    rubric: Rubric,
    *,
    slices: list[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    fractions: dict[str, float] | None = None,
) -> Labeled:
    """The labeled pairs of a split, with the slices of the data and those of `derived_slices`. limit: number of pairs, reached
    with whole queries in an order that depends only on the seed. fractions: for pairs without a split, see read_split."""
    ids, queries, gold, weights, names = [], [], [], [], []
    frequencies, industries, mismatches = [], [], []
    has_computed, computed = any(dimension.computed for dimension in rubric.dimensions), []
    one: dict = {}  # equal texts are stored once: a million pairs have few categories and few sets of slices
    unlabeled, repeated, label_of, conflicting = 0, 0, {}, []
    for pair in read_split(path, split, fractions, columns=[*LIGHT, "demands"] if has_computed else LIGHT):
        if slices is not None and not set(slices) & set(pair.slices):
            continue
        if pair.label is None:
            unlabeled += 1
            continue
        if pair.pair_id in label_of:
            repeated += 1
            if pair.label != label_of[pair.pair_id]:
                conflicting.append(pair.pair_id)
            continue
        label_of[pair.pair_id] = pair.label
        ids.append(pair.pair_id)
        queries.append(one.setdefault(pair.query, pair.query))
        gold.append(rubric.index(pair.label))
        weights.append(pair.label_weight)
        names.append(one.setdefault(tuple(pair.slices), list(pair.slices)))
        frequencies.append(pair.query_frequency)
        industries.append(one.setdefault(pair.category, pair.category))
        mismatches.append(one.setdefault(pair.mismatch, pair.mismatch))
        computed.append(computed_of(rubric, (demand.rule for demand in pair.demands)))
    if conflicting:
        raise LoreError(
            f"{path}, split {split}: {len(conflicting)} pair ids appear twice with two labels "
            f"({', '.join(conflicting[:SHOWN_IDS])}), so the same verdict would be right and wrong. `lore data check` "
            "shows the first ones with their rows. To keep the first row of each pair, run `lore data check FILE "
            "--drop-duplicates -o CLEAN.parquet` (pairs files) or set data.options: {drop_duplicates: true} (other sources)."
        )
    if heavy := [one for one, weight in zip(ids, weights, strict=True) if not 0 <= weight <= MAX_WEIGHT]:
        raise LoreError(
            f"{path}, split {split}: label_weight of {len(heavy):,} pairs ({', '.join(heavy[:SHOWN_IDS])}) is not between 0 and "
            f"{MAX_WEIGHT:,.0f}, so weighted results would be no numbers. `lore data check` names the rows: correct them."
        )
    keys = [query_key(query, given) for query, given in zip(queries, names, strict=True)]
    names = derived_slices(names, keys, frequencies, industries, mismatches)
    keep = whole_queries(keys, limit, seed)
    return Labeled(
        split,
        [ids[i] for i in keep],
        [queries[i] for i in keep],
        np.asarray(gold, dtype=np.int64)[keep],
        np.asarray(weights, dtype=np.float64)[keep],
        [names[i] for i in keep],
        unlabeled,
        repeated,
        [computed[i] for i in keep] if has_computed else None,
    )


def whole_queries(queries: list[str], limit: int | None, seed: int) -> np.ndarray:
    """Indices of whole queries, in file order, that together reach `limit` pairs (all pairs if there are no more). queries: the
    key of each pair's query, see lore.data.pair.query_key."""
    if limit is None or len(queries) <= limit:
        return np.arange(len(queries))
    sizes: dict[str, int] = {}
    for query in queries:
        sizes[query] = sizes.get(query, 0) + 1
    order = sorted(
        sizes,
        key=lambda query: hashlib.blake2b(f"{seed} {query}".encode(errors="surrogatepass"), digest_size=8).digest(),
    )
    chosen, total = set(), 0
    for query in order:
        if total >= limit:
            break
        chosen.add(query)
        total += sizes[query]
    return np.asarray([i for i, query in enumerate(queries) if query in chosen], dtype=np.int64)


def read_chosen(
    path: Path,
    split: str,
    wanted: Iterable[str],
    columns: list[str] | None = None,
    *,
    image_roots: Iterable[Path] = (),
    fractions: dict[str, float] | None = None,
) -> Iterator[Pair]:
    """Streams the pairs of a split whose id is in `wanted`, each once. image_roots, fractions: see read_split."""
    left = set(wanted)
    for pair in read_split(path, split, fractions, columns=columns, image_roots=image_roots):
        if pair.pair_id in left:
            left.remove(pair.pair_id)
            yield pair
        if not left:
            return
