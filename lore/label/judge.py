"""Opens the judge of a label recipe: which model or server answers, how it is asked, and its id."""

from dataclasses import dataclass
from pathlib import Path

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat
from lore.data.parquet import pair_files
from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.engines.engine import Sampling
from lore.engines.open_engine import open_engine
from lore.judge.card import check_card, check_template, judge_id, split_judge_id
from lore.judge.scorer import JudgeScorer, Scorer
from lore.judge.trained import TrainedJudge, trained_judge
from lore.label.config import CascadeSection, LabelJudgeSection
from lore.label.recipe import REASON_FIRST, LabelRecipe
from lore.rubric.rubric import Rubric, load_rubric
from lore.student.card import StudentCard, check_rubric, is_student, read_student
from lore.student.scorer import Precision, Runtime, StudentScorer, chosen, open_student, student_id
from lore.support.errors import LoreError
from lore.support.fingerprint import files_fingerprint, model_fingerprint


@dataclass(frozen=True)
class AskedJudge:
    """A judge and how it is asked. weights, renderer: see `lore.judge.card.judge_id`."""

    section: ModelSection | EndpointSection
    vllm: VllmSection | None
    rubric: Rubric
    fmt: PromptFormat
    weights: str
    renderer: str
    explain: bool
    scores: bool
    guided: bool
    max_tokens: int
    mode: str
    """verdict, rationale or cascade."""

    @property
    def judge_id(self) -> str:
        return judge_id(self.weights, self.rubric.hash, self.renderer)

    @property
    def writes(self) -> bool:
        """Whether the judge generates text."""
        return self.explain or self.fmt.order == "reason_first" or not self.scores

    def described(self) -> str:
        """One line for people."""
        if isinstance(self.section, EndpointSection):
            who = f"{self.section.model} at {self.section.url}"
        else:
            who = self.section.name + (f" with adapter {self.section.adapter}" if self.section.adapter else "")
            who += " in vLLM" if self.vllm is not None else " in transformers"
        return f"{who}; {self.fmt.order}, rubric {self.rubric.name}: {self.fmt.detail}"


@dataclass(frozen=True)
class AskedStudent:
    """A student in place of a judge. It has the fields of AskedJudge that do not concern prompts."""

    card: StudentCard
    rubric: Rubric
    runtime: Runtime
    precision: Precision
    mode: str = "verdict"
    writes: bool = False
    guided: bool = False

    @property
    def judge_id(self) -> str:
        return student_id(self.card, self.runtime, self.precision)

    @property
    def weights(self) -> str:
        return split_judge_id(self.judge_id)[0]

    @property
    def renderer(self) -> str:
        return self.card.renderer_hash

    def described(self) -> str:
        """One line for people."""
        return f"student {self.card.folder} in {self.runtime}, {self.precision}; rubric {self.rubric.name}"


def asked_student(section: LabelJudgeSection, mode: str) -> AskedStudent:
    """The student of a section with a path. Raises LoreError for what only a judge can do."""
    path = section.path
    refused = {
        "rationale": "mode rationale asks for reasons, and a student gives none. Use mode verdict",
        "cascade": "mode cascade asks a judge where a student is unsure. Name the judge with --judge, and this with --student",
    }
    if mode in refused:
        raise LoreError(f"{path} is a student: {refused[mode]}.")
    for key, given, advice in (
        ("endpoint", section.endpoint is not None, "`lore label` runs it in this process"),
        ("engine: vllm", section.engine == "vllm", "vLLM runs judges; leave the engine out"),
        ("guided", section.guided, "it writes no answer"),
        ("scores: false", not section.scores, "its scores are all that it gives"),
        ("base", section.base is not None, "its folder holds whole weights"),
    ):
        if given:
            raise LoreError(f"{path} is a student, and judge.{key} is for a judge that reads a prompt: {advice}.")
    card = read_student(path)
    rubric = load_rubric(section.rubric or card.rubric)
    check_rubric(card, rubric, "judge.path")
    return AskedStudent(card, rubric, *chosen(card.folder, "auto", section.precision))


def asked_judge(section: LabelJudgeSection, mode: str) -> AskedJudge | AskedStudent:
    """The judge of a section. Raises LoreError if it cannot be asked in this mode."""
    if section.path is not None and is_student(section.path):
        return asked_student(section, mode)
    for key, default in (("precision", "auto"), ("photo_embeddings", None)):
        if getattr(section, key) != default:
            raise LoreError(f"judge.{key} is for a student, and {section.path or 'the judge'} is none. Leave it out.")
    if section.path is not None:
        trained = trained_of(section)
        rubric, fmt, weights, asked = trained.rubric, trained.fmt, trained.weights, trained.model
        if section.endpoint is not None:
            from lore.judge.served import served_name  # loads torch: only for a served judge

            asked = section.endpoint
            if asked.model != (wanted := served_name(trained)):
                raise LoreError(
                    f"judge.endpoint.model is {asked.model}, and the judge in {section.path} is served as {wanted}.\nThe labels "
                    "name the judge that gave them, so it has to be this one: start it with "
                    f"`lore serve judge {section.path}`, or leave judge.path out and describe the server's model with judge.prompt "
                    "and judge.rubric."
                )
            if asked.tokenizer is None:
                asked = asked.model_copy(update={"tokenizer": trained.model.name})
    else:
        rubric, fmt = load_rubric(section.rubric), PromptFormat(**section.prompt.model_dump())
        asked = section.endpoint or section.model
        if section.endpoint is not None:
            weights = section.endpoint.model
        else:
            weights = model_fingerprint(section.model.name, section.model.adapter)
            check_card(section.model, renderer_hash(rubric, fmt), "judge.model")
    if mode == "auto":
        mode = "rationale" if fmt.order == "reason_first" else "verdict"
    if mode == "verdict" and fmt.order == "reason_first":
        raise LoreError(f"Mode verdict reads the verdict without a reason, but {REASON_FIRST}.\nUse mode rationale.")
    explain = mode == "rationale" and fmt.order == "answer_first"
    if mode == "rationale" and fmt.order == "answer_only":
        raise LoreError("Mode rationale asks for reasons, but this judge answers with the verdict alone. Use mode verdict.")
    vllm = section.vllm if isinstance(asked, ModelSection) and runs_in_vllm(section) else None
    renderer = renderer_hash(rubric, fmt)
    return AskedJudge(
        asked, vllm, rubric, fmt, weights, renderer, explain, section.scores, section.guided, section.max_tokens, mode
    )


