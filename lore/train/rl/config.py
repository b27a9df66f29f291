"""Recipes of alignment by sampling: grpo and ppo. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lore.codec.section import PromptSection
from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel
from lore.data.parquet import pair_files
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection
from lore.rewards.config import RewardsSection
from lore.support.errors import LoreError
from lore.train.common.config import MAY_CHANGE, TrainSection, padded_rows, trainable_weights
from lore.train.pool.config import PoolSection
from lore.train.watch.config import WatchSection


class RolloutSection(StrictModel):
    """How answers are sampled. top_p is 1 and no other filter is on: the trainer's log-probabilities know of none."""

    group: int = Field(8, ge=2)
    """Answers to each prompt; they are compared with one another."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature, which the trainer's log-probabilities share."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer; one that is cut there takes no part in the loss (mask_truncated of grpo or ppo)."""
    engine: Literal["transformers", "vllm_colocate", "vllm_server"] = "transformers"
    """vllm_colocate: vLLM on the training GPUs; vllm_server: a server started with `trl vllm-serve`."""
    updates: int = Field(1, ge=1)
    """Optimiser steps on each batch of answers; above 1 the later ones are off-policy and the clips do their work."""
    gpu_memory: float = Field(0.3, gt=0, le=1)
    """Share of the GPU's memory for a colocated vLLM."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one colocated copy of the model is spread over."""
    server: str = "http://127.0.0.1:8000"
    """Address of the vLLM server."""


class DynamicSection(StrictModel):
    """Dynamic sampling: groups whose rewards do not differ teach nothing and are replaced before the update."""

    extra: float = Field(1.0, ge=0)
    """Answers generated beyond a step's own, at most, as a share of them; 0 only chooses beforehand. A process rolls whole groups,
    so its share is rounded up to one."""
    min_spread: float = Field(0.02, ge=0)
    """A group has spread when the standard deviation of its rewards is above this."""
    foresee: bool = True
    """Prompts whose earlier answers say that a group will have no spread give way before anything is generated."""
    sharp: bool = False
    """The guess is corrected by how often groups of late had spread where it said they would, and only the likeliest prompts are
    asked: more groups with spread for the tokens, fewer different prompts."""
    explore: float = Field(0.1, gt=0, le=1)
    """A prompt is asked with at least this probability whatever is foreseen."""
    forget: float = Field(0.5, ge=0, le=1)
    """Share of a prompt's earlier answers that is forgotten with each new group: the judge has changed since."""


class GuidedSection(StrictModel):
    """Guided replay: a group that is all wrong is rolled again, each answer begun with the start of the gold reasoning. Those
    tokens are given, not sampled, so they carry no policy loss."""

    share: float = Field(0.25, gt=0, le=1)
    """At most this share of a step's groups is rolled again."""
    reveal: float = Field(0.5, gt=0, lt=1)
    """Share of the gold reasoning's tokens that is given."""
    teach: float = Field(0.1, ge=0)
    """Weight of the SFT loss on the tokens that were given, at the rollouts' temperature; 0 leaves them out."""


class ReplaySection(StrictModel):
    """An SFT loss beside the policy's, against forgetting what is rare among the rollouts."""

    path: str | None = None
    """Pairs with reasoning; none takes data.path."""
    split: str | None = "train"
    """Only the pairs of this split."""
    rows: int = Field(16, ge=1)
    """Pairs per optimiser step over all processes."""
    weight: float = Field(0.1, gt=0)
    """Weight of the mean token loss."""
    limit: int | None = Field(None, ge=1)
    """At most this many pairs, from the start."""


class LossSection(StrictModel):
    """What GRPO and PPO have in common."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """The probability ratio counts down to 1 - clip_low."""
    clip_high: float = Field(0.28, gt=0)
    """The ratio counts up to 1 + clip_high; above clip_low it leaves rare tokens room to grow (DAPO, arXiv 2503.14476)."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL divergence to the start; 0 keeps no reference model."""
    mask_truncated: bool = True
    """Answers cut at rollout.max_tokens take no part in the loss."""


