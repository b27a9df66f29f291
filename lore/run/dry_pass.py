"""Runs a stage's dry pass: every check of the table in lore.config.dry_pass, before the work starts. All problems are reported
together."""

import time
from collections.abc import Callable, Iterable, Mapping

from lore.config.dry_pass import STAGE_CHECKS
from lore.run.devices import main_process_checks
from lore.support.errors import LoreError
from lore.support.processes import say

Check = Callable[[], None]


def dry_pass(stage: str, checks: Mapping[str, Check]) -> None:
    """Runs the checks of a stage in the main process, in the order of the table, and prints their number and the time.

    checks: one function per name in STAGE_CHECKS[stage], which raises LoreError. Raises one LoreError with all problems, in every
    process of a launch.
    """
    names = STAGE_CHECKS[stage]
    if set(checks) != set(names):
        raise ValueError(f"stage {stage} runs the checks {sorted(checks)}, and lore.config.dry_pass lists {sorted(names)}")
    began = time.perf_counter()
    main_process_checks(lambda: _run(stage, {name: checks[name] for name in names}))
    say(f"dry pass: {len(names)} checks in {time.perf_counter() - began:.1f} s")


class _Problems(LoreError):
    """Several problems of one check."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def _run(stage: str, checks: Mapping[str, Check]) -> None:
    found: dict[str, str] = {}
    for name, check in checks.items():
        for problem in _problems(check):
            found.setdefault(problem, name)  # a model that cannot be loaded fails several checks in the same way
    if found:
        many = f"{len(found)} problems were found" if len(found) > 1 else "one problem was found"
        lines = "\n".join(f"{name}: {problem}" for problem, name in found.items())
        raise LoreError(f"dry pass of {stage}: {many}, so nothing was started.\n{lines}")


def _problems(check: Check) -> list[str]:
    try:
        check()
    except LoreError as error:
        return getattr(error, "problems", None) or [str(error)]
    return []


def together(checks: Iterable[Check]) -> Check:
    """One check out of several of the same kind, such as one per judge of an evaluation. Reports all their problems."""
    checks = list(checks)

    def check() -> None:
        if problems := [problem for one in checks for problem in _problems(one)]:
            raise _Problems(problems)

    return check
