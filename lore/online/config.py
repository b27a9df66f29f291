"""The recipe of the service. Nothing here imports torch."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel
from lore.engines.config import EndpointSection, variable_name
from lore.support.bounds import MAX_COUNT, MAX_MEASURE, MAX_SECONDS
from lore.support.errors import LoreError

MAX_MILLISECONDS = MAX_SECONDS * 1000
PHOTO_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII)
"""A name, or an address, with a port if it is not the default one. Names in other letters are written as in DNS (xn--...)."""
Step = Literal["cache", "student", "judge"]
Variable = Annotated[str, AfterValidator(variable_name)]
"""The name of an environment variable."""


def unset_variable(key: str, name: str | None, holds: str) -> Iterator[tuple[str, str]]:
    """What StrictModel.missing_inputs yields for an environment variable that is not set, or empty."""
    if name is not None and not os.environ.get(name, "").strip():
        yield key, f"the environment variable {name} is not set. {holds} Set it, or leave the key out."


class OnlineStudentSection(StrictModel):
    """The student that answers."""

    path: str = Field(min_length=1)
    """Folder of `lore export student`, or the run folder of a student."""
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """Which weights of an exported student. auto: int8 where it has them."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of one worker for the student. null: all cores, divided by the workers."""
    photo_embeddings: str | None = Field(None, min_length=1)
    """Vectors of the items' photos, for a student that reads them. null: the table of its training."""
    batch_tokens: int | None = Field(None, ge=64, le=MAX_COUNT)
    """Tokens of one batch, padding included. null: what suits the device."""
    canary_tolerance: float | None = Field(None, ge=0, le=1)
    """Largest difference of a tier's probability on the pairs that travel with an exported student. With a larger one the service
    does not start. null: the export's own."""

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if not Path(self.path).is_dir():
            yield "path", f"{self.path} is not a folder. Name one that `lore export student` wrote, or the run folder of a student."


class BreakerSection(StrictModel):
    """When the judge is left alone because it fails."""

    failures: int = Field(5, ge=1, le=MAX_COUNT)
    """Failures in a row (timeouts and errors) after which the judge is not asked for a while."""
    open_seconds: float = Field(10.0, gt=0, le=MAX_SECONDS)
    """Seconds without a request to the judge; then one request tries it."""


class ServedJudgeSection(EndpointSection):
    """The server of a judge."""

    model: str = Field("auto", min_length=1)
    """Name under which the server has the judge. auto: the one that `lore serve judge` gives it."""

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        yield from super().missing_inputs()
        yield from unset_variable("key_variable", self.key_variable, "It holds the key of the judge's server.")


class OnlineJudgeSection(StrictModel):
    """The large judge behind a server (`lore serve judge`)."""

    path: str = Field(min_length=1)
    """Run folder of the trained judge (runs/grpo), its model folder, or an exported folder: its prompt and rubric, and its name."""
    base: str | None = None
    """Folder or hub id of an adapter's base model, if it has moved since the training."""
    endpoint: ServedJudgeSection
    """The server (`lore serve judge`)."""
    deadline_ms: float = Field(1000.0, gt=0, le=MAX_MILLISECONDS)
    """Longest wait for the judge. A request's own deadline may be shorter."""
    concurrency: int = Field(16, ge=1, le=1024)
    """Pairs that one worker asks the judge about at the same time, each in a thread. For more pairs the student answers, marked
    late."""
    ask_below: float = Field(1.0, ge=0, le=1)
    """Ask the judge only where the student's largest tier probability is below this value. 1: for every pair of the band."""
    max_tokens: int = Field(256, ge=1, le=MAX_COUNT)
    """Maximum tokens of an answer, for a judge that writes its reason first."""
    keep_seconds: float = Field(30.0, ge=0, le=MAX_SECONDS)
    """How long a late answer of the judge is waited for, to store it in the cache. 0: late answers are dropped."""
    breaker: BreakerSection = BreakerSection()
    """When the judge is left alone because it fails."""

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if not Path(self.path).is_dir():
            yield "path", f"{self.path} is not a folder. Name the run folder of a trained judge, such as runs/grpo."


