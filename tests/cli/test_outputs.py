"""Every command with an output, against what an output must not be, and what of an older output is kept."""

import json
import os
import stat
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from evaluations_for_tests import evaluate, made_pairs, right_in, write_pairs
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data.pair import Pair
from lore.data.parquet import PairWriter, read_pairs
from lore.data.rejected_rows import RejectedWriter, Rejection
from lore.data.tables.parquet_files import write_table
from lore.data_synth.shop.write import write_world
from lore.judge.verdict import Verdict
from lore.label.schema import label_schema
from lore.online.answer import Answer
from lore.online.shadow import ShadowRow, shadow_table
from lore.support.errors import LoreError
from lore.support.outputs import Output, begins_with, checked_folder, checked_outputs, output_path

LABELS = f"00-0000-{'0' * 20}.parquet"
COMMANDS = {
    "data import": (["table", "in/my.csv", "--rubric", "homedepot"], "out.parquet", "in/my.csv"),
    "data check": (["in/pairs.parquet"], "out.parquet", "in/rubric.yaml"),
    "data split": (["in/bare.parquet"], "out.parquet", "in/link.parquet"),
    "goodrate estimate": (
        ["in/log.csv", "--verdicts", "in/verdicts.csv", "--rated", "in/rated.csv", "--rubric", "homedepot"],
        "out.json",
        "in/rated.csv",
    ),
    "goodrate sample": (["in/log.csv", "--pairs", "2"], "out.csv", "in/log.csv"),
    "compare": (["runs/a:judge", "runs/a:other"], "out.jsonl", "runs/a/predictions.parquet"),
    "leaderboard": (["runs/a"], "out.md", "runs/a/metrics.json"),
    "export judge": (["runs/a"], "out", "runs/a"),
    "export student": (["runs/a"], "out", "runs/a"),
    "world": (["--pairs", "40"], "out", None),
    "plan": (["in/log.csv", "--quality", "runs/a", "--student-name", "other"], "out", "runs/a"),
    "monitor probe": (["in/shadow/2026-11-30"], "out", "in/shadow/2026-11-30"),
    "monitor report": (["in/shadow"], "out", "in/shadow"),
    "nearby index": (["in/places.csv"], "out.db", "in/places.csv"),
    "label export": (["in/labels", "--format", "qrels"], "out.qrels", f"in/labels/verdicts/{LABELS}"),
}
"""Arguments, an output, and an input of every command that writes where its user says."""
FOLDERS = ("export judge", "export student", "world", "plan", "monitor probe", "monitor report")
FILES = [name for name in COMMANDS if name not in FOLDERS]
RUBRIC = """
name: mine
version: "1"
tiers:
  - {id: "1", name: bad, meaning: bad, relevant: false}
  - {id: "2", name: good, meaning: good, relevant: true}
"""


def commands() -> dict[str, list[str]]:
    """Every command and the names of its options."""
    found, waiting = {}, [((), typer.main.get_command(app))]
    for words, command in waiting:
        waiting += [((*words, name), inner) for name, inner in getattr(command, "commands", {}).items()]
        if not hasattr(command, "commands"):
            found[" ".join(words)] = [option for parameter in command.params for option in parameter.opts]
    return found


