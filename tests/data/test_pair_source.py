"""PairSource: one import and one hash of the input a run, whoever asks for it and however often."""

import builtins
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lore.config.sections import StrictModel
from lore.data.pair_source import PairSource
from lore.data.parquet import fingerprint, read_pairs
from lore.data.section import DataSection
from lore.run.input_hashes import input_fingerprints, missing_inputs
from lore.support import fingerprint as fingerprints

ROWS = "".join(f"query {i},title {i},1,{'train' if i % 2 else 'test'}\n" for i in range(40))


@pytest.fixture
def opens(monkeypatch) -> Counter:
    """How often each csv and Parquet file is opened for reading bytes, by name; nothing is known of any file yet."""
    counted, plain_open = Counter(), builtins.open

    def counting_open(file, mode="r", *rest, **options):
        if mode == "rb" and isinstance(file, str | os.PathLike) and Path(file).suffix in (".csv", ".parquet"):
            counted[Path(file).name] += 1
        return plain_open(file, mode, *rest, **options)

    monkeypatch.setattr(builtins, "open", counting_open)
    monkeypatch.setattr(fingerprints, "_digests", {})
    return counted


@pytest.fixture
def section(tmp_path) -> DataSection:
    (tmp_path / "a.csv").write_text("query,title,label,split\n" + ROWS)
    return DataSection(path=str(tmp_path / "a.csv"), source="table", split="train", limit=10)


class Recipe(StrictModel):
    data: DataSection


