"""Journal of teacher requests and answers: a resumed run repeats no answered request and loses no answer.

    answers/000012.jsonl    the journal of chunk 12: a line before each request, a line for its cost, a line for each answer

An answer's key is a hash over step, prompt, teacher and draw; its line names the pair. Each line is written to the operating
system at once: a killed process loses only requests in flight, and those stay counted against the budget.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lore.data_synth.synthesis.trace import Reply
from lore.support.errors import LoreError, reason

MAX_SHARED = 200_000  # about as many KiB


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
    """The complete lines of a journal. Raises LoreError for a damaged line before the end."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield parsed(path, number, line)


def parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The entry in a line of a journal. Raises LoreError for a damaged one."""
    try:
        return _entry(json.loads(line.decode(errors="surrogatepass")))
    except (ValueError, TypeError, RecursionError) as error:
        raise LoreError(
            f"{path}, line {number} is not JSON that a journal holds ({reason(error)}), so its requests are unknown. Restore the "
            "file, or delete it to repeat the requests of its pairs."
        ) from error


def _entry(entry: Any) -> dict[str, Any]:
    """The entry, if it has the keys and types that `Journal` writes. Raises ValueError or TypeError for anything else."""
    if not isinstance(entry, dict):
        raise TypeError(f"{type(entry).__name__} instead of an object")
    for key in ("ask", "took"):
        if key in entry:
            numbers = [entry.get(name) for name in (key, "tokens", "usd")]
            if [type(number) for number in numbers[:2]] != [int, int] or type(numbers[2]) not in (int, float):
                raise TypeError(f"a request with {numbers!r}"[:200])
    if "reply" in entry:
        reply = Reply(**entry["reply"])
        texts = (entry.get("pair_id"), reply.step, reply.key, reply.prompt_hash, reply.teacher, reply.text, reply.finish_reason)
        numbers = (reply.prompt_tokens, reply.completion_tokens, reply.usd)
        if not all(isinstance(text, str) for text in texts) or not all(type(number) in (int, float) for number in numbers):
            raise TypeError("a reply with a value of another type")
    return entry


def totals(folder: Path, shared: "Shared | None" = None) -> Totals:
    """Sums over all journals of a folder. Also adds their answers to `shared`."""
    total = Totals()
    for path in sorted(folder.glob("*.jsonl")):
        held: dict[int, tuple[int, float]] = {}
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
                    self._places[parsed(path, number, line)["reply"]["key"]] = (path, at)
                at += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Reply | None:
        place = self._places.get(key)
        if place is None:
            return None
        with open(place[0], "rb") as file:
            file.seek(place[1])
            return Reply(**json.loads(file.readline().decode(errors="surrogatepass"))["reply"])
