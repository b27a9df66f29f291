"""Towns of 500 to 200,000 places: seconds of indexing and opening, memory, and milliseconds of what a question needs of a town.

    OMP_NUM_THREADS=1 python benchmarks/nearby_speed.py                       500, 5,000, 50,000 and 200,000 places
    OMP_NUM_THREADS=1 python benchmarks/nearby_speed.py --places 5000 --queries 50

Made-up towns, seed 0: places around 40 centers in a square whose side grows with the town until 26 km; a quarter of them outlines
of buildings, one in a hundred a park; 30 classes; hours for 40 %, of 500 different ones; 384-dimensional vectors of random numbers.
A query is the surroundings of a random place at a random hour: the circle of 15 minutes, the rows and texts of the nearest
100 places, the opening of everything in the circle that has hours. ask: QUESTIONS in turn from such surroundings to the text of the
answer, without an encoder or a language model; first_ask: the slowest of the first QUESTIONS, which read what the graph knows. Each
town is indexed and opened in processes of their own, so that their peak memory is measured apart. wall: by the clock, with
whatever else the machine does; the others are seconds of the processor. The last line of the output is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

LAT, LON = 41.7, -87.9
KINDS = "cafe restaurant fast_food bar pub pharmacy bank school library cinema dentist clinic fuel theatre post_office".split()
SHOPS = "supermarket bakery butcher books clothes florist hairdresser hardware kiosk optician shoes sports toys wine tea".split()
CLASSES = [f"amenity={one}" for one in KINDS] + [f"shop={one}" for one in SHOPS]
DIMENSION, NEAREST = 384, 100
QUESTIONS = [
    "somewhere quiet to work, open now",
    "a cafe within 10 minutes, no chains",
    "coffee near Library 17 tomorrow evening with my dog",
    "supermarket open on Sunday at 9pm",
    "Pharmacy 42 within 30 minutes",
    "vegan food around Nowhere Hall",
    "安静的咖啡馆，走路十分钟",
]


def made_up(count: int) -> Iterator[dict[str, object]]:
    """Rows of a table of places, in the order of the generator."""
    rng = np.random.default_rng(0)
    side = 26 * min(1.0, (count / 50_000) ** 0.5)
    centers = rng.random((40, 2))
    days = ["Mo-Fr", "Mo-Sa", "Mo-Su", "Tu-Su", "Th-Su"]
    hours = [
        f"{days[a % 5]} {6 + a % 6:02}:{b:02}-{17 + a % 7:02}:{b:02}; {'PH off' if a % 3 == 0 else 'Su 10:00-16:00'}"
        for a, b in zip(rng.integers(0, 420, 500), rng.integers(0, 4, 500) * 15, strict=True)
    ]
    for at in range(count):
        center = centers[rng.integers(40)] if rng.random() < 0.7 else rng.random(2)
        x, y = np.clip(center + rng.normal(0, 0.05, 2), 0, 1) * side / 111.2
        lat, lon = round(LAT + y, 7), round(LON + x / 0.745, 7)
        kind, shape = CLASSES[rng.integers(30)], rng.random()
        properties = {"id": at, "name": f"{kind.partition('=')[2].title()} {at}", **dict([kind.split("=")])}
        properties |= {"addr:street": f"Street {rng.integers(300)}", "cuisine": "regional"}
        if rng.random() < 0.4:
            properties["opening_hours"] = hours[rng.integers(500)]
        geometry = {"type": "Point", "coordinates": [lon, lat]}
        if shape < 0.26:
            half, corners = (0.0001, 8) if shape < 0.25 else (0.002, 40)
            turns = np.linspace(0, 2 * np.pi, corners + 1)
            ring = [[round(lon + half * np.cos(one), 7), round(lat + half * np.sin(one), 7)] for one in turns]
            geometry = {"type": "Polygon", "coordinates": [[*ring[:-1], ring[0]]]}
            properties |= {} if shape < 0.25 else {"leisure": "park"}
        yield {"type": "Feature", "properties": properties, "geometry": geometry}


def run_index(folder: Path, count: int) -> dict[str, float]:
    from lore.nearby.sources import index_town

    rng = np.random.default_rng(1)
    table, town = folder / "places.jsonl", folder / "town.db"
    with table.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in made_up(count))

    def encode(chunk: list[object]) -> np.ndarray:
        return rng.standard_normal((len(chunk), DIMENSION), dtype=np.float32)

    wall, busy = time.perf_counter(), time.process_time()
    report = index_town([table], town, country="US", timezone="America/Chicago", encode=encode)
    assert report.kept == count and not report.rejected_rows
    return {
        "index_wall_seconds": round(time.perf_counter() - wall, 2),
        "index_seconds": round(time.process_time() - busy, 2),
        "file_mb": round((town.stat().st_size - count * DIMENSION * 2) / 1e6, 1),
        "vectors_mb": round(count * DIMENSION * 2 / 1e6, 1),
        "index_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def run_queries(folder: Path, queries: int) -> dict[str, float]:
    from lore.nearby.ask import ask
    from lore.nearby.graph import Graph, load_relations
    from lore.nearby.streets import within
    from lore.nearby.town import Town
    from lore.places.hours import opening

    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, busy = time.perf_counter(), time.thread_time()
    town = Town.open(folder / "town.db")
    opened = time.perf_counter() - started, time.thread_time() - busy
    after_opening = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(2)
    steps: dict[str, list[float]] = {"circle": [], "rows": [], "hours": [], "all": [], "all_wall": [], "ask": [], "ask_wall": []}
    found, known = [], []
    for number, row in enumerate(rng.integers(0, len(town), queries + 20)):
        when = datetime(2026, 1, 5) + timedelta(hours=int(rng.integers(168)))
        lat, lon = town.lats[row] + rng.normal(0, 0.002), town.lons[row] + rng.normal(0, 0.002)
        times = [time.thread_time()]
        started = time.perf_counter()
        reach = within(town, lat, lon, 15)
        times.append(time.thread_time())
        town.places(reach.rows[:NEAREST])
        times.append(time.thread_time())
        with_hours = [(town.hours[row], town.lats[row], town.lons[row]) for row in reach.rows if town.hours[row]]
        states = [opening(*one, when, "US", "America/Chicago").state for one in with_hours]
        times.append(time.thread_time())
        if number < 20:  # the libraries load, and the file comes into memory
            continue
        assert "unknown" not in states
        for name, spent in zip(("circle", "rows", "hours"), np.diff(times), strict=True):
            steps[name].append(spent)
        steps["all"].append(times[-1] - times[0])
        steps["all_wall"].append(time.perf_counter() - started)
        found.append(len(reach.rows))
        known.append(len(states))
    graph, firsts = Graph(town, load_relations()), []
    for number, row in enumerate(rng.integers(0, len(town), queries + len(QUESTIONS))):
        now, question = datetime(2026, 1, 5) + timedelta(hours=int(rng.integers(168))), QUESTIONS[number % len(QUESTIONS)]
        lat, lon = town.lats[row] + rng.normal(0, 0.002), town.lons[row] + rng.normal(0, 0.002)
        started, busy = time.perf_counter(), time.thread_time()
        assert ask(town, question, lat, lon, now=now, graph=graph).text
        if number < len(QUESTIONS):  # each for the first time
            firsts.append(time.perf_counter() - started)
            continue
        steps["ask"].append(time.thread_time() - busy)
        steps["ask_wall"].append(time.perf_counter() - started)
    started = time.thread_time()
    assert town.vectors.shape == (len(town), DIMENSION)
    return {
        "open_wall_seconds": round(opened[0], 2),
        "open_seconds": round(opened[1], 2),
        "vectors_seconds": round(time.thread_time() - started, 2),
        "libraries_mb": round(libraries / 1024),
        "open_mb": round((after_opening - libraries) / 1024, 1),
        "reached": float(np.median(found)),
        "reached_most": max(found),
        "first_ask_wall_seconds": round(max(firsts), 2),
        "with_hours": float(np.median(known)),
        **{f"{name}_p{p}_ms": round(1000 * np.percentile(took, p), 2) for name, took in steps.items() for p in (50, 99)},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--places", type=int, nargs="+", default=[500, 5_000, 50_000, 200_000])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--step")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.step:
        run = run_index(given.folder, given.places[0]) if given.step == "index" else run_queries(given.folder, given.queries)
        print(json.dumps(run))
        return
    measured = {}
    for count in given.places:
        measured[count] = {}
        with tempfile.TemporaryDirectory() as folder:
            for step in ("index", "queries"):
                command = [sys.executable, __file__, "--step", step, "--folder", folder, "--places", str(count)]
                command += ["--queries", str(given.queries)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                measured[count] |= json.loads(done.stdout.splitlines()[-1])
        print(f"{count:,} places: {measured[count]}", flush=True)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
