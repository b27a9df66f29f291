"""Where does a person go next? Check-ins of New York: the last visit is held out, exponents are learned on the one before.

    python benchmarks/nearby_checkins.py $LORE_DATA                     both tables, in about a minute on one core
    python benchmarks/nearby_checkins.py $LORE_DATA --part valid        on the visit before, with exponents learned on other people

$LORE_DATA holds nyc_checkins/{checkins,places}.csv and osm_poi/NYC-2017.csv. The places have no names: the OpenStreetMap places
within 200 m give them meaning. The position of a person at the time of a visit is not known: distances are straight lines from the
place of the person's previous visit, which is itself a candidate at distance 0. What is counted for a visit comes strictly before
its minute, and no held-out visit is counted for anyone.

One list: all places in one ranking, as the reference points were measured. The tuned row divides the odds between known and new
places by the share of repeated visits among the person's past 20. Two lists, as `lore nearby recommend` shows them: the places that
the person has visited, and the others, each with exponents of its own; a visit counts in its own list. Intervals are those of the
bootstrap over people; differences to distance are paired.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lore.eval.measures.bootstrap import table_estimate
from lore.nearby.familiarity import EQUAL, CognitiveMap, fit_exponents, nearness, scaled, score
from lore.nearby.visits import Visits
from lore.places.walk import haversine
from lore.recommend.metrics import METRICS, gains, mean_gains
from lore.run.summary import print_table

SHOWN = [METRICS.index("NDCG@10"), METRICS.index("HR@10")]
KINDS = ("all", "revisits", "first visits")
MINUTES_PER_DAY = 1440
PAPER_METRES = 1000.0
"""The paper does not say how fast its exponential decays."""
RECENT, FOLDS = 20, 5
REFERENCE_POINTS = (
    "Measured before by other code on 1,083 people. NDCG@10: distance .214, equal exponents .175, distance x familiarity .446; "
    "revisits: distance .298, familiarity .641. Hit@10 of first visits: distance .058, equal exponents .033, familiarity 0."
)


@dataclass
class Choice:
    """One visit to predict. rows, numbers: of the places of its list; target: place; at: its place in rows."""

    person: int
    day: float
    target: int
    revisit: bool
    repeats: float
    metres: np.ndarray
    lists: dict[bool, tuple[np.ndarray, np.ndarray]]
    """visited -> rows and numbers."""

    def own(self, column: int | None = None, values: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Numbers of the list of the visit, with one column replaced, and where the target is."""
        rows, numbers = self.lists[self.revisit]
        if column is not None:
            numbers = numbers.copy()
            numbers[:, column] = scaled(values[rows])
        return numbers, int(np.searchsorted(rows, self.target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--part", choices=("test", "valid"), default="test")
    arguments = parser.parse_args()
    began = time.monotonic()

    visits, last, places = read(arguments.data)
    city, count = cognitive_map(arguments.data, visits, last, places), len(places)
    learned = [choice(city, count, visits, ends[-2], last) for ends in last]
    if arguments.part == "test":
        measured, fold_of = [choice(city, count, visits, ends[-1], last) for ends in last], np.zeros(len(last), dtype=int)
    else:
        measured, fold_of = learned, np.arange(len(last)) % FOLDS
    tuned, plain = {}, {}
    for fold in set(fold_of.tolist()):
        used = [one for one, own in zip(learned, fold_of, strict=True) if arguments.part == "test" or own != fold]
        for revisit in (True, False):
            ones = [one for one in used if one.revisit == revisit]
            tuned[fold, revisit] = fit_exponents([one.own() for one in ones])
            plain[fold, revisit] = fit_exponents([one.own(2, visited(city, one)) for one in ones])

    one_list, two_lists = {}, {}
    for one, fold in zip(measured, fold_of.tolist(), strict=True):
        by_visits, by_meaning = visited(city, one)[:count], city.of_meaning(one.person, one.day)[:count]
        familiar = city.of_places(one.person, one.day)[:count]
        near = np.exp(-one.metres / PAPER_METRES)
        scores = {
            "popularity": by_visits,
            "distance": -one.metres,
            "familiarity": familiar,
            "distance x familiarity": score(np.stack([scaled(familiar), nearness(one.metres)], axis=1), EQUAL[:2]),
            "equal exponents": by_meaning * near * by_visits,
        }
        for name, values in scores.items():
            one_list.setdefault(name, []).append(gain(values, one.target))
        odds = np.zeros(count)
        for known, (rows, numbers) in one.lists.items():
            own = score(numbers, tuned[fold, known])
            odds[rows] = (one.repeats if known else 1 - one.repeats) * own / own.sum()
        one_list.setdefault("tuned", []).append(gain(odds, one.target))
        numbers, at = one.own()
        rows = one.lists[one.revisit][0]
        own_familiar = familiar if one.revisit else by_meaning
        scores = {name: scores[name][rows] for name in ("popularity", "distance")} | {
            "familiarity": own_familiar[rows],
            "equal exponents": scores["equal exponents"][rows],
            "equal exponents, our numbers": score(numbers, EQUAL),
            "tuned, popularity as visits": score(one.own(2, by_visits)[0], plain[fold, one.revisit]),
            "tuned": score(numbers, tuned[fold, one.revisit]),
        }
        for name, values in scores.items():
            two_lists.setdefault(name, []).append(gain(values, at))

    kinds = np.array([one.revisit for one in measured])
    print(f"{len(measured)} people, {kinds.sum()} revisits, {(~kinds).sum()} first visits, part {arguments.part}")
    show(f"one list of {count:,} places", one_list, kinds)
    show("two lists", two_lists, kinds)
    if arguments.part == "test":
        print(REFERENCE_POINTS)
        print(json.dumps({"revisits": tuned[0, True]._asdict(), "first visits": tuned[0, False]._asdict()}))
    print(json.dumps({"seconds": round(time.monotonic() - began, 1)}))


def read(data: Path) -> tuple[pd.DataFrame, list[np.ndarray], pd.DataFrame]:
    """Visits in the order of user and minute, the last two visits of each user, and the places."""
    places = pd.read_csv(data / "nyc_checkins" / "places.csv")
    visits = pd.read_csv(data / "nyc_checkins" / "checkins.csv").sort_values(["user", "minute"], kind="stable", ignore_index=True)
    visits["row"] = visits.place.map(dict(zip(places.place, range(len(places)), strict=True)))
    visits["person"] = visits.user.factorize(sort=True)[0]
    visits["day"] = visits.minute / MINUTES_PER_DAY
    return visits, [index.to_numpy()[-2:] for index in visits.groupby("person").groups.values()], places


def cognitive_map(data: Path, visits: pd.DataFrame, last: list[np.ndarray], places: pd.DataFrame) -> CognitiveMap:
    """Of the places of the check-ins, then those of OpenStreetMap; without the held-out visits."""
    osm = pd.read_csv(data / "osm_poi" / "NYC-2017.csv").dropna(subset=["lat", "lon"])
    fclass = osm.fclass.fillna("").str.strip()
    classes = [[]] * len(places) + [[f"fclass={one}"] if one else [] for one in fclass]
    lats, lons = (np.concatenate([places[name], osm[name]]) for name in ("lat", "lon"))
    kept = visits.drop(index=[ends[-1] for ends in last])
    log = Visits.of(kept.person.to_numpy(), kept.row.to_numpy(), kept.day.to_numpy(), [str(one) for one in kept.user.unique()])
    return CognitiveMap(lats, lons, classes, log)


def choice(city: CognitiveMap, count: int, visits: pd.DataFrame, index: int, last: list[np.ndarray]) -> Choice:
    """The visit at an index of the table, with the numbers of all places before it."""
    person, day, target = int(visits.person[index]), float(visits.day[index]), int(visits.row[index])
    counted, own = city.visits.before(day), city.own(person, day)
    before = visits.index[(visits.person == person) & (visits.day < day)]
    assert index not in before and last[person][-1] not in before and before.max() < index, "a later visit is counted"
    assert (counted.days < day).all() and len(own) == len(before) and (own.rows == visits.row[before].to_numpy()).all()
    metres = haversine(city.lats[own.rows[-1]], city.lons[own.rows[-1]], city.lats[:count], city.lons[:count])
    known = np.bincount(own.rows, minlength=count) > 0
    lists = {
        visited: (rows := np.flatnonzero(known == visited), city.numbers(person, day, rows, metres[rows], visited=visited))
        for visited in (True, False)
    }
    recent = own.first[-RECENT:]
    repeats = (len(recent) - recent.sum() + 1) / (len(recent) + 2)
    return Choice(person, day, target, bool(known[target]), float(repeats), metres, lists)


def visited(city: CognitiveMap, one: Choice) -> np.ndarray:
    """How often everyone has visited each place before a visit."""
    return np.bincount(city.visits.before(one.day).rows, minlength=len(city.lats)).astype(np.float64)


def gain(scores: np.ndarray, target: int) -> np.ndarray:
    """NDCG@10 and Hit@10 of the target; the mean over all orders of equal scores."""
    above, tied = np.array([(scores > scores[target]).sum()]), np.array([(scores == scores[target]).sum() - 1])
    return mean_gains(gains(len(scores)), above, tied)[0, SHOWN]


def show(title: str, values: dict[str, list[np.ndarray]], revisit: np.ndarray) -> None:
    """NDCG@10 and Hit@10 by kind of visit, each with the difference to distance and its interval."""
    cells = []
    for name, own in values.items():
        cells.append([name])
        for kind in KINDS:
            inside = np.ones(len(revisit), dtype=bool) if kind == "all" else revisit == (kind == "revisits")
            for column in range(len(SHOWN)):
                mine, base = (np.array(one)[inside, column] for one in (own, values["distance"]))
                apart = table_estimate(
                    np.stack([mine - base, np.ones(len(mine))], axis=1), lambda sums: sums[..., 0] / sums[..., 1], samples=10_000
                )
                told = "" if name == "distance" else f" {apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
                cells[-1].append(f"{mine.mean():.3f}{told}")
    print_table(title, ["", *(f"{kind}, {metric}" for kind in KINDS for metric in ("NDCG@10", "Hit@10"))], cells)


if __name__ == "__main__":
    main()
