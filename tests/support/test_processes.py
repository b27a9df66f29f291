"""A process that ends with the one that started it, also after a SIGKILL."""

import os
import subprocess
import sys

from conftest import ROOT

from lore.support.processes import end_with

LEAF = "import os, time; from lore.support.processes import end_with; print(end_with({owner}), flush=True); time.sleep(60)"
MIDDLE = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {LEAF!r}.format(owner=os.getppid())])"
OWNER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {MIDDLE!r}])"


def test_a_killed_owner_takes_its_descendants_with_it():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout.readline() == "True\n"
        owner.kill()
        owner.communicate(timeout=20)  # ends when the last of them has closed its output


def test_only_an_ancestor_can_be_the_owner():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert not end_with(other.pid) and not end_with(os.getpid())
        other.communicate(b"\n")
