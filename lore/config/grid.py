"""Grids: one file that holds the recipes of a study. Nothing here imports torch.

A grid names a base recipe and, for each run, the keys that differ from it:

    grid: lengths
    base: ../quickstart/sft.yaml
    seeds: [0, 1]
    runs:
      short: {train.steps: 200}
      long: {train.steps: 800}
      scores: {base: ../quickstart/eval.yaml, judges.long.model.adapter: "${runs.long}/model"}

`base` is a recipe file, another run of the same grid, or a mapping of keys. The base of a run replaces the base of the grid;
`base: null` starts from an empty recipe. A dotted key sets one value, like an override on the command line. A section as value
replaces the whole section. The `needs` of a run replace those of its base.

`${runs.long}` is the run folder of another run. A run that uses it runs after that run, so `needs` only has to list other
dependencies. Each run writes to the folder <grid>/<name>. With `seeds`, every run is repeated for each seed as <name>-seed<N>, and
${runs.long} means the run with the same seed. `FILE.yaml:NAME` names one run wherever a recipe file is expected.

The grid sets the folder of each run and, with `seeds`, its seed, so an override cannot set `run` or such a `seed`. Use `grid=NAME`
for new folders and `seeds=[N]` for other seeds. `FILE.yaml:NAME run=FOLDER` is allowed: the command runs one run of the grid in
another folder, after the same needs, and the grid neither reads nor writes that folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lore.config.recipe import RUN_NAME, RUN_NAME_EXPECTED, BaseRecipe, run_root
from lore.config.sections import Conflict, Seed, StrictModel
from lore.config.validation import validate
from lore.config.yaml_text import (
    OVERRIDE,
    Key,
    Problem,
    RecipeError,
    RecipeText,
    apply_override,
    dotted,
    read_recipe_text,
    set_value,
    short,
)
from lore.support.nearest import nearest

ADDRESS = re.compile(r"^(.+\.ya?ml):([^/:]+)$")
NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\Z")
REFERENCE = re.compile(r"\$\{runs\.([^}]{0,200})\}")


class GridHead(StrictModel):
    """The keys of a grid file. Each run is validated later, as the recipe that results from it."""

    lore: Literal[1] = 1
    """Version of the recipe format; the header line supplies it."""
    grid: str
    """Name of the folder under runs/ (or $LORE_RUNS) that holds the run folders."""
    base: str | dict[str, Any] | None = None
    """Recipe that every run starts from: a file relative to the grid's folder, a run of this grid, or a mapping of keys."""
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    """Every run is repeated with each of these seeds. null: each recipe keeps its own seed."""
    runs: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """For each run name, the dotted keys and their values."""

    def conflicts(self) -> Iterator[Conflict]:
        if not RUN_NAME.match(self.grid):
            yield Conflict(("grid",), short(self.grid), RUN_NAME_EXPECTED)
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            yield Conflict(("seeds",), str(self.seeds), "each seed once")
        for name in self.runs:
            if not NAME.match(name):
                yield Conflict((f"runs.{name}",), "that name", "at most 100 letters, digits, _ and -: it names a folder")


@dataclass
class GridText:
    """The recipes of a grid as plain data, before validation by their stages. `runs` is in execution order."""

    path: Path
    name: str
    names: list[str]
    """Run names as in the file. With seeds, the names in `runs` have the suffix -seed<N>."""
    seeds: list[int]
    """The value of `seeds`, or an empty list."""
    runs: dict[str, RecipeText] = field(default_factory=dict)
    siblings: dict[str, list[str]] = field(default_factory=dict)
    """For each run, the runs of the same grid that it needs."""
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """A grid whose runs are all valid recipes, in execution order."""

    path: Path
    name: str
    names: list[str]
    seeds: list[int]
    runs: dict[str, BaseRecipe]
    siblings: dict[str, list[str]]

    @property
    def folder(self) -> Path:
        return run_root() / self.name

    def address(self, name: str) -> Path:
        """FILE.yaml:NAME, which names one run on the command line and under `needs`."""
        return Path(f"{self.path}:{name}")


def split_address(path: str | Path) -> tuple[Path, str | None]:
    """File and run of `x.yaml:run`. The run is None for a file alone."""
    match = ADDRESS.match(str(path))
    return (Path(match[1]), match[2]) if match else (Path(path), None)


