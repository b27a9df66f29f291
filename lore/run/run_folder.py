"""The run folder: resolved recipe, manifest, metrics and done marker. LORE never overwrites results in it.

The same recipe resumes. A changed recipe is an error that names each changed key with both values. Only the main process writes.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lore.config.recipe import RUN_FILES, BaseRecipe, run_root, values_fingerprint
from lore.config.secrets import without_secrets
from lore.config.stages import RENAMED
from lore.config.yaml_text import RecipeError, read_record, to_yaml
from lore.run.nested import is_run, remove_own, runs_in, shared_on_disk
from lore.support.atomic_files import clear_parts, write_atomic, written_whole
from lore.support.environment import environment
from lore.support.errors import LoreError, reason
from lore.support.plain import flatten, plain
from lore.support.processes import is_main_process
from lore.support.terminal import print_note
from lore.support.untrusted_json import parse_object, read_object

OLD_FINGERPRINTS = "facts"  # the key in manifests of earlier versions
PROBE_SECONDS = 0.1

_held: dict[str, int] = {}  # open lock files by folder; forked data workers do not inherit POSIX locks


class RunFolder:
    """One run on disk. Call `open` before use. Methods that write do nothing outside the main process."""

    def __init__(self, path: str | Path, recipe: BaseRecipe | None = None):
        self.path, self.recipe = Path(path), recipe

    @classmethod
    def of(cls, recipe: BaseRecipe) -> RunFolder:
        return cls(run_root() / recipe.run, recipe)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def inputs_path(self) -> Path:
        """The states of the input files; see lore.run.input_hashes."""
        return self.path / "inputs.json"

    @property
    def done_path(self) -> Path:
        return self.path / "done"

    @property
    def is_done(self) -> bool:
        return self.done_path.is_file()

    @property
    def exists(self) -> bool:
        return self.recipe_path.is_file()

    def is_unused(self, recipe: BaseRecipe) -> bool:
        """True for a run that stopped before its first result: another recipe of the stage may still use the folder."""
        kept = RUN_FILES | recipe.prepared_files
        if self.is_done or (self.metrics_path.is_file() and self.metrics_path.stat().st_size):
            return False
        found = [path for path in self.path.glob("*") if path.name not in kept and not path.name.startswith(".")]
        # An empty folder is no result: a trainer creates the folder of its checkpoints before training starts. Nor is another run.
        return all(path.is_dir() and (not any(path.iterdir()) or _only_runs(path)) for path in found)

    @property
    def summary(self) -> dict[str, Any]:
        """Summary of the finished run; empty while the run is not done. Raises LoreError for a damaged `done`."""
        if not self.is_done:
            return {}
        advice = "Delete it and run the recipe again: the run goes on from the results in its folder and writes it anew."
        return read_object(self.done_path, "the run's summary is lost, and it is not sure that the run finished", advice)

    @property
    def manifest(self) -> dict[str, Any]:
        """Fingerprints and environment of the run; empty without the file. Raises LoreError for a damaged one."""
        if not self.manifest_path.is_file():
            return {}
        lost = "the fingerprints of the run's inputs are lost, and changed inputs would not be noticed"
        advice = (
            "Restore it from a copy, delete the folder to start over, or delete the file if you are sure that the inputs are the "
            "same."
        )
        manifest = read_object(self.manifest_path, lost, advice)
        resumed = manifest.get("resumed", [{}])
        held = [manifest[key] for key in ("fingerprints", OLD_FINGERPRINTS) if key in manifest]
        whole = bool(held) and all(isinstance(one, dict) for one in held)
        if not whole or not isinstance(resumed, list) or not resumed or not all(isinstance(one, dict) for one in resumed):
            raise LoreError(f"{self.manifest_path} is damaged (a value is missing or has another type), so {lost}.\n{advice}")
        return manifest

    @property
    def recipe_values(self) -> dict[str, Any]:
        """The resolved recipe that the folder belongs to; empty for a new folder. Raises LoreError if it is damaged or lost."""
        lost = "it is unknown which recipe its results belong to"
        advice = f"Restore it from a copy, or delete the folder {self.path} to start over."
        if not self.exists:
            if self.is_done or (self.metrics_path.is_file() and self.metrics_path.stat().st_size):
                raise LoreError(f"{self.recipe_path} is missing and the run has results, so {lost}.\n{advice}")
            return {}
        try:
            return read_record(self.recipe_path)
        except RecipeError as error:
            raise LoreError(f"{self.recipe_path} is damaged ({error.problems[0].found}), so {lost}.\n{advice}") from error

    def changes(self, recipe: BaseRecipe) -> list[tuple[str, Any, Any]]:
        """Keys whose value in the folder differs from the recipe's: (key, old, new)."""
        return [change for change in self._differences(recipe) if not recipe.may_change(change[0])]

    def ignored(self, recipe: BaseRecipe) -> list[tuple[str, Any, Any]]:
        """The same for keys that may change within a run (`BaseRecipe.may_change`)."""
        return [change for change in self._differences(recipe) if recipe.may_change(change[0])]

    def _differences(self, recipe: BaseRecipe) -> list[tuple[str, Any, Any]]:
        values = self.recipe_values
        if not values:
            return []
        old = flatten(values)
        new = flatten(recipe.resolved())
        both = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in [*old, *new]}
        # A newer version of LORE may have added keys: at their defaults they do not change the recipe.
        added = new.keys() - old.keys() - flatten(recipe.model_dump(mode="json", exclude_defaults=True)).keys()
        changed = [(key, was, now) for key, (was, now) in both.items() if was != now and key not in added]
        return [(key, without_secrets(was, key), without_secrets(now, key)) for key, was, now in changed]

    def check(self, recipe: BaseRecipe) -> None:
        """Raises LoreError when the folder belongs to a recipe with other values, or is damaged."""
        changed = self.changes(recipe)
        self.refuse_damage()
        if self.is_unused(recipe):
            return
        edited = ""
        if self._recipe_was_edited():
            edited = f"\nThe values in {self.recipe_path} do not have the hash in manifest.json: it was cut or edited since."
        if edited and not changed:
            raise LoreError(
                f"{edited.strip()}\nSo it is unknown which recipe the results belong to. Restore it, or delete the folder "
                f"{self.path} to start over."
            )
        if not changed:
            return
        stage = next((old for key, old, _ in changed if key == "stage"), None)
        if stage in RENAMED:
            raise LoreError(
                f"{self.path} was made by an earlier version of LORE, in which stage {RENAMED[stage]} was called {stage}.\n"
                "Its results stay as they are, but this version cannot resume it. Give the recipe another `run` name, or delete "
                "the folder to start over."
            )
        if stage is not None:
            raise LoreError(
                f"{self.path} is a run of stage {stage}, and this recipe is of stage {recipe.stage}.\n"
                f"Its results stay as they are: use {self._elsewhere}."
            )
        rows = "\n".join(f"  {key}: was {old!r}, now {new!r}" for key, old, new in changed)
        raise LoreError(
            f"{self.path} belongs to a recipe with other values:\n{rows}{edited}\n"
            f"Resuming would mix two experiments. Use {self._elsewhere}, restore the values, or delete the folder to start over."
        )

    @property
    def _elsewhere(self) -> str:
        """How another folder is named: with -o of a command, else with the recipe."""
        by_option = self.recipe is not None and self.path != run_root() / self.recipe.run
        return "another folder (-o)" if by_option else "another `run` name"

    def _recipe_was_edited(self) -> bool:
        """Whether recipe.yaml holds other values than those that the run began with."""
        noted = self.manifest.get("recipe_hash")
        known = {noted, self.manifest.get("earlier_recipe_hash")}  # a kill in `renew` leaves the earlier recipe
        try:
            return self.exists and noted is not None and values_fingerprint(self.recipe_values) not in known
        except TypeError:  # values that no recipe has
            return True

    def refuse_damage(self) -> None:
        """Raises LoreError if `done`, manifest.json or recipe.yaml is damaged or lost."""
        self.summary, self.manifest, self.recipe_values  # noqa: B018

    def open(self, recipe: BaseRecipe) -> RunFolder:
        """Creates the folder or resumes in it. The main process holds its lock until the process ends."""
        if not is_main_process():
            self.check(recipe)
            return self
        if problems := shared_on_disk(self.path, recipe):
            raise LoreError("\n".join(problems))
        if self.path.exists() and not self.path.is_dir():
            raise LoreError(f"{self.path} is a file, and a run needs a folder. Use {self._elsewhere}, or move the file.")
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_strangers()
        self._lock()
        self.check(recipe)
        self._clear_parts()
        if not self.exists or (self.is_unused(recipe) and self.changes(recipe)):
            self.begin(recipe)
        else:
            self._note_environment()
        self._drop_torn_line()
        return self

    def _clear_parts(self) -> None:
        """Clears what killed processes left in the run's own folders. Skips other runs inside it and links to shared folders."""
        for place, folders, _ in os.walk(self.path):
            clear_parts(Path(place))
            others = {path.parent.name for own in (".lock", "recipe.yaml") for path in Path(place).glob(f"*/{own}")}
            folders[:] = [name for name in folders if name not in others and not is_run(Path(place) / name)]

    def begin(self, recipe: BaseRecipe) -> None:
        """Writes the recipe and manifest of a run that has no result yet, and deletes prepared files of an earlier start."""
        if not is_main_process():
            return
        for path in map(self.__truediv__, recipe.prepared_files):
            remove_own(path)
        write_atomic(self.manifest_path, _dump({"recipe_hash": recipe.fingerprint, **environment(), "fingerprints": {}}))
        write_atomic(self.recipe_path, to_yaml(recipe.resolved()))

    def renew(self, recipe: BaseRecipe) -> None:
        """Writes the recipe again if keys that may change have changed: for a stage whose next start may have another input."""
        if not is_main_process() or not self.ignored(recipe):
            return
        hashes = {"recipe_hash": recipe.fingerprint, "earlier_recipe_hash": values_fingerprint(self.recipe_values)}
        write_atomic(self.manifest_path, _dump(self.manifest | hashes))
        write_atomic(self.recipe_path, to_yaml(recipe.resolved()))

    def _refuse_strangers(self) -> None:
        if self.recipe_values:
            return
        names = sorted(p.name for p in self.path.iterdir() if p.name not in RUN_FILES and not p.name.startswith("."))
        # the run a/b lives inside the folder of the run a: folders that hold other runs are allowed
        strangers = [name for name in names if next(runs_in(self.path / name), None) is None]
        if strangers:
            raise LoreError(
                f"{self.path} holds {', '.join(strangers[:5])} but no recipe.yaml, so it is not a run folder.\n"
                f"LORE does not write into it, to protect these files: use {self._elsewhere}, or move the files."
            )

    def _lock(self) -> None:
        key = os.path.realpath(self.path)
        if key in _held:
            return
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                time.sleep(PROBE_SECONDS)  # `user` of another process holds the lock for a moment
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = _owner(handle)
            os.close(handle)
            raise LoreError(
                f"{self.path} is in use by process {owner}.\n"
                f"Two runs in one folder would mix their results: wait for it, stop it, or use {self._elsewhere}."
            ) from error
        except OSError as error:
            os.close(handle)
            print_note(f"warning: {self.path}: the file system has no file locks ({error.strerror}); do not start this run twice")
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        _held[key] = handle

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock for the block. Raises LoreError while another process has it."""
        self._lock()
        try:
            yield
        finally:
            self.close()

    @property
    def user(self) -> str | None:
        """Id of the other process that holds the lock, or None."""
        if os.path.realpath(self.path) in _held:
            return None  # closing a second handle would release this process's lock
        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return _owner(handle)
        except OSError:
            return None  # the file system has no file locks
        finally:
            os.close(handle)
        return None

    def close(self) -> None:
        """Releases the lock. The end of the process does the same."""
        handle = _held.pop(os.path.realpath(self.path), None)
        if handle is not None:
            os.close(handle)

    def _note_environment(self) -> None:
        manifest, now = self.manifest, environment()
        last = manifest.get("resumed", [{}])[-1]
        then = {key: last.get(key, manifest.get(key)) for key in now}
        changed = {key: value for key, value in now.items() if value != then[key]}
        if changed and not self.is_done:
            manifest.setdefault("resumed", []).append({**{k: v for k, v in last.items() if k in now}, **changed})
            write_atomic(self.manifest_path, _dump(manifest))

    def _drop_torn_line(self) -> None:
        """Removes an incomplete last line from metrics.jsonl, which a killed process can leave."""
        if not self.metrics_path.is_file():
            return
        raw = self.metrics_path.read_bytes()
        kept = raw[: raw.rfind(b"\n") + 1]
        if kept != raw:
            with written_whole(self.metrics_path) as file:
                file.write(kept)

    def metrics(self) -> list[dict[str, Any]]:
        """All records of metrics.jsonl. Raises LoreError for a damaged line."""
        return [record for record, _ in self._records()]

    def _records(self) -> list[tuple[dict[str, Any], str]]:
        """Each record of metrics.jsonl with its line."""
        if not self.metrics_path.is_file():
            return []
        found = []
        for number, line in enumerate(self.metrics_path.read_bytes().split(b"\n"), 1):
            try:
                if line:
                    found.append((parse_object(line), line.decode() + "\n"))
                    if type(found[-1][0].get("step", 0)) not in (int, float):
                        raise ValueError("its step is no number")
            except ValueError as error:
                raise LoreError(
                    f"{self.metrics_path}, line {number} is damaged ({reason(error)}), so the values of that step are lost.\n"
                    "Delete the line to go on without them, or delete the run's folder to start over."
                ) from error
        return found

    def last_record(self, key: str) -> dict[str, Any]:
        """The last record of metrics.jsonl that has a key. Raises LoreError if there is none."""
        for record in reversed(self.metrics()):
            if key in record:
                return record
        raise LoreError(
            f"{self.metrics_path} has no record with {key}, although the run has trained: its lines are lost.\n"
            f"Restore the file, or delete {self.path / 'checkpoints'} and the file to train again."
        )

    def record(self, values: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl. Do not record times or speeds: a resumed run must write the same lines."""
        if not is_main_process():
            return
        line = json.dumps(plain(values), ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.metrics_path, "ab", buffering=0) as file:
            file.write(line.encode("utf-8"))

    def truncate_metrics(self, step: int) -> None:
        """Keeps the records up to a step, and those without a step. A resumed run writes the later ones again."""
        if not is_main_process() or not self.metrics_path.is_file():
            return
        kept = [line for record, line in self._records() if record.get("step", step) <= step]
        write_atomic(self.metrics_path, "".join(kept))

    def note(self, **fingerprints: Any) -> None:
        """Adds fingerprints (data_fingerprint, rubric_hash, ...) to the manifest. Raises LoreError when one already has another
        value."""
        if not is_main_process():
            return
        fingerprints = plain(fingerprints)
        self.compare_fingerprints(fingerprints)
        known = self.fingerprints
        if any(k not in known for k in fingerprints):
            manifest = {key: value for key, value in self.manifest.items() if key != OLD_FINGERPRINTS}
            write_atomic(self.manifest_path, _dump(manifest | {"fingerprints": known | fingerprints}))

    @property
    def fingerprints(self) -> dict[str, Any]:
        """Fingerprints of the run's inputs, from the manifest."""
        return self.manifest.get("fingerprints", self.manifest.get(OLD_FINGERPRINTS, {}))

    def changed_fingerprints(self, fingerprints: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """Fingerprints that differ from those in the manifest: (key, old, new)."""
        known = self.fingerprints
        return [(key, known[key], value) for key, value in fingerprints.items() if key in known and known[key] != value]

    def compare_fingerprints(self, fingerprints: dict[str, Any], details: dict[str, str] | None = None) -> None:
        """Raises LoreError when a fingerprint in the manifest has another value now. Ignores those that are not in the manifest.
        details: what changed, by key."""
        changed = self.changed_fingerprints(fingerprints)
        if changed:
            told = {key: f" ({detail})" for key, detail in (details or {}).items()}
            rows = "\n".join(f"  {key}: was {old!r}, now {new!r}{told.get(key, '')}" for key, old, new in changed)
            raise LoreError(
                f"{self.path} was {'made' if self.is_done else 'started'} with other inputs:\n{rows}\n"
                f"{'Its results belong to the old inputs' if self.is_done else 'Resuming would mix two experiments'}. Restore "
                f"the inputs, delete the folder to run again from scratch, or use {self._elsewhere}."
            )

    def reopen(self) -> None:
        """Removes the done marker, so that the run resumes from its results so far."""
        if is_main_process():
            self.done_path.unlink(missing_ok=True)

    def finish(self, summary: dict[str, Any]) -> None:
        """Marks the run as done. summary: printed now and whenever the recipe is run again."""
        if is_main_process():
            write_atomic(self.done_path, _dump(plain(summary)))


def _only_runs(folder: Path) -> bool:
    """Whether a folder is a run, or holds runs and no file outside them."""
    if next(runs_in(folder), None) == folder:
        return True
    inside = list(folder.iterdir())
    return bool(inside) and all(path.is_dir() and not path.is_symlink() and _only_runs(path) for path in inside)


def _owner(handle: int) -> str:
    """The process id in an open lock file."""
    return os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
