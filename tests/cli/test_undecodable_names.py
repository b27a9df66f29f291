"""Names with bytes that are not UTF-8, from the command line and the environment, are refused with a message."""

import os
import subprocess
import sys

import pytest

from lore.config.recipe import run_root
from lore.run.runner import run_command
from lore.support.errors import LoreError

ODD = os.fsdecode(b"caf\xe9.parquet")


def test_an_argument_with_undecodable_bytes_is_refused(capsys):
    done = subprocess.run([sys.executable, "-m", "lore", "data", "stats", ODD], capture_output=True, timeout=120)
    assert done.returncode == 1 and b"Rename it" in done.stderr and b"Traceback" not in done.stderr
    assert run_command([ODD]) == 1
    assert "An argument holds bytes that are not UTF-8: caf\ufffd.parquet" in capsys.readouterr().err


def test_a_variable_of_the_environment_with_undecodable_bytes_is_refused(monkeypatch):
    monkeypatch.setenv("LORE_RUNS", ODD)
    with pytest.raises(LoreError, match="The environment variable LORE_RUNS holds bytes"):
        run_root()