def is_grid(path: str | Path) -> bool:
    """Whether a path names a whole grid. False for a file that cannot be parsed; loading it reports the reason."""
    file, run = split_address(path)
    if run is not None or not file.is_file() or b"grid" not in file.read_bytes():
        return False
    try:
        return "grid" in read_recipe_text(file).data
    except RecipeError:
        return False


def of_whole_grid(overrides: Sequence[str]) -> list[str]:
    """The overrides that apply to the grid instead of a single run: grid, seeds, base and runs.NAME.KEY."""
    return [override for override in overrides if re.match(r"(?:grid|seeds|base|runs)(?:\.[^=]*)?=", override)]


def read_grid(path: str | Path, overrides: Sequence[str] = ()) -> GridText:
    """Every run of a grid. An override that `of_whole_grid` selects changes the grid, any other override changes every run. Raises
    RecipeError for a file that cannot be read; all other problems are listed in `problems`."""
    return _Reader(path, overrides).read()


def grid_run_text(path: str | Path, run: str, overrides: Sequence[str] = ()) -> RecipeText:
    """One run of a grid. Overrides that `of_whole_grid` does not select change only this run."""
    reader = _Reader(path, overrides)
    text = reader.read_one(run)
    if reader.problems:
        raise RecipeError(reader.problems, reader.path)
    return text


