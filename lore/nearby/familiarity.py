"""The cognitive map: how familiar a place is to a person at this hour, how near, how popular; and two lists that never mix.

    your places now     places that the person has visited
    new nearby          places within the circle that the person has never visited

The score is that of AskNearby (arXiv 2512.02502, eq. 6): familiarity^a x distance^b x popularity^c. From the paper too: TF-IWF over
the classes of places (eq. 7) and the inner product with a profile that weighs visits by time; a distance that decays; popularity as
visits by everyone; all exponents 1 (EQUAL), with a search on validation data left for later. As printed, eq. 7 has the logarithm of
a share, which is negative; its inverse is taken, as the name says.

Ours, because the paper leaves it open or because validation asked for it: a place that the person knows counts itself, by TF-IWF
over visits; visits weigh by age and hour of the day; vectors of unit length; distance decays by a power, which leaves more to far
places than the paper's exponential; popularity counts each visitor once, those who share the person's places, come at this hour and
came lately more; each list has exponents of its own, a conditional logit (McFadden 1974) of which place a person went to next: its
log-likelihood is concave, and its coefficients on the logarithms are the exponents. benchmarks/nearby_checkins.py learns them.

Left out, because they gained nothing on validation data: transitions between places, knowledge of the surroundings of known places,
days of the week.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from lore.nearby.streets import within
from lore.nearby.town import Town, on_sphere
from lore.nearby.visits import ReadVisits, Visits, days_of
from lore.places.hours import Opening, opening
from lore.places.place import Place
from lore.places.question import WALK_MINUTES
from lore.places.walk import DETOUR, METRES_PER_MINUTE, haversine
from lore.support.errors import LoreError

AROUND_METRES = 200.0
"""A place without classes means what the places around it mean."""
MEMORY_DAYS, HOUR_SPREAD = 60.0, 1.5
ALWAYS = 0.1
"""Weight of the oldest visit, and of one at another hour of the day."""
STRANGER = 0.001
"""Weight of a visitor with whom a person shares no place."""
HALF_METRES = 100.0
"""Distance at which nearness is 1/2."""
SMOOTHING = 0.1


class Exponents(NamedTuple):
    familiarity: float
    distance: float
    popularity: float


EQUAL = Exponents(1.0, 1.0, 1.0)
REVISITS = Exponents(1.32, 0.0, 0.05)
FIRST_VISITS = Exponents(1.0, 0.58, 1.04)
"""Learned on New York's check-ins by benchmarks/nearby_checkins.py, except the familiarity of new places. It was learned as 0, but
the places of those check-ins have only the classes of others around them. For places with classes of their own, which these data
cannot tell about, the paper's 1 stays."""


def tf_iwf(counts: csr_matrix) -> csr_matrix:
    """TF-IWF (n, k) of counts (n, k) of classes at places: the share of a class at a place x log(all / all of the class)."""
    at_place, of_class = np.asarray(counts.sum(axis=1)).ravel(), np.asarray(counts.sum(axis=0)).ravel()
    inverse = np.log(np.maximum(of_class.sum(), 1) / np.maximum(of_class, 1))
    return csr_matrix(counts.multiply(1 / np.maximum(at_place, 1)[:, None]).multiply(inverse[None, :]))


def meanings(classes: Sequence[Sequence[str]], lats: np.ndarray, lons: np.ndarray) -> csr_matrix:
    """TF-IWF vectors (n, k) of unit length of places. Those without classes have the classes of the places within 200 m."""
    number: dict[str, int] = {}
    known = np.array([row for row, own in enumerate(classes) if own], dtype=np.int64)
    cells = [(row, number.setdefault(one, len(number))) for row in known.tolist() for one in classes[row]]
    shape = (len(classes), max(1, len(number)))
    own = csr_matrix((np.ones(len(cells)), np.array(cells, dtype=np.int64).reshape(-1, 2).T), shape)
    silent = np.array([row for row, own_ones in enumerate(classes) if not own_ones], dtype=np.int64)
    if len(known) and len(silent):
        points = on_sphere(lats, lons)
        near = cKDTree(points[known]).query_ball_point(points[silent], AROUND_METRES)
        at = np.repeat(silent, [len(one) for one in near])
        around = known[np.concatenate([*near, []]).astype(np.int64)]
        own = own + csr_matrix((np.ones(len(at)), (at, around)), (len(classes),) * 2) @ own
    weighted = tf_iwf(own)
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return csr_matrix(weighted.multiply(1 / np.where(length > 0, length, 1)[:, None]))


