"""The bounds in pyproject.toml are versions that were run: the lowest in the pinned set, the highest in the newest set."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
# `make install` leaves a file that names what it has installed.
INSTALLED = {path.name.removeprefix(".installed-") for path in Path(sys.prefix).glob(".installed-*")}


def bounds(line: str) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """(name, lowest, first not allowed), both as (major, minor)."""
    name, low, high = re.fullmatch(r"([\w-]+)>=(\d+\.\d+),<(\d+\.\d+)", line).groups()
    return name, Version(low).release, Version(high).release


@pytest.mark.parametrize("line", DEPENDENCIES)
def test_the_installed_version_is_within_its_bounds(line):
    assert Requirement(line).specifier.contains(Version(metadata.version(Requirement(line).name)).base_version)


@pytest.mark.parametrize("line", DEPENDENCIES)
def test_a_bound_is_the_version_of_the_set_that_runs_it(line):
    name, low, high = bounds(line)
    major, minor, *_ = Version(metadata.version(name)).release
    if "newest" in INSTALLED:
        assert high == (major, minor + 1), f"{name} {major}.{minor} is the newest that was run, and {high} is the upper bound"
    elif INSTALLED:
        assert low == (major, minor), f"{name} {major}.{minor} is the oldest that was run, and {low} is the lower bound"
    else:
        pytest.skip("this environment was not made by `make install`")