class CacheSection(StrictModel):
    """Verdicts that are answered without a model."""

    store: str = Field("none", min_length=1)
    """A verdict store of `lore label` (a file, SQLite), redis://HOST:PORT/DB for several servers, or none."""
    password_variable: Variable | None = None
    """Name of the environment variable with Redis' password."""
    labels: list[str] = []
    """Label folders of `lore label` that are loaded into the store at the start."""
    judge: str | None = None
    """Folder of the judge whose verdicts are answered. null: judge.path. Verdicts of any other judge are never answered."""
    max_age_seconds: float | None = Field(None, gt=0, le=MAX_SECONDS)
    """Older verdicts are not answered. null: verdicts of the same judge do not age."""
    timeout_ms: float = Field(20.0, gt=0, le=MAX_MILLISECONDS)
    """Longest wait for the cache; after that the pair is not in it."""
    memory_verdicts: int = Field(100_000, ge=0, le=MAX_COUNT)
    """Verdicts that one worker keeps in memory in front of the store. 0: none."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.labels and self.store == "none":
            yield Conflict(("labels", "store"), "labels without a store", "store: FILE.sqlite or redis://HOST:PORT/DB")
        if self.has_password:
            yield Conflict(("store",), "a password in the address", "password_variable: the environment variable that holds it")

    @property
    def has_password(self) -> bool:
        """Whether the address of Redis holds a password, which recipes and logs would show."""
        if "://" not in self.store:
            return False
        before, _, _ = self.store.rpartition("@")
        return ":" in before.partition("://")[2] or "password=" in self.store

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        yield from unset_variable("password_variable", self.password_variable, "It holds Redis' password.")
        for at, folder in enumerate(self.labels):
            if not Path(folder).is_dir():
                yield f"labels.{at}", f"{folder} is not a folder. `lore label` writes label folders."
        if self.judge is not None and not Path(self.judge).is_dir():
            yield "judge", f"{self.judge} is not a folder. Name the run folder of the judge that gave the labels."


class RouteSection(StrictModel):
    """Who may answer, by the frequency of the query. The first that can answers."""

    frequencies: str | None = Field(None, min_length=1)
    """Table of query frequencies that `lore plan` writes. null: every query is in the tail."""
    head_from: float = Field(100.0, ge=0, le=MAX_MEASURE)
    """Searches from which on a query is in the head."""
    torso_from: float = Field(10.0, ge=0, le=MAX_MEASURE)
    """Searches from which on a query is in the torso."""
    head: list[Step] = ["cache", "student"]
    torso: list[Step] = ["cache", "student"]
    tail: list[Step] = ["cache", "judge", "student"]

    def conflicts(self) -> Iterator[Conflict]:
        if self.torso_from > self.head_from:
            found = f"torso_from {self.torso_from:g} above head_from {self.head_from:g}"
            yield Conflict(("torso_from", "head_from"), found, "torso_from at most head_from")
        for band in ("head", "torso", "tail"):
            steps = getattr(self, band)
            if not steps or steps[-1] != "student" or len(set(steps)) < len(steps):
                yield Conflict((band,), f"[{', '.join(steps)}]", "different steps that end with student, which always answers")
            elif "cache" in steps[1:]:
                yield Conflict((band,), f"[{', '.join(steps)}]", "cache first, since its answers cost nothing")

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if self.frequencies is not None and not Path(self.frequencies).is_file():
            yield "frequencies", f"{self.frequencies} does not exist. `lore plan` writes it."


def need_packages() -> None:
    """Raises LoreError for a package of an HTTP service that is not installed."""
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise LoreError(f"The service needs {name}, which is not installed.\nInstall it: pip install 'lore-relevance[online]'")


class ServeSection(StrictModel):
    """The HTTP server and its limits."""

    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; the default is only reachable from this machine."""
    port: int = Field(8080, ge=0, le=65_535)
    """Port to listen on. 0: any free one, which is printed."""
    workers: int = Field(1, ge=1, le=1024)
    """Processes that share the port."""
    deadline_ms: float = Field(200.0, gt=0, le=MAX_MILLISECONDS)
    """Deadline of a request that names none."""
    max_queued_pairs: int = Field(4096, ge=1, le=MAX_COUNT)
    """Pairs of accepted requests that may wait in one worker. More are refused with 429."""
    max_pairs: int = Field(1000, ge=1, le=MAX_COUNT)
    """Pairs of one request."""
    max_body_bytes: int = Field(4_194_304, ge=1024, le=MAX_COUNT)
    """Bytes of one request's body."""
    max_text_characters: int = Field(20_000, ge=1, le=MAX_COUNT)
    """Characters of a query or of one text of an item."""
    keys_variable: Variable | None = None
    """Name of the environment variable with the API keys, separated by commas. null: no key is asked for."""
    image_hosts: list[str] = []
    """Hosts from which photos may be fetched, such as img.example.com or img.example.com:8443. []: photos only as data: URLs.
    Private and local addresses are never fetched."""
    max_image_bytes: int = Field(4_194_304, ge=1024, le=MAX_COUNT)
    """Bytes of one photo."""
    image_timeout_ms: float = Field(500.0, gt=0, le=MAX_MILLISECONDS)
    """Longest wait for one photo; after that the pair is judged by its text."""
    drain_seconds: float = Field(20.0, ge=0, le=MAX_SECONDS)
    """How long accepted requests may still run at a shutdown."""
    log_queries: bool = False
    """Write query texts into the logs."""
    traces: str | None = Field(None, min_length=1)
    """OTLP endpoint of OpenTelemetry traces. null: none are recorded."""

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        yield from unset_variable("keys_variable", self.keys_variable, "It holds the API keys of the clients, separated by commas.")

    def conflicts(self) -> Iterator[Conflict]:
        if self.max_pairs > self.max_queued_pairs:
            found = f"max_pairs {self.max_pairs} above max_queued_pairs {self.max_queued_pairs}"
            yield Conflict(("max_pairs", "max_queued_pairs"), found, "room for the largest request")
        for host in self.image_hosts:
            if not PHOTO_HOST.fullmatch(host):
                yield Conflict(("image_hosts",), host[:100], "a host such as img.example.com or img.example.com:8443")


