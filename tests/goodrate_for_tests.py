"""A synthetic result log of the embedded shop: two systems, a judge with known errors, and raters who are always right.

    python tests/goodrate_for_tests.py log shop_log      # log.csv, predictions.csv, truth.csv
    lore goodrate sample shop_log/log.csv --queries 50 -o shop_log/rated.csv
    python tests/goodrate_for_tests.py rate shop_log     # fills in the labels
    lore goodrate shop_log/log.csv --verdicts shop_log/predictions.csv --rated shop_log/rated.csv --rubric shop
    python tests/goodrate_for_tests.py truth shop_log
"""

import csv
import math
import random
import sys
from pathlib import Path

from lore.data_synth.shop.world import ITEMS_PER_QUERY, World

QUERIES = 2000


def write_log(folder: Path, queries: int = QUERIES, seed: int = 2) -> None:
    """Each system shows three of the four items of a query in random order. System A leaves out a random item. System B leaves out
    an item that is not good in half of the cases, if there is one. The judge is too optimistic: it calls a third of the bad items
    good."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(World(seed, prior="natural").pairs("test", ITEMS_PER_QUERY * queries))
    rng = random.Random(seed)
    shown, verdicts, truth = [], {}, {}
    for page, start in enumerate(range(0, len(pairs), ITEMS_PER_QUERY)):
        items = pairs[start : start + ITEMS_PER_QUERY]
        bad = [pair for pair in items if not good(pair.label)]
        for system in "AB":
            dropped = rng.choice(bad if system == "B" and bad and rng.random() < 0.5 else items)
            kept = [pair for pair in items if pair is not dropped]
            rng.shuffle(kept)
            for position, pair in enumerate(kept, 1):
                shown.append((pair.query, pair.pair_id, page, system, position, pair.query_frequency))
        for pair in items:
            truth[pair.pair_id] = pair.label
            verdicts[pair.pair_id] = verdict(rng, pair.label)
    write(folder / "log.csv", ["query", "pair_id", "page_id", "system", "position", "impressions"], shown)
    write(folder / "truth.csv", ["pair_id", "label"], truth.items())
    rows = [(pair_id, *verdicts[pair_id]) for pair_id in dict.fromkeys(row[1] for row in shown)]
    write(folder / "predictions.csv", ["pair_id", "tier", "p_L1", "p_L2", "p_L3", "p_L4"], rows)


def good(label: str) -> bool:
    return label in ("L3", "L4")


def verdict(rng: random.Random, label: str) -> tuple:
    relevant = 1 / (1 + math.exp(-rng.gauss(3 if good(label) else -0.8, 2)))
    chances = [0.2 * (1 - relevant), 0.8 * (1 - relevant), 0.2 * relevant, 0.8 * relevant]
    return f"L{1 + chances.index(max(chances))}", *chances


def rate(folder: Path) -> None:
    truth = dict(read(folder / "truth.csv")[1:])
    header, *rows = read(folder / "rated.csv")
    write(folder / "rated.csv", header, [(*row[:-1], truth[row[0]]) for row in rows])


def true_rates(folder: Path) -> dict[tuple[str, str], float]:
    """GoodRate of items and pages by system, computed from all true labels."""
    truth = dict(read(folder / "truth.csv")[1:])
    sums: dict[tuple[str, str], list[float]] = {}
    pages: dict[tuple[str, str], list] = {}
    for _, pair_id, page, system, _, impressions in read(folder / "log.csv")[1:]:
        add(sums, ("items", system), float(impressions), good(truth[pair_id]))
        pages.setdefault((page, system), []).append((float(impressions), good(truth[pair_id])))
    for (_, system), items in pages.items():
        add(sums, ("pages", system), items[0][0], all(is_good for _, is_good in items))
    return {key: part / whole for key, (part, whole) in sums.items()}


def add(sums: dict, key: tuple[str, str], weight: float, is_good: bool) -> None:
    part, whole = sums.get(key, (0.0, 0.0))
    sums[key] = (part + weight * is_good, whole + weight)


def read(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def write(path: Path, header: list[str], rows) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    command, place = sys.argv[1], Path(sys.argv[2])
    if command == "truth":
        for (what, system), rate_ in true_rates(place).items():
            print(f"{what} {system} {rate_:.1%}")
    else:
        {"log": write_log, "rate": rate}[command](place)
