"""The one place that touches private names of TRL's trainers.

TRL has no public way to choose which groups a GRPO step learns from, to add a term to its loss, or to train on rows that are
tokenized already. This module overrides the private methods where that happens and calls public hooks in their place, so a
stage reads without them. It also holds the words that TRL chooses: keys of batches and of the log, the name of an adapter, and
the option and the field of the fused output layer. `tests/train/common/test_trl_internals.py` lists all of them and fails where
the installed TRL has moved one.

The classes go before TRL's trainer among the bases: `class GRPO(GroupRollouts, GRPOTrainer)`. They do not derive from it,
because importing GRPOTrainer imports vLLM, which takes seconds that the other stages must not pay.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from trl.distributed import DistributedBackend
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import (
    _CHUNKED_LOGPROB_CHUNK_SIZE,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from lore.support.errors import LoreError
from lore.train.common.frozen_weights import reshard

Batch = dict[str, Any]

REFERENCE = "ref"
"""Name of the adapter that is the frozen reference model."""
ZERO_STD_SHARE = "frac_reward_zero_std"
"""Key of the log: share of groups whose rewards are all equal."""
SAMPLER_GAP = "sampling/sampling_logp_difference/mean"
"""Key of the log: mean distance between the log-probabilities of sampler and trainer."""
PROMPT_IDS, PROMPT_MASK, COMPLETION_IDS, COMPLETION_MASK = "prompt_ids", "prompt_mask", "completion_ids", "completion_mask"
ADVANTAGES, OLD_LOGPS, IMAGE_COUNTS = "advantages", "old_per_token_logps", "num_images"
"""Keys of a batch. OLD_LOGPS is there only if a pass of its own computed the log-probabilities under the sampling policy."""
STATE_VALUES = "state_values"
"""Field of LORE's own in an output of the fused output layer: the values of PPO, in the shape of log_probs."""

# Inputs of a forward pass in addition to the tokens, and the counts by which TRL assigns them to rows.
PHOTO_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids")
PHOTO_FIELDS = (*PHOTO_INPUTS, IMAGE_COUNTS, "num_tiles", "token_type_ids", "mm_token_type_ids")


@dataclass
class SampledGroup:
    """G completions to one prompt, as TRL takes them.

    given: tokens at the start of each completion that were not sampled; they get no policy loss.
    logprobs: the sampler's, per completion; vLLM returns them, transformers does not.
    rewards_G: nan for a completion without a reward, whose advantage is 0.
    """

    messages: list[dict]
    completion_ids: list[list[int]]
    logprobs: list[list[float]] | None
    rewards_G: np.ndarray
    given: int


