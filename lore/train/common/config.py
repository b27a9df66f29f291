"""The `train` section of recipes, and checks that all training stages share. Imports no torch."""

import os
import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel, Weight, each_once
from lore.engines.config import ModelSection
from lore.support.bounds import MAX_COUNT, MAX_WEIGHT
from lore.support.environment import version_of
from lore.support.errors import LoreError

TRACKING = "tracking"  # the folder of a run with the trackers' own files
# The distributions that a tracker needs. mlflow-skinny is MLflow's client.
TRACKER_PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "trackio": ("trackio",),
}
MLFLOW_DATABASE = ("sqlalchemy", "alembic")  # without a server, MLflow keeps a database in the run's folder
OFF_VARIABLES = {"wandb": "WANDB_DISABLED", "mlflow": "DISABLE_MLFLOW_INTEGRATION"}  # of transformers


class TrainSection(StrictModel):
    """Optimization. Set epochs or steps. Batch sizes count training rows (for a judge: query-item pairs)."""

    epochs: float | None = Field(None, gt=0, le=1e6)
    """Number of passes over the training rows."""
    steps: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Number of optimizer steps; overrides epochs."""
    batch_size: int = Field(64, ge=1, le=10_000_000)
    """Global batch size: rows per optimizer step summed over all processes, independent of the number of processes."""
    micro_batch_size: int | None = Field(None, ge=1, le=10_000_000)
    """Rows per process and forward pass (per-device batch size); the rest is gradient accumulation. null: no accumulation."""
    lr: float = Field(1e-4, gt=0, le=1000)
    """Peak learning rate."""
    lr_factors: dict[str, Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]] = {}
    """Learning rate multipliers: regular expression -> factor, such as {lm_head: 10}. The first expression found in a
    parameter's name applies."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Learning rate schedule after the warmup."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Fraction of the steps with linear learning rate warmup; 0 for no warmup."""
    weight_decay: Weight = 0.0
    """Decoupled weight decay of AdamW; 0 disables it."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """AdamW beta2 (decay of the second moment). Values of 0.98 and below adapt faster in runs of a few hundred steps."""
    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    """AdamW epsilon. Parameters with much smaller gradients barely move; with a smaller epsilon they would take full-size steps of
    noise. 1e-5 is common in RL."""
    max_grad_norm: Weight = 1.0
    """Gradient clipping norm; 0 disables clipping."""
    freeze: list[str] = []
    """Regular expressions for parameters to freeze, searched in parameter names, such as embed_tokens in an adapter from an
    earlier stage."""
    max_tokens: int = Field(2048, ge=8, le=MAX_COUNT)
    """Longest row in tokens, prompt and answer together. A longer row stops the run before step 0; rows are never truncated."""
    packing: bool = False
    """Pack several rows into one sequence of max_tokens. Text only; needs an attention implementation that isolates packed rows,
    which is checked before step 0. batch_size and micro_batch_size then count sequences."""
    padding_free: bool = False
    """Flatten the rows of a micro-batch into one sequence without padding. Text only; same attention requirement as packing."""
    shared_prefix: Literal["auto"] | bool = "auto"
    """Compute what rows of a micro-batch begin with, such as the rubric, once instead of once per row, with the same losses and
    gradients. Rows of a step that begin alike then share a micro-batch, whatever their length. Stages sft, dpo, kto, grpo and ppo;
    with photos only Idefics3 and SmolVLM. auto: where the model can, checked before step 0, and has no dropout. true: with dropout,
    too, which the tokens that rows share then draw once and not for each row."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, uses a fraction of the activation memory."""
    log_every: int = Field(10, ge=1, le=MAX_COUNT)
    """Steps between two lines in metrics.jsonl."""
    save_every: int = Field(100, ge=0, le=MAX_COUNT)
    """Steps between two checkpoints. 0 saves no checkpoints, so an interrupted run starts over."""
    keep_checkpoints: int = Field(2, ge=1, le=1_000_000)
    """Number of checkpoints to keep on disk."""
    workers: int = Field(0, ge=0, le=1024)
    """Data loader workers per training process; 0 loads data in the training process."""

    def conflicts(self) -> Iterator[Conflict]:
        for key, patterns in (("freeze", self.freeze), ("lr_factors", self.lr_factors)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    yield Conflict((key,), f"{pattern!r}, which is no regular expression ({error})", repr(re.escape(pattern)))
        if any(factor <= 0 for factor in self.lr_factors.values()):
            yield Conflict(("lr_factors",), "a factor that is not above 0", "factors above 0; use train.freeze to freeze weights")
        if self.epochs is None and self.steps is None:
            yield Conflict(("epochs", "steps"), "neither", "train.epochs or train.steps")
        if self.save_every % self.log_every:
            yield Conflict(
                ("save_every", "log_every"),
                f"{self.save_every} and {self.log_every}",
                "a save_every that is a multiple of log_every, so that a resumed run averages the loss over the same steps",
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            yield Conflict(
                ("batch_size", "micro_batch_size"),
                f"{self.batch_size} and {self.micro_batch_size}",
                "a batch_size that is a multiple of micro_batch_size",
            )


TRAINED_FILES = frozenset({"model", "checkpoints", TRACKING})
"""What every training stage writes in its run folder."""


class TrackedRecipe(BaseRecipe):
    """A recipe of a stage that writes metrics while it trains."""

    # They change neither the global batch nor the weights.
    irrelevant_keys = frozenset(
        {"train.micro_batch_size", "train.shared_prefix", "train.workers", "train.keep_checkpoints", "track"}
    )
    result_files = TRAINED_FILES
    prepared_files: ClassVar[frozenset[str]] = BaseRecipe.prepared_files | {TRACKING}

    track: Annotated[list[Literal["tensorboard", "wandb", "mlflow", "trackio"]], each_once("tracker")] = []
    """Experiment trackers that get every line of metrics.jsonl, with the recipe as configuration (docs/tracking.md). [] uses none.
    May change when a run resumes."""

    def check_packages(self) -> None:
        """Raises LoreError when the package of a tracker is not installed."""
        missing: dict[str, str] = {}
        for name in self.track:
            if turned_off(name):
                continue
            own, packages = TRACKER_PACKAGES[name], []
            if not any(map(version_of, own)):
                packages.append(own[-1])
            if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
                packages += [package for package in MLFLOW_DATABASE if not version_of(package)]
            if packages:
                missing[name] = " ".join(packages)
        if missing:
            raise LoreError(
                f"track: {', '.join(missing)} cannot run, because a package is not installed, so its curves would be missing.\n"
                f"pip install {' '.join(missing.values())}, or set track to the other trackers.",
                same_on_every_rank=True,
            )


def turned_off(tracker: str) -> str | None:
    """The environment variable that turns a tracker off, or None."""
    variable = OFF_VARIABLES.get(tracker, "")
    return variable if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on") else None


def trainable_weights(model: ModelSection, train: TrainSection) -> Iterator[Conflict]:
    """Conflicts for weights that no stage can train. Keys are recipe keys."""
    if model.dtype == "float16":
        yield Conflict(("model.dtype",), "float16, whose gradients overflow", "auto, bfloat16 or float32")
    if model.quantize and model.lora is None and model.adapter is None:
        yield Conflict(
            ("model.quantize", "model.lora"),
            f"{model.quantize} weights and nothing to train on them",
            "model.lora or model.adapter with it, or no model.quantize",
        )
    if train.freeze and model.lora is not None:
        yield Conflict(
            ("train.freeze", "model.lora"),
            "weights to freeze and a new adapter, which already freezes all other weights",
            "no train.freeze: name only the modules to train in model.lora.targets and model.lora.modules_to_save",
        )


def padded_rows(train: TrainSection, found: str) -> Iterator[Conflict]:
    """Conflicts for packing and padding_free in a stage that does not support them. found: the problem, for the message."""
    for key in ("packing", "padding_free"):
        if getattr(train, key):
            yield Conflict((f"train.{key}",), found, "false")


def whole_rows(train: TrainSection, stage: str) -> Iterator[Conflict]:
    """Conflicts for shared_prefix in a stage that computes every row whole."""
    if train.shared_prefix is True:
        expected = "auto or false; only stages sft, dpo, kto, grpo and ppo share prefixes"
        yield Conflict(("train.shared_prefix",), f"true in stage {stage}", expected)
