"""Journal of teacher requests and answers: a resumed run repeats no answered request and loses no answer.

    answers/000012.jsonl    the journal of chunk 12: a line before each request, a line for its cost, a line for each answer

An answer's key is a hash over step, prompt, teacher and draw; its line names the pair. Each line is written to the operating
system at once: a killed process loses only requests in flight, and those stay counted against the budget.

A line with an impossible number, which a server can have caused in a journal of an earlier version, is left out: a request without
its cost counts with its bound, an answer with impossible counts stays and counts nothing.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lore.data_synth.synthesis.trace import Reply
from lore.engines.http.protocol import MAX_TOKENS, Text
from lore.support.errors import LoreError
from lore.support.processes import say
from lore.support.untrusted_json import parse_json

MAX_SHARED = 200_000  # about as many KiB
MAX_BOUND = 10**9  # tokens of a request at most


class Line(BaseModel):
    """Numbers in a range that sums, budgets and tables can hold."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class AskLine(Line):
    ask: int = Field(ge=0, le=2**53)
    key: Text
    tokens: int = Field(ge=0, le=MAX_BOUND)
    usd: float = Field(ge=0)


class CostLine(Line):
    took: int = Field(ge=0, le=2**53)
    tokens: int = Field(ge=0, le=2 * MAX_TOKENS)
    usd: float = Field(ge=0)


class FailedLine(Line):
    failed: Text
    by: Text


def _possible(count: Any) -> Any:
    return count if isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count <= MAX_TOKENS else 0


class ReplyPart(Line):
    """A stored Reply."""

    step: Text
    key: Text
    prompt_hash: Text
    teacher: Text
    text: Text
    prompt_tokens: Annotated[int, BeforeValidator(_possible)] = 0
    completion_tokens: Annotated[int, BeforeValidator(_possible)] = 0
    usd: Annotated[float, BeforeValidator(_possible)] = 0.0
    finish_reason: Text = "stop"


class AnswerLine(Line):
    pair_id: Text
    reply: ReplyPart


LINES: dict[str, type[Line]] = {"ask": AskLine, "took": CostLine, "reply": AnswerLine, "failed": FailedLine}
IMPOSSIBLE = "impossible"
"""The only key of an entry whose line holds no possible value."""


@dataclass
class Totals:
    """Sums over a journal's requests. Requests that were never settled count with their bound."""

    tokens: int = 0
    usd: float = 0.0
    requests: int = 0
    answers: int = 0
    unsettled: int = 0


class Journal:
    """Requests and answers of one chunk. Only one process may open it (the run folder is locked)."""

    def __init__(self, path: Path):
        self.path = path
        self.replies: dict[str, Reply] = {}
        self.askers: dict[str, str] = {}
        self.failed_before: set[str] = set()
        self._next, self._file = 0, None
        for entry in read_journal(path):
            self._next = max(self._next, entry.get("ask", -1) + 1)
            if "reply" in entry:
                reply = Reply(**entry["reply"])
                self.replies[reply.key] = reply
                self.askers[reply.key] = entry["pair_id"]
            elif "failed" in entry:
                self.failed_before.add(entry["failed"])

    def known(self, key: str, pair_id: str) -> Reply | None:
        """The answer to a key, if there is one. It costs nothing for a pair other than the one that requested it."""
        reply = self.replies.get(key)
        if reply is not None and self.askers[key] != pair_id:
            reply = reply.at_no_cost()
        return reply

    def asked(self, key: str, tokens: int, usd: float) -> int:
        """Records a request before it is sent, with its upper bound. Returns its number."""
        number, self._next = self._next, self._next + 1
        self._append({"ask": number, "key": key, "tokens": tokens, "usd": usd})
        return number

    def settled(self, number: int, tokens: int, usd: float) -> None:
        """Records the actual cost of a request."""
        self._append({"took": number, "tokens": tokens, "usd": usd})

    def answered(self, pair_id: str, reply: Reply) -> None:
        self.replies[reply.key], self.askers[reply.key] = reply, pair_id
        self._append({"pair_id": pair_id, "reply": asdict(reply)})

    def failed(self, pair_id: str, key: str) -> None:
        """Records a request without a usable answer after all retries; the next start reads this."""
        self._append({"failed": key, "by": pair_id})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(self.path)
            self._file = open(self.path, "ab", buffering=0)
        self._file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode(errors="surrogatepass"))


