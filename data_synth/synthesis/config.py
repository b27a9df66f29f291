"""Recipe of the stage that writes reasoning with a teacher. Nothing here imports torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel
from lore.data.section import JudgedDataSection
from lore.engines.config import HOW_ASKED, EndpointSection, ModelSection, VllmSection
from lore.run.run_folder import RunFolder
from lore.support.nearest import nearest

CHECKS = (
    "verdict",
    "one_verdict",
    "grounding",
    "rules",
    "aggregate",
    "coverage",
    "hint_leak",
    "prompt_copy",
    "length",
    "language",
)
ROLES = ("teacher", "captioner", "critic")
HOW_RUN = ("gpu_memory", "tensor_parallel", "max_sequences", "kv_cache_gib")
USES = {"endpoint": ("endpoint",), "vllm": ("model",), "transformers": ("model",), "program": ()}


class PriceSection(StrictModel):
    prompt_usd: float = Field(ge=0)
    """US dollars for a million prompt tokens."""
    completion_usd: float = Field(ge=0)
    """US dollars for a million completion tokens."""


class TeacherSection(StrictModel):
    """Who writes: a server, a model in this process, or a program."""

    kind: Literal["endpoint", "vllm", "transformers", "program"]
    """endpoint: any OpenAI-compatible server; vllm, transformers: a model in this process; program: executes rubric and facts."""
    endpoint: EndpointSection | None = None
    """Server, for kind: endpoint. Its key comes from an environment variable."""
    model: ModelSection | None = None
    """Checkpoint, for kind: vllm and transformers; for an endpoint the one that `lore teacher serve` starts."""
    vllm: VllmSection = VllmSection()
    """How vLLM runs the model, in this process or as the server."""
    program: Literal["shop", "words"] = "words"
    """Which program: the embedded shop's, or one for any pairs that goes by the query's words."""
    errors: float = Field(0.0, ge=0, lt=1)
    """Share of a program's answers that are made wrong on purpose, to measure what checks are worth."""
    price: PriceSection | None = None
    """What a request costs; needed for budget.max_usd."""
    temperature: float = Field(0.7, ge=0)
    """0 always takes the most probable token, so that a second attempt says the same."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(768, ge=16)
    """Longest answer of one step."""

    def conflicts(self) -> Iterator[Conflict]:
        for key in USES[self.kind]:
            if getattr(self, key) is None:
                yield Conflict((key,), "nothing", f"a value: kind is {self.kind}")
        if self.kind != "endpoint" and self.endpoint is not None:
            yield Conflict(("endpoint", "kind"), f"a server and kind {self.kind}", "kind: endpoint, or no endpoint")
        if self.errors and self.kind != "program":
            yield Conflict(("errors", "kind"), f"errors and kind {self.kind}", "kind: program: a model makes its own")
        if self.model is not None and self.model.lora is not None:
            yield Conflict(("model.lora",), "a new LoRA to train", "nothing: a trained adapter is model.adapter")


class FactsSection(StrictModel):
    path: str
    """A table of facts (phrase, value; jsonl, csv or parquet), or a folder of texts that is searched with BM25."""
    top: int = Field(5, ge=1, le=50)
    """At most this many per step."""


class AttemptsSection(StrictModel):
    samples: int = Field(1, ge=1, le=64)
    """Attempts that every pair gets at once; more than one makes the teacher agree with itself."""
    agreement: float = Field(0.5, ge=0, le=1)
    """Share of a pair's attempts that have to give the accepted verdict, where samples is more than one."""
    most: int = Field(3, ge=1, le=64)
    """Attempts at most, until one passes every check."""
    most_hard: int = Field(6, ge=1, le=64)
    """The same for hard pairs: those whose attempts disagree about the tier, and those of hard_slices."""
    hard_slices: list[str] = []
    hint: Literal["never", "after_failure", "always"] = "after_failure"
    """When the teacher is shown the human label: where every attempt without it failed, or from the start."""
    hinted: int = Field(2, ge=1, le=64)
    """Attempts with the label shown."""

    def conflicts(self) -> Iterator[Conflict]:
        if not self.samples <= self.most <= self.most_hard:
            yield Conflict(
                ("samples", "most", "most_hard"), f"{self.samples}, {self.most}, {self.most_hard}", "numbers that do not fall"
            )


class BudgetSection(StrictModel):
    """Limits over all starts of the run; none of them is ever passed. What is in flight counts at the most it can take."""

    max_usd: float | None = Field(None, gt=0)
    """Needs the teachers' price."""
    max_tokens: int | None = Field(None, ge=1)
    """Prompt and completion tokens."""
    max_seconds: float | None = Field(None, gt=0)
    """Seconds of work; requests in flight then are still awaited."""


class RationaleSection(StrictModel):
    max_tokens: int = Field(160, ge=8)
    """Longest rationale. A longer one first loses demands that are met; one that is still longer fails the check length."""
    tokenizer: str | None = None
    """Tokenizer of the student that counts them; none counts words and marks."""
    leave_out: list[Literal["knowledge", "photos", "rules"]] = []
    """Capabilities whose part of the reasoning is not written, for ablations."""


