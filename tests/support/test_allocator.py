"""Large blocks that are allocated and freed again and again, in processes of their own."""

import json
import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource
from lore.support.allocator import give_back_freed_memory, keep_freed_memory
def pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
kept = keep_freed_memory() if KEEP else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    b"x" * 2**26  # more than glibc ever keeps by itself
faults, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, pages()
give_back_freed_memory()
print(json.dumps([kept, faults, held - pages()]))
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has these settings")


def measured(keep: bool, **environment: str) -> tuple[bool | None, int, int]:
    """What keep_freed_memory returned, page faults, and pages that were given back in the end."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("KEEP", str(keep))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return tuple(json.loads(done.stdout))


def test_freed_blocks_are_used_again_and_given_back_when_asked():
    (_, many, left), (kept, few, given) = measured(False), measured(True)
    assert kept and few < many / 10
    assert left < 1000 < 10_000 < given


def test_the_users_own_settings_stay():
    kept, faults, _ = measured(True, MALLOC_MMAP_MAX_="65536")
    assert not kept and faults > 20 * 2**26 / os.sysconf("SC_PAGESIZE") / 2