class _Reader:
    """Reads one grid file and collects all problems instead of stopping at the first."""

    def __init__(self, path: str | Path, overrides: Sequence[str]):
        self.text = read_recipe_text(path)
        self.path = self.text.path
        self.problems = list(self.text.problems)
        self.bases: dict[str | None, RecipeText] = {}
        if "grid" not in self.text.data:
            found, expected = "a recipe, which has no runs", f"a grid file before the colon, or {self.path} without a run name"
            raise RecipeError([Problem(str(self.path), "", found, expected)], self.path)
        self.of_runs = self._override_grid(overrides)
        self.name, self.base, self.seeds, self.runs = self._head()

    def _override_grid(self, overrides: Sequence[str]) -> dict[str | None, list[str]]:
        """Applies overrides of the grid's own keys. Returns the other overrides by run name; those for all runs are under None."""
        found: dict[str | None, list[str]] = {None: []}
        for override in overrides:
            match = OVERRIDE.match(override)
            parts = match[1].split(".", 2) if match else [""]
            if parts[0] == "runs" and len(parts) == 3:
                found.setdefault(parts[1], []).append(f"{parts[2]}={match[2]}")
            elif parts[0] in ("grid", "seeds", "base", "runs"):
                apply_override(self.text, override)
                self.problems = list(dict.fromkeys([*self.problems, *self.text.problems]))
            else:
                found[None].append(override)
        return found

    def _head(self) -> tuple[str, Any, list[int | None], dict[str, dict[str, Any]]]:
        data = dict(self.text.data)
        runs = data.get("runs")
        runs = {name: run for name, run in runs.items() if isinstance(run, dict)} if isinstance(runs, dict) else {}
        # `runs` and `base` contain recipe keys, which only the stage of the recipe can validate.
        if isinstance(data.get("runs"), dict):
            data["runs"] = {name: {} if isinstance(run, dict) else run for name, run in data["runs"].items()}
        data["base"] = {} if isinstance(data.get("base"), dict) else data.get("base")
        head = RecipeText(self.path, data, self.text.lines, self.text.overridden)
        try:
            checked = validate(head, GridHead)
            name, seeds = checked.grid, checked.seeds
        except RecipeError as error:
            self.problems += error.problems
            name, seeds = "grid", None
        for unknown in set(self.of_runs) - set(runs) - {None}:
            expected = self._known(runs)
            self.problems.append(self._problem((), f"override runs.{unknown}", "no such run", expected, nearest(unknown, runs)))
        return name, self.text.data.get("base"), seeds or [None], runs

    def _problem(self, at: Key, key: str, found: str, expected: str, near: str = "") -> Problem:
        return Problem(self.text.where(at) if at else str(self.path), key, found, expected, near)

    @staticmethod
    def _known(runs: dict[str, Any]) -> str:
        return "a run of this grid: " + ", ".join(runs)

    def _refuse_keys_of_the_grid(self, one: str | None = None) -> None:
        """Reports overrides of `run` and `seed` where the grid sets them. one: the run that the command names, if it names one."""
        for name, overrides in self.of_runs.items():
            for override in overrides:
                key, _, value = override.partition("=")
                shown = key if name is None else f"runs.{name}.{key}"
                address = f"{self.path}:{self._named(name or next(iter(self.runs), 'NAME'), self.seeds[0])}"
                if key == "seed" and self.seeds != [None]:
                    found = f"{value}, but `seeds` gives each run its seed and names its folder after it"
                    expected = f"seeds=[{value}]" + (f" and the run NAME-seed{value} after the colon" if one else "")
                elif key == "run" and name is None and one is None:
                    found = f"{value}, one folder for all runs: the first run would fill it, and the others would count as done"
                    expected = f"grid={value} for other folders of the whole grid, or one run: {address} run={value}"
                elif key == "run" and name is not None:
                    found = f"{value}, but the grid and its references expect this run in the folder of its own name"
                    expected = f"only this run in another folder: {address} run={value}"
                else:
                    continue
                self.problems.append(Problem(f"override {shown}={value}", shown, found, expected))

    def read(self) -> GridText:
        self._refuse_keys_of_the_grid()
        seeds = [seed for seed in self.seeds if seed is not None]
        grid = GridText(self.path, self.name, list(self.runs), seeds, problems=self.problems)
        found: dict[str, tuple[RecipeText, list[str]]] = {}
        for seed in self.seeds:
            for name in self.runs:
                try:
                    found[self._named(name, seed)] = self._run(name, seed)
                except RecipeError as error:  # the run's base cannot be read
                    self.problems += [problem for problem in error.problems if problem not in self.problems]
        order: dict[str, None] = {}
        for name in found:
            self._put_in_order(name, found, order, ())
        grid.runs = {name: found[name][0] for name in order}
        grid.siblings = {name: found[name][1] for name in order}
        return grid

    def read_one(self, run: str) -> RecipeText:
        """One run without the others. Circular needs are detected later, when its needs are resolved."""
        known = {self._named(name, seed): (name, seed) for seed in self.seeds for name in self.runs}
        if run not in known:
            found = Problem(str(self.path), "", f"no run {run}", f"one of: {', '.join(known)}", nearest(run, known))
            raise RecipeError([*self.problems, found], self.path)
        self._refuse_keys_of_the_grid(run)
        text = self._run(*known[run])[0]
        if text.data["run"] in [f"{self.name}/{other}" for other in known if other != run]:
            found, expected = f"{text.data['run']}, the folder of another run of this grid", "a folder that no run of the grid uses"
            self.problems.append(Problem(text.where(("run",)), "run", found, expected))
        return text

    @staticmethod
    def _named(name: str, seed: int | None) -> str:
        return name if seed is None else f"{name}-seed{seed}"

    def _put_in_order(self, name: str, found: dict, order: dict[str, None], above: tuple[str, ...]) -> None:
        if name in above:
            circle = " -> ".join([*above[above.index(name) :], name])
            found_circle = f"runs that need one another in a circle: {circle}"
            problem = self._problem(("runs",), "runs", found_circle, "runs that can be put in order")
            if not any("in a circle" in known.found for known in self.problems):
                self.problems.append(problem)
            return
        for needed in found[name][1]:
            if needed in found and needed not in order:
                self._put_in_order(needed, found, order, (*above, name))
        order.setdefault(name)

    def _run(self, name: str, seed: int | None) -> tuple[RecipeText, list[str]]:
        """The complete text of one run, and the runs of this grid that it needs."""
        text = deepcopy(self._template(name, ()))
        text.data["run"] = f"{self.name}/{self._named(name, seed)}"
        if seed is not None:
            text.data["seed"] = seed
            text.grid_places[("seed",)] = self.text.where(("seeds",))
        for override in [*self.of_runs.get(name, []), *self.of_runs[None]]:
            apply_override(text, override)
        root = f"{run_root().as_posix()}/{self.name}"
        text.variables = {f"runs.{other}": f"{root}/{self._named(other, seed)}" for other in self.runs}
        stated = text.data.get("needs", [])
        if not isinstance(stated, list) or not all(isinstance(need, str) for need in stated):
            return text, []  # validation of the recipe reports the problem
        named = [need for need in stated if not re.search(r"\.ya?ml", need)]
        for need in named:
            if need not in self.runs:
                expected, near = f"a recipe file (.yaml) or {self._known(self.runs)}", nearest(need, self.runs)
                self.problems.append(Problem(text.where(("needs",)), f"runs.{name}.needs", need, expected, near))
        wanted = {*named, *_references(text.data)}
        siblings = [self._named(other, seed) for other in self.runs if other in wanted]
        files = [need for need in stated if need not in named]
        text.data["needs"] = [*files, *(f"{self.path.name}:{sibling}" for sibling in siblings)]
        return text, siblings

    def _template(self, name: str, above: tuple[str, ...]) -> RecipeText:
        """The text of a run before its name, seed and overrides are applied."""
        if name in self.bases:
            return self.bases[name]
        settings = self.runs[name]
        base = settings["base"] if "base" in settings else self.base
        at: Key = ("runs", name, "base") if "base" in settings else ("base",)
        if base == name and "base" not in settings:
            base = None  # this run is the base of all other runs
        if isinstance(base, str) and base in self.runs:
            if base in (*above, name):
                circle, expected = " -> ".join([*above, name, base]), "a base that does not start from this run"
                raise RecipeError([self._problem(at, dotted(at), f"a circle: {circle}", expected)])
            text = deepcopy(self._template(base, (*above, name)))
        elif isinstance(base, str):
            text = self._file(base, at)
        else:
            text = RecipeText(self.path, {"lore": 1})
            if isinstance(base, dict):
                self._apply(text, base, at)
        self._apply(text, {key: value for key, value in settings.items() if key != "base"}, ("runs", name))
        self.bases[name] = text
        return text

    def _file(self, base: str, at: Key) -> RecipeText:
        """The text of a base file. Its needs are rewritten relative to the grid's folder."""
        local = self.path.parent / base
        if not local.is_file() and not Path(base).is_file():
            near = nearest(base, self.runs)
            expected = f"a recipe file under {self.path.parent or '.'} or the working directory, or {self._known(self.runs)}"
            raise RecipeError([self._problem(at, dotted(at), f"{base}, which is neither a file nor a run", expected, near)])
        file = local if local.is_file() else Path(base)
        text = read_recipe_text(file)
        if "grid" in text.data:
            raise RecipeError([self._problem(at, dotted(at), f"{base}, which is a grid", "a recipe, or a run of this grid")])
        needs = text.data.get("needs")
        for index, need in enumerate(needs if isinstance(needs, list) else []):
            if isinstance(need, str) and (split_address(file.parent / need)[0]).is_file():
                needs[index] = Path(os.path.relpath(file.parent / need, self.path.parent)).as_posix()
        return text

    def _apply(self, text: RecipeText, settings: dict[str, Any], at: Key) -> None:
        """Sets dotted keys in a text and records their lines in the grid file."""
        for name, value in settings.items():
            key: Key = tuple(name.split("."))
            place = self.text.where((*at, name))
            shown = dotted((*at, name))
            if name in ("lore", "run") or (name == "seed" and self.seeds != [None]):
                why = "the run's name" if name == "run" else "seeds" if name == "seed" else "the header line"
                self.problems.append(Problem(place, shown, short(value), f"no key {name} here; it comes from {why}"))
                continue
            outer = next((other for other in settings if name.startswith(f"{other}.")), None)
            if outer is not None:
                self.problems.append(Problem(place, shown, f"both {outer} and {name}", "each value once"))
                continue
            if wrong := set_value(text.data, key, deepcopy(value)):
                self.problems.append(Problem(place, shown, *wrong))
                continue
            text.grid_places = {old: where for old, where in text.grid_places.items() if old[: len(key)] != key}
            own = (*at, name)
            for known, line in self.text.lines.items():
                if known[: len(own)] == own:
                    text.grid_places[(*key, *known[len(own) :])] = f"{self.path}:{line}"
            text.grid_places.setdefault(key, place)


def _references(value: Any) -> Iterator[str]:
    """Names of the runs that a value references as ${runs.NAME}."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _references(inner)
    elif isinstance(value, str):
        yield from REFERENCE.findall(value)
