"""A student as a Scorer: it answers pairs like a judge, in milliseconds.

    scorer = open_student("runs/distill")
    verdicts = scorer.score(pairs)
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lore.data.pair import Pair
from lore.engines.engine import MAX_WORDS, EngineUsage
from lore.judge.ask import RAISED, TOO_LONG
from lore.judge.card import judge_id
from lore.judge.verdict import Verdict
from lore.student.card import StudentCard, read_student
from lore.student.config import StudentConfig, read_config
from lore.student.encode import Batch, PairEncoder, QueryTooLong, Row, shared_batches
from lore.student.exported import EXPORT
from lore.student.head import tier_probabilities, verdict_tiers
from lore.student.photo_embeddings import PhotoEmbeddings, read_photo_embeddings
from lore.student.section import Head
from lore.support.errors import LoreError
from lore.support.fingerprint import files_fingerprint, model_fingerprint

Runtime = Literal["auto", "torch", "onnx"]
Precision = Literal["auto", "fp32", "fp16", "int8"]
BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 32_768  # on a CPU, small batches stay in its cache (docs/lab/student.md)


class Session(Protocol):
    """Runs a student's weights. precision: of the weights; parallel: how many calls of `logits` go side by side."""

    precision: Precision
    parallel: int

    def logits(self, batch: Batch) -> np.ndarray:
        """Logits [N, outputs] of a batch of PairEncoder.batch."""

    def close(self) -> None:
        """Frees the memory."""


