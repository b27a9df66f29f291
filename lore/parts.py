"""Files under way: `.name.PID.part` beside the file they become, so that a killed process leaves nothing half written."""

import os
from pathlib import Path


def part_of(path: Path) -> Path:
    """Where this process writes `path` until it is whole. Parts of processes that are gone are removed."""
    for old in path.parent.glob(f".{_literal(path.name)}.*.part"):
        pid = old.name.removeprefix(f".{path.name}.").removesuffix(".part")
        if pid.isdecimal() and not _runs(int(pid)):
            old.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no number that a process could have
        return True
    return True
