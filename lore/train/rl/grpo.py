"""GRPO: rewards the judge's own answers for the rater's verdict and compares them within the group of answers to one prompt.

    accelerate launch recipes/quickstart/grpo.yaml

The class below follows the order of a step. TRL's GRPOTrainer calls it at the points that lore/train/common/trl_internals.py lists.

1. Choose prompts: take those of the schedule, and replace prompts that will probably give a zero-advantage group.
2. Sample a group of answers to each prompt, parse them and compute rewards.
3. Second round: replace zero-advantage groups by groups of other prompts (dynamic sampling), and resample groups without a correct
   answer from the start of the gold reasoning (guided replay). No group spans processes, so each process decides alone.
4. Advantages: reward minus the group's mean, divided as grpo.scale says (TRL), then clamped.
5. Loss: the clipped surrogate and the KL term (TRL), the SFT loss on given gold reasoning, the SFT loss on replayed pairs.
6. Log the rollout; save the counts of each prompt.

Left out of the textbook method (arXiv 2402.03300): the reward model and its retraining, since labels and a parser give the
reward; rewards for single reasoning steps, for which there are no labels; a reference model that is replaced during training;
several updates on the same answers (rollout.updates splits a batch into steps, and each answer is learned from once). Added
from DAPO (arXiv 2503.14476): clip-higher, the token-level loss, dynamic sampling; the KL term is off by default.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from lore.codec.judgement import FormatFailure
from lore.codec.verdict_tokens import with_verdict_prefix
from lore.engines.row_independence import base_of, keep_rows_apart
from lore.engines.transformers import TransformersEngine
from lore.judge.answer import Answer
from lore.rewards.reward import Rewards
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError, reason
from lore.support.untrusted_json import parse_object
from lore.train.common.shared_prefix import SharedPrefix
from lore.train.common.trl_internals import (
    ADVANTAGES,
    IMAGE_COUNTS,
    SAMPLER_GAP,
    ZERO_STD_SHARE,
    Batch,
    GroupRollouts,
    SampledGroup,
    fused_logps,
    given_mask,
)
from lore.train.judge.mixed_photos import only_photos_shown, unseen_photo
from lore.train.rl.config import DynamicSection, GRPORecipe, RolloutRecipe
from lore.train.rl.dynamic_sampling import PromptChoice
from lore.train.rl.length_bucketing import bucket_by_length
from lore.train.rl.logprob_mismatch import sampler_gap
from lore.train.rl.prompts import Prompts
from lore.train.rl.setup import Setup, run_trainer, set_up, shared_prefix, trainer_arguments
from lore.train.watch.policy_engine import policy

HISTORY = "prompts.json"
GAP_PROMPTS = 4


def run(recipe: GRPORecipe, folder: RunFolder) -> None:
    """Trains, and writes the best adapter (or model) of the periodic evaluation, its processor and its card to <run>/model."""
    setup, trainer = prepare(recipe, folder)
    run_trainer(setup, trainer, "grpo")


def prepare(recipe: GRPORecipe, folder: RunFolder) -> tuple[Setup, "GRPO"]:
    """The trainer, ready for its first step."""
    loss = recipe.grpo
    setup = set_up(recipe, folder, loss, loss_type=loss.loss, scale_rewards=loss.scale)
    trainer = GRPO(**trainer_arguments(setup))
    trainer.sharing = shared_prefix(setup, trainer)
    return setup, trainer


@dataclass
class Group(SampledGroup):
    """G parsed and rewarded answers to one prompt. row: the prompt's; parts_GP: the P reward components, nan where one does not
    apply; right_G: whether the verdict is the rater's."""

    row: int
    answers: list[Answer]
    parts_GP: np.ndarray
    right_G: np.ndarray

    @property
    def spread(self) -> float:
        """Standard deviation of the rewards. Without spread a group is a zero-advantage group."""
        return float(np.nanstd(self.rewards_G)) if np.isfinite(self.rewards_G).any() else 0.0

    @property
    def tokens(self) -> int:
        """Number of sampled tokens, without given ones."""
        return sum(len(ids) - self.given for ids in self.completion_ids)


