"""The section `train` of every recipe that trains, and what no such recipe can mean. Nothing here imports torch."""

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from lore.config.sections import Conflict, StrictModel
from lore.engines.config import ModelSection


class TrainSection(StrictModel):
    """Optimization. Give epochs or steps; batch sizes are counted in training rows (of a judge: query-item pairs)."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the training rows."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrides epochs."""
    batch_size: int = Field(64, ge=1)
    """Rows per optimizer step over all processes; the same number whatever the number of processes."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows per process and forward pass; none takes the whole share of a process at once."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    lr_factors: dict[str, float] = {}
    """Factors on lr for weights in whose names a regular expression is found, such as {lm_head: 10}; the first that is counts."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps with a rising learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """AdamW's second-moment decay; .98 and below adapts faster in runs of a few hundred steps."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon. Weights whose gradients are far smaller hardly move, rather than by full steps of noise: 1e-5 is usual where
    rewards are learnt from."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm; 0 switches it off."""
    freeze: list[str] = []
    """Regular expressions (searched in parameter names) of weights that stay as they are, such as embed_tokens in an adapter
    that another stage trained."""
    max_tokens: int = Field(2048, ge=8)
    """Longest row, such as prompt and answer together; a longer one stops the run before step 0 rather than lose its end."""
    packing: bool = False
    """Several rows in one sequence of max_tokens (text only; needs an attention that keeps them apart, which is tried
    before step 0). batch_size and micro_batch_size then count sequences."""
    padding_free: bool = False
    """Rows of a batch flattened without padding (text only; same need as packing)."""
    gradient_checkpointing: bool = False
    """Recomputes activations: about a third slower, a fraction of the memory."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of metrics.jsonl."""
    save_every: int = Field(100, ge=0)
    """Steps between two checkpoints; 0 keeps only the end and makes a killed run start over."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints kept on disk."""
    workers: int = Field(0, ge=0)
    """Data-loading processes per training process."""

    def conflicts(self) -> Iterator[Conflict]:
        for key, patterns in (("freeze", self.freeze), ("lr_factors", self.lr_factors)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    yield Conflict((key,), f"{pattern!r}, which is no regular expression ({error})", f"{re.escape(pattern)!r}, say")
        if any(factor <= 0 for factor in self.lr_factors.values()):
            yield Conflict(("lr_factors",), "a factor that is not above 0", "factors above 0; train.freeze leaves weights alone")
        if self.epochs is None and self.steps is None:
            yield Conflict(("epochs", "steps"), "neither", "train.epochs or train.steps")
        if self.save_every % self.log_every:
            yield Conflict(
                ("save_every", "log_every"),
                f"{self.save_every} and {self.log_every}",
                "a save_every that is a multiple of log_every, so that a resumed run averages its losses over the same steps",
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            yield Conflict(
                ("batch_size", "micro_batch_size"),
                f"{self.batch_size} and {self.micro_batch_size}",
                "a batch_size that is a multiple of micro_batch_size",
            )


# What a run may go on with: the global batch, and with it what a step learns, stays as it is.
MAY_CHANGE = frozenset({"train.micro_batch_size", "train.workers", "train.keep_checkpoints"})


def trainable_weights(model: ModelSection, train: TrainSection) -> Iterator[Conflict]:
    """Weights that no stage can train. Keys are those of a recipe."""
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
            "weights to leave alone and a new adapter, which leaves all but itself alone",
            "model.lora.targets and model.lora.modules_to_save without them",
        )


def padded_rows(train: TrainSection, found: str) -> Iterator[Conflict]:
    """Flattened rows in a stage that has none. found: what is wrong with them there."""
    for key in ("packing", "padding_free"):
        if getattr(train, key):
            yield Conflict((f"train.{key}",), found, "false")
