"""The same faults against three systems that label pairs: plain ray.data with its CheckpointConfig, distribatch, and lore label.

    python benchmarks/label_faults.py                             the systems that this interpreter has
    python benchmarks/label_faults.py --distribatch PYTHON        PYTHON is an interpreter that has distribatch[openai]
    python benchmarks/label_faults.py --systems lore --cases killed poisoned

ray.data needs pip install 'ray[data]'; distribatch needs pip install 'distribatch[openai]==0.1.0a1', best in an environment of its
own. A system that is not there is left out. The full disk is a tmpfs of 64 MB, which only root may mount: run the program with
`unshare -Urm` otherwise.

Each system runs a short script (label_by_*.py) that its user would write, with the same judge: a function of the title
(label_stub.py), which records every pair that it is asked. distribatch generates only, so it asks this function through a server.
All commit 250 rows together. The checkpoint of ray.data is kept after success except in the case that says so, since a second start
would label everything again; distribatch gets dedupe=True.

- killed: SIGKILL of all processes at a random instant, three times; then a start to the end
- killed, first file: SIGKILL as the first output file appears; then a start to the end
- doubled rows: a tenth of the rows stands in the input twice
- re-sorted: killed, the input shuffled, then a start to the end
- grown: a finished job, a tenth of new rows mixed into the input, another start
- grown, defaults: the same with the checkpoint options as they come
- judge, same path: as grown, and the judge's weights are replaced in between
- judge, other path: as grown, and the second start has a judge in another folder
- full disk: the disk fills while the job runs; then it is emptied, and the job is started again
- poisoned: the judge raises an error for one row; up to three starts

Lost: rows without a label at the end (the poisoned one aside), unless the last start refused to go on. Doubled: rows of the output
beyond one per pair. Visible early: rows that a reader of the output saw at a kill, or when a start had failed, and that the next
start asked again; and files that a reader could not read. Redone: questions beyond one per pair. Judges: how many judges' labels
the output mixes.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from label_stub import POISON, TIERS, Job, serve, weights_of

HERE = Path(__file__).parent
FILES, ITEMS_PER_QUERY, DISK_MB, LONGEST_SECONDS = 8, 20, 64, 150
RUBRIC, PROMPT = "rair", {"order": "answer_first", "detail": "name"}


@dataclass
class System:
    name: str
    script: str
    python: str
    places: str
    """Glob of the output files that a reader reads, below Job.out."""


@dataclass
class Start:
    """How one start ended. seen, unreadable: rows and unreadable files of the output then; asked_until: questions so far."""

    status: int
    words: str
    seen: Counter
    unreadable: int
    asked_until: int
    killed: bool = False


@dataclass
class Outcome:
    lost: int = 0
    doubled: int = 0
    visible_early: int = 0
    unreadable: int = 0
    redone: int = 0
    judges: int = 1
    starts: list[str] = field(default_factory=list)


class Bench:
    def __init__(self, system: System, folder: Path, options: argparse.Namespace):
        self.system, self.folder, self.options = system, folder, options
        self.rng = random.Random(options.seed)
        self.rows = [(f"p{n}", f"query {n // ITEMS_PER_QUERY}", f"item {n}") for n in range(options.pairs)]
        self.scoring_seconds = options.seconds * options.pairs / 2
        self.number = 0
        # One server for all jobs: its address is part of what distribatch compares.
        self.server = serve()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def job(self, rows: list, *, disk: Path | None = None) -> Job:
        """A job in a folder of its own."""
        self.number += 1
        folder = self.folder / str(self.number)
        folder.mkdir()
        write_pairs(folder / "pairs", rows)
        write_judge(folder / "judge", "first")
        out = (disk or folder) / "labels"
        return Job(str(folder / "pairs"), str(out), str(folder / "judge"), str(folder / "asked"), self.options.seconds)

    def start(self, job: Job, *, stop: Callable[["Start"], bool] | None = None, at: float | None = None) -> Start:
        """Starts a job. at: seconds after its first question at which everything is killed; stop: asked every millisecond whether
        everything is killed now."""
        job = self.server.job = replace(job, url=f"http://127.0.0.1:{self.server.server_port}/v1")
        path = Path(job.asked).with_name("job.json")
        path.write_text(json.dumps(asdict(job)))
        log, before, killed = path.with_name("log"), asked(job), False
        environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", "TERM": "dumb"}
        environment["RAY_worker_niceness"] = "0"  # Ray's workers step back behind other programs, which would slow down only Ray
        with open(log, "wb") as words:
            command = [self.system.python, str(HERE / self.system.script), str(path)]
            process = subprocess.Popen(command, stdout=words, stderr=words, env=environment, start_new_session=True)
        begun, first = time.monotonic(), None
        try:
            while process.poll() is None:
                if first is None and asked(job) > before:
                    first, first_asked = time.monotonic(), time.time()
                now = time.monotonic()
                late = now - begun > LONGEST_SECONDS
                if late or (at is not None and first is not None and now - first >= at) or (stop and stop()):
                    seen = kill(process, lambda: self.read(job))
                    killed = True
                    if late:
                        print(f"{self.system.name} did not end in {LONGEST_SECONDS} s", file=sys.stderr)
                    break
                time.sleep(0.001 if stop else 0.01)
            process.wait()
        finally:
            kill(process, lambda: None)
        if not killed:
            seen = self.read(job)
        if not killed and first is not None:
            self.scoring_seconds = max(0.5, os.stat(job.asked).st_mtime - first_asked)
        text = log.read_text(errors="replace")
        words = "killed" if killed else last_words(text, process.returncode)
        return Start(process.returncode, words, *seen, asked(job), killed)

    def read(self, job: Job) -> tuple[Counter, int]:
        """What a reader of the output sees: rows by pair and tier, and files that cannot be read."""
        found, unreadable = Counter(), 0
        for path in sorted(Path(job.out).glob(self.system.places)):
            try:
                table = pq.read_table(path, columns=["pair_id", "tier"])
            except (pa.ArrowException, OSError):
                unreadable += 1
                continue
            found.update(zip(*(table.column(name).to_pylist() for name in ("pair_id", "tier")), strict=True))
        return found, unreadable

    def outcome(self, job: Job, rows: list, starts: list[Start], *, refusable: bool = False) -> Outcome:
        """What the output is worth after the last start. refusable: an error of that start is an answer, not a loss."""
        found, unreadable = self.read(job)
        labels = Counter(pair for (pair, tier), times in found.items() if tier is not None for _ in range(times))
        titles = {pair: title for pair, _, title in rows}
        out = Outcome(starts=[one.words for one in starts], unreadable=unreadable)
        if refused := bool(starts[-1].status) and refusable:
            out.starts[-1] = f"refused: {out.starts[-1]}"
        out.lost = 0 if refused else sum(pair not in labels and POISON not in title for pair, title in titles.items())
        out.doubled = sum(found.values()) - len({pair for pair, _ in found})
        record = Path(job.asked).read_text().splitlines() if asked(job) else []
        out.redone = sum(times - 1 for title, times in Counter(record).items() if POISON not in title)
        for one in (one for one in starts[:-1] if one.status):
            again = set(record[one.asked_until :])
            out.visible_early += sum(times for (pair, tier), times in one.seen.items() if titles.get(pair) in again)
            out.unreadable += one.unreadable
        judges = {weights for pair, tier in found for weights in ("first", "second") if tier == tier_of(weights, titles[pair])}
        both = sum(tier_of("first", title) != tier_of("second", title) for title in titles.values())
        mixed = [sum(tier == tier_of(w, titles[p]) for p, tier in found) for w in ("first", "second")]
        out.judges = 1 if not found or not both or max(mixed) == len(found) else len(judges)
        return out

    def random_kill(self) -> float:
        return self.rng.random() * 0.6 * self.scoring_seconds

    # --- cases ---

    def clean(self) -> Outcome:
        job = self.job(self.rows)
        return self.outcome(job, self.rows, [self.start(job)])

    def killed(self) -> Outcome:
        job, starts = self.job(self.rows), []
        for _ in range(self.options.kills):
            starts.append(self.start(job, at=self.random_kill()))
        return self.outcome(job, self.rows, [*starts, self.start(job)])

    def killed_first_file(self) -> Outcome:
        job = self.job(self.rows)
        first = self.start(job, stop=lambda: any(Path(job.out).glob(self.system.places)))
        return self.outcome(job, self.rows, [first, self.start(job)])

    def doubled(self) -> Outcome:
        rows = self.rows + self.rng.sample(self.rows, len(self.rows) // 10)
        self.rng.shuffle(rows)
        job = self.job(rows)
        return self.outcome(job, rows, [self.start(job)], refusable=True)

    def resorted(self) -> Outcome:
        job, rows = self.job(self.rows), list(self.rows)
        first = self.start(job, at=self.random_kill())
        self.rng.shuffle(rows)
        write_pairs(Path(job.pairs), rows)
        return self.outcome(job, rows, [first, self.start(job)])

    def grown(self) -> Outcome:
        job = self.job(self.rows)
        return self.grow(job, lambda: job)

    def grown_defaults(self) -> Outcome:
        job = replace(self.job(self.rows), keep=False)
        return self.grow(job, lambda: job)

    def grow(self, job: Job, between: Callable[[], Job], *, refusable: bool = False) -> Outcome:
        """A finished job; then new rows and another start, of the job that `between` returns."""
        first, count = self.start(job), len(self.rows)
        rows = [(f"p{n}", f"query {n // 7}", f"item {n}") for n in range(count, count + count // 10)] + self.rows
        self.rng.shuffle(rows)
        write_pairs(Path(job.pairs), rows)
        return self.outcome(job, rows, [first, self.start(between())], refusable=refusable)

    def judge_same_path(self) -> Outcome:
        job = self.job(self.rows)
        return self.grow(job, lambda: write_judge(Path(job.judge), "second") or job, refusable=True)

    def judge_other_path(self) -> Outcome:
        job = self.job(self.rows)
        other = Path(job.judge).with_name("other")
        write_judge(other, "second")
        return self.grow(job, lambda: replace(job, judge=str(other)), refusable=True)

    def full_disk(self) -> Outcome | None:
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "lore-benchmark", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            print("no full disk: mounting a tmpfs needs root (unshare -Urm)", file=sys.stderr)
            return None
        try:
            job, ballast = self.job(self.rows, disk=disk), disk / "ballast"

            def fill() -> bool:
                if asked(job) > len(self.rows) // 3 and not ballast.exists():
                    with suppress(OSError), open(ballast, "wb", buffering=0) as file:
                        while file.write(bytes(4096)):
                            pass
                return False

            first = self.start(job, stop=fill)
            ballast.unlink(missing_ok=True)
            return self.outcome(job, self.rows, [first, self.start(job)])
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=False)

    def poisoned(self) -> Outcome:
        rows = list(self.rows)
        at = self.rng.randrange(len(rows))
        rows[at] = (*rows[at][:2], f"{rows[at][2]} {POISON}")
        job, starts = self.job(rows), []
        while len(starts) < 3 and (not starts or starts[-1].status):
            starts.append(self.start(job))
        return self.outcome(job, rows, starts)


CASES: dict[str, Callable[[Bench], Outcome | None]] = {
    "clean": Bench.clean,
    "killed": Bench.killed,
    "killed, first file": Bench.killed_first_file,
    "doubled rows": Bench.doubled,
    "re-sorted": Bench.resorted,
    "grown": Bench.grown,
    "grown, defaults": Bench.grown_defaults,
    "judge, same path": Bench.judge_same_path,
    "judge, other path": Bench.judge_other_path,
    "full disk": Bench.full_disk,
    "poisoned": Bench.poisoned,
}


def tier_of(weights: str, title: str) -> str:
    return TIERS[zlib.crc32(weights.encode() + title.encode()) % len(TIERS)]


def asked(job: Job) -> int:
    """Questions so far."""
    path = Path(job.asked)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def write_pairs(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    size = -(-len(rows) // FILES)
    for number, start in enumerate(range(0, len(rows), size)):
        columns = zip(*rows[start : start + size], strict=True)
        pq.write_table(pa.table(dict(zip(("pair_id", "query", "title"), columns, strict=True))), folder / f"{number}.parquet")


def write_judge(folder: Path, weights: str) -> None:
    """A folder that lore takes for a trained judge; the other systems only read its weights."""
    from lore.codec.judgement import renderer_hash
    from lore.codec.prompt import PromptFormat
    from lore.rubric.rubric import load_rubric

    folder.mkdir(exist_ok=True)
    weights_of(folder).write_text(weights)
    (folder / "config.json").write_text("{}")
    renderer = renderer_hash(load_rubric(RUBRIC), PromptFormat(**PROMPT))
    card = {"renderer_hash": renderer, "rubric": RUBRIC, "prompt": PROMPT, "base": "none"}
    (folder / "lore.json").write_text(json.dumps(card))


def kill(process: subprocess.Popen, look: Callable) -> object:
    """Stops a process and all that it has started, calls `look`, and kills them."""
    try:
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for each in (psutil.Process.suspend, None, psutil.Process.kill):
        if each is None:
            found = look()
            continue
        for one in family:
            with suppress(psutil.NoSuchProcess):
                each(one)
    for one in family:
        with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            one.wait(5)
    return found


def last_words(text: str, status: int) -> str:
    """The line of a log that tells its reader most: the failures that it counts, or the last one that names an error."""
    if status == 0:
        failures = re.findall(r"[1-9]\d* rows failed.*|failures [1-9]\d*", text)
        return f"done, {failures[-1]}" if failures else "done"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\S*\.)?\w*(Error|Exception|error)\b.{0,40}:", line)]
    return (errors or lines or [""])[-1][:160]


def systems(options: argparse.Namespace) -> list[System]:
    found = []
    for name, script, package, places, python in (
        ("ray.data", "label_by_ray.py", "ray", "*.parquet", sys.executable),
        ("distribatch", "label_by_distribatch.py", "distribatch", "*.parquet", options.distribatch or sys.executable),
        ("lore label", "label_by_lore.py", "lore", "verdicts/*.parquet", sys.executable),
    ):
        if options.systems and not any(name.startswith(one) for one in options.systems):
            continue
        if python == sys.executable and find_spec(package) is None:
            print(f"{name} is left out: {package} is not installed (see --help)", file=sys.stderr)
            continue
        found.append(System(name, script, python, places))
    return found


def report(results: dict[str, dict[str, Outcome | None]], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{options.pairs:,} pairs, {options.kills} kills, seed {options.seed}"
    table = Table("fault", "system", title=title)
    for column in ("lost", "doubled", "visible early", "redone", "judges"):
        table.add_column(column, justify="right")
    table.add_column("what the user sees", overflow="fold")
    for case in CASES:
        for system, cases in results.items():
            one = cases.get(case)
            if one is None:
                continue
            early = f"{one.visible_early}" + (f" + {one.unreadable} unreadable" if one.unreadable else "")
            numbers = (f"{one.lost}", f"{one.doubled}", early, f"{one.redone}", f"{one.judges}")
            table.add_row(case, system, *numbers, "; ".join(word for word in one.starts if word != "killed"))
        table.add_section()
    Console(width=170).print(table)
    found = {name: {case: one and asdict(one) for case, one in cases.items()} for name, cases in results.items()}
    print(json.dumps({"benchmark": "label_faults", "pairs": options.pairs, "seed": options.seed, "results": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.002, help="seconds that the judge takes per pair")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--systems", nargs="*", choices=("ray", "distribatch", "lore"), help="only these systems")
    parser.add_argument("--cases", nargs="*", metavar="CASE", help="only the faults that begin with these words")
    parser.add_argument("--distribatch", metavar="PYTHON", help="interpreter of an environment with distribatch[openai]")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the systems are stopped too
    results: dict[str, dict[str, Outcome | None]] = {}
    with TemporaryDirectory() as folder:
        for system in systems(options):
            place = Path(folder) / system.name.replace(" ", "-")
            place.mkdir()
            bench, results[system.name] = Bench(system, place, options), {}
            for case, run in CASES.items():
                if options.cases and not any(case.startswith(one) for one in options.cases):
                    continue
                began = time.monotonic()
                results[system.name][case] = run(bench)
                print(f"{system.name}: {case} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        report(results, options)


if __name__ == "__main__":
    main()
