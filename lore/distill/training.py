"""One student's training, on transformers' Trainer: which rows with which targets, the loss, the finished folder."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, set_seed

from lore.distill.config import DistillRecipe, LossSection
from lore.distill.losses import human_share, loss_parts, mixed_targets, rationale_distance
from lore.distill.rows import Rows, lengths_of
from lore.distill.targets import grouped_order, rationale_vectors
from lore.judge.card import CARD
from lore.run.nested import remove_own
from lore.run.run_folder import RunFolder
from lore.student.card import write_student_card
from lore.student.config import StudentConfig
from lore.student.encode import PairEncoder
from lore.student.head import outputs_of, tier_log_probabilities
from lore.student.model import build_student, save_student
from lore.student.networks import Student
from lore.student.photo_embeddings import PhotoEmbeddings
from lore.student.section import StudentSection
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say
from lore.train.common.frozen_weights import freeze_weights
from lore.train.common.trainer import RECORDED, Recorder, own_network_arguments, refuse_sharding, train

PLAIN = LossSection(margin=0.0)
TARGETS, RATIONALE = ("judge", "judge_weight", "human", "human_weight", "query"), "rationale"


@dataclass(frozen=True)
class Variant:
    """One of the students that the run trains: the recipe's, a baseline, or a point of the curve.

    labels: how many labels of the judge, None for all, 0 for human labels alone. hard: one tier per pair, cross-entropy and rows in
    random order, as a plain cross-encoder is trained. steps: of the training.
    """

    name: str
    title: str
    steps: int
    labels: int | None = None
    hard: bool = False

    def folder(self, run: RunFolder) -> RunFolder:
        """Where the student, its metrics and its checkpoints are."""
        if self.name == "student":
            return run
        return RunFolder(run / ("curve" if self.name.isdecimal() else "baselines") / self.name)


@dataclass(frozen=True)
class TrainingSet:
    """Rows and targets of one student. kept: numbers of its rows; rates: their visits per epoch. The other arrays have one entry
    per row of the run; a weight of 0 marks a missing label."""

    kept: np.ndarray
    rates: np.ndarray
    judge: np.ndarray
    judge_weight: np.ndarray
    human: np.ndarray
    human_weight: np.ndarray


@dataclass(frozen=True)
class Setup:
    """What all students of a run share. embeddings: of the photos, for a student that reads them. card: of the student, not yet
    calibrated."""

    recipe: DistillRecipe
    run: RunFolder
    rows: Rows
    tier_ids: list[str]
    gains: np.ndarray
    tokenizer: Any
    embeddings: PhotoEmbeddings | None
    card: dict[str, Any]

    def training_set(self, *, labels: int | None = None, hard: bool = False) -> TrainingSet:
        """The training set of a variant, see Variant. Raises LoreError if it has no row."""
        rows = self.rows
        if hard and self.recipe.student.kind == "bi_encoder":  # a query of all of its tokens leaves no room for the item
            config = StudentConfig(kind="cross_encoder", tiers=self.tier_ids)
            rows = replace(rows, lengths=lengths_of(rows, PairEncoder(self.tokenizer, self.recipe.text.format(), config)))
        judge, judge_weight, human, human_weight = rows.judge, rows.judge_weight, rows.human, rows.human_weight
        if labels is not None:
            judge_weight = np.where(rows.rank < labels, judge_weight, 0.0)
        if hard:
            human = np.eye(len(self.tier_ids))[np.where(human_weight > 0, rows.label, judge.argmax(axis=1))]
            human_weight, judge_weight = ((judge_weight > 0) | (human_weight > 0)).astype(np.float64), np.zeros(len(rows))
        kept = np.flatnonzero((rows.lengths > 0) & ((judge_weight > 0) | (human_weight > 0)))
        if not len(kept):
            raise LoreError("No training pair is left that the student can read. Check data.path, labels.path and text.max_tokens.")
        rates, weights = np.ones(len(kept)), np.ones(len(rows))
        if not hard:
            rates, weights[kept] = rows.rates_and_weights(self.recipe.targets, self.gains, kept, judge_weight[kept] > 0)
        return TrainingSet(kept, rates, judge, judge_weight * weights, human, human_weight * weights)

    def section(self, *, hard: bool = False) -> StudentSection:
        """How a variant's student is built."""
        section = self.recipe.student
        return section.model_copy(update={"kind": "cross_encoder", "head": "softmax"}) if hard else section

    def new_student(self, *, hard: bool = False) -> tuple[Student, PairEncoder]:
        """A student to train, and what makes its input."""
        recipe, size = self.recipe, None if self.embeddings is None else self.embeddings.size
        options = {"max_tokens": recipe.text.max_tokens, "embedding_size": size}
        model = build_student(self.section(hard=hard), self.tier_ids, recipe.seed, self.tokenizer, **options)
        return model, PairEncoder(self.tokenizer, recipe.text.format(), model.config, self.embeddings)


