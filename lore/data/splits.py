"""Splits by hash. All pairs of a query (or of an item) are in the same split, also after more data is added."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from lore.data.pair import Pair
from lore.data.parquet import PairWriter, count_pairs, count_unsplit, is_pairs_file, read_metadata, read_pairs
from lore.data.photo_places import as_stored, common_folder, refuse_photo, stay_elsewhere
from lore.data.rule_books import under_one_rubric
from lore.support.errors import LoreError
from lore.support.outputs import Output, checked_outputs
from lore.support.progress import track
from lore.support.terminal import print_note
from lore.support.text import normalize

FRACTIONS = {"train": 0.7, "dev": 0.1, "test": 0.2}


def split_of(query: str, fractions: dict[str, float] | None = None, seed: int = 0) -> str:
    """The split of a query. Case and spacing do not matter; another seed reassigns the queries. One text in several markets stays
    in one split, so that its words do not leak."""
    fractions = FRACTIONS if fractions is None else fractions
    check_fractions(fractions)
    digest = hashlib.blake2b(normalize(query).encode(errors="surrogatepass"), digest_size=8, key=str(seed).encode()).digest()
    point, edge = int.from_bytes(digest, "little") / 2**64, 0.0
    for name, share in fractions.items():
        edge += share
        if point < edge:
            return name
    return [name for name, share in fractions.items() if share > 0][-1]  # the shares may sum to slightly less than 1


def deal(pair: Pair, fractions: dict[str, float], seed: int = 0) -> None:
    """Gives a pair without a split the split of its query. Every way to pairs uses this rule with the same seed: a recipe on a csv
    file, a recipe on imported pairs, and `lore data split`."""
    if pair.split is None:
        pair.split = split_of(pair.query, fractions, seed)


def read_split(
    path: str | Path,
    split: str | None,
    fractions: dict[str, float] | None,
    *,
    columns: list[str] | None = None,
    limit: int | None = None,
    image_roots: Iterable[str | Path] | None = None,
) -> Iterator[Pair]:
    """The pairs of a split as `read_pairs` streams them. A pair without a split is in the one of its query; such a file is read
    whole. fractions: None deals no splits. split: None reads all pairs. Raises LoreError at a label under another rule book."""
    columns = columns and [*columns, "rubric"]
    if split is None or fractions is None or not count_unsplit(path):
        pairs = read_pairs(path, split=split, columns=columns, limit=limit, image_roots=image_roots)
        return under_one_rubric(pairs, path)
    pairs = read_pairs(path, columns=columns and [*columns, "split"], image_roots=image_roots)
    chosen = (pair for pair in pairs if (pair.split or split_of(pair.query, fractions)) == split)
    return islice(under_one_rubric(chosen, path), limit)


def dealt_as(fractions: dict[str, float]) -> str:
    """Shares for a message: `70/10/20 by query (train/dev/test)`."""
    return f"{'/'.join(f'{100 * share:g}' for share in fractions.values())} by query ({'/'.join(fractions)})"


def check_fractions(fractions: dict[str, float]) -> None:
    total = sum(fractions.values())
    # `abs(total - 1) > 1e-6` would be false for nan.
    fits = abs(total - 1) <= 1e-6 and all(share >= 0 and name.strip() for name, share in fractions.items())
    if not fractions or not fits:
        raise LoreError(
            f"Split shares {fractions} sum to {total:g}; expected named shares of at least 0 that sum to 1, such as {FRACTIONS}."
        )


def split_pairs(
    path: str | Path,
    out: str | Path,
    *,
    by: str = "query",
    fractions: dict[str, float] | None = None,
    seed: int = 0,
    replace: bool = False,
    force: bool = False,
) -> Counter[str]:
    """Writes the pairs with `split` set and returns the number of pairs per split. by: query or item. Raises LoreError if a pair
    already has a split, unless `replace` is set. `out` may be the file itself. force: replace a file that is no pairs file.
    """
    keys: dict[str, Callable[[Pair], str]] = {
        "query": lambda pair: pair.query,
        "item": lambda pair: pair.item_id or pair.title,
    }
    if by not in keys:
        raise LoreError(
            f"Splits are made by {' or '.join(keys)}, not by {by!r}: a query in both train and test would leak its words."
        )
    check_fractions(FRACTIONS if fractions is None else fractions)
    counts: Counter[str] = Counter()
    named, info = out, read_metadata(path)  # first, since a table of another kind is no question of --force
    (out,) = checked_outputs([Output(Path(out), is_pairs_file)], [path], force=force, in_place=path)
    forced, elsewhere = force and out.exists(), None
    with PairWriter(out, metadata={key: value for key, value in info.items() if key.startswith("lore.")}) as writer:
        for number, pair in enumerate(track(read_pairs(path, image_roots=()), "splitting", total=count_pairs(path)), 1):
            if pair.split is not None and not replace:
                raise LoreError(f"{path}: pair {pair.pair_id} is already in split {pair.split!r}. --replace reassigns all pairs.")
            pair.split = split_of(keys[by](pair), fractions, seed)
            counts[pair.split] += 1
            if forced and (image := as_stored(pair.image)) and not image.get("bytes"):
                refuse_photo(out, image.get("path"), ["."], f"{path} row {number}")
            elsewhere = common_folder(pair.image, out, elsewhere)
            writer.write(pair)
    if elsewhere:
        print_note(stay_elsewhere(elsewhere, named))
    return counts