class GroupRollouts:
    """GRPOTrainer on groups that a subclass samples, rewards and chooses itself. Its hooks, in the order of a step:

        training_step
          _prepare_inputs, once per rollout:
            vllm_generation.sync_weights       weights go to the sampler, once per step; then check_frozen
            _generate_and_score_completions    collect_groups(rows) -> the groups to learn from
              _generate, _calculate_rewards      answered from those groups
              advantages, old and reference log-probabilities: TRL's own
                                               finish_batch(batch, groups)
            shuffled and split                 arrange(micro_batches)
          _compute_loss, once per micro-batch: TRL's own
                                               total_loss(policy_loss, model, batch)
        _save_checkpoint                       save_beside(checkpoint)
        resuming                               load_weights_beside(checkpoint), load_beside(checkpoint)

    Shapes: B completions of a batch or micro-batch, T tokens of the longest completion.
    """

    kept_from_sampler: tuple[str, ...] = (".modules_to_save.",)
    """Parts of the names of weights that vLLM's model does not have and would refuse: here the reference adapter's copies of
    whole modules."""

    check_frozen: Callable[[str], None] | None = None
    """Called with a description after each hand-over of weights to vLLM. Raises LoreError if a frozen weight has changed."""

    marks_given_tokens = False
    """Whether batches carry the mask that `given_mask` reads."""

    logps_BT: torch.Tensor | None = None
    """Log-probabilities of the last forward pass."""

    def __init__(self, **arguments: Any):
        self._handed_over: list[SampledGroup] | None = None
        super().__init__(reward_funcs=[total], **arguments)
        if self.use_vllm:
            check_mergeable(self.model, self.vllm_generation.accelerator)
            self._hand_over_copies()

    # Hooks

    def collect_groups(self, rows: list[int]) -> list[SampledGroup]:
        """The groups that this process learns from, one for each scheduled row."""
        raise NotImplementedError

    def finish_batch(self, batch: Batch, groups: list[SampledGroup]) -> Batch:
        """TRL's batch after its advantages_B, before it is shuffled and split."""
        return batch

    def arrange(self, micro_batches: list[Batch]) -> list[Batch]:
        """The micro-batches of a new batch."""
        return micro_batches

    def before_scoring(self) -> None:
        """Called before the forward passes that compute log-probabilities."""

    def after_scoring(self, model: Any, tokens: int) -> None:
        """Called after them; logps_BT are those of `tokens` completion tokens."""

    def total_loss(self, policy_loss: torch.Tensor, model: Any, batch: Batch) -> torch.Tensor:
        """The loss of a micro-batch, of which a step takes the sum over its micro-batches and the mean over processes."""
        return policy_loss

    def saved_weights(self, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
        """The weights that go into a checkpoint; none takes the model's."""
        return state_dict

    def save_beside(self, checkpoint: Path) -> None:
        """Writes what the run needs beside weights, optimizer and random state. Called on every process."""

    def load_weights_beside(self, checkpoint: Path) -> None:
        """Reads weights that `save_beside` has written, when the model's are read."""

    def load_beside(self, checkpoint: Path) -> None:
        """Reads what `save_beside` has written, when the optimizer's state is read."""

    # What a subclass calls

    @property
    def reads_photos(self) -> bool:
        """Whether the model takes photos."""
        return self._is_vlm

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end an answer."""
        return self.eos_token_ids

    @property
    def logged(self) -> dict[str, list[float]]:
        """Values by name, whose mean is in the next line of the log."""
        return self._metrics["train"]

    @property
    def micro_batch_number(self) -> int:
        """Number of the current micro-batch since step 0 of the run, resumed or not."""
        per_step = self.args.gradient_accumulation_steps
        return self.state.global_step * per_step + self._step % per_step

    def tokenize(self, messages: list[list[dict]]) -> tuple[list[list[int]], list | None, dict[str, Any]]:
        """(token ids, photos, inputs of the vision tower and per-token fields) of prompts."""
        return self._tokenize_prompts(messages)

    def generate(self, prompt_ids: list, images: list | None, fields: dict, group: int) -> tuple[list[list[int]], list | None]:
        """(token ids, log-probabilities where vLLM samples) of a completion to each prompt. group: how many prompts in a row are
        the same one."""
        return self._generate_single_turn(prompt_ids, images, fields, group)

    def sample(self, messages: list[list[dict]], starts: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        """(token ids, log-probabilities) of completions that begin with the token ids `starts`, whose log-probabilities are nan."""
        prompt_ids, images, fields = self.tokenize(messages)
        behind = [list(ids) + start for ids, start in zip(prompt_ids, starts, strict=True)]
        fields = {key: _lengthened(value, starts) for key, value in fields.items()}
        sampled, logprobs = self.generate(behind, images, fields, self.num_generations)
        completions = [start + list(ids) for start, ids in zip(starts, sampled, strict=True)]
        if logprobs is not None:
            logprobs = [[float("nan")] * len(start) + list(values) for start, values in zip(starts, logprobs, strict=True)]
        return completions, logprobs

    def token_logps(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, tokens: int, **options: Any) -> torch.Tensor:
        """Log-probabilities [rows, tokens] of the last `tokens` tokens, as the loss computes them."""
        return self._get_per_token_logps_and_entropies(model, ids, mask, tokens, **options)[0]

    # TRL's methods

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        groups = self.collect_groups([example["row"] for example in inputs][:: self.num_generations])
        self._handed_over = groups
        try:
            prompts = [{"prompt": group.messages} for group in groups for _ in group.completion_ids]
            batch = super()._generate_and_score_completions(prompts)
        finally:
            self._handed_over = None
        return self.finish_batch(batch, groups)

    def _tokenize_prompts(self, prompts: list) -> tuple[list, list | None, dict]:
        ids, images, fields = super()._tokenize_prompts(prompts)
        # Processors take a prompt without a photo as an empty list, not as none.
        return ids, None if images is None else [shown or [] for shown in images], fields

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: dict, num_generations: int, **options: Any
    ) -> tuple:
        if self._handed_over is None:
            if self.use_vllm and images is not None:  # vLLM's side of TRL wants none, where processors want an empty list
                images = [shown or None for shown in images]
            # As the loss computes them; the weights that go to vLLM are merged in full precision.
            with nullcontext() if self.use_vllm else self.accelerator.autocast():
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **options)
        completions = [ids for group in self._handed_over for ids in group.completion_ids]
        if self._handed_over[0].logprobs is None:
            return completions, None
        return completions, [values for group in self._handed_over for values in group.logprobs]

    def _generate(self, prompts: list) -> tuple:
        ids, completions, mask, *rest = super()._generate(prompts)
        if self._handed_over is not None and self.marks_given_tokens:
            given = [group.given for group in self._handed_over for _ in group.completion_ids]
            mask = [[0] * start + [1] * (len(tokens) - start) for start, tokens in zip(given, completions, strict=True)]
        return ids, completions, mask, *rest

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> torch.Tensor:
        if self._handed_over is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards_B = np.concatenate([group.rewards_G for group in self._handed_over])
        column = torch.tensor(rewards_B, dtype=torch.float32, device=self.accelerator.device).unsqueeze(1)
        return self.accelerator.gather(column)

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if self._buffered_inputs is not buffered:
            self._buffered_inputs = self.arrange(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, *more: Any, **options: Any
    ) -> tuple:
        self.before_scoring()
        found = super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, *more, **options)
        self.logps_BT = found[0]
        self.after_scoring(model, logits_to_keep)
        return found

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        return self.total_loss(super()._compute_loss(model, inputs), model, inputs)

    def _hand_over_copies(self) -> None:
        sampler = self.vllm_generation
        named, hand_over = sampler._iter_named_params, sampler.sync_weights
        if isinstance(sampler.model, PeftModel):
            # TRL's own merges the adapter into the base in place and unmerges it, which rounds the base each time.
            def named() -> Iterator[tuple[str, torch.Tensor]]:
                return merged_weights(sampler)

        def sent() -> Iterator[tuple[str, torch.Tensor]]:
            return ((name, weight) for name, weight in named() if not any(part in name for part in self.kept_from_sampler))

        def hand_over_and_check() -> None:
            hand_over()
            if self.check_frozen is not None:
                self.check_frozen("after the weights went to the sampler")

        sampler._iter_named_params, sampler.sync_weights = sent, hand_over_and_check

    # The Trainer of transformers, below TRL's

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, self.saved_weights(state_dict))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.save_beside(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_weights_beside(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_beside(Path(checkpoint))


class TokenizedRows:
    """DPOTrainer or KTOTrainer on rows that are tokenized already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def total(completions: list, **_: Any) -> list[float]:
    """TRL wants a reward function and logs under its name; the groups bring their rewards."""
    raise LoreError("rewards are computed with the rollouts; TRL must not ask for them.")


def _lengthened(value: Any, starts: list[list[int]]) -> Any:
    """A per-token field of the prompts (lists), with zeros for the tokens that the completions begin with."""
    if isinstance(value, list) and value and isinstance(value[0], list) and any(starts):
        return [list(row) + [0] * len(start) for row, start in zip(value, starts, strict=True)]
    return value


# Weights for the sampler


def merged_weights(sampler: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(vLLM's name, whole weight) of every weight that the model computes with, with the active adapter merged in.

    sampler: TRL's VLLMGeneration with a PeftModel. The base stays as it is: the sum is computed in float32 on a copy of one module
    at a time, and rounded once to the dtype of the base. With several processes, all have to iterate together, because gathering
    a weight is collective.
    """
    model, device = sampler.model, sampler.accelerator.device
    backend = DistributedBackend(sampler.accelerator)
    reshard(model)
    adapters: dict[int, list[BaseTunerLayer]] = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            adapters.setdefault(id(module.get_base_layer()), []).append(module)
    seen: set[int] = set()
    for path, module in model.named_modules():
        if "original_module" in path or model.prefix in path:  # the frozen twin of a whole trained module; the adapter itself
            continue
        own = {name: weight for name, weight in module.named_parameters(recurse=False) if id(weight) not in seen}
        seen |= {id(weight) for weight in own.values()}
        prefix = path.removeprefix("base_model.model.").replace(".base_layer", "")
        names = {
            name: sampler._fix_param_name_to_vllm(f"{prefix}.{name}", extra_prefixes=["modules_to_save.default."]) for name in own
        }
        if own and id(module) in adapters:
            merged = _merged(module, adapters[id(module)], backend, device)
            yield from ((names[name], merged.pop(name)) for name in own)
            continue
        for name, weight in own.items():
            with backend.gather_params([weight]):
                yield names[name], _whole(weight, device)


@torch.no_grad()
def _merged(base: torch.nn.Module, adapters: list[BaseTunerLayer], backend: DistributedBackend, device: Any) -> dict[str, Any]:
    """The base module's weights by name, with its adapters merged in by PEFT's own code, which sees float32 copies."""
    modules = {id(module): module for adapter in adapters for module in adapter.modules()}.values()
    places = [(module, name, weight) for module in modules for name, weight in module.named_parameters(recurse=False)]
    dtypes = {name: weight.dtype for module, name, weight in places if module is base}
    before = [(adapter, list(adapter.merged_adapters)) for adapter in adapters]
    try:
        with backend.gather_params([weight for *_, weight in places]):
            for module, name, weight in places:
                copy = _whole(weight, device).to(torch.promote_types(weight.dtype, torch.float32), copy=True)
                module._parameters[name] = torch.nn.Parameter(copy, requires_grad=False)
        with torch.autocast(device.type, enabled=False):
            for adapter in adapters:
                adapter.merge()
        return {name: getattr(base, name).detach().to(dtype) for name, dtype in dtypes.items()}
    finally:
        for module, name, weight in places:
            module._parameters[name] = weight
        for adapter, merged in before:
            adapter.merged_adapters[:] = merged


def _whole(weight: torch.Tensor, device: Any) -> torch.Tensor:
    weight = weight.detach()
    if isinstance(weight, DTensor):  # FSDP2; gathering needs the device of the process group
        return weight.to(device).full_tensor()
    return weight


def check_mergeable(model: Any, accelerator: Any) -> None:
    """Raises LoreError before step 0 if the sampler's model cannot hold what a model with this adapter computes."""
    if not isinstance(model, PeftModel):
        return
    if DistributedBackend(accelerator).fsdp_version == 1:
        raise _no_hand_over(
            "FSDP version 1 flattens the weights of base and adapter together, so they cannot be merged module by module",
            "Set fsdp_version: 2 in the accelerate config (launch/accelerate/fsdp2.yaml)",
        )
    owners: dict[int, dict[int, str]] = {}  # weight of the base -> what the sampler gets in its place -> module
    for path, module in model.named_modules(remove_duplicate=False):
        if "original_module" in path or path.endswith("base_layer") or model.prefix in path:
            continue
        if isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
            if not hasattr(module, "scaling"):
                raise _no_hand_over(f"{path} is a {type(module).__name__}, no LoRA layer", "Merge that adapter into the base first")
            for weight in base.parameters(recurse=False):
                if not weight.is_floating_point():
                    raise _no_hand_over(
                        f"{path} is quantized, and merging would round the adapter to 4 bits", "Remove model.quantize"
                    )
                owners.setdefault(id(weight), {})[id(base)] = path
        elif isinstance(module, ModulesToSaveWrapper):
            trained = module.modules_to_save[module.active_adapters[0]]
            for name, weight in module.original_module.named_parameters():
                owners.setdefault(id(weight), {})[id(trained.get_parameter(name))] = path
        else:
            for weight in module.parameters(recurse=False):
                owners.setdefault(id(weight), {})[id(weight)] = path
    for paths in owners.values():
        if len(paths) > 1:
            raise _no_hand_over(
                f"{' and '.join(paths.values())} are tied in the base, and the adapter changes them separately",
                "Leave these modules out of model.lora, or train an adapter from elsewhere again: model.lora.modules_to_save "
                "trains embeddings that share a weight as one",
            )


def _no_hand_over(why: str, fix: str) -> LoreError:
    return LoreError(
        f"rollout.engine is vLLM, whose model gets base and adapter merged: {why}. The sampler would not be the trained judge.\n"
        f"{fix}, or sample with rollout.engine: transformers.",
        same_on_every_rank=True,
    )


# Batches


def sampled_mask(batch: Batch) -> torch.Tensor:
    """1 [B, T] for the tokens that take part in the policy's loss. TRL calls tokens that were not sampled those of a tool."""
    return batch[COMPLETION_MASK] * batch.get("tool_mask", 1)


def given_mask(batch: Batch) -> torch.Tensor:
    """1 [B, T] for the tokens that completions were begun with. Only where the trainer `marks_given_tokens`."""
    return batch[COMPLETION_MASK] * (1 - batch["tool_mask"])


def scored_batch(batch: Batch) -> dict[str, Any]:
    """A batch as `GroupRollouts.token_logps` takes it."""
    return {
        "ids": torch.cat([batch[PROMPT_IDS], batch[COMPLETION_IDS]], dim=1),
        "mask": torch.cat([batch[PROMPT_MASK], batch[COMPLETION_MASK]], dim=1),
        "tokens": batch[COMPLETION_IDS].shape[1],
        **{name: batch[name] for name in PHOTO_FIELDS if name in batch},
    }


def joined(micro_batches: list[Batch]) -> Batch:
    """One batch of all rows, whose photos lie row by row: lists where rows have different numbers of them."""

    def together(values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, torch.Tensor):
            return torch.cat(values) if first.ndim else first
        return first if first is None else [one for value in values for one in value]

    return split_pixel_values_by_grid({name: together([one[name] for one in micro_batches]) for name in micro_batches[0]})


def divided(batch: Batch, count: int) -> list[Batch]:
    """`count` micro-batches of a batch as `joined` makes it."""
    return [unsplit_pixel_values_by_grid(one) for one in split_tensor_dict(batch, count)]


# TRL's fused output layer


def fused_logps(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities [rows, tokens - 1] of the batch's labels, from a model with TRL's fused output layer."""
    return model(**batch, fused_lm_head=True).log_probs


def fused_inputs(options: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor] | None:
    """(the model's own inputs, labels) of a forward pass with these keyword arguments; None for other passes than those for
    log-probabilities, and for shifted labels."""
    labels = options.get("labels")
    if not is_fused_pass(options) or labels is None or options.get("shift_labels") is not None:
        return None
    return {name: value for name, value in options.items() if name not in ("labels", "fused_lm_head")}, labels


def fused_pass(forward: Callable[..., Any], batch: dict[str, Any], next_labels: torch.Tensor) -> Any:
    """TRL's output of a forward pass whose hidden states [1, N] belong to the labels [1, N] of the tokens after them."""
    return forward(**batch, shift_labels=next_labels, fused_lm_head=True)


def gather_output_layer(base: Any) -> None:
    """Makes the weights of the output layer whole before a `fused_pass`; the backward pass shards them again.

    FSDP2 makes a trained copy of the layer (modules_to_save) a unit of its own, which gathers its weights when the layer is called.
    The fused output layer reads the weights without a call and would gather them itself, so that each process would keep the
    gradient of its own rows alone.
    """
    for module in base.get_output_embeddings().modules():
        if isinstance(module, FSDPModule):
            module.unshard()


def before_labels(hidden: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Of the hidden states of a forward pass with these keyword arguments, those whose next token is a column of its labels: all in
    a `fused_pass`, otherwise all but the last of each row."""
    return hidden if options.get("shift_labels") is not None else hidden[:, :-1]


def per_token_fields(output: Any, labeled: torch.Tensor) -> Any:
    """An output of `fused_pass` with its fields in the shape of `labeled` [rows, tokens - 1], which is true for the N labels. Like
    TRL's, they are zero elsewhere."""
    for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", STATE_VALUES):
        if (values := output.get(name)) is not None:
            setattr(output, name, values.new_zeros(labeled.shape).masked_scatter(labeled.to(values.device), values))
    output.label_mask = labeled
    return output


def logit_tile(labels: int, vocabulary: int) -> int:
    """Number of logits that the fused output layer computes at a time."""
    return min(labels, TOKEN_CHUNK_SIZE) * min(vocabulary, _CHUNKED_LOGPROB_CHUNK_SIZE)


def is_fused_pass(options: dict[str, Any]) -> bool:
    """Whether a forward pass with these keyword arguments goes through the fused output layer."""
    return bool(options.get("fused_lm_head"))


# Generation


@contextmanager
def unwrapped_for_generation(trainer: Any) -> Iterator[tuple[Any, bool]]:
    """(the trainer's model with whole weights, without the wrapper for several processes and without gradients; whether FSDP
    shares its weights)."""
    accelerator, wrapped = trainer.accelerator, trainer.model_wrapped
    backend = DistributedBackend(accelerator)
    checkpointing = getattr(trainer.args, "gradient_checkpointing_kwargs", None)
    with (
        unwrap_model_for_generation(wrapped, accelerator, gradient_checkpointing_kwargs=checkpointing) as model,
        torch.no_grad(),
        backend.summon_full_params(wrapped, recurse=False),
    ):
        yield model, backend.is_fsdp
