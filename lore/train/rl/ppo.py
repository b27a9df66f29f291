"""PPO: the rollouts and rewards of GRPO, with a learned value instead of the group's mean as the baseline.

    accelerate launch recipes/quickstart/ppo.yaml

A step runs as in grpo.py up to the batch of answers, then in the order of the class below:

1. Values: the expected return after each token, from a head on the judge itself, so there is no second model.
2. Advantages per token by GAE(lambda), with the reward at an answer's last token. Whitened over the step's tokens.
3. Loss: TRL's clipped surrogate over the step's tokens, the clipped value loss, and the SFT terms of GRPO.
   In the first ppo.value_warmup steps the advantages are 0 and the value loss trains only the head.

Left out of the textbook method (arXiv 1707.06347, GAE in arXiv 1506.02438): a penalty per token for the KL divergence inside the
reward (ppo.kl is a term of the loss, so the value need not learn it); several epochs over a rollout in shuffled mini-batches
(rollout.updates splits a rollout into steps, and each answer is learned from once); the entropy bonus, since the watch stops a
run whose entropy collapses; the value of what follows a truncated answer, which takes no part in the loss (ppo.mask_truncated).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.train.common.trl_internals import ADVANTAGES, OLD_LOGPS, Batch, sampled_mask, scored_batch
from lore.train.rl.config import PPORecipe
from lore.train.rl.grpo import GRPO, Group
from lore.train.rl.setup import Setup, run_trainer, set_up, shared_prefix, trainer_arguments
from lore.train.rl.value_head import HEAD, ValueHead, attach_value_head

HEAD_FILE = "value_head.safetensors"


def run(recipe: PPORecipe, folder: RunFolder) -> None:
    """Trains, and writes the best adapter (or model) of the periodic evaluation, its processor and its card to <run>/model."""
    setup, trainer = prepare(recipe, folder)
    run_trainer(setup, trainer, "ppo")


def prepare(recipe: PPORecipe, folder: RunFolder) -> tuple[Setup, "PPO"]:
    """The trainer, ready for its first step."""
    setup = set_up(recipe, folder, recipe.ppo, loss_type="dapo")
    trainer = PPO(**trainer_arguments(setup))
    if trainer.is_fsdp_enabled:
        raise LoreError(
            "Stage ppo does not support FSDP, because checkpoints cannot hold a sharded value head.\n"
            "Launch with launch/accelerate/zero2.yaml, zero3.yaml or ddp.yaml.",
            same_on_every_rank=True,
        )
    trainer.sharing = shared_prefix(setup, trainer)
    return setup, trainer


class PPO(GRPO):
    """GRPO whose advantages_BT come from a learned value. Shapes: B answers, T tokens of the longest."""

    own_lr = (HEAD,)
    kept_from_sampler = (*GRPO.kept_from_sampler, HEAD)

    values_BT: torch.Tensor | None = None
    """Values of the policy's last forward pass over a batch or micro-batch; None once used."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.made_values = attach_value_head(self.base)

    @property
    def head(self) -> ValueHead:
        return getattr(self.base, HEAD)

    def create_optimizer(self, *arguments: Any) -> Any:
        """The optimizer, with the value head at its own learning rate and without weight decay."""
        optimizer = super().create_optimizer(*arguments)
        mine = {id(p) for p in self.head.parameters()}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in mine]
        optimizer.add_param_group({"params": list(self.head.parameters()), "lr": self.recipe.ppo.value_lr, "weight_decay": 0.0})
        return optimizer

    @property
    def warming_up(self) -> bool:
        return self.state.global_step < self.recipe.ppo.value_warmup

    # Rollout and values

    def collect_groups(self, rows: list[int]) -> list[Group]:
        groups = super().collect_groups(rows)
        self.values_BT = None  # values of anything scored before this batch
        return groups

    def before_scoring(self) -> None:
        self.made_values.clear()
        self.head.alone = self.warming_up

    def after_scoring(self, model: Any, tokens: int) -> None:
        # The first pass over a batch is the policy's. A pass of the reference may follow: a model without a head, or an adapter.
        if self.values_BT is None and (model is self.model or model is self.model_wrapped):
            self.values_BT = torch.cat([values[:, -tokens:] for values in self.made_values])
        self.made_values.clear()

    def old_values(self, batch: Batch) -> torch.Tensor:
        """Values [B, T] under the policy that sampled the answers."""
        if OLD_LOGPS not in batch:  # otherwise the pass for the old log-probabilities has stored the values
            self.values_BT = None
            with torch.no_grad():
                self.token_logps(self.model, **scored_batch(batch), batch_size=self.args.per_device_train_batch_size)
        values_BT, self.values_BT = self.values_BT.detach(), None
        return values_BT

    # Advantages

    def with_advantages(self, batch: Batch, groups: list[Group]) -> Batch:
        """The batch with old values, returns and advantages, all [B, T]. An answer without a reward is masked out."""
        ppo = self.recipe.ppo
        mask_BT = sampled_mask(batch)
        rewards_B = torch.tensor(np.concatenate([group.rewards_G for group in groups]), dtype=torch.float32, device=mask_BT.device)
        judged_B = torch.isfinite(rewards_B)
        mask_BT = mask_BT * judged_B.unsqueeze(1)
        values_BT = self.old_values(batch)
        if self.state.global_step == 0:
            values_BT = values_BT + self.set_offset(rewards_B[judged_B])
        last_B = mask_BT.cumsum(dim=1).argmax(dim=1)
        rewards_BT = torch.zeros_like(values_BT)
        rewards_BT[torch.arange(len(last_B)), last_B] = rewards_B.nan_to_num()
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, ppo.gamma, ppo.gae_lambda)
        self.log_values(values_BT, returns_BT, mask_BT)
        if ppo.whiten:
            advantages_BT = self.whitened(advantages_BT, mask_BT)
        if self.warming_up:
            advantages_BT = torch.zeros_like(advantages_BT)
        batch |= {ADVANTAGES: advantages_BT, "old_values": values_BT, "returns": returns_BT}
        return batch | {"value_mask": mask_BT, "valued_in_batch": self.summed(mask_BT.sum())}

    def set_offset(self, rewards: torch.Tensor) -> torch.Tensor:
        """Sets the offset of the value head to the mean reward over all processes, and returns it."""
        count = torch.tensor(float(len(rewards)), device=rewards.device)
        total, count = self.accelerator.reduce(torch.stack([rewards.sum(), count]), reduction="sum")
        self.head.offset.copy_(total / count.clamp(min=1))
        return self.head.offset

    def whitened(self, advantages_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """The advantages with mean 0 and standard deviation 1 over the tokens of all processes."""
        moments = torch.stack([mask_BT.sum(), (advantages_BT * mask_BT).sum(), (advantages_BT**2 * mask_BT).sum()]).double()
        count, total, squares = self.accelerator.reduce(moments, reduction="sum").tolist()
        mean = total / max(1.0, count)
        deviation = max(0.0, squares / max(1.0, count) - mean**2) ** 0.5
        return (advantages_BT - mean) / (deviation + 1e-8) * mask_BT

    def log_values(self, values_BT: torch.Tensor, returns_BT: torch.Tensor, mask_BT: torch.Tensor) -> None:
        """Logs mean value, mean return, and the explained variance of the returns."""
        error_BT = returns_BT - values_BT
        parts = [mask_BT, values_BT, returns_BT, returns_BT**2, error_BT, error_BT**2]
        sums = torch.stack([(part * mask_BT).sum() for part in parts]).double()
        count, value, total, squares, off, off_squares = self.accelerator.reduce(sums, reduction="sum").tolist()
        count = max(1.0, count)
        variance, left = squares / count - (total / count) ** 2, off_squares / count - (off / count) ** 2
        self.logged["value/mean"].append(value / count)
        self.logged["value/return"].append(total / count)
        self.logged["value/explained"].append(1 - left / variance if variance > 1e-12 else 0.0)

    # Loss

    def token_terms(self, batch: Batch) -> torch.Tensor | float:
        """The value loss, in addition to the terms of GRPO."""
        ppo = self.recipe.ppo
        count = self.share_of_step(batch["valued_in_batch"])
        lost = value_loss(self.values_BT, batch["old_values"], batch["returns"], batch["value_mask"], ppo.value_clip, count)
        per_step = self.current_gradient_accumulation_steps
        self.logged["value/loss"].append(per_step * self.accelerator.gather(lost.detach()).mean().item())
        self.values_BT = None
        return super().token_terms(batch) + ppo.value_coef * lost

    # What is saved

    def saved_weights(self, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
        """The judge's weights without the value head, which is only used in training."""
        if hasattr(self.model, "peft_config"):
            return state_dict
        return {name: value for name, value in (state_dict or self.model.state_dict()).items() if HEAD not in name}

    def save_beside(self, checkpoint: Path) -> None:
        super().save_beside(checkpoint)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        # Weights sharded by DeepSpeed are empty here; its own checkpoint holds them.
        if self.args.should_save and all(value.numel() for value in weights.values()):
            save_file(weights, checkpoint / HEAD_FILE)

    def load_weights_beside(self, checkpoint: Path) -> None:
        path = checkpoint / HEAD_FILE
        if path.is_file():
            self.head.load_state_dict(load_file(path, device=str(self.head.linear.weight.device)))


def gae(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns) [B, T] by generalized advantage estimation (arXiv 1506.02438, equation 16); 0 where the mask is 0.

    The mask of a row is one contiguous run of ones. The value after its end is 0.
    """
    mask = mask_BT.to(values_BT.dtype)
    values = values_BT * mask
    advantages = torch.zeros_like(values)
    ahead = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        following = values[:, t + 1] if t + 1 < values.shape[1] else torch.zeros_like(ahead)
        surprise = rewards_BT[:, t] + gamma * following - values[:, t]
        ahead = (surprise + gamma * gae_lambda * ahead) * mask[:, t]
        advantages[:, t] = ahead
    return advantages, advantages + values


def value_loss(
    values_BT: torch.Tensor,
    old_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    clip: float,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Clipped value loss: half the squared error over the mask, divided by its tokens or by `count`. A value that has moved more
    than `clip` from its old estimate toward the return gets no gradient (the value clipping in the reference code of arXiv
    1707.06347)."""
    near = old_BT + (values_BT - old_BT).clamp(-clip, clip)
    error = torch.maximum((values_BT - returns_BT) ** 2, (near - returns_BT) ** 2)
    return 0.5 * (error * mask_BT).sum() / (mask_BT.sum().clamp(min=1) if count is None else count)