@dataclass
class Tally:
    """Counts of one rollout on this process. seen: (row, correct answers, answers, whether it has spread) per unguided group."""

    tokens: int = 0
    groups: int = 0
    spread: int = 0
    foreseen: int = 0
    extra: int = 0
    guided: int = 0
    solved: int = 0
    seen: list[tuple[int, int, int, bool]] = field(default_factory=list)


class GRPO(GroupRollouts, GRPOTrainer):
    """TRL's GRPOTrainer over the pool's prompts.

    windows: step -> rows that may replace scheduled ones. replay: number of the micro-batch -> batch for the SFT loss, or None. The
    other arguments are TRL's.
    """

    sharing: SharedPrefix | None = None

    def __init__(
        self,
        *,
        recipe: RolloutRecipe,
        prompts: Prompts,
        rewards: Rewards,
        choice: PromptChoice,
        windows: Callable[[int], np.ndarray],
        replay: Callable[[int], dict[str, torch.Tensor] | None] | None = None,
        **arguments: Any,
    ):
        self.recipe, self.prompts, self.rewards = recipe, prompts, rewards
        self.choice, self.windows, self.replay = choice, windows, replay
        self.min_spread = (recipe.dynamic or DynamicSection()).min_spread
        self.marks_given_tokens = recipe.guided is not None
        super().__init__(**arguments)
        self.base = base_of(self.model)
        for model in filter(None, (self.base, self.ref_model)):
            keep_rows_apart(model)  # TRL loads its reference model by itself
            if self.reads_photos:
                hook = partial(only_photos_shown, self.base.config.image_token_id)
                model.register_forward_pre_hook(hook, with_kwargs=True)
        self.check_processes()

    def check_processes(self) -> None:
        """Raises LoreError when processes would hang, or when a group would span processes."""
        if self.is_fsdp_enabled and (not self.use_vllm or self.rewards.needs_probabilities):
            what = "rewards.calibration reads tier probabilities" if self.use_vllm else "rollout.engine is transformers"
            raise LoreError(
                f"{what}, and under FSDP the other processes would hang when the answers of one process end early.\n"
                "Launch with launch/accelerate/zero2.yaml, or sample with vLLM and without rewards.calibration.",
                same_on_every_rank=True,
            )
        local = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if local % self.num_generations:
            raise LoreError(
                f"Each process samples {local} answers at a time, which groups of {self.num_generations} do not fill, so a group "
                "would span processes.\nUse a train.batch_size whose share per process is a multiple of rollout.group."
            )

    # Rollout

    def collect_groups(self, rows: list[int]) -> list[Group]:
        """Samples, logs and returns the groups that this process trains on."""
        groups, tally = self.choose_groups(rows)
        self.log_rollout(groups, tally)
        if self.gap_is_due():
            self.log_sampler_gap([group.row for group in groups][:GAP_PROMPTS])
        return groups

    def choose_groups(self, scheduled: list[int]) -> tuple[list[Group], Tally]:
        """One group per scheduled prompt or its replacement."""
        step, tally = self.state.global_step, Tally()
        rng = np.random.default_rng([self.args.seed, 2, step, self.accelerator.process_index])
        dynamic, guided = self.recipe.dynamic, self.recipe.guided
        rows, asked = list(scheduled), set(gather_object(list(scheduled)))
        among = self.own_share(self.windows(step))
        if dynamic and dynamic.foresee:
            for place in np.flatnonzero(~self.choice.keep(np.asarray(rows), among, rng)):
                rows[place] = self.choice.draw(1, among, asked.union(rows), rng)[0]
                tally.foreseen += 1
        groups = self.sample_groups(rows)
        self.count(groups, tally)
        if dynamic or guided:
            self.second_round(groups, tally, among, asked, rng)
        tally.spread = sum(group.spread > self.min_spread for group in groups if not group.given)
        return groups, tally

    def own_share(self, among: np.ndarray) -> np.ndarray:
        """The rows that this process draws from. Processes draw from disjoint rows."""
        world = self.accelerator.num_processes
        return among[self.accelerator.process_index :: world] if len(among) >= world else among

    def sample_groups(self, rows: Sequence[int], starts: Sequence[list[int]] | None = None) -> list[Group]:
        """A rewarded group per row, in order. starts: token ids that the answers to a row start with."""
        size, starts = self.num_generations, starts or [[]] * len(rows)
        messages = [self.prompts.messages(row) for row in rows for _ in range(size)]
        completions, logprobs = self.sample(messages, [start for start in starts for _ in range(size)])
        answers = [self.read(ids) for ids in completions]
        if self.rewards.needs_probabilities:
            answers = with_probabilities(self, messages, answers)
        pairs = [self.prompts.pairs[row] for row in rows for _ in range(size)]
        parts_BP = self.rewards.parts(answers, pairs)
        rewards_B, right_B = self.rewards.totals(parts_BP), self.rewards.right(answers, pairs)
        groups = []
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            of = slice(number * size, (number + 1) * size)
            groups.append(
                Group(
                    messages=messages[of.start],
                    completion_ids=completions[of],
                    logprobs=None if logprobs is None else logprobs[of],
                    rewards_G=rewards_B[of],
                    given=len(start),
                    row=row,
                    answers=answers[of],
                    parts_GP=parts_BP[of],
                    right_G=right_B[of],
                )
            )
        return groups

    def read(self, ids: list[int]) -> Answer:
        """Decodes and parses an answer like the engines: drops the end-of-turn token; without one the answer is truncated."""
        end = next((place for place, token in enumerate(ids) if token in self.end_tokens), None)
        ended = ids if end is None else ids[:end]
        text = self.prompts.tokenizer.decode(ended, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.rewards.read(text, len(ids), truncated=end is None)

    def second_round(
        self, groups: list[Group], tally: Tally, among: np.ndarray, asked: set[int], rng: np.random.Generator
    ) -> None:
        """Samples once more, in one batch, and replaces entries of `groups`: groups without a correct answer restart from gold
        reasoning, and other prompts replace zero-advantage groups. One round only, because its time is that of the longest
        answer."""
        dynamic, guided = self.recipe.dynamic, self.recipe.guided
        wrong, starts = self.all_wrong(groups, max(1, round(guided.share * len(groups)))) if guided else ([], [])
        flat, fresh = [], 0
        if dynamic:
            flat = [place for place, group in enumerate(groups) if group.spread <= self.min_spread and place not in wrong]
            fresh = min(int(np.ceil(dynamic.extra * len(groups))), int(np.ceil(len(flat) / self.choice.hit_rate(among))))
        # All processes must sample equally many groups; a process discards those that it does not need.
        begun, fresh = self.most(len(wrong)), self.most(fresh)
        if not begun + fresh:
            return
        spare = begun - len(wrong)
        rows = [groups[place].row for place in wrong] + [groups[0].row] * spare
        drawn = self.choice.draw(fresh, among, asked.union(group.row for group in groups), rng)
        sampled = self.sample_groups(rows + drawn, [*starts, *[[]] * (spare + fresh)])
        self.count(sampled, tally)
        for place, group in zip(wrong, sampled[: len(wrong)], strict=True):
            tally.guided += 1
            tally.solved += bool(group.right_G.any())
            groups[place] = group
        tally.extra += fresh
        good = [group for group in sampled[begun:] if group.spread > self.min_spread] if dynamic else []
        for place, group in zip(flat, good, strict=False):
            groups[place] = group

    def all_wrong(self, groups: list[Group], most: int) -> tuple[list[int], list[list[int]]]:
        """(places, starts) of at most `most` groups without a correct answer whose pair has gold reasoning."""
        wrong, starts = [], []
        for place, group in enumerate(groups):
            start = self.prompts.reasoning_start(group.row, self.recipe.guided.reveal) if not group.right_G.any() else []
            if start and len(wrong) < most:
                wrong.append(place)
                starts.append(start)
        return wrong, starts

    def count(self, groups: list[Group], tally: Tally) -> None:
        tally.groups += len(groups)
        tally.tokens += sum(group.tokens for group in groups)
        tally.seen += [
            (int(group.row), int(group.right_G.sum()), len(group.answers), group.spread > self.min_spread)
            for group in groups
            if not group.given
        ]

    def most(self, count: int) -> int:
        """The maximum of `count` over processes. They generate together, so their rounds must have the same size."""
        return int(self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).max().item())

    # Advantages

    def finish_batch(self, batch: Batch, groups: list[Group]) -> Batch:
        """TRL's batch with final advantages and the token counts that the loss divides by."""
        # With grpo.scale: batch, TRL would log this for the whole batch instead of per group.
        self.logged[ZERO_STD_SHARE][-1] = self.logged["rollout/share_without_spread"][-1]
        if self.marks_given_tokens:
            batch["given_in_batch"] = self.summed(given_mask(batch).sum())
        return self.with_advantages(batch, groups)

    def with_advantages(self, batch: Batch, groups: list[Group]) -> Batch:
        """The batch with TRL's advantages_B, clamped. One correct answer among 15 incorrect ones has an advantage of 3.9."""
        clamp = self.recipe.grpo.advantage_clamp
        if clamp is not None:
            batch[ADVANTAGES] = batch[ADVANTAGES].clamp(-clamp, clamp)
        return batch

    def arrange(self, micro_batches: list[Batch]) -> list[Batch]:
        """Length-bucketed micro-batches, with padding trimmed. Where prefixes are shared, answers to a prompt stay together."""
        by_prompt = self.sharing is not None and self.sharing.active
        return bucket_by_length(micro_batches, self.args.gradient_accumulation_steps, self.loss_type, by_prompt)

    # Loss

    def total_loss(self, policy_loss: torch.Tensor, model: Any, batch: Batch) -> torch.Tensor:
        """The loss of a micro-batch: TRL's clipped surrogate, terms averaged over the tokens of the step, and terms averaged within
        the micro-batch (`apart`)."""
        loss = policy_loss + self.token_terms(batch)
        self.logps_BT, apart = None, 0.0
        replayed = self.replay_loss(model) if self.replay is not None else None
        if replayed is not None:
            self.logged["sft_loss"].append(self.accelerator.gather(replayed.detach()).mean().item())
            apart = apart + self.recipe.replay.weight * self.replay.every * replayed
        several = self.reads_photos and self.recipe.prompt.photo and self.accelerator.num_processes > 1
        if several and not any(batch.get(IMAGE_COUNTS, [])):
            apart = apart + unseen_photo(model, self.processing_class, self.accelerator)
        return loss + apart / self.current_gradient_accumulation_steps

    def token_terms(self, batch: Batch) -> torch.Tensor | float:
        """Terms from the log-probabilities of this forward pass, averaged over the tokens of the whole step. Here: the SFT loss on
        given gold reasoning."""
        guided = self.recipe.guided
        if not guided or not guided.teach:
            return 0.0
        return -guided.teach * (self.logps_BT * given_mask(batch)).sum() / self.share_of_step(batch["given_in_batch"])

    def replay_loss(self, model: Any) -> torch.Tensor | None:
        """Mean token loss of the replayed pairs in this micro-batch, at temperature 1 as in stage sft; None without any."""
        batch = self.replay(self.micro_batch_number)
        if batch is None:
            return None
        batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
        with self.accelerator.autocast():
            if self.temperature != 1:  # the fused output layer divides logits by the temperature
                return model(**batch).loss
            logps = fused_logps(model, batch)
        return -logps.sum() / (batch["labels"][:, 1:] != -100).sum().clamp(min=1)

    def share_of_step(self, count: torch.Tensor) -> torch.Tensor:
        """The divisor that turns sums over a micro-batch into means over the step. Gradients are averaged over processes. `count`
        covers a whole rollout, which is split into rollout.updates steps."""
        return count.clamp(min=1) / self.accelerator.num_processes / self.recipe.rollout.updates

    def summed(self, count: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(count.float(), reduction="sum")

    # What is logged and saved

    def log_rollout(self, groups: list[Group], tally: Tally) -> None:
        """Logs the rollout of all processes, and updates the counts of its prompts."""
        for one in gather_object(tally.seen):
            self.choice.observe(*one)
        mine = {
            "parts": np.concatenate([group.parts_GP for group in groups]),
            "tally": tally,
            "flat": sum(group.spread <= self.min_spread for group in groups),
            "groups": len(groups),
            "truncated": sum(answer.truncated for group in groups for answer in group.answers),
        }
        for name, value in rollout_metrics(gather_object([mine]), self.rewards.names, self.recipe).items():
            self.logged[name].append(value)

    def gap_is_due(self) -> bool:
        """Whether a periodic evaluation follows one of the steps on these answers. With vLLM, TRL measures every batch."""
        every = self.recipe.watch.every
        return bool(every) and not self.use_vllm and -(self.state.global_step + 1) % every < self.recipe.rollout.updates

    def log_sampler_gap(self, rows: list[int]) -> None:
        gap = sampler_gap(self, rows)
        self.logged[SAMPLER_GAP].append(self.accelerator.gather(gap).mean().item())

    def save_beside(self, checkpoint: Path) -> None:
        if self.args.should_save:
            write_atomic(checkpoint / HISTORY, json.dumps(self.choice.state()))

    def load_beside(self, checkpoint: Path) -> None:
        path = checkpoint / HISTORY
        try:
            self.choice.restore(parse_object(path.read_bytes()))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise LoreError(
                f"{path} is damaged ({reason(error)}), so the counts that choose the prompts are lost.\n"
                f"Restore the file, or delete {checkpoint}: the run then goes on from an earlier checkpoint or its beginning.",
                same_on_every_rank=True,
            ) from error


def rollout_metrics(everyone: list[dict[str, Any]], names: list[str], recipe: RolloutRecipe) -> dict[str, float]:
    """Metrics of a rollout. everyone: one report per process, from `GRPO.log_rollout`; names: those of the reward components."""
    judged = np.concatenate([one["parts"] for one in everyone])
    metrics = {
        f"rewards/{name}/mean": float(np.nanmean(values))
        for name, values in zip(names, judged.T, strict=True)
        if np.isfinite(values).any()
    }
    seen = [one for each in everyone for one in each["tally"].seen]
    sums = {name: sum(getattr(one["tally"], name) for one in everyone) for name in Tally.__dataclass_fields__ if name != "seen"}
    metrics |= {
        "rollout/right": sum(right for _, right, *_ in seen) / max(1, sum(asked for _, _, asked, _ in seen)),
        "rollout/tokens": sums["tokens"],
        "rollout/groups_with_spread": sums["spread"],
        "rollout/share_with_spread": sums["spread"] / sum(one["groups"] for one in everyone),
        "rollout/share_without_spread": sum(one["flat"] for one in everyone) / sum(one["groups"] for one in everyone),
        "rollout/spread_per_1000_tokens": 1000 * sums["spread"] / max(1, sums["tokens"]),
        "rollout/truncated": sum(one["truncated"] for one in everyone) / max(1, len(judged)),
    }
    if recipe.dynamic:
        metrics |= {"dynamic/foreseen": sums["foreseen"], "dynamic/extra_groups": sums["extra"]}
    if recipe.guided:
        metrics |= {"guided/groups": sums["guided"], "guided/solved": sums["solved"]}
    return metrics


def with_probabilities(trainer: GRPO, messages: list[list[dict]], answers: list[Answer]) -> list[Answer]:
    """The answers with the trained judge's tier probabilities, scored after each answer's own reason. Format failures get
    none."""
    out, prompts = list(answers), trainer.prompts
    read = [place for place, answer in enumerate(answers) if not isinstance(answer.judgement, FormatFailure)]
    with policy(trainer) as model:
        engine = TransformersEngine(model, prompts.processor, prompts.rubric)
        begun = [
            with_verdict_prefix(messages[place], prompts.fmt, engine.verdict, answers[place].judgement.rationale)
            for place in read
        ]
        scored = engine.score(begun)
    for place, row in zip(read, scored, strict=True):
        out[place] = replace(out[place], probabilities=row.tolist())
    return out