def lore(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = done.exception
    assert error is None or isinstance(error, SystemExit | LoreError | OSError), done.exc_info
    return done.exit_code, f"{done.output}{error if isinstance(error, LoreError | OSError) else ''}"


def run(command: str, *more: object) -> tuple[int, str]:
    return lore(*command.split(), *COMMANDS[command][0], *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The inputs of all commands. No test changes them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "in").mkdir()
    (folder / "in" / "my.csv").write_text("query,title,label\nred cup,Cup,2.6\n,Plate,1\n")
    (folder / "in" / "rubric.yaml").write_text(RUBRIC)
    (folder / "in" / "places.csv").write_text("place_id,name,lat,lon\n1,Here,41.88,-87.63\n2,Nowhere,91,0\n")
    pairs = [Pair(pair_id=str(number), query=f"q{number}", title="t", label="1") for number in range(8)]
    for name, metadata in (("pairs", {"lore.rubric": str(folder / "in" / "rubric.yaml")}), ("bare", {})):
        with PairWriter(folder / "in" / f"{name}.parquet", metadata=metadata) as writer:
            for pair in pairs:
                writer.write(pair)
    os.link(folder / "in" / "bare.parquet", folder / "in" / "link.parquet")
    (folder / "in" / "log.csv").write_text("query,pair_id\n" + "".join(f"q{number},{number}\n" for number in range(8)))
    (folder / "in" / "verdicts.csv").write_text("pair_id,tier\n" + "".join(f"{number},1\n" for number in range(8)))
    (folder / "in" / "rated.csv").write_text("pair_id,label\n0,1\n1,3\n")
    label = {"pair_id": "1", "query": "q", "item_id": "i", "tier": "1", "p_1": 1.0, "slices": []}
    write_table(folder / "in" / "labels" / "verdicts" / LABELS, [label], label_schema(["1", "2"]))
    answer = Answer(Verdict("1", "1", [1.0, 0.0], source="student"), 0.0, "tail")
    day = folder / "in" / "shadow" / "2026-11-30"
    day.mkdir(parents=True)
    pq.write_table(shadow_table([ShadowRow(pairs[0], answer, 0.0)], ["1", "2"]), day / "1.parquet")
    data = write_pairs(folder / "test.parquet", rated := made_pairs(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORE_RUNS", str(folder / "runs"))
        evaluate(data, folder, "a", {"judge": right_in(0.9, 1), "other": right_in(0.5, 2)}, rated)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A folder that shows the inputs, as the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("in", "runs", "test.parquet"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Type, mode and content of everything."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        found[str(path)] = (mode, path.read_bytes() if stat.S_ISREG(mode) else b"")
    return found


def test_every_command_that_writes_is_tested_here_and_takes_force():
    writing = {name: options for name, options in commands().items() if "--out" in options}
    del writing["label run"]  # writes a run folder, in which it resumes
    assert set(writing) == set(COMMANDS)
    assert all("--force" in options for options in writing.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_would_destroy_something_is_refused_before_any_work(here, made, command):
    _, out, read = COMMANDS[command]
    (here / "foreign").write_text("mine\n")
    os.mkfifo(here / "pipe")
    (here / "to_pipe").symlink_to("pipe")
    (here / "out.rejected.jsonl").write_text('{"mine": 1}\n')
    suffix = Path(out).suffix
    (here / f"foreign{suffix}").write_text("mine\n")
    (here / f"linked{suffix}").symlink_to(f"foreign{suffix}")
    tried = {"pipe": "a named pipe", "to_pipe": "a named pipe", "/dev/null": "keeps devices", "/dev/fd/1": "keeps devices"}
    tried |= {"": "is empty", "foreign/x": "foreign"}
    if command in FILES:
        tried |= {f"foreign{suffix}": "--force", f"linked{suffix}": "--force"}
    if read is not None:
        tried |= {read: "input of this command", os.path.join("in", "..", read): "input of this command"}
        if command in FILES:
            os.link(made / read, here / f"hard{suffix}")
            tried[f"hard{suffix}"] = "input of this command"
    if command in ("data import", "goodrate estimate", "nearby index"):
        tried[out] = "out.rejected.jsonl was not written"
    before = state(here), state(made)
    for name, said in tried.items():
        if command in ("compare", "leaderboard") and Path(name).suffix != suffix:
            said = "-"  # refused for its suffix, or taken for a folder
        for force in [[], ["--force"]] if said == "input of this command" else [[]]:
            code, output = run(command, "--out", name, *force)
            assert code and (said == "-" or said in output.replace("\n", " ")), (name, output)
            assert "Traceback" not in output
            assert (state(here), state(made)) == before, name


@pytest.mark.parametrize("command", FILES)
def test_an_own_output_keeps_its_mode_its_owner_and_its_link(here, command):
    out = Path(COMMANDS[command][1])
    force = ["--force"] if command == "goodrate sample" else []  # it may hold labels
    code, output = run(command, "--out", out)
    assert code == 0, output
    (here / "elsewhere").mkdir()
    target = here / "elsewhere" / f"target{out.suffix}"
    out.rename(target)
    out.symlink_to(target)
    target.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(target, 12345, 23456)
    first, was = target.read_bytes(), target.stat()
    code, output = run(command, "--out", out, *force)
    now = target.stat()
    assert code == 0 and out.is_symlink() and target.read_bytes() == first, output
    assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid) and now.st_ino != was.st_ino
    target.write_text("mine\n")
    assert run(command, "--out", out)[0] and target.read_text() == "mine\n"
    assert run(command, "--out", out, "--force")[0] == 0 and target.read_bytes() == first
    assert not [path for path in here.rglob("*") if path.name.startswith(".")]


def test_a_shop_replaces_only_a_shop(tmp_path):
    write = partial(write_world, tmp_path, pairs=40, corpus=0)
    (tmp_path / "log.jsonl").write_text("mine\n")
    with pytest.raises(LoreError, match="log.jsonl was not written"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    write(force=True)
    first = state(tmp_path)
    for force in (False, True):
        write(force=force)
        assert state(tmp_path) == first
    with pytest.raises(LoreError, match="another shop .seed: was 0, now 3."):
        write(seed=3)
    assert state(tmp_path) == first
    write(seed=3, force=True)
    assert json.loads((tmp_path / "world.json").read_text())["seed"] == 3 and state(tmp_path).keys() == first.keys()
    assert state(tmp_path) != first


def test_in_place_a_table_keeps_its_mode_and_link_and_no_other_table_is_replaced(here):
    import pyarrow.parquet as pq

    (here / "mine").mkdir()
    own = here / "mine" / "own.parquet"
    with PairWriter(own) as writer:
        writer.write(Pair(pair_id="1", query="q", title="t"))
    own.chmod(0o640)
    (here / "link.parquet").symlink_to("mine/own.parquet")
    for arguments in (["split", "link.parquet"], ["check", "link.parquet", "-o", "mine/own.parquet"]):
        code, output = lore("data", *arguments)
        assert code == 0, output
        assert (here / "link.parquet").is_symlink() and stat.S_IMODE(own.stat().st_mode) == 0o640
    assert next(read_pairs(own)).split
    table = pq.read_table(own)
    pq.write_table(table.append_column("embedding", [[1.5]]), here / "more.parquet")
    before = state(here)
    for arguments in (["split", "more.parquet", "--replace"], ["check", "mine", "-o", "mine/own.parquet"]):
        assert lore("data", *arguments)[0] and state(here) == before
    assert "matches" in lore("data", "split", "mi*/*.parquet", "--replace", "-o", "mine/new.parquet")[1]


def test_the_second_output_of_a_comparison_is_checked_too(here):
    (here / "all.json").write_text("{}")
    for name, said in (("all.json", "not overwritten"), ("runs/a/metrics.json", "input of"), ("", "empty"), ("in", "folder")):
        code, output = run("compare", "--json", name)
        assert code and said in output.replace("\n", " ")
    assert (here / "all.json").read_text() == "{}"


def test_two_outputs_of_a_command_are_two_files(here):
    for out, other in (("a.jsonl", "a.jsonl"), ("a.jsonl", "./in/../a.jsonl"), ("a.jsonl", "link"), ("a.jsonl", "a.jsonl/b")):
        if other == "link":
            (here / "link").symlink_to("a.jsonl")
        code, output = run("compare", "--out", out, "--json", other)
        assert code and "outputs of one command" in output.replace("\n", " ")
    assert not (here / "a.jsonl").exists()


def test_rejected_rows_of_others_stay(tmp_path):
    path = tmp_path / "a.rejected.jsonl"
    for text in ('{"mine": 1}\n', '{"file": "a.csv"}\n'):
        path.write_text(text)
        with RejectedWriter(tmp_path / "a.parquet"):
            pass
        assert path.read_text() == text
    with RejectedWriter(tmp_path / "a.parquet") as writer:
        writer.write(Rejection('a "b".csv', 1, "title", "encoding", "x", "y", {"title": "caf\udce9"}))
    with RejectedWriter(tmp_path / "a.parquet"):
        pass
    assert not path.exists()


@pytest.mark.parametrize("given", ["", " ", "a/", ".", "..", "a/..", "x.rejected.jsonl", "x.REJECTED.JSONL"])
def test_a_name_that_is_no_file_is_refused(given):
    with pytest.raises(LoreError):
        output_path(given)


def test_the_mark_is_seen_behind_a_byte_order_mark_and_an_empty_file_is_free(tmp_path):
    own = Output(tmp_path / "a.csv", begins_with("pair_id,"))
    for text, free in (("\ufeffpair_id,x\n", True), ("pair_id,x\n", True), ("", True), ("id,x\n", False)):
        own.path.write_text(text, encoding="utf-8")
        if free:
            assert checked_outputs([own]) == [own.path]
        else:
            with pytest.raises(LoreError, match="not overwritten"):
                checked_outputs([own])


def test_a_folder_that_holds_an_input_is_no_output(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    for folder in (tmp_path / "a", tmp_path / "a" / "b", tmp_path):
        with pytest.raises(LoreError, match="holds"):
            checked_folder(folder, [tmp_path / "a" / "b" / "file"])
    assert checked_folder(tmp_path / "new", [tmp_path / "a"]) == tmp_path / "new"


def test_a_full_disk_leaves_the_older_output(here):
    import resource

    assert run("data split", "--out", "out.parquet")[0] == 0
    before = state(here)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code, output = run("data split", "--seed", 7, "--out", "out.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1 and "File too large" in output and state(here) == before


def test_an_output_of_an_earlier_version_needs_no_force(here):
    older = {"log": {"path": "in/log.csv", "rows": 8}, "verdicts": {}}
    Path("out.json").write_text(json.dumps(older, indent=1))
    code, output = run("goodrate estimate", "--out", "out.json")
    assert code == 0 and json.loads(Path("out.json").read_text())["lore"] == "goodrate", output