class GRPOSection(LossSection):
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    """dapo: every token counts alike over the whole step; grpo: every answer does."""
    scale: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the group's standard deviation, the batch's, or nothing."""
    advantage_clamp: float | None = Field(2.0, gt=0)
    """Advantages are cut to this size: one right answer among many wrong ones gets a large one."""


class PPOSection(LossSection):
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Weight of longer returns in the advantage: 1 takes the whole return, 0 one token ahead (GAE, arXiv 1506.02438)."""
    value_coef: float = Field(0.1, gt=0)
    """Weight of the value loss."""
    value_clip: float = Field(0.2, gt=0)
    """The value may move this far from its estimate at rollout before its loss stops pulling."""
    value_lr: float = Field(1e-3, gt=0)
    """Learning rate of the value head, which begins at the mean reward of the first step."""
    value_warmup: int = Field(0, ge=0)
    """Steps at the start in which the value head alone learns from rewards: advantages over a value that knows nothing are
    noise."""
    whiten: bool = True
    """Advantages get mean 0 and standard deviation 1 over the step's tokens."""


class RolloutRecipe(BaseRecipe):
    """What recipes of grpo and ppo share."""

    irrelevant_keys = MAY_CHANGE

    model: ModelSection
    data: JudgedDataSection
    prompt: PromptSection
    pool: PoolSection
    rewards: RewardsSection = RewardsSection()
    rollout: RolloutSection = RolloutSection()
    train: TrainSection
    """batch_size counts answers, not pairs: prompts per step = batch_size / rollout.group."""
    dynamic: DynamicSection | None = None
    """Groups without spread are replaced."""
    guided: GuidedSection | None = None
    """Groups that are all wrong are rolled again with the start of the gold reasoning."""
    replay: ReplaySection | None = None
    """An SFT loss on other pairs."""
    watch: WatchSection = WatchSection()

    def input_files(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}  # pool.path is the section's own
        if self.replay is not None and self.replay.path is not None:
            try:
                files["replay.path"] = [str(file) for file in pair_files(self.replay.path)]
            except LoreError:
                files["replay.path"] = [self.replay.path]
        return files

    def conflicts(self) -> Iterator[Conflict]:
        if self.train.batch_size % self.rollout.group:
            yield Conflict(
                ("train.batch_size", "rollout.group"),
                f"{self.train.batch_size} answers a step in groups of {self.rollout.group}",
                "a batch_size that is a multiple of rollout.group",
            )
        if self.train.steps is None:
            yield Conflict(("train.steps",), "none", "a number of steps: prompts are chosen on the way, there are no epochs")
        yield from padded_rows(self.train, "flattened rows, which rollouts are not")
        if self.train.save_every % self.rollout.updates:
            yield Conflict(
                ("train.save_every", "rollout.updates"),
                f"{self.train.save_every} and {self.rollout.updates}",
                "a save_every that is a multiple of rollout.updates: a resumed run begins with new answers",
            )
        if self.guided is not None and self.prompt.order != "reason_first":
            yield Conflict(
                ("guided", "prompt.order"),
                f"guided replay with {self.prompt.order}, whose answers begin with the verdict itself",
                "prompt.order: reason_first, or no guided section",
            )
        yield from trainable_weights(self.model, self.train)

    def derived(self) -> dict[str, Any]:
        prompts = self.train.batch_size // self.rollout.group
        return {
            "prompts per step": prompts,
            "answers per step": self.train.batch_size,
            "prompts in all": prompts * (self.train.steps or 0),
            "most tokens a step": self.train.batch_size * (self.prompt.max_prompt_tokens + self.rollout.max_tokens),
        }


class GRPORecipe(RolloutRecipe):
    """Group relative policy optimisation from an SFT judge and human labels."""

    stage: Literal["grpo"] = "grpo"
    grpo: GRPOSection = GRPOSection()


class PPORecipe(RolloutRecipe):
    """Proximal policy optimisation with a learned value head."""

    stage: Literal["ppo"] = "ppo"
    ppo: PPOSection = PPOSection()
