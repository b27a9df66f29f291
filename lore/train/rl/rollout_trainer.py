"""Groups of sampled answers, and which of them a step learns from.

TRL's GRPOTrainer generates, scores and learns from one batch of groups. Between generating and learning this trainer puts what
it has not: prompts that would teach nothing give way (dynamic sampling), groups that are all wrong are begun with the gold
reasoning (guided replay), and an SFT loss on other pairs stands beside the policy's. Every process holds whole groups, so all of
it is decided where the answers are; the processes only agree on how many groups a round has.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from lore.support.atomic_files import write_atomic
from lore.train.judge.mixed_photos import unseen_photo
from lore.train.rl.dynamic_sampling import PromptChoice
from lore.train.rl.generation import Rolling
from lore.train.rl.groups import Group, Tally, step_metrics, told
from lore.train.rl.length_bucketing import shorter_passes
from lore.train.rl.logprob_mismatch import sampler_gap

HISTORY = "prompts.json"
GAP_PROMPTS = 4


class JudgeRollouts(Rolling):
    """GRPOTrainer over the pool's prompts. The stage gives recipe, prompts, rewards, choice and replay; TRL's arguments follow.

    windows: rows that may stand in for others at a step.
    """

    def __init__(
        self,
        *,
        choice: PromptChoice,
        windows: Callable[[int], np.ndarray],
        replay: Callable[[int], dict[str, torch.Tensor] | None] | None = None,
        **arguments: Any,
    ):
        self.choice, self.windows, self.replay = choice, windows, replay
        self._logps: torch.Tensor | None = None
        super().__init__(**arguments)

    # What a step learns from

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        rows = [example["row"] for example in inputs][:: self.num_generations]
        groups, tally = self.chosen_groups(rows)
        self._note(groups, tally)
        if self._gap_is_due():
            self._note_gap([group.row for group in groups][:GAP_PROMPTS])
        self._kept = groups
        try:
            shown = [{"prompt": self.prompts.messages(group.row)} for group in groups for _ in group.answers]
            output = super()._generate_and_score_completions(shown)
        finally:
            self._kept = None
        metrics = self._metrics["train"]  # where rewards are scaled by the batch, TRL would count a group by the batch's deviation
        metrics["frac_reward_zero_std"][-1] = metrics["rollout/share_without_spread"][-1]
        if "tool_mask" in output:
            output["given_in_batch"] = self._summed((output["completion_mask"] * (1 - output["tool_mask"])).sum())
        return self.finished(output, groups)

    def finished(self, output: dict[str, Any], groups: list[Group]) -> dict[str, Any]:
        """TRL's batch with what comes after its advantages."""
        clamp = getattr(getattr(self.recipe, "grpo", None), "advantage_clamp", None)
        if clamp is not None:
            output["advantages"] = output["advantages"].clamp(-clamp, clamp)
        return output

    def chosen_groups(self, scheduled: list[int]) -> tuple[list[Group], Tally]:
        """One group for each scheduled prompt, or for one that stands in for it."""
        step, tally = self.state.global_step, Tally()
        rng = np.random.default_rng([self.args.seed, 2, step, self.accelerator.process_index])
        dynamic, guided = self.recipe.dynamic, self.recipe.guided
        rows, asked = list(scheduled), set(gather_object(list(scheduled)))
        among = self._share(self.windows(step))
        if dynamic and dynamic.foresee:
            for place in np.flatnonzero(~self.choice.keep(np.asarray(rows), among, rng)):
                rows[place] = self.choice.draw(1, among, asked.union(rows), rng)[0]
                tally.foreseen += 1
        groups = self._roll(rows, tally)
        if dynamic or guided:
            self._second_round(groups, tally, among, asked, rng)
        tally.spread = sum(group.spread > self.least_spread for group in groups if not group.given)
        return groups, tally

    def _share(self, among: np.ndarray) -> np.ndarray:
        """The rows this process draws from: no two processes draw the same one."""
        world = self.accelerator.num_processes
        return among[self.accelerator.process_index :: world] if len(among) >= world else among

    def _second_round(
        self, groups: list[Group], tally: Tally, among: np.ndarray, asked: set[int], rng: np.random.Generator
    ) -> None:
        """Rolls once more, in one batch: groups that are all wrong behind the start of the gold reasoning, and other prompts
        for groups without spread. A round takes as long as its longest answer, so there is only one."""
        dynamic, guided = self.recipe.dynamic, self.recipe.guided
        wrong, starts = self._all_wrong(groups, max(1, round(guided.share * len(groups)))) if guided else ([], [])
        flat, fresh = [], 0
        if dynamic:
            flat = [place for place, group in enumerate(groups) if group.spread <= self.least_spread and place not in wrong]
            fresh = min(int(np.ceil(dynamic.extra * len(groups))), int(np.ceil(len(flat) / self.choice.hit_rate(among))))
        # Every process rolls as many groups; those that one does not need are rolled for nothing.
        begun, fresh = self._most(len(wrong)), self._most(fresh)
        if not begun + fresh:
            return
        spare = begun - len(wrong)
        rows = [groups[place].row for place in wrong] + [groups[0].row] * spare
        drawn = self.choice.draw(fresh, among, asked.union(group.row for group in groups), rng)
        rolled = self._roll(rows + drawn, tally, [*starts, *[[]] * (spare + fresh)])
        for place, group in zip(wrong, rolled[: len(wrong)], strict=True):
            tally.guided += 1
            tally.solved += bool(group.right.any())
            groups[place] = group
        tally.extra += fresh
        good = [group for group in rolled[begun:] if group.spread > self.least_spread] if dynamic else []
        for place, group in zip(flat, good, strict=False):
            groups[place] = group

    def _all_wrong(self, groups: list[Group], most: int) -> tuple[list[int], list[list[int]]]:
        """Places of at most `most` groups without a right answer whose pair has gold reasoning, and its beginnings."""
        wrong, starts = [], []
        for place, group in enumerate(groups):
            start = self.prompts.reasoning_start(group.row, self.recipe.guided.reveal) if not group.right.any() else []
            if start and len(wrong) < most:
                wrong.append(place)
                starts.append(start)
        return wrong, starts

    # Loss

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if self._buffered_inputs is not buffered:
            self._buffered_inputs = shorter_passes(self._buffered_inputs, self.args.gradient_accumulation_steps, self.loss_type)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> tuple:
        found = super()._get_per_token_logps_and_entropies(*arguments, **options)
        self._logps = found[0]
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs) + self.beside(inputs)
        self._logps, apart = None, 0.0  # means within a pass
        replayed = self._replay_loss(model) if self.replay is not None else None
        if replayed is not None:
            self._metrics["train"]["sft_loss"].append(self.accelerator.gather(replayed.detach()).mean().item())
            apart = apart + self.recipe.replay.weight * self.replay.every * replayed
        several = self._is_vlm and self.recipe.prompt.photo and self.accelerator.num_processes > 1
        if several and not any(inputs.get("num_images", [])):
            apart = apart + unseen_photo(model, self.processing_class, self.accelerator)
        return loss + apart / self.current_gradient_accumulation_steps

    def beside(self, inputs: dict[str, Any]) -> torch.Tensor | float:
        """What stands beside the policy's loss of a pass and needs its log-probabilities; means over the tokens of a whole step."""
        guided = self.recipe.guided
        if not guided or not guided.teach:
            return 0.0
        given = inputs["completion_mask"] * (1 - inputs["tool_mask"])
        return -guided.teach * (self._logps * given).sum() / self.share_of_step(inputs["given_in_batch"])

    def share_of_step(self, count: torch.Tensor) -> torch.Tensor:
        """What a process divides its sums of a pass by, for a mean over the step: gradients are averaged over processes, and the
        count is that of all answers sampled together, from which rollout.updates steps learn."""
        return count.clamp(min=1) / self.accelerator.num_processes / self.recipe.rollout.updates

    def _summed(self, count: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(count.float(), reduction="sum")

    def _replay_loss(self, model: Any) -> torch.Tensor | None:
        """Mean token loss of this pass's share of the replayed pairs, at temperature 1 like that of stage sft."""
        passes = self.args.gradient_accumulation_steps
        batch = self.replay(self.state.global_step * passes + self._step % passes)
        if batch is None:
            return None
        batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
        with self.accelerator.autocast():
            if self.temperature != 1:  # the fused output layer divides by it
                return model(**batch).loss
            logps = model(**batch, fused_lm_head=True).log_probs
        return -logps.sum() / (batch["labels"][:, 1:] != -100).sum().clamp(min=1)

    # Bookkeeping

    def _note(self, groups: list[Group], tally: Tally) -> None:
        """Metrics of the batch over all processes, and what its groups tell about their prompts."""
        for one in gather_object(tally.seen):
            self.choice.observe(*one)
        everyone = gather_object([told(groups, tally, self.least_spread)])
        for name, value in step_metrics(everyone, self.judged.names, self.recipe).items():
            self._metrics["train"][name].append(value)

    def _gap_is_due(self) -> bool:
        """Whether the watch comes after one of the steps that learn from these answers. With vLLM, TRL measures every batch."""
        every = self.recipe.watch.every
        return bool(every) and not self.use_vllm and -(self.state.global_step + 1) % every < self.recipe.rollout.updates

    def _note_gap(self, rows: list[int]) -> None:
        gap = sampler_gap(self, rows)
        self._metrics["train"]["sampling/sampling_logp_difference/mean"].append(self.accelerator.gather(gap).mean().item())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            write_atomic(self._checkpoint_folder(trial) / HISTORY, json.dumps(self.choice.state()))

    def _checkpoint_folder(self, trial: Any) -> Path:
        return Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.choice.restore(json.loads((Path(checkpoint) / HISTORY).read_text(encoding="utf-8")))
