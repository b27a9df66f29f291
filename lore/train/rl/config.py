"""Recipes of the RL stages, grpo and ppo. Imports no torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lore.codec.section import PromptSection
from lore.config.sections import Conflict, SampledTemperature, StrictModel, Weight
from lore.data.parquet import pair_files
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection
from lore.rewards.config import RewardsSection
from lore.support.bounds import MAX_COUNT, MAX_WEIGHT
from lore.support.errors import LoreError
from lore.train.common.config import TRAINED_FILES, TrackedRecipe, TrainSection, padded_rows, trainable_weights
from lore.train.pool.config import PoolSection
from lore.train.watch.config import WATCH_FILES, WatchSection


class RolloutSection(StrictModel):
    """How completions are sampled. top_p is 1 and there is no other filter, because the trainer's log-probabilities assume none."""

    group: int = Field(8, ge=2, le=65_536)
    """Completions per prompt (group size); GRPO computes advantages within the group."""
    temperature: SampledTemperature = 1.0
    """Sampling temperature; the trainer's log-probabilities use the same temperature."""
    max_tokens: int = Field(256, ge=1, le=MAX_COUNT)
    """Longest completion in tokens. mask_truncated of grpo or ppo excludes truncated completions from the loss."""
    engine: Literal["transformers", "vllm_colocate", "vllm_server"] = "transformers"
    """Engine that samples. transformers: the model in training itself; vllm_colocate: vLLM on the training GPUs; vllm_server: a
    server started with `trl vllm-serve`."""
    updates: int = Field(1, ge=1, le=10_000)
    """Optimizer steps per batch of completions. Above 1, later steps are off-policy and clipping takes effect."""
    gpu_memory: float = Field(0.3, gt=0, le=1)
    """Fraction of GPU memory for vLLM with engine vllm_colocate."""
    tensor_parallel: int = Field(1, ge=1, le=4096)
    """GPUs per vLLM replica with engine vllm_colocate (tensor parallelism)."""
    server: str = "http://127.0.0.1:8000"
    """Base URL of the vLLM server for engine vllm_server."""


class DynamicSection(StrictModel):
    """Dynamic sampling (DAPO, arXiv 2503.14476): replaces zero-advantage groups, whose rewards are all equal, before the update."""

    extra: float = Field(1.0, ge=0, le=1000)
    """Largest number of additional completions per step, as a fraction of the step's completions. 0 generates none, so prompts are
    only selected in advance (foresee). Rounded up to full groups per process."""
    min_spread: Weight = 0.02
    """A group counts as zero-advantage if the standard deviation of its rewards is at most this value."""
    foresee: bool = True
    """Before generating, replace prompts whose earlier completions predict a zero-advantage group."""
    sharp: bool = False
    """Calibrate the prediction with the recent hit rate and sample only the prompts with the highest predicted probability of a
    nonzero advantage: more useful groups per generated token, but fewer different prompts."""
    explore: float = Field(0.1, gt=0, le=1)
    """Smallest probability of sampling a scheduled prompt, regardless of the prediction."""
    forget: float = Field(0.5, ge=0, le=1)
    """Fraction by which the weight of a prompt's earlier completions decays with each new group, because the policy has changed; 0
    never forgets, 1 uses only the last group."""


class GuidedSection(StrictModel):
    """Guided replay: resamples an all-wrong group with the beginning of the gold reasoning as prefill. Prefill tokens are not
    sampled, so they carry no policy loss."""

    share: float = Field(0.25, gt=0, le=1)
    """Largest fraction of a step's groups that is resampled."""
    reveal: float = Field(0.5, gt=0, lt=1)
    """Fraction of the gold reasoning's tokens that is used as prefill."""
    teach: Weight = 0.1
    """Weight of an SFT loss on the prefill tokens, at rollout.temperature; 0 disables it."""


class ReplaySection(StrictModel):
    """An additional SFT loss that prevents forgetting of cases that are rare among the rollouts."""

    path: str | None = None
    """File of pairs with rationales; null uses data.path."""
    split: str | None = "train"
    """Use only the pairs of this split; null uses all."""
    rows: int = Field(16, ge=1, le=1_000_000)
    """Pairs per optimizer step, summed over all processes."""
    weight: float = Field(0.1, gt=0, le=MAX_WEIGHT)
    """Weight of the mean token loss relative to the policy loss."""
    limit: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Use at most this many pairs, from the start of the file; null uses all."""


class LossSection(StrictModel):
    """Loss settings that GRPO and PPO share."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clipping range: the probability ratio is clipped at 1 - clip_low."""
    clip_high: float = Field(0.28, gt=0, le=MAX_WEIGHT)
    """Upper clipping range: the ratio is clipped at 1 + clip_high. A value above clip_low lets rare tokens gain probability (DAPO,
    arXiv 2503.14476)."""
    kl: Weight = 0.0
    """Weight of the KL penalty toward the initial model; 0 loads no reference model."""
    mask_truncated: bool = True
    """Exclude completions that were truncated at rollout.max_tokens from the loss."""


