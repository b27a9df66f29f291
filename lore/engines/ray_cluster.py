"""Connects to a Ray cluster and keeps Ray's own output off the terminal. LORE_DEBUG=1 shows it."""

import logging
import multiprocessing
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from lore.engines.config import RaySection
from lore.engines.engine import MAX_WORDS
from lore.support.errors import LoreError
from lore.support.processes import say

KILLED = "the worker's process ended: killed, out of memory, a crash of its engine, or a lost machine"
CONNECT_SECONDS = 10.0
# A worker that dies is reported by whoever gives its work to another one.
DEATH_NOTES = "A worker died or was killed|retries remaining|will be retried"
ERROR_NAME = re.compile(r"(?:[a-z_]+\.)+[A-Z]\w+: ")
_users = 0
_started_here = False


@contextmanager
def connected(section: RaySection) -> Iterator[None]:
    """Inside the context this process is connected to the cluster of `section`. Contexts may overlap; the last one that ends also
    ends the connection, unless the process was connected before. Raises LoreError if there is no such cluster."""
    global _users, _started_here
    section.check_packages()
    quiet()
    import ray  # optional

    if not ray.is_initialized():
        _connect(section)
        _started_here = True
    _users += 1
    try:
        yield
    finally:
        _users -= 1
        if not _users and _started_here:
            _started_here = False
            ray.shutdown()


def resources(section: RaySection, tensor_parallel: int = 1) -> dict[str, float]:
    """num_cpus and num_gpus of one worker. Raises LoreError if this machine alone is the cluster and has not as
    many; another cluster may grow."""
    import ray  # optional

    gpus = section.gpus_per_worker
    if gpus is None:
        gpus = tensor_parallel if ray.cluster_resources().get("GPU", 0) else 0
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= section.cpus_per_worker and node.get("GPU", 0) >= gpus for node in nodes):
        found = ", ".join(sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}))
        lacking = f"A worker needs {section.cpus_per_worker} CPUs and {gpus:g} GPUs, and no machine of the Ray cluster has as many"
        if section.address == "local":
            raise LoreError(f"{lacking} ({found}).\nLower ray.cpus_per_worker or ray.gpus_per_worker.")
        say(f"warning: {lacking} now ({found}); the run waits until such a machine joins it")
    return {"num_cpus": section.cpus_per_worker, "num_gpus": gpus}


def most_workers(section: RaySection, each: dict[str, float]) -> int:
    """Largest number of workers: ray.max_workers, or what fits the cluster now. each: see `resources`."""
    import ray  # optional

    if section.max_workers is not None:
        return section.max_workers
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = [has.get(name, 0) // each[key] for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if each[key]]
            room += int(min(fits))
    return max(section.min_workers, room)


def enter_folder(folder: str) -> None:
    """Makes `folder` the working directory of a worker, so that relative paths mean what they mean in the driver."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise LoreError(
            f"The machine {socket.gethostname()} cannot enter {folder}, the working directory of the command ({error}), so its "
            "worker finds no models, photos or shards.\nAll machines of the Ray cluster must share this folder."
        ) from error


class Attempts:
    """Counts the attempts at each piece of work, outside the workers, whose processes end. One actor on the driver's machine."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}
        self._words: dict[str, tuple[int, str]] = {}

    def begin(self, name: str) -> tuple[int, str]:
        """(number of this attempt, why the one before failed or "" for the first)."""
        before = self._begun.get(name, 0)
        self._begun[name] = before + 1
        number, words = self._words.get(name, (0, ""))
        return before + 1, (words if number == before else KILLED) if before else ""

    def failed(self, name: str, words: str) -> None:
        """Notes why the attempt under way has failed."""
        self._words[name] = self._begun.get(name, 0), words

    def done(self, name: str) -> None:
        """The next attempt is the first again."""
        self._begun.pop(name, None)


def count_attempts() -> Any:
    """An actor with `Attempts`."""
    import ray  # optional
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # optional

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Attempts).remote()


def end_process() -> None:
    """Ends this worker with its engine's processes. Ray starts another one in its place."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


def last_words(error: BaseException) -> str:
    """What an error of a worker says, without Ray's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [number for number, line in enumerate(lines) if ERROR_NAME.match(line)]
    return ERROR_NAME.sub("", " ".join(lines[named[-1] if named else -1 :]))[:MAX_WORDS]


def quiet() -> None:
    """Turns off telemetry and Ray's messages. Call it before Ray is imported, and again after."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # disables telemetry: nothing about the run leaves the machine
    if os.environ.get("LORE_DEBUG"):
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", DEATH_NOTES)
    for name in [*logging.root.manager.loggerDict, "ray"]:
        if name == "ray" or name.startswith("ray."):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _connect(section: RaySection) -> None:
    import ray  # optional

    debug = bool(os.environ.get("LORE_DEBUG"))
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.CRITICAL}
    if section.address == "local":
        options["include_dashboard"] = False
    elif section.address != "auto":
        _check_listening(section.address)
    try:
        with nullcontext() if debug else _no_stderr():  # where Ray says which log level it was given
            ray.init(address=section.address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"Ray does not answer at {section.address}"
        if section.address == "auto":
            where = "This machine belongs to no Ray cluster"
        raise LoreError(
            f"{where}, so there is nobody to give the work to: {last_words(error)}\n"
            "Start one (`ray start --head` here, `ray start --address=HEAD:6379` on each other machine), name it in ray.address or "
            "$RAY_ADDRESS, or set ray.address: local to use this machine alone."
        ) from error


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Drops what native code writes to the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_listening(address: str) -> None:
    """Ray tries for minutes and does not say so."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise LoreError(
            f"Nothing answers at ray.address {address} ({error}), so there is nobody to give the work to.\nStart the head there "
            "(`ray start --head --port=6379`), or correct the address; auto finds the cluster that this machine belongs to."
        ) from error