def time_weights(days: np.ndarray, day: float) -> np.ndarray:
    """Weights (n,) of visits at a moment: less the older they are, and the farther their hour of the day."""
    apart = np.abs((days - day) % 1 * 24)
    hours = np.minimum(apart, 24 - apart)
    return (np.exp((days - day) / MEMORY_DAYS) + ALWAYS) * (np.exp(-((hours / HOUR_SPREAD) ** 2) / 2) + ALWAYS)


class CognitiveMap:
    """What visits say about places 0 to n - 1. lats, lons (n,): degrees. classes: by place. mentions (n,): how many posts and
    events are about a place; they stand for popularity where nobody else's visits are known."""

    def __init__(
        self,
        lats: np.ndarray,
        lons: np.ndarray,
        classes: Sequence[Sequence[str]],
        visits: Visits,
        mentions: np.ndarray | None = None,
    ):
        self.lats, self.lons, self.visits, self.mentions = lats, lons, visits, mentions
        self.meaning = meanings(classes, lats, lons)

    def own(self, person: int | None, day: float) -> Visits:
        """The visits of a person before a moment."""
        past = self.visits.before(day)
        mine = past.users == (-1 if person is None else person)
        return Visits(past.users[mine], past.rows[mine], past.days[mine], past.first[mine], past.user_ids)

    def of_places(self, person: int | None, day: float) -> np.ndarray:
        """Familiarity (n,) of places: TF-IWF over visits, 0 for those never visited. TF: time-weighted share of a person's visits.
        IWF: log(visits of all people / those of the place)."""
        past, own = self.visits.before(day), self.own(person, day)
        weights, places = time_weights(own.days, day), len(self.lats)
        share = np.bincount(own.rows, weights, places) / max(weights.sum(), 1e-12)
        return share * np.log((len(past) + 1) / np.maximum(np.bincount(past.rows, minlength=places), 1))

    def of_meaning(self, person: int | None, day: float) -> np.ndarray:
        """Familiarity (n,) of what places are: inner product with the time-weighted mean of the visited places."""
        own = self.own(person, day)
        weights = time_weights(own.days, day)
        return self.meaning @ (self.meaning[own.rows].T @ (weights / max(weights.sum(), 1e-12)))

    def popularity(self, person: int | None, day: float) -> np.ndarray:
        """(n,) other people who have visited a place, each counted at the first visit: more if it was lately and at this hour, and
        if they share places with the person (cosine of the two sets of places; a place counts less the more visitors it has)."""
        places = len(self.lats)
        past = self.visits.before(day)
        users, rows, days = past.users[past.first], past.rows[past.first], past.days[past.first]
        visitors, known = np.bincount(rows, minlength=places), np.bincount(users, minlength=len(past.user_ids))
        likeness = np.zeros(len(past.user_ids))
        if person is not None:
            mine = np.zeros(places)
            mine[rows[users == person]] = 1
            shared = np.bincount(users, (mine / np.sqrt(np.maximum(visitors, 1)))[rows], len(known))
            likeness = shared / np.sqrt(np.maximum(known, 1))
            likeness /= max(likeness[person], 1e-12)
        weights = (likeness[users] + STRANGER) * time_weights(days, day) * (users != (-1 if person is None else person))
        found = np.bincount(rows, weights, places)
        return found if found.any() or self.mentions is None else self.mentions.astype(np.float64)

    def numbers(self, person: int | None, day: float, rows: np.ndarray, metres: np.ndarray, *, visited: bool) -> np.ndarray:
        """Familiarity, nearness and popularity (m, 3) of places, each above 0 and at most 1; nan for one that nothing is known of.
        metres (m,): to the places. visited: whether they are known to the person, by themselves, or new, by what they are."""
        familiar = (self.of_places if visited else self.of_meaning)(person, day)[rows]
        return np.stack([scaled(familiar), nearness(metres), scaled(self.popularity(person, day)[rows])], axis=1)