class GRPOSection(LossSection):
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    """Loss aggregation, as loss_type of TRL's GRPOTrainer. dapo: mean over all tokens of the step; grpo: mean over completions of
    their token means; bnpo: mean over the tokens of a micro-batch; dr_grpo: sum over tokens divided by a constant length."""
    scale: Literal["group", "batch", "none"] = "group"
    """Normalization of advantages: divide by the standard deviation of the group, of the batch, or not at all (none)."""
    advantage_clamp: float | None = Field(2.0, gt=0, le=MAX_WEIGHT)
    """Clamp advantages to [-x, x]: a single right answer among many wrong ones gets a large advantage. null does not clamp."""


class PPOSection(LossSection):
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount factor per token; 1 does not discount."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation (GAE, arXiv 1506.02438): 1 uses full returns, 0 one-step temporal differences."""
    value_coef: float = Field(0.1, gt=0, le=MAX_WEIGHT)
    """Coefficient of the value loss."""
    value_clip: float = Field(0.2, gt=0, le=MAX_WEIGHT)
    """Value clipping range: the value loss is clipped when the value moves further than this from its estimate at rollout."""
    value_lr: float = Field(1e-3, gt=0, le=1000)
    """Learning rate of the value head, whose output is initialized to the mean reward of the first step."""
    value_warmup: int = Field(0, ge=0, le=MAX_COUNT)
    """Initial steps in which only the value head is trained on rewards, because advantages from an untrained value head are noise.
    0 trains the policy from the first step."""
    whiten: bool = True
    """Normalize advantages to mean 0 and standard deviation 1 over the tokens of the step."""


class RolloutRecipe(TrackedRecipe):
    """Shared by the recipes of grpo and ppo."""

    prepared_files = TrackedRecipe.prepared_files | {"rejected_replay.jsonl"}
    result_files = TRAINED_FILES | WATCH_FILES

    model: ModelSection
    data: JudgedDataSection
    prompt: PromptSection
    pool: PoolSection
    rewards: RewardsSection = RewardsSection()
    rollout: RolloutSection = RolloutSection()
    train: TrainSection
    """batch_size counts completions, not pairs: prompts per step = batch_size / rollout.group."""
    dynamic: DynamicSection | None = None
    """Dynamic sampling: replaces zero-advantage groups. null disables it."""
    guided: GuidedSection | None = None
    """Guided replay: resamples all-wrong groups with gold reasoning as prefill. null disables it."""
    replay: ReplaySection | None = None
    """SFT loss on additional pairs. null disables it."""
    watch: WatchSection = WatchSection()

    def input_files(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}  # PoolSection.input_files adds pool.path
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
                f"{self.train.batch_size} answers per step in groups of {self.rollout.group}",
                "a batch_size that is a multiple of rollout.group",
            )
        if self.train.steps is None:
            yield Conflict(("train.steps",), "none", "a number of steps: prompts are selected during training, without epochs")
        yield from padded_rows(self.train, "packed or flattened rows in a stage with rollouts")
        if self.train.save_every % self.rollout.updates:
            yield Conflict(
                ("train.save_every", "rollout.updates"),
                f"{self.train.save_every} and {self.rollout.updates}",
                "a save_every that is a multiple of rollout.updates, because a resumed run begins with new completions",
            )
        if self.model.quantize and self.rollout.engine != "transformers":
            yield Conflict(
                ("model.quantize", "rollout.engine"),
                f"{self.model.quantize} weights and rollouts by vLLM, whose merged weights would round the adapter to 4 bits",
                "rollout.engine: transformers, or no model.quantize",
            )
        if self.guided is not None and self.prompt.order != "reason_first":
            yield Conflict(
                ("guided", "prompt.order"),
                f"guided replay with {self.prompt.order}, whose answers begin with the verdict",
                "prompt.order: reason_first, or no guided section",
            )
        yield from trainable_weights(self.model, self.train)

    def derived(self) -> dict[str, Any]:
        prompts = self.train.batch_size // self.rollout.group
        return {
            "prompts per step": prompts,
            "answers per step": self.train.batch_size,
            "total prompts": prompts * (self.train.steps or 0),
            "max tokens per step": self.train.batch_size * (self.prompt.max_prompt_tokens + self.rollout.max_tokens),
        }


class GRPORecipe(RolloutRecipe):
    """Group relative policy optimization (GRPO) of an SFT judge with human labels."""

    stage: Literal["grpo"] = "grpo"
    grpo: GRPOSection = GRPOSection()


class PPORecipe(RolloutRecipe):
    """Proximal policy optimization (PPO) with a learned value head."""

    stage: Literal["ppo"] = "ppo"
    ppo: PPOSection = PPOSection()
