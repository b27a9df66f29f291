"""Atomic files: whole or not there, unique names under way, and leftovers that are cleared without harm to others."""

import os
import subprocess
import sys
import threading
import time

import pytest

from lore.support.atomic_files import (
    FOREIGN_SECONDS,
    folder_written_whole,
    machine,
    part_of,
    replace_folder,
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
