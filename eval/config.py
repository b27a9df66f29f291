"""Recipe of the evaluation stage. Nothing here imports torch."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from lore.codec.section import PromptSection
from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict
from lore.data.section import JudgedDataSection
from lore.engines.config import HOW_ASKED, UnansweredSection
from lore.eval.benchmark import generates, with_benchmark, write_benchmark_pairs
from lore.eval.sections import CapabilitySection, JudgeSection, MetricsSection, ReportSection, RobustnessSection, SamplingSection
from lore.support.bounds import MAX_COUNT
from lore.support.nearest import nearest

HOW_A_JUDGE_IS_ASKED = re.compile(rf"^judges\..+\.endpoint\.(?:{'|'.join(HOW_ASKED)})$")
JUDGE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,47}$")


class EvaluateRecipe(BaseRecipe):
    """Evaluates judges and baselines on the same pairs."""

    irrelevant_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "batch_tokens",
            "chunk_pairs",
            "report.mistakes",
            "report.thumbnail_pixels",
            "unanswered.max_in_a_row",
            "unanswered.max_share",
        }
    )

    result_files: ClassVar[frozenset[str]] = frozenset({"verdicts", "metrics.json", "predictions.parquet", "report.html"})

    @classmethod
    def may_change(cls, key: str) -> bool:
        return HOW_A_JUDGE_IS_ASKED.match(key) is not None or super().may_change(key)

    stage: Literal["evaluate"] = "evaluate"
    benchmark: str | None = None
    """Name of a definition in eval/benchmarks, or path of such a file. It sets data, prompt, slices and metrics wherever this
    recipe does not."""
    data: JudgedDataSection
    """The test pairs. data.split defaults to test."""
    prompt: PromptSection
    judges: dict[str, JudgeSection] = {}
    """The judges by name; each is one row of the results table."""
    baselines: list[Literal["majority", "lexical"]] = ["majority", "lexical"]
    """Baselines to train on train_split; each is one more row of the table."""
    train_split: str = "train"
    """Split that the baselines are trained on."""
    train_path: str | None = None
    """Pairs that the baselines are trained on; null: the pairs of data.path."""
    slices: list[str] | None = None
    """Slices to report; null: every slice, largest first."""
    metrics: MetricsSection = MetricsSection()
    sampling: SamplingSection = SamplingSection()
    robustness: RobustnessSection | None = None
    """Verdicts under prompt injections, harmless rewrites and shuffles; null skips this probe."""
    capability: CapabilitySection | None = None
    """Tests of knowledge, photo and rules, each by itself; null skips this probe."""
    report: ReportSection = ReportSection()
    batch_tokens: int = Field(16384, ge=64, le=MAX_COUNT)
    """Tokens per forward pass, padding included."""
    chunk_pairs: int = Field(256, ge=1, le=1_000_000)
    """Pairs per saved chunk of verdicts. A killed run repeats at most this many."""
    unanswered: UnansweredSection = UnansweredSection()
    """When pairs without an answer stop the run."""
    test_limit: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Maximum number of test pairs, approximate because queries stay whole. The seed decides which queries. null: all."""
    dev_limit: int | None = Field(2000, ge=1, le=MAX_COUNT)
    """Maximum number of pairs that the temperature is fitted on, in whole queries. null: all."""
    train_limit: int | None = Field(50_000, ge=1, le=MAX_COUNT)
    """Maximum number of pairs that the baselines are trained on, in whole queries. null: all."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_benchmark(cls, value: Any) -> Any:
        return with_benchmark(value)

    def prepare(self) -> None:
        write_benchmark_pairs(self.benchmark, self.data.path)

    def prepared_inputs(self) -> dict[str, str]:
        return {"data.path": self.data.path} if generates(self.benchmark, self.data.path) else {}

    def input_files(self) -> dict[str, list[str]]:
        if not self.train_path:
            return {}
        files = sorted(map(str, Path(self.train_path).glob("*.parquet")))
        return {"train_path": files or [self.train_path]}

    @property
    def test_split(self) -> str:
        return self.data.split or "test"

    def rows(self) -> dict[str, JudgeSection]:
        """The judges of the recipe, then the baselines that the recipe does not configure itself."""
        named = {judge.kind for judge in self.judges.values()}
        return self.judges | {
            kind: JudgeSection(kind=kind)
            for kind in ("lexical", "majority")
            if kind in self.baselines and kind not in named
        }

    def asked(self) -> dict[str, JudgeSection]:
        """The judges that this run prompts: local models and endpoints."""
        return {name: judge for name, judge in self.judges.items() if judge.kind in ("model", "endpoint")}

    def students(self) -> dict[str, JudgeSection]:
        """The judges that this run shows pairs without a prompt."""
        return {name: judge for name, judge in self.judges.items() if judge.kind == "student"}

    def conflicts(self) -> Iterator[Conflict]:
        for name, judge in self.judges.items():
            if not JUDGE_NAME.match(name):
                yield Conflict(
                    (f"judges.{name}",),
                    "that name",
                    "1 to 48 letters, digits, spaces or . _ + - : the name becomes a folder",
                )
            if judge.kind not in ("lexical", "majority") and name in self.baselines:
                yield Conflict(
                    (f"judges.{name}", "baselines"), f"a judge and a baseline both called {name}", "two names"
                )
            order = judge.order or self.prompt.order
            if judge.explain and order != "answer_first":
                yield Conflict(
                    (f"judges.{name}.explain",),
                    f"explain with {order}",
                    "order: answer_first, the only order with an optional rationale",
                )
        if self.data.limit is not None:
            yield Conflict(
                ("data.limit",), str(self.data.limit), "test_limit, dev_limit or train_limit: they keep queries whole"
            )
        if not self.judges and not self.baselines:
            yield Conflict(("judges", "baselines"), "nothing to score", "at least one judge or baseline")
        probes = (
            ("robustness", self.robustness, self.asked() | self.students(), "model, endpoint or student"),
            ("capability", self.capability, self.asked(), "model or endpoint"),
        )
        for key, section, judges, kinds in probes:
            for name in section.judges or [] if section else []:
                if name not in judges:
                    known = list(judges)
                    yield Conflict(
                        (f"{key}.judges",),
                        name,
                        f"a judge of kind {kinds}: {', '.join(known) or 'the recipe has none'}",
                        nearest(name, known),
                    )
        for key, split in (("metrics.calibrate_on", self.metrics.calibrate_on), ("train_split", self.train_split)):
            if split == self.test_split and not (key == "train_split" and self.train_path):
                yield Conflict(
                    (key, "data.split"),
                    f"{split} for both",
                    "another split: fitting on the test pairs makes the test results too good",
                )

    def derived(self) -> dict[str, Any]:
        splits = {
            "tested on": self.test_split,
            "baselines trained on": self.train_split,
            "temperature fitted on": self.metrics.calibrate_on or "nothing",
        }
        return {"rows of the table": list(self.rows()), **splits}