def nearness(metres: np.ndarray) -> np.ndarray:
    return HALF_METRES / (HALF_METRES + np.asarray(metres))


def scaled(values: np.ndarray) -> np.ndarray:
    """The largest becomes 1; a part of the mean on top keeps zeros apart from the impossible."""
    if not values.any():
        return np.full(len(values), np.nan)
    smooth = SMOOTHING * values.mean()
    return (values + smooth) / (values.max() + smooth)


def score(numbers: np.ndarray, exponents: Sequence[float]) -> np.ndarray:
    """Scores (m,): the product of powers. A number that is not known has no part in it."""
    return np.exp(np.log(np.where(np.isnan(numbers), 1.0, numbers)) @ np.asarray(exponents))


def fit_exponents(choices: Sequence[tuple[np.ndarray, int]]) -> Exponents:
    """The exponents under which people's choices are likeliest. choices: numbers (m, 3) of the places that a person had, and which
    of them it was. The penalty, the squared distance to EQUAL, decides where the choices say nothing; exponents are at least 0."""
    logs = np.concatenate([np.log(np.where(np.isnan(numbers), 1.0, numbers)) for numbers, _ in choices])
    starts = np.cumsum([0, *(len(numbers) for numbers, _ in choices)])
    chosen, sizes = starts[:-1] + [at for _, at in choices], np.diff(starts)

    def loss(exponents: np.ndarray) -> tuple[float, np.ndarray]:
        utility = logs @ exponents
        utility -= np.repeat(np.maximum.reduceat(utility, starts[:-1]), sizes)
        odds = np.exp(utility)
        total = np.add.reduceat(odds, starts[:-1])
        expected = (odds / np.repeat(total, sizes)) @ logs
        away = exponents - np.asarray(EQUAL)
        return np.log(total).sum() - utility[chosen].sum() + away @ away, expected - logs[chosen].sum(axis=0) + 2 * away

    return Exponents(*minimize(loss, EQUAL, jac=True, method="L-BFGS-B", bounds=[(0, 10)] * 3).x.tolist())


@dataclass(frozen=True)
class Suggestion:
    """A place with the three numbers of its score; None: nothing is known. metres, minutes: on foot."""

    row: int
    place: Place
    metres: float
    minutes: float
    familiarity: float | None
    distance: float
    popularity: float | None
    score: float
    opening: Opening


@dataclass(frozen=True)
class Recommendation:
    """your_places, new_nearby: the best first; no place is in both. notes: what the lists could not use."""

    your_places: list[Suggestion]
    new_nearby: list[Suggestion]
    notes: list[str]


