"""`lore labels stats` and `lore labels gc`, on label folders and on the verdict store."""

import fcntl
import json
import os

import pytest
from label_folders import TIERS, label_row, write_labels
from typer.testing import CliRunner

import lore.label.store as store_module
from lore.cli.main import app
from lore.label.folder_stats import folder_stats
from lore.label.schema import FAILURES
from lore.label.store import VerdictStore, today
from lore.support.errors import LoreError


def lore(*arguments) -> str:
    done = CliRunner().invoke(app, ["labels", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    rows = [label_row(f"q{number % 9}", f"i{number}", TIERS[number % 3], attempts=1 + (number == 7)) for number in range(40)]
    rows.append(label_row("q", "odd", None, failure="no_verdict"))
    write_labels(tmp_path / "labels", rows, files=3)
    lost = [label_row("q1", f"lost{number}", None, failure="refused", attempts=1 + number) for number in range(4)]
    lost += [label_row("q1", "long", None, failure="prompt_too_long"), label_row("q1", "i1", None, failure="refused")]
    write_labels(tmp_path / "labels", [*lost, label_row("q1", "lost0", None, failure="refused")], kind=FAILURES)
    (tmp_path / "labels" / "recipe.yaml").write_text("stage: label\nrun: x\nmax_attempts: 3\n")
    return tmp_path / "labels"


def test_stats_of_a_label_folder(folder):
    found = json.loads(lore("stats", folder, "--json"))
    size = sum(path.stat().st_size for kind in ("verdicts", "failures") for path in (folder / kind).iterdir())
    assert found == {
        "judge": "",
        "pairs": 41,
        "tiers": {"L1": 14, "L2": 13, "L3": 13, "L4": 0},
        "unreadable": 1,
        "pending": 2,
        "final": 3,
        "attempts": {"1": 42, "2": 2, "3": 1, "4": 1},
        "doubled": 0,
        "files": 4,
        "bytes": size,
    }
    shown = lore("stats", folder)
    assert "41 pairs" in shown and "2 are asked again, 3 are not" in shown and "doubled pair ids: 0" in shown


def test_doubled_pair_ids_are_counted_across_ranges_of_queries(folder):
    verdicts = folder / "verdicts"
    one = sorted(verdicts.iterdir())[0]
    one.rename(verdicts / f"01-0000-{'a' * 20}.parquet")
    for path in sorted(verdicts.glob("00-*")):
        path.rename(verdicts / path.name.replace("00-0000", "01-0001"))
    (verdicts / f"02-0003-{'b' * 20}.parquet").write_bytes((verdicts / f"01-0000-{'a' * 20}.parquet").read_bytes())
    assert (found := folder_stats(folder)).doubled == 14 and found.pairs == 55


def test_gc_of_a_label_folder_leaves_every_label(folder):
    labels = {path: path.read_bytes() for kind in ("verdicts", "failures") for path in (folder / kind).iterdir()}
    (folder / "work" / "shards").mkdir(parents=True)
    (folder / "work" / "shards" / "a.arrow").write_bytes(b"x" * 1000)
    part = folder / "verdicts" / ".00-0000-a.parquet.0a1b2c3d.1.01234567.part"
    part.write_bytes(b"y" * 500)
    assert "1.5 kB" in lore("gc", folder, "--dry-run") and part.exists() and (folder / "work").exists()
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    if os.fork() == 0:  # the locks of a process do not stop the process itself
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
            os.write(handle, str(os.getpid()).encode())
            (folder.parent / "locked").touch()
            while not (folder.parent / "tried").exists():
                os.sched_yield()
        finally:
            os._exit(0)
    while not (folder.parent / "locked").exists():
        os.sched_yield()
    with pytest.raises(LoreError, match="in use by process"):
        lore("gc", folder)
    (folder.parent / "tried").touch()
    os.wait()
    os.close(handle)
    assert part.exists() and (folder / "work").exists()
    shown = lore("gc", folder)
    assert "2 left-over files and folders removed" in shown and not part.exists() and not (folder / "work").exists()
    assert {path: path.read_bytes() for kind in ("verdicts", "failures") for path in (folder / kind).iterdir()} == labels
    assert "0 left-over" in lore("gc", folder)
    (folder / "recipe.yaml").write_text("stage: sft\nrun: x\n")
    with pytest.raises(LoreError, match="no folder of `lore label`"):
        lore("gc", folder)


def test_stats_and_gc_of_the_store(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LORE_CACHE", str(tmp_path / "cache"))
    assert "0 verdicts of 0 judges" in lore("stats") and not (tmp_path / "cache").exists()
    day = today()
    with VerdictStore(tmp_path / "cache" / "verdicts.sqlite") as store:
        for judge, ago in (("w:r:r verdict", 100), ("", 100), ("new", 3)):
            monkeypatch.setattr(store_module, "today", lambda ago=ago: day - ago)
            store.put(judge, [label_row("q", str(number), "L1") for number in range(50)])
        monkeypatch.setattr(store_module, "today", lambda: day)
    found = json.loads(lore("stats", "--json"))
    assert [(one["judge"], one["verdicts"]) for one in found["judges"]] == [("new", 50), ("", 50), ("w:r:r verdict", 50)]
    assert found["bytes"] > 0 and "150 verdicts of 3 judges" in lore("stats")
    assert "2 judges would be removed" in lore("gc", "--dry-run") and "0 judges" in lore("gc", "--unused-days", 200, "--dry-run")
    shown = lore("gc", "--keep", folder)  # its label files are of the judge ""
    assert "removed: w:r:r verdict: 50 verdicts" in shown and "1 judge removed" in shown
    assert [one["judge"] for one in json.loads(lore("stats", "--json"))["judges"]] == ["new", ""]
    with pytest.raises(LoreError, match="does not exist"):
        lore("stats", "--store", tmp_path / "none.sqlite")
    monkeypatch.setenv("LORE_CACHE", "none")
    with pytest.raises(LoreError, match="turned off"):
        lore("gc")
    assert "150" not in lore("stats", "--store", tmp_path / "cache" / "verdicts.sqlite")
