"""Counts of a label folder by its ledger, and what can be removed from it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.compute as pc

from lore.label.ledger import RANGE, HashRange, Ledger, contains, is_final, keys_of, mixed
from lore.label.read import opened_labels
from lore.label.recipe import LabelRecipe
from lore.label.schema import FAILURES, VERDICTS, WORK
from lore.label.tally import SCRATCH_FILES, Spill
from lore.run.nested import remove_own
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import clear_parts
from lore.support.errors import LoreError
from lore.support.progress import track


@dataclass(frozen=True)
class FolderStats:
    """pairs: with a verdict. unreadable: those of them whose answer has no readable tier. pending, final: pairs without an answer
    that are asked again, or not. attempts: pairs by how often they were asked. doubled: rows whose pair_id another row has; always
    0 unless the files were changed by hand. bytes: of the label files."""

    judge: str
    pairs: int
    tiers: dict[str, int]
    unreadable: int
    pending: int
    final: int
    attempts: dict[int, int]
    doubled: int
    files: int
    bytes: int


def folder_stats(folder: str | Path) -> FolderStats:
    """Reads ids, tiers and attempts of all labels, one range of queries at a time."""
    ledger = opened_labels(folder)
    most = RunFolder(folder).recipe_values.get("max_attempts", LabelRecipe.model_fields["max_attempts"].default)
    tiers, attempts = Counter[str | None](), Counter[int]()
    pairs = pending = final = 0
    with TemporaryDirectory() as scratch:
        spill = Spill(Path(scratch) / "ids", "<u1")
        for within in track(_ranges(ledger), "reading labels"):
            keys = [np.empty(0, np.uint64)]
            for _, table in ledger.tables(VERDICTS, ["pair_id", "content", "tier", "attempts"], within):
                for counter, name in ((tiers, "tier"), (attempts, "attempts")):
                    values, counts = pc.value_counts(table.column(name)).flatten()
                    counter.update(dict(zip(values.to_pylist(), counts.to_pylist(), strict=True)))
                ids, high = keys_of(table)
                keys.append(mixed(ids, high))
                spill.add(ids, np.zeros(len(ids)))
                pairs += len(ids)
            failed = ledger.failed(within)
            asked = np.array(list(failed), np.uint64).reshape(-1, 2)
            answered = contains(np.sort(np.concatenate(keys)), mixed(asked[:, 0], asked[:, 1])) if failed else asked
            for (times, failure), done in zip(failed.values(), answered.tolist(), strict=True):
                if not done:
                    attempts[times] += 1
                    last = is_final(times, failure, most)
                    final, pending = final + last, pending + (not last)
        parts = (spill.part(number)["key"] for number in range(SCRATCH_FILES))
        doubled = sum(len(part) - len(np.unique(part)) for part in parts)
    files = [*ledger.files(VERDICTS), *ledger.files(FAILURES)]
    names = [name[2:] for name in ledger.schema.names if name.startswith("p_")]
    return FolderStats(
        judge=ledger.stamp,
        pairs=pairs,
        tiers={name: tiers[name] for name in names},
        unreadable=tiers[None],
        pending=pending,
        final=final,
        attempts={times: attempts[times] for times in sorted(attempts, key=lambda times: times or 0)},
        doubled=doubled,
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
    )


def _ranges(ledger: Ledger) -> list[HashRange]:
    """Ranges of query hashes, each label file in exactly one of them."""
    names = {path.name for kind in (VERDICTS, FAILURES) for path in ledger.files(kind)}
    found: list[HashRange] = []
    for one in sorted({HashRange(int(match[1]), int(match[2], 16)) for match in map(RANGE.match, names) if match}):
        if not any(one.meets(wider) for wider in found):
            found.append(one)
    return found


def clean_folder(folder: Path, *, dry_run: bool = False) -> tuple[list[Path], int]:
    """Removes the plan in work/ and the temporary files of killed processes: (paths, their bytes). No label is touched: the next
    start plans again. Raises LoreError while a run holds the lock of the folder."""
    run = RunFolder(folder)
    if run.recipe_values.get("stage") != LabelRecipe.model_fields["stage"].default:
        raise LoreError(f"{folder} is no folder of `lore label` (its recipe.yaml does not say so), so nothing in it is removed.")
    with run.held():
        places = [path for path in (folder, folder / VERDICTS, folder / FAILURES) if path.is_dir()]
        found = [path for place in places for pattern in (".*.part", ".*.old") for path in place.glob(pattern)]
        found += [folder / WORK] if (folder / WORK).is_dir() else []
        size = sum(_bytes(path) for path in found)
        if not dry_run:
            remove_own(folder / WORK)
            for place in places:
                clear_parts(place)
        return found, size


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(one.lstat().st_size for one in files if one.is_file())