def _drop_torn_line(path: Path) -> None:
    """Removes an incomplete last line, which a killed process can leave."""
    if not path.is_file():
        return
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        at = size
        while at > 0:
            start = max(0, at - 65536)
            file.seek(start)
            end = file.read(at - start).rfind(b"\n")
            if end >= 0:
                file.truncate(start + end + 1)
                return
            at = start
        file.truncate(0)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a journal, see `read_line`. Raises LoreError for a damaged line before the end."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield read_line(line, path, number)


def read_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line as the dict that was written, or `{IMPOSSIBLE: number}`. Raises LoreError, with the line's number, for one that is
    no JSON object."""
    try:
        entry = parse_json(line)
        if not isinstance(entry, dict):
            raise ValueError(f"a {type(entry).__name__}")
    except ValueError as error:
        raise LoreError(
            f"{path}, line {number} is not JSON ({error}), so its requests are unknown. Restore the file, or delete it to "
            "repeat the requests of its pairs."
        ) from error
    kind = next((kind for key, kind in LINES.items() if key in entry), None)
    try:
        return kind.model_validate(entry).model_dump() if kind else {IMPOSSIBLE: number}
    except ValidationError:
        return {IMPOSSIBLE: number}


def totals(folder: Path, shared: "Shared | None" = None) -> Totals:
    """Sums over all journals of a folder. Also adds their answers to `shared`. Says how many lines were left out."""
    total = Totals()
    for path in sorted(folder.glob("*.jsonl")):
        held: dict[int, tuple[int, float]] = {}
        impossible: list[int] = []
        for entry in read_journal(path):
            if "ask" in entry:
                held[entry["ask"]] = (entry["tokens"], entry["usd"])
                total.requests += 1
            elif "took" in entry:
                held.pop(entry["took"], None)
                total.tokens += entry["tokens"]
                total.usd += entry["usd"]
            elif "reply" in entry:
                total.answers += 1
                if shared is not None:
                    shared.add(Reply(**entry["reply"]))
            elif IMPOSSIBLE in entry:
                impossible.append(entry[IMPOSSIBLE])
        if impossible:
            say(
                f"warning: {path}: {len(impossible):,} lines hold impossible values and are left out, the first is line "
                f"{impossible[0]}. Requests without their cost count with their bound; answers in these lines are asked again."
            )
        total.unsettled += len(held)
        total.tokens += sum(tokens for tokens, _ in held.values())
        total.usd += sum(usd for _, usd in held.values())
    return total


class Shared:
    """Answers that pairs of other chunks can reuse: those that depend only on the query. The oldest are evicted first."""

    def __init__(self):
        self._replies: dict[str, Reply] = {}

    def add(self, reply: Reply) -> None:
        if reply.step == "knowledge":
            self._replies[reply.key] = reply
            if len(self._replies) > MAX_SHARED:
                del self._replies[next(iter(self._replies))]

    def get(self, key: str) -> Reply | None:
        """The answer, at no cost."""
        reply = self._replies.get(key)
        return reply and reply.at_no_cost()


class Earlier:
    """Answers of other runs, indexed by key and read from their files on demand."""

    def __init__(self, folders: list[str]):
        self._places: dict[str, tuple[Path, int]] = {}
        for folder in folders:
            answers = Path(folder) / "answers"
            if not answers.is_dir():
                raise LoreError(f"reuse: {folder} has no folder answers, so it is not a run of stage synthesize. Correct the path.")
            for path in sorted(answers.glob("*.jsonl")):
                self._index(path)

    def _index(self, path: Path) -> None:
        with open(path, "rb") as file:
            at = 0
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n") and line.startswith(b'{"pair_id"'):
                    entry = read_line(line, path, number)
                    if "reply" in entry:
                        self._places[entry["reply"]["key"]] = (path, at)
                at += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Reply | None:
        place = self._places.get(key)
        if place is None:
            return None
        with open(place[0], "rb") as file:
            file.seek(place[1])
            return Reply(**read_line(file.readline(), place[0], 0)["reply"])
