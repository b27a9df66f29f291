"""Recipe of stage synthesize. Nothing here imports torch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel, Temperature
from lore.data.section import JudgedDataSection
from lore.engines.config import HOW_ASKED, EndpointSection, ModelSection, RaySection, UnansweredSection, VllmSection
from lore.run.run_folder import RunFolder
from lore.support.bounds import MAX_COUNT, MAX_SECONDS, MAX_WEIGHT
from lore.support.input_files import InputFiles, model_files
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
IN_PROCESS = ("vllm", "transformers")
USES = {"endpoint": ("endpoint",), "vllm": ("model",), "transformers": ("model",), "program": ()}


class PriceSection(StrictModel):
    prompt_usd: float = Field(ge=0, le=MAX_WEIGHT)
    """US dollars per million prompt tokens."""
    completion_usd: float = Field(ge=0, le=MAX_WEIGHT)
    """US dollars per million completion tokens."""


class TeacherSection(StrictModel):
    """The writer of the reasoning: a server, a model in this process, or a program."""

    kind: Literal["endpoint", "vllm", "transformers", "program"]
    """endpoint: any OpenAI-compatible server; vllm, transformers: a model in this process; program: executes the rubric, without a
    model."""
    endpoint: EndpointSection | None = None
    """The server, for kind: endpoint. Its API key comes from an environment variable."""
    model: ModelSection | None = None
    """The checkpoint, for kind: vllm and transformers. For kind: endpoint, the checkpoint that `lore teacher serve` starts."""
    vllm: VllmSection = VllmSection()
    """vLLM settings, in this process or of the server."""
    program: Literal["shop", "words"] = "words"
    """shop: the program of the embedded shop; words: matches the words of the query, for any pairs."""
    errors: float = Field(0.0, ge=0, lt=1)
    """Share of a program's answers with a deliberate error, to measure the checks."""
    price: PriceSection | None = None
    """Price of a token; required for budget.max_usd."""
    temperature: Temperature = 0.7
    """Sampling temperature. 0 decodes greedily, so a second attempt gives the same answer."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(768, ge=16, le=MAX_COUNT)
    """Maximum tokens per answer of one step."""

    def conflicts(self) -> Iterator[Conflict]:
        for key in USES[self.kind]:
            if getattr(self, key) is None:
                yield Conflict((key,), "nothing", f"a value: kind is {self.kind}")
        if self.kind != "endpoint" and self.endpoint is not None:
            yield Conflict(("endpoint", "kind"), f"a server and kind {self.kind}", "kind: endpoint, or no endpoint")
        if self.errors and self.kind != "program":
            yield Conflict(("errors", "kind"), f"errors and kind {self.kind}", "kind: program, or errors: 0")
        if self.model is not None and self.model.lora is not None:
            yield Conflict(("model.lora",), "a new LoRA to train", "nothing: set a trained adapter in model.adapter")


class FactsSection(StrictModel):
    path: str
    """Table of facts (phrase, value; jsonl, csv or parquet), or folder of texts to search with BM25."""
    top: int = Field(5, ge=1, le=50)
    """Maximum number of facts per step."""


class AttemptsSection(StrictModel):
    samples: int = Field(1, ge=1, le=64)
    """Attempts per pair that run at once. With more than one, `agreement` is checked."""
    agreement: float = Field(0.5, ge=0, le=1)
    """Minimum share of a pair's attempts with the accepted verdict, if samples is more than one."""
    most: int = Field(3, ge=1, le=64)
    """Maximum attempts per pair; the first one that passes every check ends them."""
    most_hard: int = Field(6, ge=1, le=64)
    """Maximum attempts for hard pairs: pairs whose attempts disagree about the tier, and pairs of hard_slices."""
    hard_slices: list[str] = []
    hint: Literal["never", "after_failure", "always"] = "after_failure"
    """When the teacher sees the human label: never, after all attempts without it failed, or from the start."""
    hinted: int = Field(2, ge=1, le=64)
    """Maximum attempts with the label shown."""

    def conflicts(self) -> Iterator[Conflict]:
        if not self.samples <= self.most <= self.most_hard:
            yield Conflict(
                ("samples", "most", "most_hard"), f"{self.samples}, {self.most}, {self.most_hard}", "numbers in ascending order"
            )