def train_student(variant: Variant, setup: Setup) -> float:
    """Trains a student to its end, writes its folder and returns the seconds; 0 if that is done. The card is written last, and
    marks the folder as finished."""
    recipe, folder = setup.recipe, variant.folder(setup.run)
    if (folder / "model" / CARD).is_file():
        return 0.0
    if is_main_process():
        folder.path.mkdir(parents=True, exist_ok=True)
    training_set = setup.training_set(labels=variant.labels, hard=variant.hard)
    say(f"{variant.title}: {_described(training_set, hard=variant.hard)}, {variant.steps:,} steps of {recipe.train.batch_size}")
    set_seed(recipe.seed)
    args = own_network_arguments(recipe.train, folder, variant.steps, recipe.seed)
    student, encoder = setup.new_student(hard=variant.hard)
    loss = PLAIN if variant.hard else recipe.loss
    vectors = None
    if loss.rationale:
        vectors = rationale_vectors(setup.rows.rationales(training_set.judge_weight > 0), loss.rationale_size, recipe.seed)
        if not vectors.any():
            say("no pair has a rationale, so loss.rationale adds nothing")
            vectors = None
    model = StudentWithAuxiliaryHead(student, 0 if vectors is None else vectors.shape[1])
    freeze_weights(model, recipe.train.freeze)
    order = grouped_order(
        setup.rows.query[training_set.kept],
        setup.rows.lengths[training_set.kept],
        training_set.rates,
        batch_size=recipe.train.batch_size,
        steps=variant.steps,
        items=1 if variant.hard else recipe.items,
        seed=recipe.seed,
    )
    trainer = StudentTrainer(
        model=model,
        args=args,
        train_dataset=RowNumbers(training_set.kept[order]),
        data_collator=Collator(setup.rows, training_set, encoder, vectors),
        head=student.config.head,
        gains=setup.gains,
        loss=loss,
        share=_share_of(recipe, training_set),
    )
    refuse_sharding(trainer, "a student")
    recorder = Recorder(folder, variant.title, keep=recipe.train.keep_checkpoints, recorded=(*RECORDED, "loss_parts"))
    tracked = recipe if variant.name == "student" else recipe.model_copy(update={"track": []})
    seconds = train(trainer, recorder, folder, tracked)
    if is_main_process():
        save_student(trainer.accelerator.unwrap_model(trainer.model).student, folder / "model", setup.tokenizer)
        own = setup.card["student"] | {"kind": student.config.kind, "head": student.config.head}
        verdict = {"verdict": "most_probable"} if variant.hard else {}  # a plain cross-encoder has no other
        write_student_card(folder / "model", setup.card | {"student": own} | verdict)
        if variant.name != "student":
            remove_own(folder / "checkpoints")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    return seconds


def _described(training_set: TrainingSet, *, hard: bool) -> str:
    if hard:
        return f"{len(training_set.kept):,} pairs with one tier each"
    judge, human = (int((weight[training_set.kept] > 0).sum()) for weight in (training_set.judge_weight, training_set.human_weight))
    kinds = [f"{count:,} {what}" for count, what in ((judge, "labels of the judge"), (human, "of raters")) if count]
    return f"{len(training_set.kept):,} pairs with {' and '.join(kinds)}"


