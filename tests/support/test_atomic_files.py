"""Atomic files: whole or not there, unique names under way, and leftovers that are cleared without harm to others."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import run_python

from lore.support.atomic_files import (
    FOREIGN_SECONDS,
    clear_parts,
    folder_written_whole,
    machine,
    part_of,
    replace_folder,
    scratch_folder,
    write_atomic,
    written_whole,
)


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    write_atomic(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), written_whole(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise KeyError
    with pytest.raises(KeyError), folder_written_whole(tmp_path / "folder") as part:
        part.mkdir()
        (part / "a").touch()
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_writers_of_one_file_do_not_meet(tmp_path):
    texts = [str(number) * 200_000 for number in range(8)]
    writers = [threading.Thread(target=write_atomic, args=(tmp_path / "a.txt", text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "a.txt").read_text() in texts and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for text in ("old", "new"):
        with folder_written_whole(tmp_path / "model") as part:
            (part / "inner").mkdir(parents=True)
            (part / "inner" / text).write_text(text)
    assert [path.name for path in (tmp_path / "model" / "inner").iterdir()] == ["new"]
    (tmp_path / "shared.part").mkdir()
    replace_folder(tmp_path / "shared.part", tmp_path / "model")
    assert not any((tmp_path / "model").iterdir()) and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_leftovers_go_with_their_process_or_after_a_week_on_another_machine(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own, other = machine(), "00000000" if machine() != "00000000" else "11111111"
    names = {
        "dead": f".a.txt.{own}.{dead.pid}.0a1b2c3d.part",
        "alive": f".a.txt.{own}.{os.getppid()}.0a1b2c3d.part",
        "foreign": f".a.txt.{other}.{dead.pid}.0a1b2c3d.part",
        "old foreign": f".a.txt.{other}.{os.getppid()}.0a1b2c3d.part",
        "another file": f".b.txt.{own}.{dead.pid}.0a1b2c3d.part",
        "no part of ours": ".a.txt.notes.part",
    }
    for name in names.values():
        (tmp_path / name).touch()
    long_ago = time.time() - FOREIGN_SECONDS - 60
    os.utime(tmp_path / names["old foreign"], (long_ago, long_ago))
    write_atomic(tmp_path / "a.txt", "text")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.txt", *(names[key] for key in ("alive", "foreign", "another file", "no part of ours"))}
    assert part_of(tmp_path / "a.txt") != part_of(tmp_path / "a.txt")


# Replaces the folder sys.argv[1] and kills its own process after the old one is moved aside.
DIE_BETWEEN_THE_RENAMES = """
import os, pathlib, signal, sys
from lore.support.atomic_files import folder_written_whole
target, replace = pathlib.Path(sys.argv[1]), os.replace
def die(source, to):
    replace(source, to)
    if pathlib.Path(source) == target:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = die
with folder_written_whole(target) as part:
    part.mkdir()
    (part / "weights").write_text("new")
"""


@pytest.fixture
def torn(tmp_path):
    """The path of a folder whose replacement was killed between its two renames."""
    with folder_written_whole(tmp_path / "model") as part:
        part.mkdir()
        (part / "weights").write_text("old")
    assert run_python("-c", DIE_BETWEEN_THE_RENAMES, tmp_path / "model").returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists() and len(list(tmp_path.iterdir())) == 2
    return tmp_path / "model"


@pytest.mark.parametrize("recover", [part_of, lambda path: clear_parts(path.parent)], ids=["next write", "exclusive folder"])
def test_a_kill_between_the_renames_loses_no_folder(torn, recover):
    recover(torn)
    assert [path.name for path in torn.parent.iterdir()] == ["model"] and (torn / "weights").read_text() == "old"


def test_a_replacement_after_a_kill_between_the_renames_leaves_one_folder(torn):
    with pytest.raises(KeyError), folder_written_whole(torn):
        raise KeyError
    assert (torn / "weights").read_text() == "old"
    (torn.parent / "shared").mkdir()
    replace_folder(torn.parent / "shared", torn)
    assert [path.name for path in torn.parent.iterdir()] == ["model"] and not any(torn.iterdir())


def test_a_rename_that_fails_restores_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    replace = os.replace

    def fail(source, to):
        if source != tmp_path / "model":
            raise OSError("the disk is full")
        replace(source, to)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"), folder_written_whole(tmp_path / "model") as part:
        part.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (tmp_path / "model" / "weights").read_text() == "old"


def test_the_old_folder_of_another_process_that_may_run_is_left_alone(tmp_path):
    other = "00000000" if machine() != "00000000" else "11111111"
    names = {f".model.{machine()}.{os.getppid()}.0a1b2c3d.old", f".model.{other}.1.0a1b2c3d.old"}
    for name in names:
        (tmp_path / name).mkdir()
    part_of(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_scratch_folder_goes_with_its_block_or_with_the_next_write(tmp_path):
    with scratch_folder(tmp_path / "a.txt") as folder:
        (folder / "all").touch()
    assert not any(tmp_path.iterdir())
    code = (
        "import os, pathlib, signal, sys; from lore.support.atomic_files import scratch_folder\n"
        "with scratch_folder(pathlib.Path(sys.argv[1])) as folder: os.kill(os.getpid(), signal.SIGKILL)"
    )
    run_python("-c", code, tmp_path / "a.txt")
    assert len(list(tmp_path.iterdir())) == 1
    write_atomic(tmp_path / "a.txt", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_is_replaced_keeps_its_mode_and_nobody_else_reads_the_new_one_before(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    for mode in (0o600, 0o640, 0o444, 0o4755):
        path.chmod(mode)
        with written_whole(path) as file:
            file.write(b"new")
            (part,) = tmp_path.glob(".*.part")
            assert part.stat().st_mode & 0o077 == 0
        assert path.stat().st_mode & 0o7777 == mode
        write_atomic(path, "newer")
        assert path.stat().st_mode & 0o7777 == mode
    new = tmp_path / "b.txt"
    write_atomic(new, "text")
    (tmp_path / "plain").touch()
    assert new.stat().st_mode == (tmp_path / "plain").stat().st_mode  # the umask decides
    (tmp_path / "link").symlink_to("a.txt")
    write_atomic(tmp_path / "link", "own")  # in a run folder of somebody else a link must not lead out of it
    assert not (tmp_path / "link").is_symlink() and path.read_text() == "newer"