def stamp_of(judge: AskedJudge | AskedStudent, cascade: CascadeSection | None = None) -> str:
    """What the labels of a judge depend on, besides the pairs: stored in every label file, and the key of the verdict store. It
    begins with the judge_id and a space."""
    parts = [judge.judge_id, judge.mode]
    if judge.writes:
        parts.append(f"{judge.max_tokens} tokens")
    if judge.guided:
        parts.append("guided")
    if cascade is not None:
        parts.append(f"student {student_fingerprint(cascade)} agreement {cascade.agreement:g}")
    return " ".join(parts)


def is_stamp_of(stamp: str, judge_id: str) -> bool:
    """Whether labels with this stamp are of a judge, whatever its mode."""
    return stamp == judge_id or stamp.startswith(f"{judge_id} ")


def trained_of(section: LabelJudgeSection) -> TrainedJudge:
    """The trained judge of a section with a path."""
    return trained_judge(section.path, rubric=section.rubric, base=section.base)


def runs_in_vllm(section: LabelJudgeSection) -> bool:
    """Whether the engine of a section is vLLM."""
    if section.engine != "auto":
        return section.engine == "vllm"
    import importlib.util  # only for auto

    if importlib.util.find_spec("vllm") is None:
        return False
    from lore.engines.loading import default_device  # loads torch: only where the choice depends on the device

    return default_device() != "cpu"


def open_scorer(judge: AskedJudge | AskedStudent, recipe: LabelRecipe, folder: Path) -> Scorer:
    """Loads the judge, and the student of a cascade whose threshold lies in `folder`."""
    opened = open_judge(judge, recipe)
    if recipe.mode != "cascade":
        return opened
    from lore.label.cascade import CASCADE, Cascade, read_fit  # loads scikit-learn: only for a cascade

    return Cascade(open_cascade_student(recipe, judge.rubric), opened, read_fit(folder / CASCADE))


def open_judge(judge: AskedJudge | AskedStudent, recipe: LabelRecipe) -> JudgeScorer | StudentScorer:
    """Loads the judge."""
    if isinstance(judge, AskedStudent):
        return open_student(
            judge.card.folder,
            runtime=judge.runtime,
            precision=judge.precision,
            photo_embeddings=recipe.judge.photo_embeddings,
        )
    engine = open_engine(
        judge.section,
        judge.rubric,
        vllm=judge.vllm,
        batch_tokens=recipe.batch_tokens,
        only_scores=not judge.writes,
    )
    if isinstance(judge.section, ModelSection):
        check_template(judge.section, getattr(engine, "processor", engine.tokenizer), "judge")
    sampling = Sampling(max_tokens=judge.max_tokens, seed=recipe.seed)
    return JudgeScorer(engine, judge.rubric, judge.fmt, sampling, judge.judge_id, judge.explain, judge.scores, judge.guided)


def is_trained(student: str) -> bool:
    """Whether the student of a cascade is the folder of a trained model, and not labeled pairs."""
    return is_student(student) or Path(student).is_dir() and not any(Path(student).glob("*.parquet"))


def student_fingerprint(section: CascadeSection) -> str:
    """Of the student's weights, or of the pairs that it learns from."""
    if is_student(section.student):
        card = read_student(section.student)
        return student_id(card, *chosen(card.folder, "auto", "auto"))
    if is_trained(section.student):
        return trained_judge(section.student).weights
    return files_fingerprint(pair_files(section.student))


def open_cascade_student(recipe: LabelRecipe, rubric: Rubric) -> Scorer:
    """The student of a cascade: a distilled one, a trained judge that answers without decoding, or the lexical baseline."""
    path = recipe.cascade.student
    if is_student(path):
        check_rubric(read_student(path), rubric, "cascade.student")
        return open_student(path)
    if is_trained(path):
        student = asked_judge(LabelJudgeSection(path=path, engine=recipe.judge.engine, vllm=recipe.judge.vllm), "auto")
        return open_judge(student, recipe)
    from lore.label.cascade import read_lexical_scorer  # loads scikit-learn: only for a cascade

    return read_lexical_scorer(path, rubric, seed=recipe.seed)