class ShadowSection(StrictModel):
    """A share of the student's answers, written down to be judged later (lore.online.shadow)."""

    share: float = Field(0.0, ge=0, le=1)
    """Share of the pairs. Their content decides, so every worker takes the same ones. 0: none."""
    folder: str | None = Field(None, min_length=1)
    """Where they are written, with their texts: one folder a day, each an input of `lore label`."""
    max_bytes: int = Field(1_073_741_824, ge=1_048_576, le=MAX_MEASURE)
    """Bytes of the folder. When it has them, pairs are dropped until days are removed."""
    max_photo_bytes: int = Field(262_144, ge=0, le=MAX_COUNT)
    """Bytes of one photo. A pair with a larger one is left out: the judge would see less than the student."""
    rotate_days: int = Field(1, ge=0, le=3650)
    """Days after which other pairs are taken. 0: always the same ones. See lore.online.shadow."""
    queued_pairs: int = Field(4096, ge=1, le=MAX_COUNT)
    """Answers that may wait in one worker, of all, not of the share. More are dropped."""
    shard_pairs: int = Field(1000, ge=1, le=100_000)
    """Pairs of one file."""
    shard_seconds: float = Field(60.0, gt=0, le=MAX_SECONDS)
    """Longest time until a pair is on disk. A worker that is killed loses what it has not written."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.share > 0 and self.folder is None:
            yield Conflict(("share", "folder"), "a share without a folder", "folder: FOLDER, or share: 0")


class OnlineRecipe(BaseRecipe):
    """An HTTP service that judges pairs: cached verdicts, the student, and the judge where it may be asked."""

    command: ClassVar[str] = "lore serve online"

    stage: Literal["online"] = "online"
    student: OnlineStudentSection
    judge: OnlineJudgeSection | None = None
    """The large judge. null: cache and student answer."""
    cache: CacheSection = CacheSection()
    route: RouteSection = RouteSection()
    serve: ServeSection = ServeSection()
    shadow: ShadowSection = ShadowSection()

    def conflicts(self) -> Iterator[Conflict]:
        if self.cache.store != "none" and self.cache.judge is None and self.judge is None:
            yield Conflict(("cache.judge", "judge"), "a cache without a judge", "cache.judge, whose verdicts are answered")

    def check_packages(self) -> None:
        need_packages()

    def derived(self) -> dict[str, Any]:
        return {"answers at": f"http://{self.serve.host}:{self.serve.port}"}
