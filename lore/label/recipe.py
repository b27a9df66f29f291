"""Recipe of the label stage. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict
from lore.engines.config import HOW_ASKED, RaySection, UnansweredSection
from lore.label.config import CascadeSection, CostSection, InputSection, LabelJudgeSection
from lore.support.bounds import MAX_COUNT

REASON_FIRST = "this judge was trained to reason first, and its verdict without the reason is not the one that was evaluated"


class LabelRecipe(BaseRecipe):
    """Labels every pair of an input with a judge, each exactly once."""

    irrelevant_keys: ClassVar[frozenset[str]] = frozenset(
        {"run", "batch_tokens", "shard_pairs", "max_attempts", "store", "compare", "judge.path", "judge.base", "judge.rubric"}
        | {"judge.engine", "unanswered.max_in_a_row", "unanswered.max_share", "ray"}
        | {f"judge.endpoint.{key}" for key in HOW_ASKED}
        | {f"cost.{key}" for key in CostSection.model_fields}
    )
    prepared_files: ClassVar[frozenset[str]] = frozenset({"work", "rejected.jsonl"})
    result_files: ClassVar[frozenset[str]] = frozenset(
        {"verdicts", "failures", "summary.json", "report.html", "cascade.json", "cascade"}
    )

    @classmethod
    def may_change(cls, key: str) -> bool:
        return key.startswith(("input.", "ray.", "judge.vllm.")) or super().may_change(key)

    stage: Literal["label"] = "label"
    input: InputSection
    judge: LabelJudgeSection
    mode: Literal["auto", "verdict", "rationale", "cascade"] = "auto"
    """verdict: tier probabilities from one forward pass per pair, without decoding; for judges whose verdict comes first.
    rationale: the judge writes its reason too. cascade: a student first, the judge where the student is unsure. auto: rationale
    for a judge that reasons first, else verdict."""
    cascade: CascadeSection | None = None
    """The student, for mode: cascade."""
    ray: RaySection | None = None
    """Labels on a Ray cluster. null: in this process."""
    shard_pairs: int = Field(2048, ge=1, le=1_000_000)
    """Pairs per shard, the unit that is asked and committed together. A killed run repeats at most one shard per worker."""
    max_attempts: int = Field(3, ge=1, le=1000)
    """How often a pair without an answer is asked, once per start. After that its failure is final."""
    store: str | None = None
    """File of the verdict store, which answers pairs that this judge has already labelled in any run on this machine. null:
    $LORE_CACHE/verdicts.sqlite; none: no store."""
    compare: str | None = None
    """Label folder of the last run, for the drift in the summary. null: this folder's own last summary."""
    unanswered: UnansweredSection = UnansweredSection()
    """When pairs without an answer stop the run."""
    cost: CostSection = CostSection()
    batch_tokens: int = Field(16384, ge=64, le=MAX_COUNT)
    """Tokens per forward pass of transformers, padding included."""

    def conflicts(self) -> Iterator[Conflict]:
        if (self.mode == "cascade") != (self.cascade is not None):
            yield Conflict(
                ("mode", "cascade"),
                f"mode {self.mode} and {'no' if self.cascade is None else 'a'} student",
                "mode: cascade with cascade.student (--mode cascade --student ...), or neither",
            )
        order = self.judge.prompt.order if self.judge.prompt else None
        if self.mode == "verdict" and order == "reason_first":
            yield Conflict(("mode", "judge.prompt.order"), "verdict with reason_first", "mode: rationale: " + REASON_FIRST)

    def check_packages(self) -> None:
        if self.ray is not None:
            self.ray.check_packages()

    def derived(self) -> dict[str, Any]:
        return {"pairs without an answer are asked": f"{self.max_attempts} times at most, once per start"}

    def reopened(self, folder: Any) -> str | None:
        from lore.label.unfinished import why_unfinished  # loads pyarrow: only for a finished run

        return why_unfinished(self.input, folder)