@dataclass
class StudentScorer:
    """See lore.judge.scorer.Scorer. A pair that cannot be read gets a failure, never an exception."""

    card: StudentCard
    head: Head
    encoder: PairEncoder
    session: Session
    judge_id: str
    batch_tokens: int = BATCH_TOKENS
    usage: EngineUsage = field(default_factory=EngineUsage)

    @property
    def tier_ids(self) -> list[str]:
        return self.card.tiers

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        """One verdict per pair, in the order of the pairs."""
        rows = self.encoder.rows(pairs) if pairs else []
        verdicts = [self._empty(pair, row) for pair, row in zip(pairs, rows, strict=True)]
        asked: dict[bool, list[int]] = {False: [], True: []}  # rows with a photo by themselves: the others need no vision tower
        for index, row in enumerate(rows):
            if not isinstance(row, QueryTooLong):
                asked[row["photo"] is not None].append(index)
        chosen: list[list[int]] = []
        for indices in asked.values():
            lengths = [rows[index]["length"] for index in indices]
            shared = shared_batches(lengths, self.batch_tokens, self.session.parallel)
            chosen += [[indices[at] for at in batch] for batch in shared]
        chosen.reverse()  # the longest first: the threads then end together
        answers = self._answers([[rows[index] for index in batch] for batch in chosen])
        for batch, (logits, seen) in zip(chosen, answers, strict=True):
            self._fill_in(batch, logits, seen, pairs, verdicts)
            self.usage.prompt_tokens += sum(rows[index]["length"] for index in batch)
        return verdicts

    def score_batch(self, pairs: Sequence[Pair], rows: Sequence[Row | QueryTooLong]) -> list[Verdict]:
        """The verdicts of rows of `encoder.rows`, as one batch in the calling thread. The caller forms the batches, of at most
        `batch_tokens` tokens, and makes at most `session.parallel` calls at the same time."""
        verdicts = [self._empty(pair, row) for pair, row in zip(pairs, rows, strict=True)]
        batch = [index for index, row in enumerate(rows) if not isinstance(row, QueryTooLong)]
        if batch:
            logits, seen = self._answer([rows[index] for index in batch])
            self._fill_in(batch, logits, seen, pairs, verdicts)
        return verdicts

    def _empty(self, pair: Pair, row: Row | QueryTooLong) -> Verdict:
        """The verdict of a pair before its answer; the whole of it for a pair that cannot be read."""
        verdict = Verdict(pair.pair_id, None, judge_id=self.judge_id, source="student")
        if isinstance(row, QueryTooLong):
            verdict.photo = self.encoder.photo_state(pair, False)
            verdict.failure, verdict.detail = TOO_LONG, str(row)[:MAX_WORDS]
        return verdict

    def _answers(self, chosen: list[list[Any]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(logits [N, outputs], photo_mask [N]) of each batch of rows."""
        return map(self._answer, chosen) if self.session.parallel == 1 else self._threads.map(self._answer, chosen)

    def _answer(self, rows: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        batch = self.encoder.batch(rows)
        return self.session.logits(batch), batch.get("photo_mask", np.zeros(len(rows), dtype=np.int64))

    def _fill_in(
        self, batch: list[int], logits: np.ndarray, seen: np.ndarray, pairs: Sequence[Pair], verdicts: list[Verdict]
    ) -> None:
        """The verdicts of the rows of one batch."""
        probabilities = self.card.calibration.apply(tier_probabilities(logits, self.head))
        tiers = verdict_tiers(probabilities, self.card.verdict).tolist()
        for index, row, tier, photo in zip(batch, probabilities, tiers, seen.tolist(), strict=True):
            verdict = verdicts[index]
            verdict.photo = self.encoder.photo_state(pairs[index], bool(photo))
            if not np.isfinite(row).all():
                verdict.failure, verdict.detail = RAISED, "the student's outputs are no numbers: its weights are damaged"
                continue
            verdict.probabilities, verdict.tier = row.tolist(), self.tier_ids[tier]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.session.parallel, "student")

    def close(self) -> None:
        """Frees the memory."""
        if "_threads" in self.__dict__:
            self._threads.shutdown()
            del self._threads
        self.session.close()


class TorchSession:
    """A student in PyTorch, on the GPU if there is one."""

    precision: Precision = "fp32"
    parallel = 1  # PyTorch has threads of its own

    def __init__(self, folder: Path, device: str | None = None, threads: int | None = None):
        # They load torch, and an exported student needs none.
        from lore.engines.loading import default_device
        from lore.student.model import load_student

        self.device = device or default_device()
        self._threads = threads
        self.model: Any = load_student(folder).to(self.device)

    def logits(self, batch: Batch) -> np.ndarray:
        import torch  # an exported student needs none

        others = torch.get_num_threads()
        torch.set_num_threads(self._threads or others)
        try:
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}
                return self.model(**tensors).float().cpu().numpy()
        finally:
            torch.set_num_threads(others)  # it is the number of the whole process, and sums depend on it to the last bit

    def close(self) -> None:
        self.model = None


def open_student(
    path: str | Path,
    *,
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    photo_embeddings: str | Path | None = None,
) -> StudentScorer:
    """The student of a run folder (runs/distill), a model folder, or the folder of `lore export student`.

    runtime: onnx needs an exported folder; auto takes it where there is one. precision: of an exported folder. threads: of the
    CPU; null leaves the choice to the library. photo_embeddings: table of the items' vectors, for a student that reads them; null:
    the one of its training.
    """
    card = read_student(path)
    runtime, precision = chosen(card.folder, runtime, precision)
    config = read_config(card.folder)
    embeddings = _embeddings(config, photo_embeddings)
    session: Session
    if runtime == "onnx":
        # Loads onnxruntime: only for an exported student.
        from lore.student.onnx_session import OnnxSession, open_session, saved_tokenizer

        encoder = PairEncoder(saved_tokenizer(card.folder), card.fmt, config, embeddings)
        session, tokens = open_session(card.folder, precision=precision, threads=threads), OnnxSession.batch_tokens
    else:
        from lore.student.model import load_tokenizer  # loads transformers

        encoder = PairEncoder(load_tokenizer(card.folder), card.fmt, config, embeddings)
        session = TorchSession(card.folder, threads=threads)
        tokens = BATCH_TOKENS if session.device == "cpu" else GPU_BATCH_TOKENS
    return StudentScorer(card, config.head, encoder, session, student_id(card, runtime, precision), tokens)


def chosen(folder: Path, runtime: Runtime, precision: Precision) -> tuple[Runtime, Precision]:
    """Runtime and precision with auto filled in: an exported folder is run by ONNX, in int8 where it has that."""
    exported = {name: onnx_files(folder, name) for name in ("int8", "fp16", "fp32")}
    if runtime == "auto":
        if (folder / EXPORT).is_file() and not any(exported.values()):
            raise LoreError(
                f"{folder} is an exported student, and its ONNX files are gone.\nExport the student again, or copy all files."
            )
        runtime = "onnx" if any(exported.values()) else "torch"
    if runtime == "torch":
        if precision in ("fp16", "int8"):
            raise LoreError(
                f"Precision {precision} needs the ONNX runtime, and {folder} is run by torch.\nExport the student (lore export "
                f"student {folder} -o student) and open that folder, or leave precision out."
            )
        return runtime, "fp32"
    if precision == "auto":
        precision = "int8" if exported["int8"] else "fp32"
    if not exported[precision]:
        there = ", ".join(name for name, files in exported.items() if files) or "no ONNX file"
        raise LoreError(
            f"{folder} has {there}, and the precision {precision} is asked for.\nExport the student with it (lore export student), "
            "or take another precision."
        )
    return runtime, precision


def onnx_files(folder: Path, precision: Precision) -> list[Path]:
    """The ONNX files that a precision needs; [] in a folder that does not have them all."""
    if not any(folder.glob("*.onnx")):
        return []
    try:
        from lore.student.onnx_session import part_files  # loads onnxruntime: only for an exported student
    except ModuleNotFoundError as error:
        raise LoreError(
            f"{folder} is an exported student, and {error.name} is not installed.\nInstall it: pip install "
            "'lore-relevance[student]'"
        ) from error

    files = list(part_files(folder, read_config(folder), precision).values())
    return files if all(path.is_file() for path in files) else []


def student_id(card: StudentCard, runtime: Runtime, precision: Precision) -> str:
    """judge_id of a student: other weights, another card (calibration, verdict) or another precision are another student."""
    weights = model_fingerprint(str(card.folder))
    if runtime == "onnx":
        weights += f"-{files_fingerprint(onnx_files(card.folder, precision))}"
    return judge_id(weights, card.rubric_hash, card.renderer_hash)


def _embeddings(config: StudentConfig, path: str | Path | None) -> PhotoEmbeddings | None:
    if config.photo != "embedding":
        if path is not None:
            raise LoreError(f"{path} holds photo embeddings, and this student reads none (photo: {config.photo}). Leave them out.")
        return None
    return read_photo_embeddings(path or config.photo_embeddings or "")