class SynthesizeRecipe(BaseRecipe):
    """Reasoning for rated pairs, step by step, checked: an SFT set with a card."""

    irrelevant_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "budget.max_usd",
            "budget.max_tokens",
            "budget.max_seconds",
            *(f"{role}.endpoint.{key}" for role in ROLES for key in HOW_ASKED),
            *(f"{role}.{key}" for role in ROLES for key in ("price", "price.prompt_usd", "price.completion_usd")),
            *(f"{role}.vllm.{key}" for role in ROLES for key in HOW_RUN),
        }
    )

    stage: Literal["synthesize"] = "synthesize"
    data: JudgedDataSection
    """The rated pairs; pairs without a label are passed over."""
    teacher: TeacherSection
    captioner: TeacherSection | None = None
    """The vision teacher of photos: caption; none asks the teacher itself."""
    critic: TeacherSection | None = None
    """A second teacher that reads every trace which has passed the checks, and may refuse it."""
    photos: Literal["caption", "direct", "none"] = "direct"
    """caption: a vision teacher writes what a photo shows and the teacher reads it; direct: the teacher is shown the photo."""
    max_photo_pixels: int | None = Field(1048576, ge=784)
    """Larger photos are made smaller for the teacher."""
    description: bool = True
    """Show the teacher the item's description; false where the judge's prompt has no room for it, so that no reasoning cites it."""
    facts: FactsSection | None = None
    """Evidence for the teacher, recorded with the trace and never shown to a judge."""
    language: Literal["en", "zh"] = "en"
    """Language of the shipped prompts, and of the embedded shop."""
    prompts: str | None = None
    """Folder with prompts of your own, <step>.<language>.md; what it lacks is taken from the shipped ones. A changed prompt
    redoes its own step."""
    checks: list[str] = list(CHECKS)
    """Checks that a trace has to pass; none of them takes every trace that can be read."""
    coverage: float = Field(0.8, ge=0, le=1)
    """Share of the query's content words that the demands have to hold, for the check coverage."""
    attempts: AttemptsSection = AttemptsSection()
    rationale: RationaleSection = RationaleSection()
    label: Literal["human", "teacher"] = "human"
    """Whose verdict is trained on. teacher, with fewer checks, is plain distillation."""
    unexplained: Literal["drop", "keep"] = "drop"
    """Pairs without an accepted trace: left out of the set, or kept with their human label alone."""
    tasks: list[Literal["knowledge", "multimodal", "rules"]] = []
    """Steps that are also written as tasks of their own, tasks/<step>.parquet, for `auxiliary` of an SFT recipe."""
    budget: BudgetSection = BudgetSection()
    reuse: list[str] = []
    """Run folders of this stage whose answers are taken where the same is asked of the same teacher."""
    chunk_pairs: int = Field(256, ge=1)
    """Pairs in one file of traces."""

    def teachers(self) -> dict[str, TeacherSection]:
        """The sections by role."""
        roles = {"teacher": self.teacher, "captioner": self.captioner, "critic": self.critic}
        return {role: section for role, section in roles.items() if section is not None}

    def input_files(self) -> dict[str, list[str]]:
        from lore.data_synth.synthesis.facts import fact_files

        return {"facts": list(map(str, fact_files(self.facts.path)))} if self.facts else {}

    def reopened(self, folder: RunFolder) -> str | None:
        from lore.data_synth.synthesis.teacher_prompts import prompt_texts_hash

        if not self.asks_models:
            return None
        known, now = folder.summary.get("prompts"), prompt_texts_hash(self.language, self.prompts)
        return None if known in (None, now) else "its prompts have changed"

    @property
    def asks_models(self) -> bool:
        """False where a program alone writes the traces."""
        return any(section.kind != "program" for section in self.teachers().values())

    def conflicts(self) -> Iterator[Conflict]:
        for name in self.checks:
            if name not in CHECKS:
                yield Conflict(("checks",), name, f"checks out of: {', '.join(CHECKS)}", nearest(name, CHECKS))
        if self.prompts is not None:
            from lore.data_synth.synthesis.trace import STEPS

            names = [f"{step}.{self.language}.md" for step in STEPS]
            if not any((Path(self.prompts) / name).is_file() for name in names):
                yield Conflict(("prompts",), self.prompts, f"a folder with at least one of {', '.join(names)}")
        if self.budget.max_usd is not None:
            for role, section in self.teachers().items():
                if section.kind != "program" and section.price is None:
                    yield Conflict(("budget.max_usd", f"{role}.price"), "a limit in US dollars and no price", f"{role}.price")
        if self.photos != "caption" and self.captioner is not None:
            yield Conflict(("captioner", "photos"), f"a captioner and photos: {self.photos}", "photos: caption, or no captioner")
        for role in ("captioner", "critic"):
            section = getattr(self, role)
            if section is not None and section.kind == "program":
                yield Conflict((f"{role}.kind",), "program", "a model: programs write no captions and judge no traces")
        if self.teacher.kind == "program" and self.photos == "caption":
            yield Conflict(("teacher.kind", "photos"), "a program that reads captions", "photos: direct")
        if self.teacher.kind == "program" and self.attempts.hint == "always":
            yield Conflict(("teacher.kind", "attempts.hint"), "a hint for a program, which takes none", "hint: never")
        if self.attempts.samples > 1 and not (self.teacher.errors if self.teacher.kind == "program" else self.teacher.temperature):
            found = "a program" if self.teacher.kind == "program" else "temperature 0"
            keys = ("attempts.samples", "teacher.temperature")
            yield Conflict(keys, f"{self.attempts.samples} samples of {found}", "samples that can differ")
        if self.label == "teacher" and "verdict" not in self.checks and self.unexplained == "keep":
            yield Conflict(("label", "unexplained"), "two kinds of labels in one set", "unexplained: drop, or label: human")

    def derived(self) -> dict[str, Any]:
        asked = 3 + (self.photos == "caption") + (self.critic is not None)
        rows = self.attempts.samples
        return {
            "requests per pair": f"{asked * rows} at least" if self.teacher.kind != "program" else "none: a program answers",
            "files": ["pairs/*.parquet", "pairs/README.md", "traces/part-*.parquet", "answers/*.jsonl"],
        }