class BudgetSection(StrictModel):
    """Limits over all starts of the run. They are never exceeded: requests in flight count with their upper bound."""

    max_usd: float | None = Field(None, gt=0, le=1e9)
    """US dollars; requires the price of every teacher. null: no limit."""
    max_tokens: int | None = Field(None, ge=1, le=10**15)
    """Prompt and completion tokens. null: no limit."""
    max_seconds: float | None = Field(None, gt=0, le=MAX_SECONDS)
    """Seconds of work; requests in flight at that time still finish. null: no limit."""


class RationaleSection(StrictModel):
    max_tokens: int = Field(160, ge=8, le=MAX_COUNT)
    """Maximum length. A longer rationale first drops fulfilled demands; if it is still too long, it fails the check `length`."""
    tokenizer: str | None = None
    """Tokenizer that counts the tokens, usually the student's; null counts words and punctuation marks."""
    leave_out: list[Literal["knowledge", "photos", "rules"]] = []
    """Capabilities to leave out of the written reasoning, for ablations."""

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        return {"tokenizer": model_files(self.tokenizer)} if self.tokenizer and Path(self.tokenizer).is_dir() else {}


class SynthesizeRecipe(BaseRecipe):
    """Writes step-by-step reasoning for rated pairs and checks it. The result is an SFT data set with a card."""

    irrelevant_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "budget.max_usd",
            "budget.max_tokens",
            "budget.max_seconds",
            "unanswered.max_in_a_row",
            "unanswered.max_share",
            *(f"{role}.endpoint.{key}" for role in ROLES for key in HOW_ASKED),
            *(f"{role}.{key}" for role in ROLES for key in ("price", "price.prompt_usd", "price.completion_usd")),
            *(f"{role}.vllm.{key}" for role in ROLES for key in HOW_RUN),
            "ray",
            *(f"ray.{key}" for key in RaySection.model_fields),
        }
    )

    result_files = frozenset({"answers", "traces", "pairs", "tasks"})

    stage: Literal["synthesize"] = "synthesize"
    data: JudgedDataSection
    """The rated pairs. Pairs without a label are skipped."""
    teacher: TeacherSection
    captioner: TeacherSection | None = None
    """The vision model for photos: caption; null: the teacher."""
    critic: TeacherSection | None = None
    """A second teacher that reviews every trace that passed the checks, and may reject it. null: no review."""
    photos: Literal["caption", "direct", "none"] = "direct"
    """caption: a vision model describes the photo and the teacher reads the caption; direct: the teacher's prompt contains the
    photo; none: no photos."""
    max_photo_pixels: int | None = Field(1048576, ge=784, le=MAX_COUNT)
    """Larger photos are downscaled to this many pixels for the teacher; null: never."""
    description: bool = True
    """Show the item's description to the teacher. Set false if the judge's prompt has no room for it, so no rationale cites it."""
    facts: FactsSection | None = None
    """Evidence for the teacher. It is stored in the trace and never shown to a judge."""
    language: Literal["en", "zh"] = "en"
    """Language of the shipped prompts and of the embedded shop."""
    prompts: str | None = None
    """Folder with your own prompts, <step>.<language>.md; missing ones are taken from the shipped ones. After a change of a prompt
    only its step is repeated."""
    checks: list[str] = list(CHECKS)
    """Checks that a trace must pass. Empty: every trace that can be parsed is accepted."""
    coverage: float = Field(0.8, ge=0, le=1)
    """Minimum share of the query's content words that the demands must contain, for the check `coverage`."""
    attempts: AttemptsSection = AttemptsSection()
    rationale: RationaleSection = RationaleSection()
    label: Literal["human", "teacher"] = "human"
    """The label of the written pairs. teacher, with fewer checks, is plain distillation."""
    unexplained: Literal["drop", "keep"] = "drop"
    """Pairs without an accepted trace: drop them, or keep them with only their human label."""
    tasks: list[Literal["knowledge", "multimodal", "rules"]] = []
    """Steps to also write as separate tasks, tasks/<step>.parquet, for `auxiliary` of an SFT recipe."""
    budget: BudgetSection = BudgetSection()
    ray: RaySection | None = None
    """Models of kind vllm and transformers answer on a Ray cluster, each worker with one of its own. Journal, checks and budget
    stay in this process. null: one of each, in this process."""
    unanswered: UnansweredSection = UnansweredSection()
    """When refused, failed and cut answers stop the run."""
    reuse: list[str] = []
    """Run folders of this stage. Their answers are reused if the same teacher is asked the same."""
    chunk_pairs: int = Field(256, ge=1, le=1_000_000)
    """Pairs per traces file."""

    def teachers(self) -> dict[str, TeacherSection]:
        """The teacher sections by role."""
        roles = {"teacher": self.teacher, "captioner": self.captioner, "critic": self.critic}
        return {role: section for role, section in roles.items() if section is not None}

    def input_files(self) -> dict[str, list[str]]:
        from lore.data_synth.synthesis.facts import fact_files  # loads numpy: only for recipes with facts

        return {"facts": list(map(str, fact_files(self.facts.path)))} if self.facts else {}

    def reopened(self, folder: RunFolder) -> str | None:
        from lore.data_synth.synthesis.teacher_prompts import prompt_texts_hash  # loads pyarrow: only for a finished run

        if not self.asks_models:
            return None
        known, now = folder.summary.get("prompts"), prompt_texts_hash(self.language, self.prompts)
        return None if known in (None, now) else "its prompts have changed"

    def check_packages(self) -> None:
        if self.ray is not None:
            self.ray.check_packages()

    @property
    def asks_models(self) -> bool:
        """False if a program writes all traces."""
        return any(section.kind != "program" for section in self.teachers().values())

    def conflicts(self) -> Iterator[Conflict]:
        for name in self.checks:
            if name not in CHECKS:
                yield Conflict(("checks",), name, f"some of: {', '.join(CHECKS)}", nearest(name, CHECKS))
        if self.prompts is not None:
            from lore.data_synth.synthesis.trace import STEPS  # loads pyarrow: only for own prompts

            names = [f"{step}.{self.language}.md" for step in STEPS]
            if not any((Path(self.prompts) / name).is_file() for name in names):
                yield Conflict(("prompts",), self.prompts, f"a folder with at least one of {', '.join(names)}")
        if self.budget.max_usd is not None:
            for role, section in self.teachers().items():
                if section.kind != "program" and section.price is None:
                    yield Conflict(("budget.max_usd", f"{role}.price"), "a limit in US dollars and no price", f"{role}.price")
        if self.ray is not None and not any(section.kind in IN_PROCESS for section in self.teachers().values()):
            found = f"a cluster and teacher.kind {self.teacher.kind}"
            yield Conflict(("ray", "teacher.kind"), found, "kind: vllm or transformers, or no ray: a server has its own machines")
        if self.photos != "caption" and self.captioner is not None:
            yield Conflict(("captioner", "photos"), f"a captioner and photos: {self.photos}", "photos: caption, or no captioner")
        for role in ("captioner", "critic"):
            section = getattr(self, role)
            if section is not None and section.kind == "program":
                yield Conflict((f"{role}.kind",), "program", "a model: programs cannot write captions or review traces")
        if self.teacher.kind == "program" and self.photos == "caption":
            yield Conflict(("teacher.kind", "photos"), "a program that reads captions", "photos: direct")
        if self.teacher.kind == "program" and self.attempts.hint == "always":
            yield Conflict(("teacher.kind", "attempts.hint"), "a hint for a program, which uses none", "hint: never")
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