def recommend(
    town: Town,
    visits: Visits,
    person: int | None,
    when: datetime,
    at: tuple[float, float] | None = None,
    *,
    minutes: float = WALK_MINUTES,
    k: int = 5,
) -> Recommendation:
    """at: latitude and longitude of the person; None: the place of the last visit. minutes: on foot, the circle of new places;
    places that the person knows are shown wherever they are. In both lists places known to be closed come last. Visits at `when`
    and later are not counted."""
    day = days_of(when)
    mentions = np.zeros(len(town))
    for row, posts in town.about(range(len(town))).items():
        mentions[row] = len(posts)
    known = CognitiveMap(town.lats, town.lons, town.classes, visits, mentions)
    own = known.own(person, day)
    if at is None and not len(own):
        raise LoreError(
            f"There is no visit before {when:%Y-%m-%d %H:%M}, so it is not known where the person is. Say it with --at LAT,LON."
        )
    lat, lon = at or (float(town.lats[own.rows[-1]]), float(town.lons[own.rows[-1]]))
    reach = within(town, lat, lon, minutes)
    metres = DETOUR * haversine(lat, lon, town.lats, town.lons)
    metres[reach.rows] = reach.metres
    place = np.array([kind == "place" for kind in town.kinds], dtype=bool)
    visited = np.zeros(len(town), dtype=bool)
    visited[own.rows] = True
    mine = np.flatnonzero(visited & place)
    new = reach.rows[place[reach.rows] & ~visited[reach.rows]]
    notes = []
    if not len(own):
        notes.append("No visits of this person are counted: new places are ordered by distance and popularity alone.")
    if len(past := visits.before(day)) == len(own):
        said = "posts about a place stand for its popularity" if mentions[place].any() else "popularity is not known"
        notes.append(f"No visits of other people are in the file: {said}.")
    if late := len(visits) - len(past):
        notes.append(f"{late:,} visits at {when:%Y-%m-%d %H:%M} or later are not counted.")

    def best(rows: np.ndarray, exponents: Exponents, *, visited: bool) -> list[Suggestion]:
        if not len(rows):
            return []
        numbers = known.numbers(person, day, rows, metres[rows], visited=visited)
        scores = score(numbers, exponents)
        open_or_unknown, closed = [], []
        for at in np.lexsort((metres[rows], -scores)).tolist():
            row = int(rows[at])
            where = float(town.lats[row]), float(town.lons[row])
            state = opening(town.hours[row], *where, when, town.meta.get("country"), town.meta.get("timezone"))
            (closed if state.state == "closed" else open_or_unknown).append((at, row, state))
            if len(open_or_unknown) == k:
                break
        order = [*open_or_unknown, *closed][:k]
        shown = []
        for (at, row, state), found in zip(order, town.places([row for _, row, _ in order]), strict=True):
            familiarity, distance, popularity = (None if np.isnan(one) else float(one) for one in numbers[at])
            walk = float(metres[row])
            told = (familiarity, distance, popularity, float(scores[at]), state)
            shown.append(Suggestion(row, found, walk, walk / METRES_PER_MINUTE, *told))
        return shown

    return Recommendation(best(mine, REVISITS, visited=True), best(new, FIRST_VISITS, visited=False), notes)


def recommendation_json(found: Recommendation, read: ReadVisits, when: datetime) -> dict[str, Any]:
    """The two lists with the numbers of each place, and how many visits were read and rejected, without what they hold."""
    return {
        "when": when.isoformat(timespec="minutes"),
        "visits": len(read.visits),
        "rejected": read.reasons,
        "your_places": [_suggestion_json(one) for one in found.your_places],
        "new_nearby": [_suggestion_json(one) for one in found.new_nearby],
        "notes": found.notes,
    }


def _suggestion_json(one: Suggestion) -> dict[str, Any]:
    until = one.opening.until
    return {
        **{key: getattr(one.place, key) for key in ("place_id", "name", "lat", "lon")},
        "metres": round(one.metres),
        "minutes": round(one.minutes, 1),
        **{key: getattr(one, key) for key in ("familiarity", "distance", "popularity", "score")},
        "opening": {"state": one.opening.state, "until": until and until.isoformat(timespec="minutes")},
    }


def profile(town: Town, visits: Visits, person: int | None, when: datetime) -> dict[str, Any]:
    """What the map knows of a person at a moment: familiarity of the visited places and of classes, and visits by hour."""
    day = days_of(when)
    known = CognitiveMap(town.lats, town.lons, town.classes, visits)
    own, familiar = known.own(person, day), known.of_places(person, day)
    weights, classes = time_weights(own.days, day), Counter[str]()
    for row, weight in zip(own.rows.tolist(), (weights / max(weights.sum(), 1e-12)).tolist(), strict=True):
        for one in town.classes[row]:
            classes[one] += weight / len(town.classes[row])
    places = sorted(set(own.rows.tolist()), key=lambda row: -familiar[row])
    hours = np.bincount((own.days % 1 * 24).astype(int), minlength=24)
    return {
        "when": when.isoformat(timespec="minutes"),
        "visits": len(own),
        "places": {town.place_ids[row]: round(float(familiar[row]), 6) for row in places},
        "classes": {name: round(share, 6) for name, share in classes.most_common()},
        "visits_by_hour": hours.tolist(),
    }