def _share_of(recipe: DistillRecipe, training_set: TrainingSet) -> tuple[float, float, float]:
    """Arguments of `human_share`. With labels of one kind there is nothing to share."""
    if not training_set.judge_weight.any():
        return 1.0, 1.0, 1.0
    if not training_set.human_weight.any():
        return 0.0, 0.0, 1.0
    return recipe.human.first, recipe.human.last, recipe.human.rises_from


class RowNumbers(Dataset):
    """Row numbers in the order of training."""

    def __init__(self, order: np.ndarray):
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: int) -> int:
        return int(self.order[at])


@dataclass
class Collator:
    """Row numbers to a batch: what the student reads, and the targets."""

    rows: Rows
    training_set: TrainingSet
    encoder: PairEncoder
    vectors: np.ndarray | None = None
    """Of the rationales."""

    def __call__(self, places: list[int]) -> dict[str, torch.Tensor]:
        batch = self.encoder.batch(self.encoder.rows(self.rows.pairs(places)))
        found = {name: torch.from_numpy(array) for name, array in batch.items()}
        for name in TARGETS[:-1]:
            found[name] = torch.from_numpy(getattr(self.training_set, name)[places]).float()
        if self.vectors is not None:
            found[RATIONALE] = torch.from_numpy(self.vectors[places])
        return found | {"query": torch.from_numpy(self.rows.query[places])}


class StudentWithAuxiliaryHead(torch.nn.Module):
    """A student in training, with an auxiliary head on what its last layer reads (rationale_size outputs; 0: none).

    A module of its own because the trainer writes into the config of a model that has one, and a student's is frozen.
    """

    def __init__(self, student: Student, rationale_size: int):
        super().__init__()
        self.student, self.read = student, None
        self.auxiliary = None
        if rationale_size:
            outputs = outputs_of(student.config.head, len(student.config.tiers))
            layers = [one for one in student.modules() if isinstance(one, torch.nn.Linear) and one.out_features == outputs]
            self.auxiliary = torch.nn.Linear(layers[-1].in_features, rationale_size)
            layers[-1].register_forward_pre_hook(self._reads)

    def _reads(self, layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self.read = inputs[0]

    def forward(self, **batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(logits [N, outputs], outputs of the auxiliary head)."""
        logits = self.student(**batch)
        return logits, None if self.auxiliary is None else self.auxiliary(self.read)


class StudentTrainer(Trainer):
    """transformers' Trainer with the losses of lore.distill.losses.

    head: of the student; gains [K]; loss: weights of the terms; share: arguments of `human_share` after the progress. Records the
    mean of each term since the last line.
    """

    def __init__(self, *, head: str, gains: np.ndarray, loss: LossSection, share: tuple[float, float, float], **options: Any):
        super().__init__(**options)
        self.head, self.loss, self.share = head, loss, share
        self.gains = torch.as_tensor(gains, dtype=torch.float32, device=self.accelerator.device)
        self.terms: dict[str, list[torch.Tensor]] = {}

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        judge, judge_weight, human, human_weight, query = (inputs.pop(name) for name in TARGETS)
        share = human_share(self.state.global_step / max(self.state.max_steps - 1, 1), *self.share)
        target, weight = mixed_targets(judge, judge_weight, human, human_weight, share)
        vectors = inputs.pop(RATIONALE, None)
        logits, features = model(**inputs)
        parts = loss_parts(tier_log_probabilities(logits, self.head), target, weight, self.gains, query)._asdict()
        if vectors is not None:
            parts[RATIONALE] = rationale_distance(features.float(), vectors, weight)
        used = {name: part for name, part in parts.items() if getattr(self.loss, name)}
        for name, part in used.items():
            self.terms.setdefault(name, []).append(part.detach())
        total = sum(getattr(self.loss, name) * part for name, part in used.items())
        return (total, {"logits": logits}) if return_outputs else total

    def log(self, logs: dict[str, float], *rest: Any, **options: Any) -> None:
        if "loss" in logs and len(self.terms) > 1:
            for name, values in self.terms.items():
                mean = self.accelerator.gather(torch.stack(values).mean()).mean().item()
                logs[f"loss_parts/{name}"] = round(mean, 6)
        self.terms.clear()
        super().log(logs, *rest, **options)
