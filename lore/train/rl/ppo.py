"""PPO: the same rollouts and rewards as GRPO, with a learned value in place of the group's mean.

Advantages come from GAE(lambda) per token, the value loss is clipped, and the policy's loss is TRL's clipped surrogate over the
tokens of a step. The value is a head on the judge itself, so there is no second model. Left out of the textbook method: a
reward penalty per token for the KL divergence (ppo.kl is a term of the loss), several epochs over a rollout in shuffled
minibatches (rollout.updates: each answer is learnt from once).

    accelerate launch recipes/quickstart/ppo.yaml
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.train.judge.mixed_photos import PHOTO_FIELDS
from lore.train.rl.config import PPORecipe
from lore.train.rl.groups import Group
from lore.train.rl.rollout_trainer import JudgeRollouts
from lore.train.rl.setup import Setup, run_trainer, set_up, trainer_arguments
from lore.train.rl.value_head import HEAD, attach_value_head, gae, value_loss

HEAD_FILE = "value_head.safetensors"


class JudgePPO(JudgeRollouts):
    """JudgeRollouts whose advantages [answers, tokens] come from a learned value."""

    own_lr = (HEAD,)

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._passes = attach_value_head(self.base)
        self._values: torch.Tensor | None = None

    @property
    def head(self) -> torch.nn.Module:
        return getattr(self.base, HEAD)

    def create_optimizer(self, *arguments: Any) -> Any:
        optimizer = super().create_optimizer(*arguments)
        mine = {id(p) for p in self.head.parameters()}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in mine]
        optimizer.add_param_group({"params": list(self.head.parameters()), "lr": self.recipe.ppo.value_lr, "weight_decay": 0.0})
        return optimizer

    def finished(self, output: dict[str, Any], groups: list[Group]) -> dict[str, Any]:
        """The batch with values, returns and token-wise advantages. The reward comes with an answer's last token."""
        ppo = self.recipe.ppo
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        totals = torch.tensor(np.concatenate([group.totals for group in groups]), dtype=torch.float32, device=mask.device)
        judged = torch.isfinite(totals)
        mask = mask * judged.unsqueeze(1)
        if "old_per_token_logps" not in output:  # else that pass has left its values
            self._values = None
            with torch.no_grad():
                self._get_per_token_logps_and_entropies(
                    self.model,
                    torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                    torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                    output["completion_ids"].shape[1],
                    batch_size=self.args.per_device_train_batch_size,
                    **{name: output[name] for name in PHOTO_FIELDS if name in output},
                )
        values, self._values = self._values.detach(), None
        if self.state.global_step == 0:
            values = values + self._set_offset(totals[judged])
        last = mask.cumsum(dim=1).argmax(dim=1)
        rewards = torch.zeros_like(values)
        rewards[torch.arange(len(last)), last] = totals.nan_to_num()
        advantages, returns = gae(rewards, values, mask, ppo.gamma, ppo.gae_lambda)
        self._log_values(values, returns, mask)
        if ppo.whiten:
            advantages = self._whitened(advantages, mask)
        if self.state.global_step < ppo.value_warmup:
            advantages = torch.zeros_like(advantages)
        output |= {"advantages": advantages, "old_values": values, "returns": returns}
        return output | {"value_mask": mask, "valued_in_batch": self._summed(mask.sum())}

    def _set_offset(self, totals: torch.Tensor) -> torch.Tensor:
        """The mean reward over all processes, which becomes what the value begins with."""
        count = torch.tensor(float(len(totals)), device=totals.device)
        total, count = self.accelerator.reduce(torch.stack([totals.sum(), count]), reduction="sum")
        self.head.offset.copy_(total / count.clamp(min=1))
        return self.head.offset

    def _whitened(self, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sums = torch.stack([mask.sum(), (advantages * mask).sum(), (advantages**2 * mask).sum()]).double()
        count, total, squares = self.accelerator.reduce(sums, reduction="sum").tolist()
        mean = total / max(1.0, count)
        deviation = max(0.0, squares / max(1.0, count) - mean**2) ** 0.5
        return (advantages - mean) / (deviation + 1e-8) * mask

    def _log_values(self, values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> None:
        """Mean value, mean return, and the share of the returns' variance that the value explains."""
        error = returns - values
        parts = [mask, values, returns, returns**2, error, error**2]
        sums = torch.stack([(part * mask).sum() for part in parts]).double()
        count, value, total, squares, off, off_squares = self.accelerator.reduce(sums, reduction="sum").tolist()
        count = max(1.0, count)
        variance, left = squares / count - (total / count) ** 2, off_squares / count - (off / count) ** 2
        log = self._metrics["train"]
        log["value/mean"].append(value / count)
        log["value/return"].append(total / count)
        log["value/explained"].append(1 - left / variance if variance > 1e-12 else 0.0)

    def _generate(self, prompts: list) -> tuple:
        self._values = None  # of what was asked before this batch
        return super()._generate(prompts)

    def _get_per_token_logps_and_entropies(self, model: Any, ids: Any, mask: Any, kept: int, **options: Any) -> tuple:
        self._passes.clear()
        self.head.alone = self.state.global_step < self.recipe.ppo.value_warmup
        found = super()._get_per_token_logps_and_entropies(model, ids, mask, kept, **options)
        # The batch's first pass is the policy's; one of the reference may follow, a model without a head or an adapter with one.
        if self._values is None and (model is self.model or model is self.model_wrapped):
            self._values = torch.cat([values[:, -kept:] for values in self._passes])
        self._passes.clear()
        return found

    def beside(self, inputs: dict[str, Any]) -> torch.Tensor | float:
        """The value loss beside what GRPO has there."""
        ppo = self.recipe.ppo
        mask, count = inputs["value_mask"], self.share_of_step(inputs["valued_in_batch"])
        lost = value_loss(self._values, inputs["old_values"], inputs["returns"], mask, ppo.value_clip, count)
        passes = self.current_gradient_accumulation_steps
        self._metrics["train"]["value/loss"].append(passes * self.accelerator.gather(lost.detach()).mean().item())
        self._values = None
        return super().beside(inputs) + ppo.value_coef * lost

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The judge without the value head, which nobody asks after training."""
        if not hasattr(self.model, "peft_config"):
            state_dict = {name: value for name, value in (state_dict or self.model.state_dict()).items() if HEAD not in name}
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        # Weights that DeepSpeed has shared out are empty here; they lie in its own checkpoint.
        if self.args.should_save and all(value.numel() for value in weights.values()):
            save_file(weights, self._checkpoint_folder(trial) / HEAD_FILE)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint, model)
        path = Path(checkpoint) / HEAD_FILE
        if path.is_file():
            self.head.load_state_dict(load_file(path, device=str(self.head.linear.weight.device)))


def run(recipe: PPORecipe, folder: RunFolder) -> None:
    """Trains and leaves the best adapter (or model) by the watch, its processor and its card in <run>/model."""
    setup, trainer = prepare(recipe, folder)
    run_trainer(setup, trainer, "ppo")


def prepare(recipe: PPORecipe, folder: RunFolder) -> tuple[Setup, JudgePPO]:
    """The trainer, ready for its first step."""
    setup = set_up(recipe, folder, recipe.ppo, loss_type="dapo")
    trainer = JudgePPO(**trainer_arguments(setup))
    if trainer.is_fsdp_enabled:
        raise LoreError(
            "Stage ppo does not run under FSDP, whose shares of the value head no checkpoint could hold.\n"
            "Launch with launch/accelerate/zero2.yaml, zero3.yaml or ddp.yaml.",
            same_on_every_rank=True,
        )
    return setup, trainer
