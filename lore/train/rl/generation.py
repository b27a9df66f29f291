"""Rolls groups of answers with TRL's generation, and hands TRL the groups that were chosen when it makes its batch of them."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer

from lore.rewards.components import Answer
from lore.rewards.reward import Rewards
from lore.support.errors import LoreError
from lore.train.judge.mixed_photos import only_photos_shown
from lore.train.rl.config import DynamicSection, RolloutRecipe
from lore.train.rl.groups import Group, Tally, longer
from lore.train.rl.prompts import Prompts
from lore.train.rl.tier_probabilities import with_probabilities
from lore.train.rl.vllm_sync import send_only_the_judge


class Rolling(GRPOTrainer):
    """GRPOTrainer whose answers and rewards come as groups: `_roll` makes them, `_kept` holds those that TRL is to see."""

    def __init__(self, *, recipe: RolloutRecipe, prompts: Prompts, rewards: Rewards, **arguments: Any):
        self.recipe, self.prompts, self.judged = recipe, prompts, rewards
        self.least_spread = (recipe.dynamic or DynamicSection()).min_spread
        self._kept: list[Group] | None = None
        super().__init__(reward_funcs=[total], **arguments)
        if self.use_vllm:
            send_only_the_judge(self.vllm_generation)
        self.base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if self._is_vlm:
            for model in (self.base, self.ref_model):
                if model is not None:
                    hook = partial(only_photos_shown, self.base.config.image_token_id)
                    model.register_forward_pre_hook(hook, with_kwargs=True)
        if self.is_fsdp_enabled and (not self.use_vllm or self.judged.needs_probabilities):
            what = "rewards.calibration reads tier probabilities" if self.use_vllm else "rollout.engine is transformers"
            raise LoreError(
                f"{what}, and under FSDP a process whose answers end early would leave the others waiting for ever.\n"
                "Launch with launch/accelerate/zero2.yaml, or sample with vLLM and without rewards.calibration.",
                same_on_every_rank=True,
            )
        local = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if local % self.num_generations:
            raise LoreError(
                f"Each process samples {local} answers at a time, which groups of {self.num_generations} do not fill, so a group "
                "would be spread over processes.\nUse a train.batch_size whose share of a process is a multiple of rollout.group."
            )

    def _roll(self, rows: Sequence[int], tally: Tally, starts: Sequence[list[int]] | None = None) -> list[Group]:
        """A group of answers to each row, in their order. starts: token ids that the answers begin with."""
        size = self.num_generations
        starts = starts or [[]] * len(rows)
        messages = [self.prompts.messages(row) for row in rows for _ in range(size)]
        begun = [start for start in starts for _ in range(size)]
        prompt_ids, images, fields = self._tokenize_prompts(messages)
        behind = [list(ids) + start for ids, start in zip(prompt_ids, begun, strict=True)]
        fields = {key: longer(value, begun) for key, value in fields.items()}
        sampled, logprobs = self._generate_single_turn(behind, images, fields, size)
        completions = [start + list(ids) for start, ids in zip(begun, sampled, strict=True)]
        answers = [self._answer(ids) for ids in completions]
        if self.judged.needs_probabilities:
            answers = with_probabilities(self, messages, answers)
        pairs = [self.prompts.pairs[row] for row in rows for _ in range(size)]
        parts = self.judged.parts(answers, pairs)
        totals, right = self.judged.totals(parts), self.judged.right(answers, pairs)
        groups = []
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            of = slice(number * size, (number + 1) * size)
            known = None if logprobs is None else [[float("nan")] * len(start) + list(values) for values in logprobs[of]]
            group = Group(
                row,
                list(prompt_ids[of.start]),
                images[of.start] if images is not None else None,
                completions[of],
                known,
                answers[of],
                parts[of],
                totals[of],
                right[of],
                len(start),
            )
            groups.append(group)
            tally.tokens += group.tokens
            tally.groups += 1
            if not start:
                tally.seen.append((int(row), int(group.right.sum()), size, group.spread > self.least_spread))
        return groups

    def _answer(self, ids: list[int]) -> Answer:
        """The text as the engines decode it: without the token that ends the turn, and cut where there is none."""
        end = next((place for place, token in enumerate(ids) if token in self.eos_token_ids), None)
        text = self._tokenizer.decode(
            ids if end is None else ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return self.judged.read(text, len(ids), truncated=end is None)

    def _most(self, count: int) -> int:
        """The largest count of all processes: their rounds have to be alike, since they generate together."""
        return int(self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).max().item())

    # What TRL asks while it makes the batch: the groups that were kept, in its own forms

    def _tokenize_prompts(self, prompts: list) -> tuple[list, list | None, dict]:
        ids, images, fields = super()._tokenize_prompts(prompts)
        # Processors take a prompt without a photo as an empty list, not as none.
        return ids, None if images is None else [shown or [] for shown in images], fields

    def _generate_single_turn(self, prompt_ids: list, images: Any, fields: dict, count: int, **options: Any) -> tuple:
        if self._kept is None:
            if self.use_vllm and images is not None:  # vLLM's side of TRL wants none, where processors want an empty list
                images = [shown or None for shown in images]
            # As the loss computes them; the weights that go to vLLM are merged in full precision.
            with nullcontext() if self.use_vllm else self.accelerator.autocast():
                return super()._generate_single_turn(prompt_ids, images, fields, count, **options)
        completions = [ids for group in self._kept for ids in group.completion_ids]
        if self._kept[0].logprobs is None:
            return completions, None
        return completions, [values for group in self._kept for values in group.logprobs]

    def _generate(self, prompts: list) -> tuple:
        ids, completions, _, *rest = super()._generate(prompts)
        if not self.recipe.guided or self._kept is None:
            return ids, completions, None, *rest
        given = [group.given for group in self._kept for _ in group.answers]
        sampled = [[0] * start + [1] * (len(tokens) - start) for start, tokens in zip(given, completions, strict=True)]
        return ids, completions, sampled, *rest

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, ids: list) -> torch.Tensor:
        if self._kept is None:
            return super()._calculate_rewards(inputs, prompts, completions, ids)
        totals = np.concatenate([group.totals for group in self._kept])
        column = torch.tensor(totals, dtype=torch.float32, device=self.accelerator.device).unsqueeze(1)
        return self.accelerator.gather(column)


def total(completions: list, **_: Any) -> list[float]:
    """TRL wants a reward function; the groups come with theirs."""
    raise LoreError("rewards are computed with the rollouts; TRL must not ask for them.")
