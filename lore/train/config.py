"""Recipes of the training stages. Nothing here imports torch."""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lore.recipe import BaseRecipe, Conflict, DataSection, ModelSection, PromptSection, StrictModel


class TrainSection(StrictModel):
    """Optimisation. Give epochs or steps; batch sizes are counted in pairs."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the training pairs."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps; overrides epochs."""
    batch_size: int = Field(64, ge=1)
    """Pairs per optimiser step over all processes; the same number whatever the number of processes."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Pairs per process and forward pass; none takes the whole share of a process at once."""
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
    """Longest prompt and answer together; a longer row stops the run before step 0 rather than lose its verdict."""
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


class SFTRecipe(BaseRecipe):
    """Supervised fine-tuning of a judge: rationale and verdict where a pair has a rationale, else the verdict alone."""

    irrelevant_keys = MAY_CHANGE

    stage: Literal["sft"] = "sft"
    model: ModelSection
    data: DataSection
    prompt: PromptSection
    train: TrainSection
    auxiliary: list[str] = []
    """Task files of stage synthesize (tasks/*.parquet) that are learnt beside the judging, each row once a pass."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced repeats the pairs of rare tiers until every tier is as frequent as the most frequent one."""

    def input_files(self) -> dict[str, list[str]]:
        return {"auxiliary": self.auxiliary} if self.auxiliary else {}

    def conflicts(self) -> Iterator[Conflict]:
        if (self.train.packing or self.train.padding_free) and self.prompt.photo:
            yield Conflict(
                ("train.packing", "train.padding_free", "prompt.photo"),
                "flattened rows with photos",
                "prompt.photo: false, or neither packing nor padding_free",
            )
        yield from trainable_weights(self.model, self.train)

    def derived(self) -> dict[str, Any]:
        micro = self.train.micro_batch_size or "batch_size / processes"
        return {
            "pairs per step": self.train.batch_size,
            "pairs per forward pass": micro,
            "run length": f"{self.train.steps} steps" if self.train.steps else f"{self.train.epochs:g} epochs",
        }


class ArchitectureSection(StrictModel):
    """Size of an Idefics3 (vision tower and Llama text model) built from scratch."""

    hidden: int = Field(128, ge=16)
    """Width of the text model."""
    layers: int = Field(4, ge=1)
    """Layers of the text model."""
    heads: int = Field(4, ge=1)
    """Attention heads of the text model."""
    mlp: int = Field(384, ge=16)
    """Inner width of the text model's feed-forward blocks."""
    max_positions: int = Field(2048, ge=64)
    """Longest sequence."""
    rope_theta: float = Field(1e6, gt=1)
    """Base of the rotary positions; a large one leaves most of a head free of position, so that equal words look equal at any
    distance."""
    loud_embeddings: bool = False
    """Embeddings that begin louder than what the layers add to them, so that the words of a large vocabulary are told
    apart from the first step."""
    vision_hidden: int = Field(64, ge=16)
    """Width of the vision tower."""
    vision_layers: int = Field(2, ge=1)
    """Layers of the vision tower."""
    vision_heads: int = Field(4, ge=1)
    """Attention heads of the vision tower."""
    image_size: int = Field(56, ge=14)
    """Pixels a side of the photo that the model sees."""
    patch_size: int = Field(14, ge=2)
    """Pixels a side of a patch."""
    scale_factor: int = Field(2, ge=1)
    """Patches a side that are folded into one image token."""

    @property
    def image_tokens(self) -> int:
        return (self.image_size // self.patch_size // self.scale_factor) ** 2

    def conflicts(self) -> Iterator[Conflict]:
        for width, heads in (("hidden", "heads"), ("vision_hidden", "vision_heads")):
            if getattr(self, width) % getattr(self, heads):
                yield Conflict(
                    (width, heads),
                    f"{getattr(self, width)} and {getattr(self, heads)}",
                    "a width that the heads divide",
                )
        if self.image_size % (self.patch_size * self.scale_factor):
            yield Conflict(
                ("image_size", "patch_size", "scale_factor"),
                str(self.image_size),
                f"a multiple of patch_size * scale_factor = {self.patch_size * self.scale_factor}",
            )


class BaseModelRecipe(BaseRecipe):
    """A small base model from nothing: tokenizer and Idefics3, trained as a language model on a corpus of texts and captions."""

    irrelevant_keys = MAY_CHANGE

    stage: Literal["base"] = "base"
    corpus: list[str] = Field(min_length=1)
    """Parquet files with columns `text` and `image` (null or {bytes, path}); <image> in the text is the photo's place. An
    optional column `trained` lists the spans {start, end} of characters that carry loss: what nothing before it foretells is
    noise that a small model drowns in."""
    shuffle: bool = True
    """false visits the corpus in its own order, for one that begins with what the rest stands on."""
    vocabulary: int = Field(2000, ge=300)
    """Entries of the byte-level BPE tokenizer, trained on the corpus."""
    lowercase: bool = False
    """Tokenizer that folds case. Answers come out in lower case too: only for rubrics whose tier ids have no capitals."""
    plural_s: bool = False
    """An English plural s is a token of its own, so that lamp and lamps share one."""
    architecture: ArchitectureSection = ArchitectureSection()
    train: TrainSection

    def input_files(self) -> dict[str, list[str]]:
        return {"corpus": self.corpus}

    def conflicts(self) -> Iterator[Conflict]:
        yield from padded_rows(self.train, "flattened rows in stage base, which pads them")
        if self.train.freeze:
            yield Conflict(("train.freeze",), "weights to leave alone in a model that begins with random ones", "nothing")

    def derived(self) -> dict[str, Any]:
        return {"image tokens per photo": self.architecture.image_tokens, "texts per step": self.train.batch_size}