def test_the_input_is_hashed_once_and_imported_once(section, tmp_path, opens):
    noted = input_fingerprints(Recipe(data=section))
    source = PairSource(section, tmp_path / "run")
    pairs = [list(source.labeled(columns=columns)) for columns in (None, ["label"], None)]
    assert pairs[0] == pairs[2] and [pair.query for pair in pairs[0]] == [f"query {i}" for i in range(1, 20, 2)]
    assert source.fingerprint == PairSource(section, tmp_path / "run").fingerprint == fingerprint(source.path)
    assert input_fingerprints(Recipe(data=section)) == noted
    # The second fingerprint compares size and times: it reads a file only if one of them has changed.
    assert opens == {"a.csv": 2, "pairs.parquet": 1}
    text = Path(section.path).read_text()
    state = os.stat(section.path)
    Path(section.path).write_text(text.replace("query 1,", "query 7,", 1))
    os.utime(section.path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(section.path).st_size == state.st_size and input_fingerprints(Recipe(data=section)) != noted


def test_a_restarted_run_hashes_nothing_again_and_a_changed_file_is_noticed(section, tmp_path, opens, monkeypatch):
    first = PairSource(section, tmp_path / "run")
    before, stamp = first.fingerprint, first.path.stat().st_mtime_ns
    opens.clear()
    monkeypatch.setattr(fingerprints, "_digests", {})  # as in another process
    again = PairSource(section, tmp_path / "run")
    assert again.fingerprint == before and again.path.stat().st_mtime_ns == stamp
    assert opens == {}
    Path(section.path).write_text("query,title,label,split\nother,title,1,train\n")
    changed = PairSource(section, tmp_path / "run")
    assert [pair.query for pair in changed.labeled()] == ["other"]
    assert changed.fingerprint == fingerprint(changed.path) != before
    assert opens == {"a.csv": 2, "pairs.parquet": 1}


def test_another_machine_may_have_its_own_copy_of_the_input(section, tmp_path, monkeypatch):
    path = PairSource(section, tmp_path / "run").path
    notes = tmp_path / "run" / "data" / "inputs.json"
    notes.write_text(json.dumps({**json.loads(notes.read_text()), "machine": "elsewhere"}))
    os.utime(section.path, (1, 1))
    monkeypatch.setenv("RANK", "1")
    assert PairSource(section, tmp_path / "run").path == path
    Path(section.path).write_text("query,title,label,split\nother,title,1,train\n")
    monkeypatch.setattr("lore.data.pair_source.time.sleep", lambda seconds: pytest.fail("waits, as it should"))
    with pytest.raises(pytest.fail.Exception, match="as it should"):
        PairSource(section, tmp_path / "run").path  # noqa: B018


def ask(section: DataSection, folder: Path, found) -> None:
    """In a process of its own: what rank 1 reads, and which inputs it opens for that."""
    os.environ["RANK"] = "1"
    opened = []
    sys.addaudithook(lambda event, rest: opened.append(str(rest[0])) if event == "open" else None)
    queries = [pair.query for pair in PairSource(section, folder).labeled()]
    found.put((queries, [path for path in opened if path.endswith(".csv")]))


@pytest.mark.parametrize("stale", ["", "other settings", "changed file", "other file"])
def test_the_other_processes_wait_for_the_import_and_open_no_input(section, tmp_path, stale):
    """stale: how the import of an earlier start differs."""
    if stale == "other settings":
        PairSource(section.model_copy(update={"split_fractions": {"a": 1.0}}), tmp_path / "run").fingerprint  # noqa: B018
    elif stale:
        PairSource(section, tmp_path / "run").fingerprint  # noqa: B018
        if stale == "other file":
            section = section.model_copy(update={"path": str(tmp_path / "b.csv")})
        Path(section.path).write_text("query,title,label,split\n" + ROWS.replace("query", "other"))
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    other = context.Process(target=ask, args=(section, tmp_path / "run", found))
    other.start()
    time.sleep(2)
    assert found.empty()
    queries = [pair.query for pair in PairSource(section, tmp_path / "run").labeled()]
    assert found.get(timeout=60) == (queries, [])
    assert queries[0] == ("other 1" if stale.endswith("file") else "query 1")
    other.join()


def test_a_machine_without_the_input_files_takes_the_import_as_it_is(section, tmp_path):
    queries = [pair.query for pair in PairSource(section, tmp_path / "run").labeled()]
    Path(section.path).unlink()
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    other = context.Process(target=ask, args=(section, tmp_path / "run", found))
    other.start()
    assert found.get(timeout=60) == (queries, [])
    other.join()


def test_files_of_pairs_are_hashed_once_too(section, tmp_path, opens, monkeypatch):
    imported = PairSource(section, tmp_path / "run").path
    for name in ("a", "b"):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / "pairs" / f"{name}.parquet").write_bytes(imported.read_bytes())
    pairs = DataSection(path=str(tmp_path / "pairs"))
    opens.clear()
    first = PairSource(pairs, tmp_path / "other").fingerprint
    monkeypatch.setattr(fingerprints, "_digests", {})
    assert PairSource(pairs, tmp_path / "other").fingerprint == first
    assert opens == {"a.parquet": 1, "b.parquet": 1}
    (tmp_path / "pairs" / "b.parquet").rename(tmp_path / "pairs" / "0.parquet")
    assert len(list(read_pairs(tmp_path / "pairs"))) == 80
    assert PairSource(pairs, tmp_path / "other").fingerprint == first  # the same bytes in the same order


class Lexicon(StrictModel):
    path: str

    def input_files(self):
        return {"path": [self.path]}


class Search(StrictModel):
    lexicons: dict[str, Lexicon] = {}
    data: DataSection | None = None


def test_any_section_reports_its_own_inputs(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    search = Search(
        lexicons={"en": Lexicon(path=str(tmp_path / "a.txt")), "de": Lexicon(path=str(tmp_path / "b.txt"))},
        data=DataSection(path=str(tmp_path / "none")),
    )
    assert list(input_fingerprints(search, only_what_is_there=True)) == ["lexicons.en.path"]
    assert dict(missing_inputs(search)) == {
        "lexicons.de.path": f"{tmp_path / 'b.txt'} does not exist.",
        "data.path": f"{tmp_path / 'none'} does not exist. `lore data import` writes pairs.",
    }
